"""Connecting to a Ray cluster, and how much of it each stage of the build may hold."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import ray
from ray._private import ray_constants
from ray.data import DataContext
from ray.util.placement_group import placement_group, remove_placement_group

from raymat.nodule import InputError
from raymat.stopping import stoppable

logger = logging.getLogger(__name__)

GIB = 2**30
# A spot node is there in two to five minutes, set-up included, where the cloud has one to give.
FIRST_NODE_S = 1800.0
FUSED_BELOW_CPUS = 8
# Every BLAS, OpenMP, Numba and ITK pool that a worker could open; a worker uses the CPUs it asked for, no more.
THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMBA_NUM_THREADS",
    "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS",
)


def thread_environment(cpus: float) -> dict[str, str]:
    """Environment variables that hold a worker of ``cpus`` CPUs to as many threads."""
    return dict.fromkeys(THREAD_VARIABLES, str(max(1, math.floor(cpus))))


def object_store_bytes(cpus: int) -> int:
    """Shared memory for a local cluster: room for a few large nodules a CPU, which Ray's third of the memory exceeds.

    Every worker maps what it touches of it, so that it counts in the memory that tools show for each of them.
    """
    return int((1 + 0.5 * cpus) * GIB)


@contextlib.contextmanager
def connected(address: str | None = None, num_cpus: int | None = None, holds_dataset: bool = False) -> Iterator[None]:
    """With a connection to the cluster at ``address``, else to the one this job runs on, else to a local one.

    A connection that stands already is used and left standing. A local cluster is started and shut down; it has token
    authentication on and listens on loopback alone. Its shared memory has room for the nodules that are on their way,
    or, where it ``holds_dataset``, a third of the machine's memory.

    Raises
    ------
    InputError
        There is no cluster at ``address``, or it refuses the token.
    """
    if ray.is_initialized():
        yield
        return
    quiet_ray()
    address = address or os.environ.get("RAY_ADDRESS")
    # With its connection Ray sets a handler of SIGTERM that exits, and later one that dumps its core.
    try:
        if not address:
            _start(num_cpus, holds_dataset)
        else:
            _join(address)
    except SystemExit:
        ray.shutdown()
        raise KeyboardInterrupt from None
    try:
        with stoppable():
            yield
    finally:
        ray.shutdown()


def _start(num_cpus: int | None, holds_dataset: bool) -> None:
    # Workers of a local cluster inherit these; a runtime environment would cost each of them seconds to start.
    os.environ.update(thread_environment(1))
    # Ray ends a task's worker a second after its task where actors hold the CPUs; to start one takes seconds. A higher
    # RAY_num_workers_soft_limit would keep them too, but Ray then starts as many when tasks queue.
    os.environ.update(RAY_idle_worker_killing_time_threshold_ms="600000")
    # On Linux Ray takes the machine's outward address, even for one that asks for loopback, and listens on all; told
    # that there will be no other node, as it takes for granted elsewhere, it stays on 127.0.0.1.
    clusters, ray_constants.ENABLE_RAY_CLUSTER = ray_constants.ENABLE_RAY_CLUSTER, False
    try:
        ray.init(
            address="local",
            num_cpus=num_cpus,
            include_dashboard=False,
            logging_level=logging.WARNING,
            # Ray's own choice, where it is none of ours, is that third.
            object_store_memory=None if holds_dataset else object_store_bytes(num_cpus or os.cpu_count() or 1),
        )
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = clusters
    token = Path.home() / ".ray" / "auth_token"
    if token.is_file():
        token.chmod(0o600)  # Ray writes it for all of the machine's users to read


def _join(address: str) -> None:
    try:
        environment = {"env_vars": thread_environment(1)}
        ray.init(address=address, logging_level=logging.WARNING, runtime_env=environment)
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise InputError(f"no Ray cluster at {address}: {str(error).splitlines()[0]}") from error


def quiet_ray() -> None:
    """Keep Ray's own chatter out of the lines a person reads; warnings and errors stay."""
    logging.getLogger("ray").setLevel(logging.WARNING)
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    # Of a cluster that is as large as it may be the autoscaler says every few seconds that it should be larger; the
    # lines of progress say how large it is.
    if "RAY_SCHEDULER_EVENTS" not in os.environ:
        ray_constants.AUTOSCALER_EVENTS = 0
    # It warns that token authentication is on, as it should be.
    logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module="ray")


