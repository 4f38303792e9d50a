"""The files that start clusters: what Ray's own schema allows, and what they promise about work, cost and access."""

import argparse
import json
import re
import shlex
import shutil

import pytest
import yaml
from ray._private.runtime_env import packaging
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.autoscaler.tags import TAG_RAY_CLUSTER_NAME

from raymat.commands import build
from raymat.engine.cluster import Pools
from tests.support import REPOSITORY


@pytest.fixture(scope="module")
def aws() -> dict:
    """cluster.yaml as `ray up` reads it: with Ray's defaults filled in and checked against its schema."""
    config = prepare_config(yaml.safe_load((REPOSITORY / "cluster.yaml").read_text()))
    validate_config(config)
    return config


def test_the_head_does_no_work_and_workers_come_from_nothing(aws):
    head = aws["available_node_types"][aws["head_node_type"]]
    assert head["resources"] == {"CPU": 0, "GPU": 0}
    assert "InstanceMarketOptions" not in head["node_config"], "a head that is taken away takes the jobs with it"
    workers = [kind for name, kind in aws["available_node_types"].items() if name != aws["head_node_type"]]
    assert {kind["node_config"]["InstanceType"] for kind in workers} == {"m6a.4xlarge", "g5.48xlarge"}
    for kind in workers:
        assert kind["min_workers"] == 0 < kind["max_workers"] <= aws["max_workers"]
        assert kind["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert 0 < aws["idle_timeout_minutes"] <= 10
    assert aws["provider"]["cache_stopped_nodes"] is False


def test_nothing_but_ssh_reaches_the_nodes(aws):
    assert "0.0.0.0" not in (REPOSITORY / "cluster.yaml").read_text()
    # Ray's own group: SSH, and whatever is added here.
    assert aws["provider"]["security_group"] == {"GroupName": "raymat"}
    assert not any("SecurityGroupIds" in kind["node_config"] for kind in aws["available_node_types"].values())
    (mlflow,) = [command for command in aws["head_setup_commands"] if "mlflow server" in command]
    assert "--host 127.0.0.1" in mlflow
    (start,) = [command for command in aws["head_start_ray_commands"] if "ray start" in command]
    assert "--dashboard-host=127.0.0.1" in start


def test_every_node_has_the_token_and_asks_for_it(aws):
    assert aws["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    for commands in ("head_start_ray_commands", "worker_start_ray_commands"):
        (start,) = [command for command in aws[commands] if "ray start" in command]
        assert "RAY_AUTH_MODE=token" in start
        assert "RAY_idle_worker_killing_time_threshold_ms=600000" in start


def test_every_node_is_set_up_from_this_package(aws):
    mounts = {remote: local for remote, local in aws["file_mounts"].items() if "auth_token" not in remote}
    assert all((REPOSITORY / local).exists() for local in mounts.values())
    for commands in ("head_setup_commands", "worker_setup_commands"):
        assert any(re.search(r"pip install .*-c ~/raymat/constraints.txt ~/raymat$", c) for c in aws[commands])


def test_heads_and_workers_have_roles_of_their_own(aws):
    roles = {n: kind["node_config"]["IamInstanceProfile"]["Name"] for n, kind in aws["available_node_types"].items()}
    assert roles == {"head": "raymat-head", "cpu": "raymat-worker", "gpu": "raymat-worker"}
    assert all(
        kind["node_config"]["MetadataOptions"]["HttpTokens"] == "required"
        for kind in aws["available_node_types"].values()
    )


def policy(role: str) -> list[dict]:
    """The statements of a role's policy in docs/guides/cluster.md."""
    text = (REPOSITORY / "docs" / "guides" / "cluster.md").read_text()
    block = re.search(rf"<!-- policy: {role} -->\n```json\n(.*?)```", text, re.DOTALL)[1]
    return json.loads(block)["Statement"]


def test_a_workers_role_may_use_the_bucket_and_nothing_else():
    for statement in policy("worker"):
        actions = statement["Action"] if isinstance(statement["Action"], list) else [statement["Action"]]
        assert all(action.startswith("s3:") and "*" not in action for action in actions)
        assert statement["Resource"].startswith("arn:aws:s3:::my-bucket")


def test_a_heads_role_starts_the_types_of_this_file_and_ends_its_own_nodes_alone(aws):
    statements = policy("head")
    assert all(statement in statements for statement in policy("worker"))
    by_action = {str(statement["Action"]): statement for statement in statements}
    types = by_action["ec2:RunInstances"]["Condition"]["StringEqualsIfExists"]["ec2:InstanceType"]
    workers = (kind for name, kind in aws["available_node_types"].items() if name != aws["head_node_type"])
    assert set(types) == {kind["node_config"]["InstanceType"] for kind in workers}
    ended = by_action["ec2:TerminateInstances"]["Condition"]["StringEquals"]
    assert ended == {f"ec2:ResourceTag/{TAG_RAY_CLUSTER_NAME}": aws["cluster_name"]}
    assert by_action["iam:PassRole"]["Resource"].endswith("role/raymat-worker")
    assert not any("*" in action for action in by_action)


@pytest.fixture(scope="module")
def kuberay() -> dict:
    return yaml.safe_load((REPOSITORY / "kuberay-job.yaml").read_text())


def test_the_kuberay_job_runs_a_job_of_this_package_with_arguments_it_takes(kuberay):
    assert (kuberay["apiVersion"], kuberay["kind"]) == ("ray.io/v1", "RayJob")
    python, job, *arguments = shlex.split(kuberay["spec"]["entrypoint"])
    assert python == "python"
    assert (REPOSITORY / job).is_file()
    options = build.add_arguments(argparse.ArgumentParser()).parse_args(arguments)
    assert options.lidc.startswith("/data/")
    assert options.out.startswith("s3://")
    assert kuberay["spec"]["shutdownAfterJobFinishes"] is True


def test_the_kuberay_cluster_grows_from_a_head_without_work_with_the_token_on(kuberay):
    cluster = kuberay["spec"]["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["enableInTreeAutoscaling"] is True
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert cluster["headGroupSpec"]["serviceType"] == "ClusterIP", "no address outside the Kubernetes cluster"
    for group in cluster["workerGroupSpecs"]:
        assert group["replicas"] == group["minReplicas"] == 0 < group["maxReplicas"]
        (container,) = group["template"]["spec"]["containers"]
        assert container["resources"]["requests"] == container["resources"]["limits"]
        # One worker has room for a build, by Ray's share of its memory.
        limits = container["resources"]["limits"]
        memory = 0.7 * float(limits["memory"].removesuffix("Gi"))
        assert Pools().sized(float(limits["cpu"]), memory).workers >= int(limits["cpu"])


def test_the_versions_are_those_the_package_is_tested_with(kuberay):
    constraints = (REPOSITORY / "constraints.txt").read_text()
    assert f"ray=={kuberay['spec']['rayClusterSpec']['rayVersion']}\n" in constraints


def test_a_submitted_job_takes_the_package_and_the_jobs_and_nothing_else_whatever_its_name(tmp_path):
    for name in (".rayignore", ".gitignore"):
        shutil.copy(REPOSITORY / name, tmp_path)
    wanted = {"raymat/cli.py", "raymat/commands/options.py", "raymat/review/page/page.js", "jobs/predict.py"}
    left = {"release-1.0/dataset.parquet", "3dmm/split-0/weights.pt", "predictions/mattes/0.parquet", "report.html"}
    left |= {"classified/raymat/nodules.npz", "jobs.csv", "README.md", ".venv/bin/python", "raymat/__pycache__/cli.pyc"}
    for name in wanted | left:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    found = set()
    packaging._dir_travel(tmp_path, [], found.add, include_gitignore=True)
    assert {str(path.relative_to(tmp_path)) for path in found if path.is_file()} == wanted
