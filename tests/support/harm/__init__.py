"""Builds in processes of their own, whose workers a test can slow down, kill or hang (``harmed.py``)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from raymat.nodule import FAILED, InputError
from raymat.store import Store
from tests.support import REPOSITORY
from tests.support.cases import OPTIONS


def harmful(**harm: object) -> dict[str, str]:
    """What the environment of ``python -m tests.support.harm`` must have for this harm."""
    path = os.pathsep.join(filter(None, (str(REPOSITORY), os.environ.get("PYTHONPATH"))))
    return {"PYTHONPATH": path, "RAYMAT_HARM": json.dumps(harm)}


def without_cluster() -> dict[str, str]:
    """The environment without the address of the tests' own cluster."""
    return {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}


def start(
    table: str, out, /, *arguments: str, address: str | None = None, folder: Path | None = None, **harm: object
) -> subprocess.Popen:
    """`raymat build` in a process of its own, on the cluster at ``address`` or with its own local Ray.

    With a ``folder``, which must have a short path, Ray's files and the build's MLflow run are in it; without, there is
    no run.
    """
    environment = without_cluster() | (harmful(**harm) if harm else {})
    if folder:
        environment |= {"RAY_TMPDIR": str(folder), "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}
    module = "tests.support.harm" if harm else "raymat"
    command = [sys.executable, "-m", module, "build", "--cases", table, "-o", str(out), *OPTIONS, *arguments]
    command += [] if folder else ["--no-tracking"]
    if address:
        command += ["--address", address]
        environment["RAY_AUTH_MODE"] = "token"
        if address.startswith("127."):  # where Ray would look for it at the machine's outward address
            environment["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, env=environment, cwd=folder or REPOSITORY, start_new_session=True, **pipes)


def committed(out, failed: bool = False) -> set[str]:
    """The nodules that a dataset has and that have not failed, or those that have; none where it is not begun yet."""
    try:
        rows = Store.open(out).index(["nodule_id", "outcome"]).to_pylist()
    except InputError:
        return set()
    return {row["nodule_id"] for row in rows if (row["outcome"] == FAILED) == failed}


def await_commits(out, count: int, process: subprocess.Popen, limit_s: float = 300) -> None:
    """Return once this number of files is committed, the build has ended, or the time is over."""
    deadline = time.monotonic() + limit_s
    while process.poll() is None and time.monotonic() < deadline:
        try:
            if len(Store.open(out).listing("nodules")) >= count:
                return
        except InputError:
            pass  # not begun yet
        time.sleep(0.05)
