"""Commands that are asked to stop, by Ctrl-C or a scheduler's SIGTERM: one line, a status of failure, runs KILLED."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from tests.support.cases import write_cases
from tests.support.harm import without_cluster
from tests.support.networks import learning_recipe, options_of
from tests.support.nodules import write_small_nodules

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]

ENDLESS = learning_recipe(epochs=1000)
# Signal, and the file that shows that the command is at work. Ray Train and Ray Tune have handlers of their own, which
# are in place once something is learnt.
COMMANDS = {
    "build": (signal.SIGTERM, "nodules/*/*.parquet"),
    "train": (signal.SIGINT, "split-0/ray/checkpoint_manager_snapshot.json"),
    "tune": (signal.SIGINT, "trials/*/ray/checkpoint_manager_snapshot.json"),
}


def arguments_of(name: str, folder) -> list[str]:
    """A command that would run for many minutes, or, to build, for half a minute."""
    if name == "build":
        return ["--cases", write_cases(folder / "cases", 50), "--min-readers", "2", "--crop-px", "24", "--floor", "0"]
    grid = ["--alphas", "1,10", "--betas", "1"] if name == "tune" else []
    return [write_small_nodules(folder / "data", 8), *options_of(ENDLESS), *grid]


@pytest.fixture(scope="module")
def begun(tmp_path_factory, new_runs):
    """Starts a command, once: its process, output and MLflow store."""
    started = {}

    def begin(name: str) -> tuple[subprocess.Popen, Path, str]:
        if name not in started:
            folder = tmp_path_factory.mktemp(name)
            out, uri = folder / "out", new_runs(folder)
            command = [sys.executable, "-m", "raymat", name, *arguments_of(name, folder), "-o", str(out)]
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
            process = subprocess.Popen(
                [*command, "--tracking-uri", uri],
                env=without_cluster(),
                # A shell that runs the tests in the background has Ctrl-C ignored.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
                **pipes,
            )
            started[name] = process, out, uri
        return started[name]

    yield begin
    for process, _, _ in started.values():
        process.kill()
        process.wait()


# A sweep is stopped as a training is, by the same lines: once in the soak lane.
@pytest.mark.parametrize(
    ("name", "then"), [("build", "train"), ("train", None), pytest.param("tune", None, marks=pytest.mark.soak)]
)
def test_a_command_that_is_asked_to_stop_says_so(begun, name, then):
    process, out, uri = begun(name)
    asked, shown_by = COMMANDS[name]
    deadline = time.monotonic() + 300
    while not list(out.glob(shown_by)) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.05)
    if then:
        begun(then)  # it comes up while this one ends
    process.send_signal(asked)
    said, complained = process.communicate(timeout=120)
    assert process.returncode == 130, said + complained
    assert complained.strip().splitlines()[-1].startswith("raymat: stopped; committed nodules are kept")
    assert "Traceback" not in complained, complained
    client = MlflowClient(tracking_uri=uri)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    assert {run.info.status for run in client.search_runs(experiments)} == {"KILLED"}
