"""Connecting to a Ray cluster, and how much of it the workers of a build may hold."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import secrets
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import ray
from ray.data import DataContext
from ray.util.placement_group import placement_group, remove_placement_group

from raymat import machine
from raymat.engine.ray_private import Unanswered, ask_head, on_loopback_alone, patient_start, silence_autoscaler
from raymat.machine import GIB
from raymat.nodule import InputError
from raymat.stopping import stoppable
from raymat.words import counted, first_line

logger = logging.getLogger(__name__)

# A spot node is there in two to five minutes, set-up included, where the cloud has one to give.
FIRST_NODE_S = 1800.0
# Of the tasks that read the work list.
LIST_CPUS, LIST_GIB = 0.05, 0.5
# One driver's loop slows down with the number of its actors: more of them get drivers of their own.
WORKERS_PER_PIPELINE = 400
PIPELINE_CPUS = 0.25
# A slow disk or a busy machine needs longer than the 30 s that Ray gives itself; a head that is there answers at once.
START_S, ANSWER_S = 180.0, 40.0
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


@contextlib.contextmanager
def connected(address: str | None = None, num_cpus: int | None = None, holds_dataset: bool = False) -> Iterator[None]:
    """With a connection to the cluster at ``address``, else to the one this job runs on, else to a local one.

    A connection that stands already is used and left standing. A local cluster is started and shut down; it has token
    authentication on and listens on loopback alone. Its shared memory has room for the nodules that are on their way,
    or, where it ``holds_dataset``, a third of the machine's memory.

    Raises
    ------
    InputError
        Ray would not start on this machine, there is no cluster at ``address``, or it refuses the token.
    """
    if ray.is_initialized():
        yield
        return
    quiet_ray()
    machine.name_the_user()
    address = address or os.environ.get("RAY_ADDRESS")
    # With its connection Ray sets a handler of SIGTERM that exits, and later one that dumps its core.
    try:
        if address in (None, "", "local"):
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
    machine.refuse_to_start()
    # Workers of a local cluster inherit these; a runtime environment would cost each of them seconds to start.
    os.environ.update(thread_environment(1))
    # Ray ends a task's worker a second after its task where actors hold the CPUs; to start one takes seconds. A higher
    # RAY_num_workers_soft_limit would keep them too, but Ray then starts as many when tasks queue.
    os.environ.update(RAY_idle_worker_killing_time_threshold_ms="600000")
    # Ray Train has a process that watches for nodes that are about to be taken away; here there is one node.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    os.environ.setdefault("RAY_gcs_server_port_wait_time_s", f"{START_S:.0f}")
    os.environ.setdefault("RAY_worker_register_timeout_seconds", f"{START_S:.0f}")
    if not machine.has_token() and not machine.can_keep_token():
        # Without a home Ray has no place for its token; one in the environment is for this cluster alone.
        os.environ[machine.TOKEN] = secrets.token_hex(32)
    cpus = num_cpus or machine.usable_cpus()
    quoted = machine.quoted_interpreter()
    try:
        with on_loopback_alone(), patient_start(START_S):
            ray.init(
                address="local",
                num_cpus=cpus,
                include_dashboard=False,
                logging_level=logging.WARNING,
                object_store_memory=machine.object_store_bytes(cpus, holds_dataset),
                runtime_env={"py_executable": quoted} if quoted else None,
            )
    except Exception as error:
        # Ray raises all kinds, Exception itself too; none of them is about what raymat asked for.
        if "timed out during startup" in str(error):
            raise InputError(
                f"Ray did not start within {START_S:.0f} s: the machine is too busy; run the same command later"
            ) from error
        raise InputError(f"Ray does not start here ({first_line(error)}); see `raymat doctor`") from error
    token = machine.token_file()
    if token and token.is_file():
        with contextlib.suppress(PermissionError):  # of another user, who lets this one read it
            token.chmod(0o600)  # Ray writes it for all of the machine's users to read


def _join(address: str) -> None:
    if trouble := machine.token_trouble():
        raise InputError(trouble)
    if machine.quoted_interpreter():
        # What the nodes have is not known here, and a job's driver runs on one of them.
        raise InputError(
            f"Ray cannot start workers with the interpreter {sys.executable}: the path has a space or another special "
            "character; install raymat under a path without one"
        )
    try:
        if os.environ.get("RAY_AUTH_MODE") == "token" and not machine.has_token():
            raise ray.exceptions.AuthenticationError("no token")
        ask_head(address, ANSWER_S)
        environment = {"env_vars": thread_environment(1)}
        ray.init(address=address, logging_level=logging.WARNING, runtime_env=environment)
    except ray.exceptions.AuthenticationError as error:
        lacks = "is not that of the cluster" if machine.has_token() else "is missing here"
        raise InputError(
            f"the Ray cluster at {address} asks for its token, which {lacks}: set {machine.TOKEN_PATH} to a copy of "
            "the file ~/.ray/auth_token of its head, and RAY_AUTH_MODE=token"
        ) from error
    except (Unanswered, ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise InputError(f"no Ray cluster at {address}: {first_line(error)}") from error


def quiet_ray() -> None:
    """Keep Ray's own chatter out of the lines a person reads; warnings and errors stay."""
    logging.getLogger("ray").setLevel(logging.WARNING)
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    if "RAY_SCHEDULER_EVENTS" not in os.environ:
        silence_autoscaler()
    # It warns that token authentication is on, as it should be.
    logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module="ray")


