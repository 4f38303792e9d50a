"""Real harm to real processes of a build: nothing committed is lost or solved again, nothing is left without a word."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import pytest

from raymat.cli import main
from raymat.folder import Folder
from raymat.lock import NAME, Holder, held
from raymat.nodule import InputError
from raymat.sources.cases import CasesSource
from raymat.store import Store
from tests.support import REPOSITORY
from tests.support.cases import (
    OPTIONS,
    REAL_OPTIONS,
    REAL_PARAMETERS,
    arrays,
    arrays_without_ray,
    first_cases,
    of_first,
    real_cases,
    write_cases,
)
from tests.support.harm import await_commits, committed, harmful, start, without_cluster
from tests.support.harm.harmed import harmed

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def build(table: str, out, *arguments: str) -> int:
    """`raymat build` in this process by one worker of the session's cluster."""
    command = ["build", "--cases", table, "-o", str(out), *OPTIONS, "--no-tracking", "--workers", "1"]
    return main([*command, *arguments])


def kill(process: subprocess.Popen) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=300)


def planned(out) -> bool:
    """Whether a build of this output has begun."""
    try:
        return bool(Store.open(out).listing("worklist"))
    except InputError:
        return False


def amid_the_work(out: Path, most: int, dice: random.Random) -> Callable[[subprocess.Popen, int], None]:
    """For ``KilledDrivers.kill``: up to half a second after the next few commits."""

    def wait(process: subprocess.Popen, before: int) -> None:
        await_commits(out, min(before + dice.randint(1, 5), most), process)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(dice.uniform(0.0, 0.5))

    return wait


class KilledDrivers:
    """A build of ``table`` whose driver is killed again and again, and what may not happen meanwhile.

    ``harm`` as in ``Harmed``; ``deadly`` are the nodules that may fail by it, until they are retried at the end.
    """

    def __init__(self, table: str, folder: Path, *arguments: str, deadly: Sequence[str] = (), **harm: object) -> None:
        self.table, self.out, self.record = table, folder / "dataset", folder / "solves"
        self.arguments, self.deadly = arguments, set(deadly)
        self.harm = {"record": str(self.record), "out": str(self.out), **harm}
        self.record.touch()
        self.seen: set[int] = set()

    def kill(self, when: Callable[[subprocess.Popen, int], None], address: str | None = None) -> None:
        """Start the build, and kill it when ``when(process, commits before)`` returns."""
        before, solves = committed(self.out), len(self.solves())
        process = start(self.table, self.out, *self.arguments, address=address, **self.harm)
        try:
            when(process, len(before))
        finally:
            kill(process)
        self.seen.add(len(committed(self.out)))
        assert before <= committed(self.out)
        self.nothing_was_repeated(before, solves)

    def finish(self, expected: dict) -> None:
        """Run the same command to its end, and retry what has failed."""
        before, solves = committed(self.out), len(self.solves())
        # As a worker leaves it that is killed amid a write, which happens seldom.
        (self.out / "nodules" / "left.parquet.0123456789ab.tmp").write_bytes(b"half")
        with harmed(**self.harm | {"slow": 0.0}):
            build(self.table, self.out, *self.arguments)
            assert committed(self.out, failed=True) <= self.deadly
            assert build(self.table, self.out, *self.arguments, "--retry-failed") == 0
        self.nothing_was_repeated(before, solves)
        assert arrays(self.out) == expected
        assert not list(self.out.rglob("*.tmp")), "unfinished writes were left"
        assert not Store.open(self.out).listing("died")

    def solves(self) -> list[str]:
        return self.record.read_text().splitlines()

    def nothing_was_repeated(self, before: set[str], solves: int) -> None:
        """No nodule of ``before`` was solved after so many solves, and none at all after its commit."""
        since = self.solves()[solves:]
        assert not before & set(since), "a committed nodule was solved again"
        assert not [line for line in since if line.endswith(" again")]