@contextlib.contextmanager
def data_settings() -> Iterator[DataContext]:
    """Ray Data's settings for the datasets that are made within, which keep them; afterwards all is as it was.

    They start without its own progress bars and its advice on memory, which our stages declare.
    """
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)
    context = DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.issue_detectors_config.detectors = []
    with DataContext.current(context):
        yield context


@dataclass(frozen=True)
class Pools:
    """CPUs and memory of the build's stages; None is sized from what the cluster has.

    Attributes
    ----------
    read_workers : most read-and-prepare tasks at once
    solve_workers : actors that run the solvers; on a cluster that grows, those it starts with
    most_solve_workers : how many they may become there, node by node; None on a cluster that stays as it is
    solve_cpus : CPUs (and threads) of each of them
    solve_memory_gib : memory each of them declares to Ray
    score_workers, most_score_workers : actors that score, likewise
    fused : whether one actor may do all of a nodule's stages, see ``raymat.pipelines.build.WholeWay``; None for where
        the cluster has few CPUs and no readers or scorers were asked for
    """

    read_workers: int | None = None
    solve_workers: int | None = None
    most_solve_workers: int | None = None
    solve_cpus: float | None = None
    solve_memory_gib: float = 2.0
    score_workers: int | None = None
    most_score_workers: int | None = None
    fused: bool | None = None

    # The ends ask for little: they wait for disks and for the solvers, whose share of the time is 90 % and more.
    # All stages together fit one CPU, the task that reads the work list (half a reader) included.
    read_cpus: float = 0.03
    score_cpus: float = 0.1
    commit_cpus: float = 0.04
    read_memory_gib: float = 0.5
    score_memory_gib: float = 0.75
    commit_memory_gib: float = 0.5

    def sized(self, cpus: float, memory_gib: float) -> Pools:
        """The pools with every None filled in for a cluster of ``cpus`` CPUs and ``memory_gib`` GiB.

        Raises
        ------
        InputError
            The actors would take all CPUs or memory, so that nothing could be read or committed.
        """
        # A little less than a CPU each leaves the ends their share; the solvers' threads are whole all the same.
        solve_cpus = self.solve_cpus or (0.9 if cpus >= 2 else 0.8)
        score_workers = self.score_workers or max(1, math.ceil(cpus / 16))
        ends = 1.5 * self.read_cpus + self.commit_cpus
        by_cpu = math.floor(min(cpus, (cpus - score_workers * self.score_cpus - ends) / solve_cpus) + 1e-6)
        ends_gib = self.read_memory_gib + self.commit_memory_gib + score_workers * self.score_memory_gib
        by_memory = math.floor((memory_gib - ends_gib) / self.solve_memory_gib)
        solvers = self.solve_workers or max(1, min(by_cpu, by_memory))
        few = cpus < FUSED_BELOW_CPUS and self.score_workers is None and self.read_workers is None
        pools = replace(
            self,
            solve_cpus=solve_cpus,
            solve_workers=solvers,
            read_workers=self.read_workers or max(1, math.ceil(cpus / 2)),
            score_workers=score_workers,
            fused=few if self.fused is None else self.fused,
        )
        held = solvers * solve_cpus + score_workers * self.score_cpus
        if held + ends > cpus + 1e-6:
            raise InputError(
                f"the pools would hold {held:.2f} of the cluster's {cpus:g} CPUs and reading and committing need "
                f"{ends:.2f} more: the build would never start. Ask for fewer solve workers or CPUs each "
                f"(--workers {solvers}, --solve-cpus {solve_cpus:g})"
            )
        if solvers * self.solve_memory_gib + ends_gib > memory_gib + 1e-6:
            raise InputError(
                f"{solvers} solve workers of {self.solve_memory_gib:g} GiB and {ends_gib:g} GiB to read, score and "
                f"commit need more than the cluster's {memory_gib:.1f} GiB: the build would never start. Lower "
                "--workers or --solve-memory-gib"
            )
        return pools

    def growing(self, cpus: float, memory_gib: float, nodules: int) -> Pools:
        """The pools for a cluster that has ``cpus`` CPUs and ``memory_gib`` GiB and brings more as they are used.

        They start with what there is room for. ``solve_workers`` given, else the number of nodules, is what the
        solvers grow to; the readers and scorers keep pace with them.

        Raises
        ------
        InputError
            There is no room for one worker of each stage.
        """
        most = min(self.solve_workers or nodules, nodules)
        now = replace(self, solve_workers=None, fused=False).sized(cpus, memory_gib)
        return replace(
            now,
            solve_workers=min(now.solve_workers, most),
            most_solve_workers=most,
            most_score_workers=self.score_workers or max(now.score_workers, math.ceil(most / 16)),
            read_workers=self.read_workers or max(now.read_workers, math.ceil(most / 8)),
        )

    def one_of_each(self) -> list[dict[str, float]]:
        """What one worker of each stage asks for, as Ray's resources."""
        workers = (
            (self.solve_cpus or 0.8, self.solve_memory_gib),
            (self.score_cpus, self.score_memory_gib),
            (self.read_cpus, self.read_memory_gib),
            (self.commit_cpus, self.commit_memory_gib),
        )
        return [{"CPU": cpus, "memory": gib * GIB} for cpus, gib in workers]


