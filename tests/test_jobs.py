"""A job submitted to a running cluster with token authentication, as a user would from a laptop."""

import os
import re
import shlex
import subprocess
import sysconfig
import time
from pathlib import Path
from typing import NamedTuple

import pytest
from mlflow.tracking import MlflowClient

import raymat
from raymat.tracking import BUILDS
from tests.support import REPOSITORY
from tests.support.cases import write_cases
from tests.support.clusters import ray_head
from tests.support.servers import free_port

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1200)]

SCRIPTS = sysconfig.get_path("scripts")
JOBS = sorted(file.name for file in (REPOSITORY / "jobs").glob("*.py"))
# As the credentials of a bucket are: in the environment of every process of the cluster.
SECRET = "not-a-key-but-as-secret-0123456789"


class Cluster(NamedTuple):
    """The address of a cluster's dashboard and the folder of its logs."""

    dashboard: str
    logs: Path


@pytest.fixture(scope="module")
def cluster():
    port = free_port()
    options = ["--num-cpus=2", "--include-dashboard=true", "--dashboard-host=127.0.0.1", f"--dashboard-port={port}"]
    path = f"{SCRIPTS}{os.pathsep}{os.environ['PATH']}"
    with ray_head(*options, PATH=path, AWS_SECRET_ACCESS_KEY=SECRET) as head:
        yield Cluster(f"http://127.0.0.1:{port}", head.folder / "session_latest" / "logs")


def documented(dashboard: str, tracking_uri: str) -> list[str]:
    """The command of docs/guides/cluster.md, up to the job's own, for this cluster and MLflow store."""
    text = (REPOSITORY / "docs" / "guides" / "cluster.md").read_text()
    block = re.search(r"<!-- submit -->\n```\n(.*?)```", text, re.DOTALL)[1]
    command, _, _ = block.replace("\\\n", " ").partition(" -- ")
    for said, here in (("http://127.0.0.1:8265", dashboard), ("http://127.0.0.1:5000", tracking_uri)):
        assert said in command
        command = command.replace(said, here)
    ray, *options = shlex.split(command)
    return [f"{SCRIPTS}/{ray}", *options, "--"]


BUILD = ("python", "jobs/build_dataset.py")


def submit(cluster: Cluster, *job: str, tracking_uri: str = "", **variables: str) -> subprocess.CompletedProcess:
    command = [*documented(cluster.dashboard, tracking_uri), *job]
    environment = os.environ | {"RAY_AUTH_MODE": "token"} | variables
    options = {"cwd": REPOSITORY, "env": environment, "capture_output": True, "text": True, "timeout": 540}
    # A cluster that has just started takes jobs only once its agent has registered.
    for _ in range(30):
        done = subprocess.run(command, check=False, **options)
        if "No available agent" not in done.stderr:
            break
        time.sleep(2)
    return done


def test_a_submitted_build_commits_its_nodules_and_keeps_its_run(cluster, tmp_path):
    table = write_cases(tmp_path / "cases", 2)
    out = tmp_path / "dataset"
    # One method: a job brings the package without its compiled kernels, and each takes seconds.
    small = ["--min-readers", "2", "--crop-px", "24", "--spacing-mm", "1", "--methods", "cf"]
    runs = f"sqlite:///{tmp_path}/runs.db"
    done = submit(cluster, *BUILD, "--cases", table, "-o", str(out), *small, tracking_uri=runs)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(list(raymat.load(out, outcomes=("accepted", "rejected")))) == 2
    client = MlflowClient(tracking_uri=runs)
    (run,) = client.search_runs([client.get_experiment_by_name(BUILDS).experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.metrics["nodules/total"] == run.data.metrics["progress/done"] == 2
    assert (out / "contact_sheet.png").is_file()
    files = [file for folder in (tmp_path, cluster.logs) for file in folder.rglob("*") if file.is_file()]
    assert len(files) > 20
    for secret in (SECRET, (Path.home() / ".ray" / "auth_token").read_text().strip()):
        assert secret not in done.stdout + done.stderr
        assert not [file for file in files if secret.encode() in file.read_bytes()]


def test_the_walk_through_names_every_job():
    text = (REPOSITORY / "docs" / "guides" / "cluster.md").read_text()
    assert sorted(re.findall(r"^\| `(\w+\.py)` \|", text, re.MULTILINE)) == JOBS


def test_every_job_starts_where_there_are_only_the_requirements_and_a_relative_output_is_refused(cluster, tmp_path):
    """It would be lost with the job's folder."""
    table = write_cases(tmp_path / "cases", 1)
    # One after the other as one job: to submit one takes seconds.
    commands = [f"python jobs/{job} --help" for job in JOBS]
    commands.append(shlex.join([*BUILD, "--cases", table, "-o", "dataset"]))
    done = submit(cluster, "bash", "-c", " && ".join(commands))
    said = done.stdout + done.stderr
    assert [job for job in JOBS if f"usage: {job}" in said] == JOBS, said
    assert done.returncode != 0
    assert "absolute path" in said


def test_without_the_token_no_job_is_taken(cluster, tmp_path):
    done = submit(cluster, *BUILD, "--help", RAY_AUTH_TOKEN="0" * 64)
    assert done.returncode != 0
    assert "oken" in done.stdout + done.stderr
