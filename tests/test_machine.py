"""What the machine allows, and what is said where something is in the way: one line, before Ray is asked."""

import json
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest

from raymat import machine
from raymat.cli import main
from raymat.errors import InputError
from tests.support import REPOSITORY
from tests.support.cases import OPTIONS, write_cases

NOBODY = 65534
OTHERS_FILES = pytest.mark.skipif(
    not (hasattr(os, "getuid") and os.getuid() == 0 and shutil.which("setpriv")), reason="needs root and setpriv"
)


def raymat(*arguments: str, prefix: tuple[str, ...] = (), **variables: str) -> subprocess.CompletedProcess[str]:
    """A command in a process of its own, in a folder of no account."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MPL", "NUMBA"))}
    return subprocess.run(
        [*prefix, sys.executable, "-m", "raymat", *arguments],
        env=environment | {"PYTHONPATH": str(REPOSITORY), **variables},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


@pytest.fixture
def no_home(tmp_path) -> str:
    """A home that nobody can make, root included."""
    (tmp_path / "file").touch()
    return str(tmp_path / "file" / "home")


@pytest.fixture
def clean(monkeypatch, tmp_path) -> Path:
    """A home of its own and no variable of Ray."""
    for name in ("RAY_TMPDIR", "TMPDIR", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


# CPUs, memory, shared memory ------------------------------------------------------------------------------------------


@pytest.mark.skipif(not shutil.which("taskset"), reason="needs taskset")
def test_of_a_bound_process_only_its_cpus_count():
    code = "from raymat.machine import usable_cpus; print(usable_cpus())"
    command = ["taskset", "-c", str(min(os.sched_getaffinity(0))), sys.executable, "-c", code]
    assert subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout == "1\n"


@pytest.mark.parametrize(
    ("files", "cpus", "gib"),
    [
        ({"cpu.max": "max 100000", "memory.max": "max"}, 64, 256),
        ({"cpu.max": "250000 100000", "memory.max": str(8 * machine.GIB)}, 2, 8),
        ({"cpu.max": "50000 100000"}, 1, 256),
        ({"job/cpu.max": "400000 100000", "job/memory.max": str(4 * machine.GIB), "memory.max": "max"}, 4, 4),
        ({"job/step/memory.max": "max", "job/memory.max": str(2 * machine.GIB)}, 64, 2),
    ],
)
def test_limits_of_the_control_group_and_of_those_above_it_count(monkeypatch, tmp_path, files, cpus, gib):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(machine, "CGROUPS", tmp_path)
    monkeypatch.setattr(machine, "_own_groups", lambda: "0::/job/step\n")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    monkeypatch.setattr("psutil.virtual_memory", lambda: namedtuple("Memory", "total")(256 * machine.GIB))
    assert machine.usable_cpus() == cpus
    assert machine.usable_memory_bytes() == gib * machine.GIB


@pytest.mark.parametrize(
    ("memory_gib", "shared_gib", "most_gib"), [(8, 256, 8 / 3), (8, 0.0625, 0.1), (256, 1, 0.9), (2, None, 2 / 3)]
)
def test_sixty_four_cpus_ask_for_no_more_than_memory_and_shared_memory_have(
    monkeypatch, memory_gib, shared_gib, most_gib
):
    monkeypatch.setattr(machine, "usable_memory_bytes", lambda: memory_gib * machine.GIB)
    monkeypatch.setattr(machine, "shared_memory_bytes", lambda: shared_gib and int(shared_gib * machine.GIB))
    for holds_dataset in (False, True):
        store = machine.object_store_bytes(64, holds_dataset)
        assert machine.LEAST_STORE_BYTES <= store <= most_gib * machine.GIB


# Folders and the token ------------------------------------------------------------------------------------------------


def test_nothing_is_in_the_way_of_a_plain_user(clean):
    assert machine.start_troubles() == []
    machine.refuse_to_start()
    assert not machine.has_token()
    assert machine.can_keep_token()


@pytest.mark.parametrize("variable", ["RAY_TMPDIR", "TMPDIR"])
def test_a_temporary_folder_too_long_for_sockets_is_refused_and_the_remedy_is_taken(clean, monkeypatch, variable):
    free = 107 - len(f"/ray/session_2026-01-01_00-00-00_000000_{os.getpid()}/sockets/plasma_store")
    monkeypatch.setenv(variable, "/tmp/" + "x" * (free - 5))
    machine.refuse_to_start()
    monkeypatch.setenv(variable, "/tmp/" + "x" * (free - 2))
    with pytest.raises(InputError, match=r"3 characters too long.*set RAY_TMPDIR"):
        machine.refuse_to_start()
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")
    machine.refuse_to_start()


def test_a_temporary_folder_that_cannot_be_made_is_refused(clean, monkeypatch):
    (clean / "file").touch()
    monkeypatch.chdir(clean)
    monkeypatch.setenv("RAY_TMPDIR", "file/folder")
    monkeypatch.setattr(machine, "SOCKET_BYTES", 1_000)  # pytest's own folders are long
    with pytest.raises(InputError, match="cannot be written"):
        machine.refuse_to_start()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: path.write_text(" \n"), "is empty; delete it"),
        (lambda path: path.mkdir(), "cannot be read"),
        (lambda path: path.write_bytes(b"\xff\xfe"), "cannot be read"),
    ],
)
def test_a_token_file_that_is_none_is_refused_unless_the_environment_has_the_token(clean, monkeypatch, make, words):
    (clean / ".ray").mkdir()
    make(clean / ".ray" / "auth_token")
    with pytest.raises(InputError, match=words):
        machine.refuse_to_start()
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0" * 64)
    machine.refuse_to_start()


def test_a_token_file_that_the_environment_names_must_be_there(clean, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(clean / "none"))
    with pytest.raises(InputError, match=r"none, which RAY_AUTH_TOKEN_PATH names, does not exist"):
        machine.refuse_to_start()


@pytest.mark.slow
@OTHERS_FILES
@pytest.mark.parametrize(("what", "words"), [("token", "it belongs to nobody"), ("tmp", "set RAY_TMPDIR")])
def test_a_build_says_in_one_line_which_file_of_another_user_is_in_the_way(tmp_path, what, words):
    table = write_cases(tmp_path / "cases", 1)
    (tmp_path / "home" / ".ray").mkdir(parents=True)
    token, ray = tmp_path / "home" / ".ray" / "auth_token", tmp_path / "tmp" / "ray"
    ray.mkdir(parents=True)
    if what == "token":
        token.write_text("0" * 64)
        token.chmod(0o600)
    ray.chmod(0o755)
    os.chown(token if what == "token" else ray, NOBODY, NOBODY)
    # Root without its rights over others' files is a user like any other, who can run this interpreter.
    user = ("setpriv", "--bounding-set=-all", "--inh-caps=-all")
    temporary = Path("/tmp") / f"raymat-{os.getpid()}"
    temporary.symlink_to(tmp_path / "tmp")
    try:
        done = raymat(
            *("build", "--cases", table, "-o", str(tmp_path / "out"), *OPTIONS, "--no-tracking"),
            prefix=user,
            HOME=str(tmp_path / "home"),
            RAY_TMPDIR=str(temporary),
        )
    finally:
        temporary.unlink()
    assert done.returncode == 2, done.stderr
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_folder_can_be_made_where_the_nearest_one_that_is_there_can_be_written(tmp_path):
    assert machine.can_make(tmp_path / "a" / "b")
    (tmp_path / "file").touch()
    assert not machine.can_make(tmp_path / "file" / "a")
    assert not machine.can_make(tmp_path / "file")


@pytest.mark.parametrize(("path", "quoted"), [("/opt/a b/python", "'/opt/a b/python'"), ("/opt/python3.11", None)])
def test_an_interpreter_behind_a_space_is_quoted_for_the_shell(monkeypatch, path, quoted):
    monkeypatch.setattr(sys, "executable", path)
    assert machine.quoted_interpreter() == quoted


# A user without a home ------------------------------------------------------------------------------------------------


UNNAMED = ("unshare", "--user", "--map-user=12345")


def can_be_unnamed() -> bool:
    """Whether this system maps a user to another."""
    if not shutil.which("unshare"):
        return False
    return subprocess.run([*UNNAMED, "true"], capture_output=True, check=False).returncode == 0


@pytest.mark.slow
def test_commands_without_ray_run_for_a_user_without_a_home_or_a_name(tmp_path, no_home):
    prefix = UNNAMED if can_be_unnamed() else ()
    folder = Path(write_cases(tmp_path / "cases", 1)).parent
    image, mask = str(folder / "0.nii.gz"), str(folder / "0.r0.nii.gz")
    matte = ["matte", image, "--mask", mask, "-o", str(tmp_path / "alpha.nii.gz"), "--method", "cf"]
    for arguments in (["--version"], ["--help"], matte, ["phantom", "-n", "1", "-o", str(tmp_path / "tree")]):
        done = raymat(*arguments, prefix=prefix, HOME=no_home, NUMBA_CACHE_DIR=no_home)
        assert done.returncode == 0, done.stderr
        assert done.stdout


# raymat doctor --------------------------------------------------------------------------------------------------------


def items(out: str) -> dict[str, dict]:
    return {item["name"]: item for item in json.loads(out)["items"]}


def test_the_doctor_names_what_there_is_and_changes_nothing(clean, monkeypatch, capsys):
    monkeypatch.chdir(clean)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    before = set(clean.rglob("*"))
    assert main(["doctor", "--json"]) == 0
    found = items(capsys.readouterr().out)
    assert {"raymat", "Python", "ray", "torch", "mlflow", "CPUs", "memory", "GPUs", "home"} <= found.keys()
    assert found["CPUs"]["value"] == f"{machine.usable_cpus()} usable of {os.cpu_count()}"
    assert not any(item["trouble"] for item in found.values())
    assert set(clean.rglob("*")) == before
    assert main(["doctor"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "all works"


def test_the_doctor_marks_what_would_not_work_says_what_to_set_and_fails(clean, monkeypatch, capsys):
    monkeypatch.setenv("RAY_TMPDIR", "/tmp/" + "x" * 80)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(clean / "none"))
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    assert main(["doctor", "--json", "--tracking-uri", "http://me:secret@127.0.0.1:9"]) == 1
    out = capsys.readouterr().out
    assert "secret" not in out
    troubles = {name: item["trouble"] for name, item in items(out).items() if item["trouble"]}
    assert set(troubles) == {"Ray's folder", "Ray's token", "MLflow store"}
    assert "RAY_TMPDIR=/tmp" in troubles["Ray's folder"]
    assert "RAY_AUTH_TOKEN_PATH" in troubles["Ray's token"]
    assert "MLFLOW_TRACKING_URI" in troubles["MLflow store"]
    assert main(["doctor", "--tracking-uri", "http://127.0.0.1:9"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "would not work: Ray's folder, Ray's token, MLflow store"
    assert sum(line.startswith("!") for line in lines) == 3
