"""Connecting to a Ray cluster, and how much of it each stage of the build may hold."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace

import ray

from raymat.nodule import InputError

logger = logging.getLogger(__name__)

GIB = 2**30
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
def connected(address: str | None = None, num_cpus: int | None = None) -> Iterator[None]:
    """With a connection to the cluster at ``address``, else to the one this job runs on, else to a local one.

    A connection that stands already is used and left standing. A local cluster is started and shut down; it has token
    authentication on and listens on loopback alone.

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
    if not address:
        # Workers of a local cluster inherit these; a runtime environment would cost each of them seconds to start.
        os.environ.update(thread_environment(1))
        # Ray ends a task's worker a second after its task where actors hold the CPUs; to start one takes seconds.
        os.environ.update(RAY_idle_worker_killing_time_threshold_ms="600000", RAY_num_workers_soft_limit="64")
        ray.init(
            address="local",
            num_cpus=num_cpus,
            include_dashboard=False,
            logging_level=logging.WARNING,
            object_store_memory=object_store_bytes(num_cpus or os.cpu_count() or 1),
        )
    else:
        _join(address)
    try:
        yield
    finally:
        ray.shutdown()


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
    # It warns that token authentication is on, as it should be.
    logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module="ray")


@dataclass(frozen=True)
class Pools:
    """CPUs and memory of the build's stages; None is sized from what the cluster has.

    Attributes
    ----------
    read_workers : most read-and-prepare tasks at once
    solve_workers : actors that run the solvers
    solve_cpus : CPUs (and threads) of each of them
    solve_memory_gib : memory each of them declares to Ray
    score_workers : actors that score
    """

    read_workers: int | None = None
    solve_workers: int | None = None
    solve_cpus: float | None = None
    solve_memory_gib: float = 2.0
    score_workers: int | None = None

    # The ends ask for little: they wait for disks and for the solvers, whose share of the time is 90 % and more.
    read_cpus: float = 0.05
    score_cpus: float = 0.1
    commit_cpus: float = 0.05
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
        ends = self.read_cpus + self.commit_cpus
        by_cpu = math.floor(min(cpus, (cpus - score_workers * self.score_cpus - ends) / solve_cpus) + 1e-6)
        ends_gib = self.read_memory_gib + self.commit_memory_gib + score_workers * self.score_memory_gib
        by_memory = math.floor((memory_gib - ends_gib) / self.solve_memory_gib)
        solvers = self.solve_workers or max(1, min(by_cpu, by_memory))
        pools = replace(
            self,
            solve_cpus=solve_cpus,
            solve_workers=solvers,
            read_workers=self.read_workers or max(1, math.ceil(cpus / 2)),
            score_workers=score_workers,
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


def size_pools(pools: Pools) -> Pools:
    """``pools`` sized for the cluster that this process is connected to."""
    resources = ray.cluster_resources()
    return pools.sized(resources.get("CPU", 0.0), resources.get("memory", 0.0) / GIB)


def refuse_too_many(workers: int, gpu: bool = False) -> None:
    """Raise InputError where the cluster cannot hold so many workers of a CPU (or GPU) each: they would never start."""
    resources = ray.cluster_resources()
    cpus, gpus = resources.get("CPU", 0.0), resources.get("GPU", 0.0)
    if gpu and gpus < workers:
        raise InputError(f"{workers} workers of one GPU each; the cluster has {gpus:g} GPUs. Lower --workers")
    if cpus < workers:
        raise InputError(f"{workers} workers of a CPU each; the cluster has {cpus:g} CPUs. Lower --workers")
