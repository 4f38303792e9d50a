"""Real harm to real processes of a build: nothing committed is lost or solved again, nothing is left without a word."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest

from raymat.lock import held
from raymat.pipelines.build import Build, build
from raymat.sources.cases import CasesSource
from raymat.store import Store
from tests.support import REPOSITORY, quiet
from tests.support.cases import OPTIONS, PARAMETERS, arrays, first_cases, write_cases
from tests.support.harm import HARM, await_commits, committed, harmful, start, without_cluster

# Each builds many times over, in processes that start anew: slow machines need longer than other tests may take.
pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def cases(ray_cluster, tmp_path_factory):
    """A table of 60 small nodules and the arrays of an undisturbed build."""
    folder = tmp_path_factory.mktemp("harm")
    table = write_cases(folder / "cases", 60)
    store = Store.create(folder / "undisturbed")
    build(Build(store, CasesSource(table), PARAMETERS), say=quiet)
    return table, arrays(store.root)


def test_a_driver_killed_at_any_moment_loses_nothing_and_repeats_nothing(cases, tmp_path):
    table, expected = cases
    out, record = tmp_path / "dataset", tmp_path / "solves"
    record.touch()
    dice = random.Random(int(os.environ.get("RAYMAT_SEED", "0")))
    seen = set()
    for kill in range(20):
        before, lines = committed(out), len(record.read_text().splitlines())
        process = start(table, out, record=str(record), slow=0.4)
        if kill % 2:
            await_commits(out, min(len(before) + dice.randint(1, 5), 60), process, limit_s=120)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(dice.uniform(0.0, 0.5) if kill % 2 else dice.uniform(0.5, 8.0))
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=300)
        seen.add(len(committed(out)))
        assert before <= committed(out)
        assert not before & set(record.read_text().splitlines()[lines:]), "a committed nodule was solved again"
    before, lines = committed(out), len(record.read_text().splitlines())
    said, _ = (process := start(table, out, record=str(record))).communicate(timeout=900)
    assert process.returncode == 0, said
    assert len(seen - {0, 60}) > 3, "the build was hardly ever killed in its midst"
    assert not before & set(record.read_text().splitlines()[lines:])
    assert arrays(out) == expected
    assert not list(out.rglob("*.tmp")), "unfinished writes were left"


def test_a_nodule_that_kills_its_worker_or_hangs_fails_alone_and_can_be_retried(cases, tmp_path):
    table, expected = cases
    few = first_cases(table, 8)
    out, record = tmp_path / "dataset", tmp_path / "solves"
    harm = {"record": str(record), "exit": "case1", "kill": "case4", "hang": "case6"}
    said, _ = (process := start(few, out, "--nodule-timeout", "12", **harm)).communicate(timeout=900)
    assert process.returncode == 1, said
    rows = {row["nodule_id"]: row for row in Store.open(out).outcomes().to_pylist()}
    failed = {name: row["reason"] for name, row in rows.items() if row["outcome"] == "failed"}
    assert set(failed) == {"case1", "case4", "case6"}
    assert "worker died 3 times" in failed["case1"]
    assert "worker died 3 times" in failed["case4"]
    assert "longer than 12 s, 3 times" in failed["case6"]
    assert all(f"failed {name}" in said for name in failed)
    tries = Counter(record.read_text().splitlines())
    assert {name: tries[name] for name in failed} == dict.fromkeys(failed, 3)
    said, _ = (process := start(few, out, "--retry-failed", record=str(record))).communicate(timeout=900)
    assert process.returncode == 0, said
    assert arrays(out) == {key: data for key, data in expected.items() if key[0] in rows}


def test_a_driver_that_dies_gives_a_deadly_nodule_no_new_tries(cases, tmp_path):
    table, _ = cases
    few = first_cases(table, 4)
    out, record = tmp_path / "dataset", tmp_path / "solves"
    record.touch()
    process = start(few, out, record=str(record), exit="case1")
    deadline = time.monotonic() + 300
    while record.read_text().split().count("case1") < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.communicate(timeout=300)
    assert not any(row["nodule_id"] == "case1" for row in Store.open(out).outcomes().to_pylist())
    said, _ = (process := start(few, out, record=str(record), exit="case1")).communicate(timeout=900)
    assert process.returncode == 1, said
    assert "worker died 3 times" in said
    assert record.read_text().split().count("case1") <= 3
    assert not Store.open(out).listing("died")


def test_a_second_build_of_the_same_output_is_refused_while_the_first_lives(cases, tmp_path):
    table, _ = cases
    out, record = tmp_path / "dataset", tmp_path / "solves"
    first = start(table, out, record=str(record), slow=1.0)
    await_commits(out, 3, first)
    said, _ = (second := start(table, out, record=str(tmp_path / "other"))).communicate(timeout=300)
    assert second.returncode == 2
    assert f"process {first.pid} on" in said
    assert not (tmp_path / "other").exists()
    first.kill()
    first.communicate(timeout=300)
    with held(Store.open(out), "taken over at once, as its process is gone"):
        assert committed(out)


LOSING_A_NODE = """
import sys, threading, time
import ray
from ray.cluster_utils import Cluster
from raymat.pipelines.build import Build, build
from raymat.engine.cluster import Pools
from raymat.sources.cases import CasesSource
from raymat.store import Store
from tests.support.cases import PARAMETERS

