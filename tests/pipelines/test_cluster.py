"""Sizing of the pools: every CPU used, and never a build that cannot start."""

import contextlib
import os
import re
import shutil
import socket
import time
from collections import Counter
from dataclasses import replace

import psutil
import pytest
import ray
from ray._private import services

from raymat.engine.cluster import (
    LIST_CPUS,
    PIPELINE_CPUS,
    WORKERS_PER_PIPELINE,
    Pools,
    await_room,
    connected,
    thread_environment,
)
from raymat.engine.progress import Progress
from raymat.engine.ray_private import patient_start
from raymat.machine import object_store_bytes, usable_cpus, usable_memory_bytes
from raymat.nodule import InputError
from raymat.words import in_words
from tests.support.servers import free_port


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize(("cpus", "workers"), [(1, 1), (2, 2), (4, 4), (16, 16), (300, 300)])
def test_workers_fill_the_cluster_and_leave_room_for_the_work_list(cpus, workers, apart):
    pools = Pools(apart=apart).sized(cpus, memory_gib=4 * cpus)
    assert pools.workers == workers
    held = pools.workers * pools.cpus + (pools.scorers or 0) * pools.score_cpus
    assert held + LIST_CPUS <= cpus + 1e-6


def test_many_workers_are_shared_out_between_drivers_that_hold_cpus_too():
    pools = Pools().sized(1000, memory_gib=4000)
    assert pools.pipelines == 1000 / WORKERS_PER_PIPELINE + 0.5
    assert pools.workers >= 999
    assert pools.workers * pools.cpus + pools.pipelines * (LIST_CPUS + PIPELINE_CPUS) <= 1000


def test_a_cluster_that_grows_starts_with_what_there_is_and_knows_where_it_ends():
    pools = Pools(apart=True).growing(16, memory_gib=45, nodules=2600)
    assert (pools.workers, pools.most_workers) == (16, 2600)
    assert pools.scorers <= pools.most_scorers
    pools = Pools(workers=100).growing(16, memory_gib=45, nodules=2600)
    assert (pools.workers, pools.most_workers) == (16, 100)
    pools = Pools().growing(16, memory_gib=45, nodules=3)
    assert (pools.workers, pools.most_workers) == (3, 3)
    with pytest.raises(InputError, match="would never start"):
        Pools(cpus=32).growing(16, memory_gib=45, nodules=3)


@pytest.mark.parametrize("apart", [False, True])
def test_one_worker_of_each_stage_fits_one_cpu(apart):
    assert sum(bundle["CPU"] for bundle in Pools(apart=apart).one_of_each()) <= 1


@pytest.mark.ray
def test_where_no_room_comes_that_is_said_with_what_was_asked_for(ray_cluster):
    said = []
    with pytest.raises(InputError, match=r"needs 64 CPU and 2 GiB for a worker.*the cluster has 2 CPUs in all"):
        await_room(Pools(cpus=64), said.append, limit_s=2, every_s=1)
    assert any(line.startswith("waiting for the cluster") for line in said)
    await_room(Pools(), said.append, limit_s=60)


def test_memory_bounds_the_workers():
    assert Pools(memory_gib=4).sized(16, memory_gib=10).workers == 2


def test_pools_that_would_starve_the_work_list_are_refused():
    with pytest.raises(InputError, match="would never start"):
        Pools(workers=2, cpus=1).sized(2, memory_gib=16)


def test_pools_that_need_more_memory_than_there_is_are_refused():
    with pytest.raises(InputError, match="GiB"):
        Pools(workers=2, memory_gib=9).sized(8, memory_gib=16)


@pytest.mark.parametrize(("cpus", "threads"), [(0.8, "1"), (1, "1"), (4, "4")])
def test_a_worker_has_as_many_threads_as_cpus(cpus, threads):
    assert set(thread_environment(cpus).values()) == {threads}


def test_progress_counts_outcomes_and_says_how_far_it_is(capsys):
    lines = []
    progress = Progress(3, lines.append, every=0, further=lambda: "2 nodes of 32 CPUs")
    progress.show(Counter(accepted=1))
    progress.show(Counter(accepted=2, failed=1))
    assert lines[0].startswith("1/3 nodules (33 %)")
    assert lines[-1].startswith("3/3 nodules (100 %)")
    assert lines[-1].endswith("2 accepted, 1 failed; 2 nodes of 32 CPUs")