def test_a_driver_killed_before_and_amid_the_work_loses_nothing_and_repeats_nothing(cases, address, tmp_path):
    table, expected = cases
    build = KilledDrivers(table, tmp_path, slow=0.3)

    def after_the_plan(process: subprocess.Popen, _: int) -> None:
        deadline = time.monotonic() + 120
        while not planned(build.out) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        assert process.poll() is None, process.stdout.read()

    build.kill(after_the_plan, address)
    build.kill(lambda process, before: await_commits(build.out, before + 3, process), address)
    assert build.seen - {0, 20}, "the build was not killed in its midst"
    build.finish(expected)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_a_driver_killed_at_any_moment_loses_nothing_and_repeats_nothing(ray_cluster, tmp_path, seed, soaked):
    table = write_cases(tmp_path / "cases", 60)
    build, kills, dice = KilledDrivers(table, tmp_path, slow=0.4), soaked(20), random.Random(seed)

    def any_moment(process: subprocess.Popen, _: int) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(dice.uniform(0.5, 8.0))

    for number in range(kills):
        build.kill(amid_the_work(build.out, 60, dice) if number % 2 else any_moment)
        print(f"kill {number + 1} of {kills}: {len(committed(build.out))} nodules committed", flush=True)
    assert len(build.seen - {0, 60}) > kills / 6, "the build was hardly ever killed in its midst"
    build.finish(arrays_without_ray(table))


@pytest.mark.soak
@pytest.mark.data
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("apart", [False, True], ids=["together", "apart"])
def test_real_crops_that_kill_or_hang_their_workers_while_drivers_are_killed(
    ray_cluster, real_data, tmp_path, seed, soaked, apart
):
    dice = random.Random(f"{seed} {apart}")
    for number in range(soaked(1)):
        table = real_cases(real_data, tmp_path / str(number) / "cases", 16, dice)
        names = [ref.nodule_id for ref in CasesSource(table).plan()]
        # Two workers: batches of four (0 to 3), three, two, and one each.
        deadly = dice.sample([names[i] for i in (1, 2, 5, 8)], 3)
        harm = dict(zip(("exit", "kill", "hang"), deadly, strict=True)) | {"times": dice.choice((1, 2))}
        arguments = [*REAL_OPTIONS, "--nodule-timeout", "40", *["--apart"] * apart]
        build = KilledDrivers(table, tmp_path / str(number), *arguments, deadly=deadly, **harm)
        for _ in range(4):
            build.kill(amid_the_work(build.out, 16, dice))
            print(f"{harm}: {len(committed(build.out))} nodules committed", flush=True)
        build.finish(arrays_without_ray(table, REAL_PARAMETERS))
        assert set(build.solves()) == set(names)


def test_a_nodule_that_kills_its_worker_or_hangs_fails_alone_and_can_be_retried(ray_cluster, cases, tmp_path, capfd):
    table, expected = cases
    few = first_cases(table, 10)
    out, record = tmp_path / "dataset", tmp_path / "solves"
    # One worker: batches of five (case0 to case4), two (case5, case6), and one each.
    after = {"case1": 1, "case3": 2}
    with harmed(record=str(record), kill="case1", hang="case3", once="case5", after=after, out=str(out)):
        assert build(few, out, "--nodule-timeout", "5") == 1
    said = capfd.readouterr().out
    rows = {row["nodule_id"]: row for row in Store.open(out).outcomes().to_pylist()}
    failed = {name: row["reason"] for name, row in rows.items() if row["outcome"] == "failed"}
    assert set(failed) == {"case1", "case3"}
    assert "worker died 3 times" in failed["case1"]
    assert "longer than 5 s, 3 times" in failed["case3"]
    assert all(f"failed {name}" in said for name in failed)
    # One death is a try and no more. Their neighbours were not solved again, in the same batch or elsewhere.
    tries = {"case1": 3, "case3": 3, "case5": 2}
    assert Counter(record.read_text().splitlines()) == {name: tries.get(name, 1) for name in rows}
    assert not Store.open(out).listing("died")
    assert build(few, out, "--retry-failed") == 0
    assert arrays(out) == of_first(10, expected)


def test_a_driver_that_dies_gives_a_deadly_nodule_no_new_tries(cases, address, tmp_path, capfd):
    table, _ = cases
    few = first_cases(table, 4)
    out, record = tmp_path / "dataset", tmp_path / "solves"
    record.touch()
    process = start(few, out, "--workers", "1", address=address, record=str(record), exit="case1")
    deadline = time.monotonic() + 300
    while record.read_text().split().count("case1") < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    kill(process)
    assert not any(row["nodule_id"] == "case1" for row in Store.open(out).outcomes().to_pylist())
    with harmed(record=str(record), exit="case1"):
        assert build(few, out) == 1
    assert "worker died 3 times" in capfd.readouterr().out
    assert record.read_text().split().count("case1") <= 3
    assert not Store.open(out).listing("died")


def test_a_second_build_of_the_same_output_is_refused_while_the_first_lives(cases, address, tmp_path, capfd):
    table, _ = cases
    out, record = tmp_path / "dataset", tmp_path / "solves"
    first = start(table, out, "--workers", "1", address=address, record=str(record), slow=1.0)
    try:
        await_commits(out, 2, first)
        with harmed(record=str(tmp_path / "other")):
            assert build(table, out) == 2
        assert f"process {first.pid} on" in capfd.readouterr().err
        assert not (tmp_path / "other").exists()
    finally:
        kill(first)
    with held(Store.open(out), "taken over at once, as its process is gone"):
        assert committed(out)


