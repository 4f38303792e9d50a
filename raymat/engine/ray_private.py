"""All that raymat's engine touches of Ray's private parts, each with its reason. The pin on Ray is as tight as this."""

from __future__ import annotations

import contextlib
import functools
import socket
import subprocess
import sys
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import ray
from ray._private import ray_constants, services
from ray.data._internal.execution import metadata_fetcher
from ray.data._internal.execution.execution_callback import ExecutionCallback
from ray.data._internal.execution.operators.actor_pool_map_operator import ActorPoolMapOperator
from ray.data._internal.execution.resource_manager import ResourceManager


@contextlib.contextmanager
def on_loopback_alone() -> Iterator[None]:
    """A local Ray that is started in here listens on 127.0.0.1 alone.

    On Linux Ray takes the machine's outward address, even for one that asks for loopback, and listens on all. Where it
    knows that no other node will come, as it assumes on other systems, it stays on 127.0.0.1.
    """
    clusters, ray_constants.ENABLE_RAY_CLUSTER = ray_constants.ENABLE_RAY_CLUSTER, False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = clusters


@contextlib.contextmanager
def patient_start(limit_s: float) -> Iterator[None]:
    """A local Ray that is started in here has ``limit_s`` seconds for it, where Ray gives itself 30 and asks no one."""
    find = services.get_node

    def await_node(*arguments: Any) -> Any:
        deadline = time.monotonic() + limit_s
        while True:
            try:
                return find(*arguments)
            except RuntimeError:  # not registered yet
                if time.monotonic() > deadline or not _raylet_lives():
                    raise
            time.sleep(0.5)

    services.get_node = await_node
    try:
        yield
    finally:
        services.get_node = find


def _raylet_lives() -> bool:
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            if child.name() == "raylet" and child.status() != psutil.STATUS_ZOMBIE:
                return True
    return False


# In a process of its own: Ray's call has no limit, prints what it meets, and ends the process where a token is missing.
ASK = """
import sys
from ray._private.authentication.authentication_token_setup import maybe_enable_token_auth_if_token_available
from ray._raylet import GcsClient
maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
GcsClient(address=sys.argv[1]).internal_kv_get(b"session_name", b"session")
"""


class Unanswered(Exception):
    """No head of a cluster answers at an address."""


def ask_head(address: str, limit_s: float) -> None:
    """Return when the head at ``address`` ("host:port") answers; Ray itself would wait for it without end.

    Addresses of other forms ("auto", "ray://...") are for Ray to understand and are not asked.

    Raises
    ------
    Unanswered
        Nothing listens there, or what listens does not answer within ``limit_s`` seconds.
    ray.exceptions.AuthenticationError
        The token is missing, or another one.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or "/" in address:
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), limit_s / 2).close()
    except OSError as error:
        raise Unanswered(f"nothing listens there ({error.strerror or error})") from error
    try:
        asked = subprocess.run(
            [sys.executable, "-c", ASK, address], capture_output=True, text=True, check=False, timeout=limit_s / 2
        )
    except subprocess.TimeoutExpired:
        raise Unanswered(f"what listens there did not answer within {limit_s / 2:.0f} s") from None
    if "AuthenticationError" in asked.stderr:
        raise ray.exceptions.AuthenticationError("the token is missing, or another one")
    if asked.returncode:
        raise Unanswered((asked.stderr.strip().splitlines() or ["no answer"])[-1])


def silence_autoscaler() -> None:
    """Keep the autoscaler from saying every few seconds that a cluster at its largest should be larger."""
    ray_constants.AUTOSCALER_EVENTS = 0


def log_folder() -> Path:
    """Where this node's Ray keeps its logs, which its dashboard shows."""
    node = ray._private.worker.global_worker.node
    assert node is not None  # this process is connected
    return Path(node.get_logs_dir_path())


def fetch_metadata_at_once() -> None:
    """Have Ray Data's loop take a block in the turn in which it is ready.

    A thread that fetches the block's metadata, a kilobyte that came with the message, would make it the next turn: a
    worker would wait for that long after each batch.
    """
    metadata_fetcher._PREFETCH_ON_THREAD = False


@functools.cache
def take_stock_once_a_turn() -> None:
    """Have Ray Data's loop count what its operators use once per turn, not again after each batch that it hands out.

    That was half of the loop's time. How many batches an actor or a task may have at once is counted apart from it.
    """
    update = ResourceManager.update_usages
    before: weakref.WeakKeyDictionary[ResourceManager, float] = weakref.WeakKeyDictionary()

    @functools.wraps(update)
    def seldom(self: ResourceManager) -> None:
        if time.monotonic() - before.get(self, 0.0) >= Pause.seconds / 4:
            update(self)
            before[self] = time.monotonic()

    ResourceManager.update_usages = seldom  # type: ignore[method-assign] # replaced on purpose


@functools.cache
def pass_constructor_arguments_by_value() -> None:
    """Have Ray Data create the actors of its pools from arguments in the call, none of them in the object store.

    Ray Data puts the function and its settings into the object store, whatever their size, and Ray cannot restart an
    actor once such an argument is lost (Ray issues 53727 and 57733); it says so in red for every pool. Ours are a few
    kilobytes.
    """
    start = ActorPoolMapOperator._start_actor

    @functools.wraps(start)
    def by_value(self: ActorPoolMapOperator, *arguments: Any, **named: Any) -> Any:
        references = self._data_context_ref, self._map_transformer_ref
        self._data_context_ref, self._map_transformer_ref = ray.get(list(references))
        try:
            return start(self, *arguments, **named)
        finally:
            self._data_context_ref, self._map_transformer_ref = references

    ActorPoolMapOperator._start_actor = by_value  # type: ignore[method-assign] # replaced on purpose


class Pause(ExecutionCallback):
    """Slows Ray Data's loop down to what the work needs.

    The loop turns up to a hundred times a second where a block is ready that nobody takes yet, each turn some
    milliseconds of a CPU and of Python's lock. What is ready is all dealt with in one turn, so that a worker waits for
    half of ``seconds`` after a batch.
    """

    seconds = 0.2

    def __init__(self) -> None:
        self.last = time.monotonic()

    def on_execution_step(self, executor: object) -> None:
        """Called by Ray Data after each turn of its loop."""
        time.sleep(max(0.0, self.last + self.seconds - time.monotonic()))
        self.last = time.monotonic()
