"""A build on a cluster that is empty, grows, loses a node and shrinks again."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from raymat.sources.cases import CasesSource
from raymat.steps import read_and_prepare, score, solve
from tests.support.cases import OPTIONS, PARAMETERS, arrays, arrays_of, write_cases
from tests.support.clusters import growing_cluster
from tests.support.harm import harmful

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def wait_for(condition: Callable[[], bool], what: str, limit_s: float = 400.0) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {limit_s:g} s"
        time.sleep(0.3)


def without_ray(table: str) -> dict:
    """The arrays of a dataset built in a plain loop."""
    source = CasesSource(table)
    prepared = (read_and_prepare(source, ref, PARAMETERS) for ref in source.plan())
    return arrays_of(score(solve(nodule, PARAMETERS), PARAMETERS) for nodule in prepared)


@pytest.mark.timeout(1200)
def test_a_build_brings_up_nodes_survives_the_loss_of_one_and_lets_them_go(tmp_path):
    table = write_cases(tmp_path / "cases", 24)
    out, go = tmp_path / "dataset", tmp_path / "go"
    harm = harmful(record=str(tmp_path / "solves"), slow=1, free=8, until=str(go))
    with growing_cluster(2, tmp_path / "cluster.json", **harm) as cluster:
        assert not cluster.workers()
        command = [sys.executable, "-m", "raymat", "build", "--cases", table, "-o", str(out), *OPTIONS, "--no-tracking"]
        # Ray Data thinks again about the size of the cluster every 10 s; here, every second.
        environment = os.environ | {"RAY_AUTH_MODE": "token", "RAY_DATA_MIN_GAP_BETWEEN_AUTOSCALING_REQUESTS": "1"}
        output = (tmp_path / "said").open("w")
        process = subprocess.Popen(
            [*command, "--address", cluster.address], env=environment, stdout=output, stderr=subprocess.STDOUT
        )
        try:
            said = (tmp_path / "said").read_text
            wait_for(lambda: len(cluster.solving()) == 2 or process.poll() is not None, "a solver on each of two nodes")
            assert process.poll() is None, said()
            lost = cluster.workers()[cluster.solving().pop()]
            lost.send_signal(signal.SIGKILL)
            go.touch()
            assert process.wait(240) == 0, said()
            assert "up to 24 as nodes come" in said()
            assert re.search(r"24/24 nodules .*; \d nodes? of \d CPUs", said())
        finally:
            process.kill()
            process.wait(60)
            print(said())
        wait_for(lambda: not cluster.workers(), "idle nodes let go")
    assert arrays(out) == without_ray(table)
