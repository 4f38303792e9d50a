"""Commands in processes of their own on the session's cluster, which a test can kill and take up again."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import ray


def in_cluster(*arguments: str, folder: Path) -> subprocess.Popen:
    """`raymat` with these arguments in a process of its own, on the cluster that this process is connected to."""
    address = ray.get_runtime_context().gcs_address
    command = [sys.executable, "-m", "raymat", *arguments, "--address", address]
    # Ray would look for it at the machine's outward address, where a local cluster does not listen.
    environment = os.environ | {"RAY_AUTH_MODE": "token", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, env=environment, cwd=folder, **streams)


def kill_at(process: subprocess.Popen, happened: Callable[[], bool], limit_s: float = 300) -> None:
    """Kill the process as soon as something has happened; what it printed is the message where it ends before."""
    deadline = time.monotonic() + limit_s
    while not happened() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert process.poll() is None, process.communicate()[0]
    process.kill()
    said = process.communicate(timeout=60)[0]
    assert happened(), said
