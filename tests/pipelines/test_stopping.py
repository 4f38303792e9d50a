"""Commands that are asked to stop, by Ctrl-C or a scheduler's SIGTERM: one line, a status of failure, runs KILLED."""

import signal
import subprocess
import sys
import time

import pytest
from mlflow.tracking import MlflowClient

from tests.support.cases import write_cases
from tests.support.harm import without_cluster
from tests.support.networks import learning_recipe, options_of
from tests.support.nodules import write_small_nodules

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]

ENDLESS = learning_recipe(epochs=2000)


def command_of(name: str, folder) -> list[str]:
    """A command that would go on for hours, or, to build, for a minute."""
    if name == "build":
        return ["--cases", write_cases(folder / "cases", 100), "--min-readers", "2", "--crop-px", "24", "--floor", "0"]
    grid = ["--alphas", "1,10", "--betas", "1"] if name == "tune" else []
    return [write_small_nodules(folder / "data", 8), *options_of(ENDLESS), *grid]


@pytest.mark.parametrize(
    ("name", "asked", "at_work"),
    [
        ("build", signal.SIGTERM, "nodules/*/*.parquet"),
        # Ray Train and Ray Tune have handlers of their own, which are in place once something is learnt.
        ("train", signal.SIGINT, "split-0/ray/checkpoint_manager_snapshot.json"),
        ("tune", signal.SIGINT, "trials/*/ray/checkpoint_manager_snapshot.json"),
    ],
)
def test_a_command_that_is_asked_to_stop_says_so(tmp_path, name, asked, at_work):
    out, store = tmp_path / "out", tmp_path / "mlflow.db"
    environment = without_cluster()
    command = [sys.executable, "-m", "raymat", name, *command_of(name, tmp_path), "-o", str(out)]
    command += ["--tracking-uri", f"sqlite:///{store}"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    # A shell that runs the tests in the background has Ctrl-C ignored.
    process = subprocess.Popen(
        command, env=environment, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL), **pipes
    )
    deadline = time.monotonic() + 300
    while not list(out.glob(at_work)) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.2)
    process.send_signal(asked)
    try:
        said, complained = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130, said + complained
    assert complained.strip().splitlines()[-1].startswith("raymat: stopped; what is committed stands")
    assert "Traceback" not in complained, complained
    client = MlflowClient(tracking_uri=f"sqlite:///{store}")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    assert {run.info.status for run in client.search_runs(experiments)} == {"KILLED"}