def size_pools(pools: Pools, nodules: int, say: Callable[[str], None]) -> Pools:
    """``pools`` sized for the cluster that this process is connected to and so many nodules to do.

    Where an autoscaler looks after the cluster, this waits until it has brought room for one worker of each stage.

    Raises
    ------
    InputError
        The build would never start; the message says why.
    """
    growing = grows()
    if growing:
        await_room(pools, say)
    resources = ray.cluster_resources()
    has = resources.get("CPU", 0.0), resources.get("memory", 0.0) / GIB
    return pools.growing(*has, nodules) if growing else pools.sized(*has)


def grows() -> bool:
    """Whether the cluster may become larger than it is.

    Its head then belongs to a group of nodes, as ``ray up`` and KubeRay tell Ray, or does no work itself.
    """
    heads = [node for node in ray.nodes() if node["Alive"] and "node:__internal_head__" in node["Resources"]]
    return any("ray.io/node-group" in head["Labels"] or not head["Resources"].get("CPU") for head in heads)


def at_work() -> str:
    """The nodes that do work and their CPUs, in words."""
    cpus = [node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]]
    nodes = sum(cpu > 0 for cpu in cpus)
    return f"{nodes} {'node' if nodes == 1 else 'nodes'} of {sum(cpus):g} CPUs"


def await_room(pools: Pools, say: Callable[[str], None], limit_s: float = FIRST_NODE_S, every_s: float = 60.0) -> None:
    """Ask the autoscaler for one worker of each stage, and return when the cluster has room for them.

    Raises
    ------
    InputError
        There was none after ``limit_s`` seconds.
    """
    bundles = pools.one_of_each()
    needs = f"{bundles[0]['CPU']:g} CPU and {pools.solve_memory_gib:g} GiB for a solver, and some for the other stages"
    # A group is a demand that the autoscaler meets, and it stands only when everything in it has its place.
    group, start = placement_group(bundles), time.monotonic()
    try:
        while not group.wait(min(every_s, limit_s)):
            waited = time.monotonic() - start
            if waited >= limit_s:
                raise InputError(
                    f"no room for a build came in {waited / 60:.0f} min: it needs {needs}, and the cluster has "
                    f"{ray.cluster_resources().get('CPU', 0):g} CPUs in all. See `ray status` on its head: no type of "
                    "node may be large enough (--solve-cpus, --solve-memory-gib), the cluster may be at its largest "
                    "(max_workers), or the cloud has none to give. Run the same command again then"
                )
            say(f"waiting for the cluster to bring a node: {needs} ({waited / 60:.0f} min so far)")
    finally:
        remove_placement_group(group)


def refuse_too_many(workers: int, gpu: bool = False) -> None:
    """Raise InputError where so many workers of a CPU (or GPU) each would never start.

    A cluster that grows is not judged by what it has now: the autoscaler is asked for what is missing.
    """
    if grows():
        return
    resources = ray.cluster_resources()
    cpus, gpus = resources.get("CPU", 0.0), resources.get("GPU", 0.0)
    if gpu and gpus < workers:
        raise InputError(f"{workers} workers of one GPU each; the cluster has {gpus:g} GPUs. Lower --workers")
    if cpus < workers:
        raise InputError(f"{workers} workers of a CPU each; the cluster has {cpus:g} CPUs. Lower --workers")