@pytest.mark.parametrize(("seconds", "words"), [(42.4, "42 s"), (190, "3 min 10 s"), (7500, "2 h 05 min")])
def test_durations_in_words(seconds, words):
    assert in_words(seconds) == words


@pytest.mark.ray
def test_tasks_that_queue_start_no_more_workers_than_there_are_cpus(ray_cluster):
    def workers() -> int:
        count = 0
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):  # one that has just ended
                count += " ".join(process.cmdline()).startswith("ray::")
        return count

    before = workers()
    pause = ray.remote(lambda: time.sleep(0.1))
    ray.get([pause.remote() for _ in range(60)])
    assert workers() <= before + 4


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system binds no process to CPUs")
def test_cpus_are_those_that_the_process_may_use():
    allowed = os.sched_getaffinity(0)
    assert 1 <= usable_cpus() <= len(allowed)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        assert usable_cpus() == 1
    finally:
        os.sched_setaffinity(0, allowed)


def test_the_object_store_fits_the_memory_and_the_shared_memory():
    assert usable_memory_bytes() <= psutil.virtual_memory().total
    for cpus in (1, 2, 64, 1_000):
        size = object_store_bytes(cpus)
        assert 100 << 20 <= size <= max(usable_memory_bytes() // 3, 100 << 20)
        assert size <= max(shutil.disk_usage("/dev/shm").free, 100 << 20)


@pytest.mark.parametrize("pools", [Pools(workers=1, cpus=2), Pools(workers=3, cpus=1), Pools(cpus=4), Pools(workers=9)])
@pytest.mark.parametrize(("cpus", "memory_gib"), [(2, 16), (2, 3), (1, 1.5)])
def test_the_remedy_is_what_fits(pools, cpus, memory_gib):
    for _ in range(3):
        try:
            pools.sized(cpus, memory_gib)
            return
        except InputError as error:
            remedies = re.findall(r"(--[a-z-]+) ([\d.]+) fits", str(error))
        assert remedies
        options = {"--workers": "workers", "--solve-cpus": "cpus", "--solve-memory-gib": "memory_gib"}
        option, value = remedies[-1]
        changed = replace(pools, **{options[option]: int(value) if option == "--workers" else float(value)})
        assert changed != pools, "the remedy repeats what was typed"
        pools = changed
    pytest.fail("what was said to fit does not")


def test_ray_is_waited_for_while_its_raylet_lives(monkeypatch):
    asked = []

    def get_node(*_):
        asked.append(time.monotonic())
        if len(asked) < 3:
            raise RuntimeError("not registered")
        return {"node": 1}

    monkeypatch.setattr(services, "get_node", get_node)
    # This process may have a cluster of its own, with a raylet.
    monkeypatch.setattr("raymat.engine.ray_private._raylet_lives", lambda: False)
    with patient_start(60), pytest.raises(RuntimeError):
        services.get_node()  # no raylet at all: nothing to wait for
    monkeypatch.setattr("raymat.engine.ray_private._raylet_lives", lambda: True)
    with patient_start(60):
        assert services.get_node() == {"node": 1}
    assert services.get_node is get_node


@pytest.fixture
def unconnected(monkeypatch):
    """As in a process that is connected to no cluster."""
    monkeypatch.setattr(ray, "is_initialized", lambda: False)


@pytest.mark.slow
@pytest.mark.parametrize("listens", [False, True])
def test_an_address_where_no_head_answers_is_refused_within_a_minute(monkeypatch, unconnected, listens):
    monkeypatch.setattr("raymat.engine.cluster.ANSWER_S", 6.0)
    start = time.monotonic()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1] if listens else free_port()
        with pytest.raises(InputError, match=f"no Ray cluster at 127.0.0.1:{port}: "), connected(f"127.0.0.1:{port}"):
            pytest.fail("joined nothing")
    assert time.monotonic() - start < 30


def test_a_missing_token_is_named(monkeypatch, unconnected, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    words = "asks for its token, which is missing here: set RAY_AUTH_TOKEN_PATH"
    with pytest.raises(InputError, match=words), connected("127.0.0.1:6379"):
        pytest.fail("joined without a token")