def test_a_build_whose_lock_was_taken_over_while_it_was_suspended_stops(cases, address, tmp_path):
    """What a laptop's lid does to it: another command has long begun when it wakes up."""
    table, _ = cases
    out, record = tmp_path / "dataset", tmp_path / "solves"
    first = start(table, out, "--workers", "1", address=address, record=str(record), slow=30.0)
    try:
        while not record.exists():
            assert first.poll() is None
            time.sleep(0.1)
        first.send_signal(signal.SIGSTOP)
        taken = json.dumps(asdict(Holder.here("the second")))
        Folder.at(out).write(NAME, taken.encode())
        first.send_signal(signal.SIGCONT)
        said, _ = first.communicate(timeout=60)
    finally:
        kill(first)
    assert first.returncode == 2
    assert f"another (process {os.getpid()} on" in said
    assert "it has stopped" in said
    assert Folder.at(out).read(NAME).decode() == taken


LOSING_A_NODE = """
import sys, threading, time
import ray
from ray.cluster_utils import Cluster
from raymat.pipelines.build import Build, build
from raymat.engine.cluster import Pools
from raymat.sources.cases import CasesSource
from raymat.store import Store
from tests.support.cases import PARAMETERS
from tests.support.harm.harmed import harmed

table, out, record, apart = sys.argv[1:]
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
node = cluster.add_node(num_cpus=1)
store = Store.create(out)

def harm():
    while len(store.listing("nodules")) < 4:
        time.sleep(0.05)
    cluster.remove_node(node, allow_graceful=False)
    print("node removed", flush=True)
    cluster.add_node(num_cpus=1)

thread = threading.Thread(target=harm)
thread.start()
pools = Pools(workers=2, cpus=0.6, apart=apart == "apart", score_cpus=0.3)
with harmed(record=record, out=out, slow=0.3):
    result = build(Build(store, CasesSource(table), PARAMETERS, pools, address=cluster.address))
thread.join()
print("outcomes", dict(result.counts), flush=True)
cluster.shutdown()
"""


# In plain pytest a cluster that grows loses a node.
@pytest.mark.soak
@pytest.mark.parametrize("apart", ["together", "apart"])
def test_a_build_continues_when_a_node_is_gone(cases, tmp_path, apart):
    table, expected = cases
    out, record = tmp_path / "dataset", tmp_path / "solves"
    command = [sys.executable, "-c", LOSING_A_NODE, table, str(out), str(record), apart]
    environment = without_cluster() | harmful()
    done = subprocess.run(
        command, env=environment, cwd=REPOSITORY, capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "node removed" in done.stdout
    assert arrays(out) == expected
    assert "again" not in record.read_text()


FULL_DISK = """
import os, shutil, subprocess, sys
from pathlib import Path
from raymat.cli import main

out, kept, *command = sys.argv[1:]
os.mkdir(out)
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=500k", "tmpfs", out], check=True)
print("status", main(command), flush=True)
print(len(list(Path(out).glob("nodules/*/*.parquet"))), *Path(out).rglob("*.tmp"), flush=True)
subprocess.run(["mount", "-o", "remount,size=64m", out], check=True)
print("status", main(command), flush=True)
shutil.copytree(out, kept)
"""


def test_a_full_disk_stops_the_build_with_a_clear_word_and_it_resumes_when_there_is_room(cases, tmp_path):
    if subprocess.run(["unshare", "-Urm", "true"], check=False).returncode:
        pytest.skip("this machine allows no mount in a namespace of its own")
    table, expected = cases
    out, kept = str(tmp_path / "out"), str(tmp_path / "kept")
    command = ["unshare", "-Urm", sys.executable, "-c", FULL_DISK, out, kept]
    command += ["build", "--cases", first_cases(table, 12), "-o", out, *OPTIONS, "--no-tracking"]
    done = subprocess.run(
        command, env=without_cluster(), cwd=REPOSITORY, capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    _, _, then = done.stdout.partition("status ")
    assert then.startswith("2\n"), done.stdout + done.stderr
    number, *unfinished = then.splitlines()[1].split()
    assert 0 < int(number) < 12
    assert unfinished == []
    assert "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    assert then.splitlines()[-1] == "status 0", done.stdout + done.stderr
    assert arrays(kept) == of_first(12, expected)
