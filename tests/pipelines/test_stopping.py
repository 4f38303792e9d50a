"""Commands that are asked to stop, by Ctrl-C or a scheduler's SIGTERM: one line, a status of failure, runs KILLED."""

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.pipelines.nodules import write_balls
from tests.pipelines.test_build import write_cases

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]

LONG = ["--epochs", "2000"]
NETWORK = ["--width", "4", "--levels", "2", "--crop", "16", "--batch", "2", "--spacing-mm", "0.5", "--no-channels-last"]
NETWORK += ["--workers", "1", "--threads", "1", *LONG]


def command_of(name: str, folder) -> list[str]:
    """A command that would go on for hours, or, to build, for a minute."""
    if name == "build":
        return ["--cases", write_cases(folder / "cases", 100), "--min-readers", "2", "--crop-px", "24", "--floor", "0"]
    grid = ["--alphas", "1,10", "--betas", "1"] if name == "tune" else []
    return [write_balls(folder / "data", 8), *NETWORK, *grid]


def states(store: Path) -> Counter:
    """How many MLflow runs are in each state; read without MLflow, which would make the store."""
    if not store.exists():
        return Counter()
    with contextlib.closing(sqlite3.connect(store)) as database, contextlib.suppress(sqlite3.OperationalError):
        return Counter(state for (state,) in database.execute("select status from runs"))
    return Counter()


@pytest.mark.parametrize(
    ("name", "asked", "running"),
    [
        ("build", signal.SIGTERM, 1),
        ("train", signal.SIGINT, 2),
        ("tune", signal.SIGTERM, 2),
    ],
)
def test_a_command_that_is_asked_to_stop_says_so(tmp_path, name, asked, running):
    out, store = tmp_path / "out", tmp_path / "mlflow.db"
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    command = [
        sys.executable,
        "-m",
        "raymat",
        name,
        *command_of(name, tmp_path),
        "-o",
        str(out),
        "--tracking-uri",
        f"sqlite:///{store}",
    ]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    # A shell that runs the tests in the background has Ctrl-C ignored.
    process = subprocess.Popen(
        command, env=environment, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL), **pipes
    )
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and process.poll() is None:
        if states(store)["RUNNING"] >= running and (name != "build" or list(out.glob("nodules/*/*.parquet"))):
            break
        time.sleep(0.2)
    time.sleep(1.0)
    process.send_signal(asked)
    try:
        said, complained = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130, said + complained
    assert complained.strip().splitlines()[-1].startswith("raymat: stopped; what is committed stands")
    assert "Traceback" not in complained, complained
    assert set(states(store)) == {"KILLED"}
