"""A build on a cluster that is empty, grows, loses a node and shrinks again."""

import random
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.cases import arrays, arrays_without_ray, first_cases, of_first, write_cases
from tests.support.clusters import GrowingCluster, growing_cluster
from tests.support.harm import start

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def wait_for(condition: Callable[[], bool], what: str, limit_s: float = 400.0) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {limit_s:g} s"
        time.sleep(0.2)


def build_and_lose_a_node(cluster: GrowingCluster, table: str, out: Path, count: int, dice: random.Random) -> str:
    """Build on the cluster; once two nodes are at work, kill one of them. What the build printed."""
    go = out.with_name("go")
    harm = {"record": f"{out}-solves", "slow": 0.5, "free": count // 3, "until": str(go)}
    # Ray Data thinks again about the size of the cluster every 10 s; here, every second.
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RAY_DATA_MIN_GAP_BETWEEN_AUTOSCALING_REQUESTS", "1")
        process = start(table, out, address=cluster.address, **harm)
    try:
        wait_for(lambda: len(cluster.working()) == 2 or process.poll() is not None, "a worker on each of two nodes")
        assert process.poll() is None, process.stdout.read()
        cluster.workers()[dice.choice(sorted(cluster.working()))].send_signal(signal.SIGKILL)
        go.touch()
        said, _ = process.communicate(timeout=300)
    finally:
        process.kill()
        process.wait(60)
    assert process.returncode == 0, said
    assert f"up to {count} as nodes come" in said
    assert re.search(rf"{count}/{count} nodules .*; \d nodes? of \d CPUs", said)
    return said


@pytest.mark.timeout(900)
def test_a_build_brings_up_nodes_survives_the_loss_of_one_and_leaves_them_idle(cases, tmp_path, seed):
    table, expected = cases
    with growing_cluster(2, tmp_path / "cluster.json") as cluster:
        assert not cluster.workers()
        build_and_lose_a_node(cluster, first_cases(table, 12), tmp_path / "dataset", 12, random.Random(seed))
        # Idle nodes are let go after 45 s, as the soak sees.
        wait_for(lambda: not cluster.working(), "no worker on any node")
    assert arrays(tmp_path / "dataset") == of_first(12, expected)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_builds_one_after_the_other_on_a_cluster_that_grows_and_shrinks_between_them(tmp_path, seed, soaked):
    table, dice = write_cases(tmp_path / "cases", 24), random.Random(seed)
    expected = arrays_without_ray(table)
    with growing_cluster(2, tmp_path / "cluster.json") as cluster:
        for number in range(soaked(2)):
            out = tmp_path / f"{number}" / "dataset"
            out.parent.mkdir()
            build_and_lose_a_node(cluster, table, out, 24, dice)
            wait_for(lambda: not cluster.workers(), "idle nodes let go")
            assert arrays(out) == expected
