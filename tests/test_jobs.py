"""A job submitted to a running cluster with token authentication, as a user would from a laptop."""

import os
import subprocess
import sys
import sysconfig
import time

import pytest
import ray

import raymat
from tests.conftest import REPOSITORY
from tests.pipelines.test_build import write_cases

pytestmark = [pytest.mark.ray, pytest.mark.slow]

CLUSTER = """
import ray, sys
context = ray.init(address="local", num_cpus=2, include_dashboard=True, dashboard_host="127.0.0.1")
print("dashboard", context.dashboard_url, flush=True)
sys.stdin.read()
"""
SCRIPTS = sysconfig.get_path("scripts")


@pytest.fixture(scope="module")
def dashboard():
    """The address of the dashboard of a cluster in a process of its own."""
    # The suite's own cluster, if it stands, holds the port on which a node's agent takes jobs, and the CPUs.
    ray.shutdown()
    environment = os.environ | {"PATH": f"{SCRIPTS}{os.pathsep}{os.environ['PATH']}"}
    environment.pop("RAY_ADDRESS", None)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    with subprocess.Popen([sys.executable, "-c", CLUSTER], env=environment, **pipes) as process:
        line = next((line for line in process.stdout if line.startswith("dashboard ")), None)
        assert line, "the cluster did not start"
        yield f"http://{line.split()[1]}"
        process.stdin.close()
        process.wait(60)


def submit(dashboard: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess:
    command = [f"{SCRIPTS}/ray", "job", "submit", "--address", dashboard, "--working-dir", ".", "--"]
    environment = os.environ | {"RAY_AUTH_MODE": "token"} | variables
    command += ["python", "jobs/build_dataset.py", *arguments]
    options = {"cwd": REPOSITORY, "env": environment, "capture_output": True, "text": True, "timeout": 240}
    # A cluster that has just started takes jobs only once its agent has registered.
    for _ in range(30):
        done = subprocess.run(command, check=False, **options)
        if "No available agent" not in done.stderr:
            break
        time.sleep(2)
    return done


def test_a_submitted_build_commits_its_nodules_and_keeps_its_run(dashboard, tmp_path):
    table = write_cases(tmp_path / "cases", 2)
    out = tmp_path / "dataset"
    small = ["--min-readers", "2", "--crop-px", "24", "--spacing-mm", "1"]
    done = submit(dashboard, "--cases", table, "-o", str(out), *small)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(list(raymat.load(out, outcomes=("accepted", "rejected")))) == 2
    assert (out / "mlflow.db").is_file()
    assert (out / "contact_sheet.png").is_file()


def test_a_relative_output_would_be_lost_and_is_refused(dashboard, tmp_path):
    table = write_cases(tmp_path / "cases", 1)
    done = submit(dashboard, "--cases", table, "-o", "dataset")
    assert done.returncode != 0
    assert "absolute path" in done.stdout + done.stderr


def test_without_the_token_no_job_is_taken(dashboard, tmp_path):
    done = submit(dashboard, "--help", RAY_AUTH_TOKEN="0" * 64)
    assert done.returncode != 0
    assert "oken" in done.stdout + done.stderr