@contextlib.contextmanager
def data_settings() -> Iterator[DataContext]:
    """Ray Data's settings for the datasets that are made within, which keep them; afterwards all is as it was.

    They start without its own progress bars and its advice on memory, which our stages declare.
    """
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)
    # Its thread reports once more when the work was stopped and Ray is gone, which is a traceback for nothing.
    logging.getLogger("ray.data._internal.stats").setLevel(logging.ERROR)
    context = DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.issue_detectors_config.detectors = []
    with DataContext.current(context):
        yield context


@dataclass(frozen=True)
class Pools:
    """What the actors of a build may hold of the cluster; None is sized from what the cluster has.

    By default one kind of worker takes a nodule through all stages. ``apart`` gives scoring and committing workers of
    their own.

    Attributes
    ----------
    workers : actors that run the solvers; on a cluster that grows, the most there may be
    most_workers : how many they may become there; None on a cluster that stays as it is
    cpus : CPUs (and threads) of each of them
    memory_gib : memory that each of them declares to Ray
    apart : whether scoring and committing have workers of their own
    scorers, most_scorers : how many those are, likewise
    pipelines : drivers that the work is dealt to; by the number of workers where None
    """

    workers: int | None = None
    most_workers: int | None = None
    cpus: float | None = None
    memory_gib: float = 2.0
    apart: bool = False
    scorers: int | None = None
    most_scorers: int | None = None
    pipelines: int | None = None

    score_cpus: float = 0.1
    score_memory_gib: float = 0.75

    @property
    def _scoring(self) -> tuple[float, float]:
        """CPUs and memory of all scorers."""
        scorers = (self.scorers or 0) if self.apart else 0
        return scorers * self.score_cpus, scorers * self.score_memory_gib

    def sized(self, cpus: float, memory_gib: float) -> Pools:
        """The pools with every None filled in for a cluster of ``cpus`` CPUs and ``memory_gib`` GiB.

        Raises
        ------
        InputError
            The actors would take all CPUs or memory, so that the work list could not be read.
        """
        # A little less than a CPU each leaves the work list its share; the solvers' threads are whole all the same.
        each = self.cpus or (0.9 if cpus >= 2 else 0.8)
        pools = replace(
            self,
            cpus=each,
            scorers=(self.scorers or max(1, math.ceil(cpus / 16))) if self.apart else None,
            pipelines=self.pipelines or max(1, math.ceil((self.workers or cpus) / WORKERS_PER_PIPELINE)),
        )
        score_cpus, score_gib = pools._scoring
        drivers = pools.pipelines or 1
        ends_cpus = drivers * LIST_CPUS + (drivers * PIPELINE_CPUS if drivers > 1 else 0)
        free_cpus, free_gib = cpus - score_cpus - ends_cpus, memory_gib - score_gib - LIST_GIB
        by_cpu = math.floor(min(cpus, free_cpus / each) + 1e-6)
        by_memory = math.floor(free_gib / self.memory_gib)
        workers = self.workers or max(1, min(by_cpu, by_memory))
        held_cpus = workers * each + score_cpus + ends_cpus
        if held_cpus > cpus + 1e-6:
            raise InputError(
                f"the workers would hold {held_cpus:.2f} of the cluster's {cpus:g} CPUs: the build would never start. "
                + _would_fit(workers, by_cpu, free_cpus, "--solve-cpus")
            )
        held_gib = workers * self.memory_gib + score_gib + LIST_GIB
        if held_gib > memory_gib + 1e-6:
            raise InputError(
                f"{workers} workers of {self.memory_gib:g} GiB need {held_gib:.1f} GiB with all else, more than "
                f"the cluster's {memory_gib:.1f} GiB: the build would never start. "
                + _would_fit(workers, by_memory, free_gib, "--solve-memory-gib")
            )
        return replace(pools, workers=workers)

    def growing(self, cpus: float, memory_gib: float, nodules: int) -> Pools:
        """The pools for a cluster that has ``cpus`` CPUs and ``memory_gib`` GiB and brings more as they are used.

        They start with what there is room for. ``workers`` given, else the number of nodules, is what they grow to;
        scorers of their own keep pace with them.

        Raises
        ------
        InputError
            There is no room for one worker.
        """
        most = min(self.workers or nodules, nodules)
        now = replace(self, workers=None).sized(cpus, memory_gib)
        assert now.workers is not None
        return replace(
            now,
            workers=min(now.workers, most),
            most_workers=most,
            pipelines=self.pipelines or max(1, math.ceil(most / WORKERS_PER_PIPELINE)),
            most_scorers=(self.scorers or max(now.scorers or 1, math.ceil(most / 16))) if self.apart else None,
        )

    def one_of_each(self) -> list[dict[str, float]]:
        """What one worker of each pool asks for, as Ray's resources."""
        workers = [(self.cpus or 0.8, self.memory_gib), (LIST_CPUS, LIST_GIB)]
        workers += [(self.score_cpus, self.score_memory_gib)] * self.apart
        return [{"CPU": cpus, "memory": gib * GIB} for cpus, gib in workers]

    def __str__(self) -> str:
        growth = f" (up to {self.most_workers} as nodes come)" if self.most_workers else ""
        scorers = f", {counted(self.scorers or 0, 'scorer')}" if self.apart else ""
        drivers = f", {self.pipelines} drivers" if self.pipelines and self.pipelines > 1 else ""
        workers = f"{counted(self.workers or 0, 'worker')} of {self.cpus:g} CPU and {self.memory_gib:g} GiB"
        return f"{workers}{growth}{scorers}{drivers}"


def _would_fit(workers: int, most: int, free: float, option: str) -> str:
    """What to type instead: fewer workers, or less for each of them, of ``free`` CPUs or GiB."""
    each = math.floor(10 * free / workers) / 10
    if each <= 0 and most < 1:
        return "No worker fits: use a larger cluster, or fewer --score-workers"
    fewer, less = f"--workers {most}", f"{option} {each:g}"
    return " or ".join((f"{fewer} fits",) * (most >= 1) + (f"{less} fits",) * (each > 0))


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
    pools = pools.growing(*has, nodules) if growing else pools.sized(*has)
    assert pools.workers is not None
    return replace(pools, workers=min(pools.workers, nodules))


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
    needs = f"{bundles[0]['CPU']:g} CPU and {pools.memory_gib:g} GiB for a worker, and a little for the work list"
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
        raise InputError(f"{workers} workers of one GPU each; the cluster has {gpus:g} GPUs. {_fits(gpus)}")
    if cpus < workers:
        raise InputError(f"{workers} workers of a CPU each; the cluster has {cpus:g} CPUs. {_fits(cpus)}")


def _fits(most: float) -> str:
    return f"--workers {math.floor(most)} fits" if most >= 1 else "Use another cluster (--address)"
