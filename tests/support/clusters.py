"""Clusters as `ray start` makes them, in processes of their own, and one of them that grows.

The growing one has Ray's own head and autoscaler; its worker nodes are real, processes on this machine.
"""

import contextlib
import json
import os
import shutil
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
import ray
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID, FakeMultiNodeProvider

from tests.support import REPOSITORY
from tests.support.servers import free_port

HEAD_TYPE = "ray.head.default"


class Provider(FakeMultiNodeProvider):
    """Worker nodes as processes; the memory of a node type is what the autoscaler plans with, not the node's limit."""

    def _create_node_with_resources_and_labels(self, node_config, tags, count, resources, labels):
        resources = {name: amount for name, amount in resources.items() if name != "memory"}
        super()._create_node_with_resources_and_labels(node_config, tags, count, resources, labels)


class Head:
    """The processes of a cluster, all in the session of its head's.

    Attributes
    ----------
    address : where Ray listens
    folder : of its sessions and logs
    """

    def __init__(self, address: str, folder: Path, process: subprocess.Popen) -> None:
        self.address, self.folder, self.process = address, folder, process

    def processes(self) -> list[psutil.Process]:
        found = []
        for pid in psutil.pids():
            with contextlib.suppress(ProcessLookupError, PermissionError, psutil.Error):
                if os.getsid(pid) == self.process.pid:
                    found.append(psutil.Process(pid))
        return found

    def kill(self) -> None:
        members = self.processes()
        self.process.kill()  # first, as it would end the others in its own time
        for member in members:
            with contextlib.suppress(psutil.Error):
                member.kill()
        self.process.wait(60)


class GrowingCluster(Head):
    """A cluster whose autoscaler adds worker nodes as they are needed."""

    def workers(self) -> dict[str, psutil.Process]:
        """The raylets of the worker nodes, by node id."""
        nodes = {}
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                node = process.environ().get("RAY_OVERRIDE_NODE_ID_FOR_TESTING")
                if (
                    process.name() == "raylet"
                    and process.status() != psutil.STATUS_ZOMBIE
                    and node != FAKE_HEAD_NODE_ID
                ):
                    nodes[node] = process
        return nodes

    def working(self) -> set[str]:
        """The worker nodes on which a build has a worker."""
        nodes = set()
        for node, raylet in self.workers().items():
            with contextlib.suppress(psutil.Error):
                if any("solve" in " ".join(child.cmdline()) for child in raylet.children()):
                    nodes.add(node)
        return nodes


@contextlib.contextmanager
def ray_head(
    *options: str, kind: type[Head] = Head, address: str | None = None, prefix: Sequence[str] = (), **variables: str
) -> Iterator[Head]:
    """A head with token authentication and ``options``; all of its processes are killed at the end.

    ``variables`` are in the environment of each of them, and ``prefix`` is the command that starts the head's, as one
    that enters another network. No port is one that another cluster on the machine could have.
    """
    ray_command = f"{sysconfig.get_path('scripts')}/ray"
    subprocess.run([ray_command, "get-auth-token", "--generate"], stdout=subprocess.DEVNULL, check=True)
    address = address or f"{ray.util.get_node_ip_address()}:{free_port()}"
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # a socket's path must be short
    command = [*prefix, ray_command, "start", "--head", "--block", f"--port={address.rpartition(':')[2]}", *options]
    command += [f"--temp-dir={folder}", "--disable-usage-stats", "--min-worker-port=0", "--max-worker-port=0"]
    command += ["--dashboard-agent-listen-port=0", f"--object-store-memory={200 * 2**20}"]
    environment = os.environ | {"RAY_AUTH_MODE": "token"} | variables
    environment.pop("RAY_ADDRESS", None)
    head = None
    try:
        head = kind(address, folder, started(command, environment, folder / "head.log"))
        yield head
    finally:
        if head:
            head.kill()
        shutil.rmtree(folder, ignore_errors=True)


def started(command: list[str], environment: dict[str, str], log: Path) -> subprocess.Popen:
    """The head's process once it stands; Ray gives itself 30 s for that, which a busy machine exceeds now and then."""
    for _ in range(4):
        with log.open("w") as output:
            streams = {"stdout": output, "stderr": subprocess.STDOUT}
            process = subprocess.Popen(command, env=environment, start_new_session=True, **streams)
        while process.poll() is None:
            if "Ray runtime started" in log.read_text():
                return process
            time.sleep(0.2)
        Head("", log.parent, process).kill()
    raise RuntimeError(log.read_text())


@contextlib.contextmanager
def growing_cluster(most: int, config: Path, **variables: str) -> Iterator[GrowingCluster]:
    """A head without CPUs and an autoscaler that adds up to ``most`` worker nodes of two CPUs and lets idle ones go.

    ``config`` is where the autoscaler's configuration is to be written.
    """
    address = f"{ray.util.get_node_ip_address()}:{free_port()}"
    provider = {"type": "external", "module": f"{Provider.__module__}.Provider", "gcs_address": address}
    provider |= {"head_node_id": FAKE_HEAD_NODE_ID, "use_node_id_as_ip": True, "launch_multiple": True}
    provider |= {"disable_node_updaters": True, "disable_launch_config_check": True}
    node = {"CPU": 2, "memory": 7 * 2**30, "object_store_memory": 200 * 2**20}
    lists = "cluster_synced_files rsync_exclude rsync_filter initialization_commands setup_commands"
    lists += " head_setup_commands worker_setup_commands head_start_ray_commands worker_start_ray_commands"
    filled_in = {"docker": {}, "auth": {}, "file_mounts": {}, "file_mounts_sync_continuously": False}
    filled_in |= {name: [] for name in lists.split()}  # as `ray up` would have done
    node_types = {
        HEAD_TYPE: {"resources": {}, "node_config": {}, "max_workers": 0},
        "cpu": {"resources": node, "node_config": {}, "min_workers": 0, "max_workers": most},
    }
    # Ray Data looks every 20 s at what nodes there are: a new one must not be let go before.
    cluster = {"cluster_name": "growing", "max_workers": most, "idle_timeout_minutes": 0.75, "upscaling_speed": 1.0}
    cluster |= {"provider": provider, "head_node_type": HEAD_TYPE, "available_node_types": node_types}
    config.write_text(json.dumps(filled_in | cluster))
    # What `ray up` gives a head, and the provider's own.
    environment = variables | {"RAY_enable_autoscaler_v2": "1", "RAY_NODE_TYPE_NAME": HEAD_TYPE}
    environment |= {"RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID, "RAY_FAKE_CLUSTER": "1"}
    environment |= {"AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_idle_worker_killing_time_threshold_ms": "600000"}
    environment["PYTHONPATH"] = f"{variables.get('PYTHONPATH', '')}{os.pathsep}{REPOSITORY}"
    options = ["--num-cpus=0", "--num-gpus=0", "--include-dashboard=false", f"--autoscaling-config={config}"]
    with ray_head(*options, kind=GrowingCluster, address=address, **environment) as head:
        yield head