table, out = sys.argv[1:]
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
node = cluster.add_node(num_cpus=1)
store = Store.create(out)

def harm():
    while len(store.listing("nodules")) < 6:
        time.sleep(0.2)
    cluster.remove_node(node, allow_graceful=False)
    print("node removed", flush=True)
    time.sleep(3)
    cluster.add_node(num_cpus=1)

thread = threading.Thread(target=harm)
thread.start()
result = build(Build(store, CasesSource(table), PARAMETERS, Pools(workers=2, cpus=0.6), address=cluster.address))
thread.join()
print("outcomes", dict(result.counts), flush=True)
cluster.shutdown()
"""


def test_a_build_goes_on_when_a_node_is_gone(cases, tmp_path):
    table, expected = cases
    out = tmp_path / "dataset"
    environment = without_cluster() | harmful(record=str(tmp_path / "solves"), slow=0.4)
    environment["PYTHONPATH"] = f"{HARM}{os.pathsep}{REPOSITORY}"
    command = [sys.executable, "-c", LOSING_A_NODE, table, str(out)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "node removed" in done.stdout
    assert arrays(out) == expected


FULL_DISK = """
mkdir "$OUT" && mount -t tmpfs -o size="$SIZE" tmpfs "$OUT" || exit 99
"$@"
echo "status $?"
ls "$OUT"/nodules/*/* | grep -c parquet
find "$OUT" -name "*.tmp"
mount -o remount,size=64m "$OUT"
"$@"
echo "status $?"
cp -r "$OUT" "$KEPT"
"""


def test_a_full_disk_stops_the_build_with_a_clear_word_and_it_goes_on_when_there_is_room(cases, tmp_path):
    if subprocess.run(["unshare", "-Urm", "true"], check=False).returncode:
        pytest.skip("this machine allows no mount in a namespace of its own")
    table, expected = cases
    few = first_cases(table, 12)
    places = {"OUT": str(tmp_path / "out"), "KEPT": str(tmp_path / "kept"), "SIZE": "500k"}
    environment = without_cluster() | places
    command = ["unshare", "-Urm", "sh", "-c", FULL_DISK, "sh", sys.executable, "-m", "raymat", "build"]
    command += ["--cases", few, "-o", places["OUT"], *OPTIONS, "--no-tracking"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900, check=False)
    first, _, then = done.stdout.partition("status ")
    assert then.startswith("2\n"), done.stdout + done.stderr
    assert 0 < int(then.splitlines()[1]) < 12
    assert ".tmp" not in then
    assert "No space left on device" in first + done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    assert then.splitlines()[-1] == "status 0", done.stdout + done.stderr
    assert arrays(tmp_path / "kept") == {key: data for key, data in expected.items() if int(key[0][4:]) < 12}
