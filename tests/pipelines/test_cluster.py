"""Sizing of the pools: every CPU used, and never a build that cannot start."""

import time

import psutil
import pytest
import ray

from raymat.engine.cluster import Pools, await_room, thread_environment
from raymat.engine.progress import Progress, in_words
from raymat.nodule import InputError


@pytest.mark.parametrize(("cpus", "solvers"), [(1, 1), (2, 2), (4, 4), (16, 16), (1000, 1000)])
def test_solvers_fill_the_cluster_and_leave_room_for_the_ends(cpus, solvers):
    pools = Pools().sized(cpus, memory_gib=4 * cpus)
    assert pools.solve_workers == solvers
    held = pools.solve_workers * pools.solve_cpus + pools.score_workers * pools.score_cpus
    assert held + pools.read_cpus + pools.commit_cpus <= cpus + 1e-6


def test_a_cluster_that_grows_starts_with_what_there_is_and_knows_where_it_ends():
    pools = Pools().growing(16, memory_gib=45, nodules=2600)
    assert (pools.solve_workers, pools.most_solve_workers) == (16, 2600)
    assert pools.score_workers <= pools.most_score_workers
    pools = Pools(solve_workers=100).growing(16, memory_gib=45, nodules=2600)
    assert (pools.solve_workers, pools.most_solve_workers) == (16, 100)
    pools = Pools().growing(16, memory_gib=45, nodules=3)
    assert (pools.solve_workers, pools.most_solve_workers) == (3, 3)
    with pytest.raises(InputError, match="would never start"):
        Pools(solve_cpus=32).growing(16, memory_gib=45, nodules=3)


def test_one_worker_of_each_stage_fits_one_cpu():
    assert sum(bundle["CPU"] for bundle in Pools().one_of_each()) <= 1 - Pools().read_cpus / 2


@pytest.mark.ray
def test_where_no_room_comes_that_is_said_with_what_was_asked_for(ray_cluster):
    said = []
    with pytest.raises(InputError, match=r"needs 64 CPU and 2 GiB for a solver.*the cluster has 2 CPUs in all"):
        await_room(Pools(solve_cpus=64), said.append, limit_s=2, every_s=1)
    assert any(line.startswith("waiting for the cluster") for line in said)
    await_room(Pools(), said.append, limit_s=60)


def test_memory_bounds_the_solvers():
    assert Pools(solve_memory_gib=4).sized(16, memory_gib=10).solve_workers == 2


def test_pools_that_would_starve_the_ends_are_refused():
    with pytest.raises(InputError, match="would never start"):
        Pools(solve_workers=2, solve_cpus=1).sized(2, memory_gib=16)


def test_pools_that_need_more_memory_than_there_is_are_refused():
    with pytest.raises(InputError, match="GiB"):
        Pools(solve_workers=2, solve_memory_gib=9).sized(8, memory_gib=16)


@pytest.mark.parametrize(("cpus", "threads"), [(0.8, "1"), (1, "1"), (4, "4")])
def test_a_worker_has_as_many_threads_as_cpus(cpus, threads):
    assert set(thread_environment(cpus).values()) == {threads}


def test_progress_counts_outcomes_and_says_how_far_it_is(capsys):
    lines = []
    progress = Progress(3, lines.append, every=0, further=lambda: "2 nodes of 32 CPUs")
    progress.add(["accepted"])
    progress.add(["failed", "accepted"])
    assert lines[0].startswith("1/3 nodules (33 %)")
    assert lines[-1].startswith("3/3 nodules (100 %)")
    assert lines[-1].endswith("2 accepted, 1 failed; 2 nodes of 32 CPUs")


@pytest.mark.parametrize(("seconds", "words"), [(42.4, "42 s"), (190, "3 min 10 s"), (7500, "2 h 05 min")])
def test_durations_in_words(seconds, words):
    assert in_words(seconds) == words


@pytest.mark.ray
def test_tasks_that_queue_start_no_more_workers_than_there_are_cpus(ray_cluster):
    def workers() -> int:
        titles = (" ".join(process.cmdline()) for process in psutil.Process().children(recursive=True))
        return sum(title.startswith("ray::") for title in titles)

    before = workers()
    pause = ray.remote(lambda: time.sleep(0.1))
    ray.get([pause.remote() for _ in range(60)])
    assert workers() <= before + 4
