"""All that raymat's engine touches of Ray's private parts, each with its reason. The pin on Ray is as tight as this."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray
from ray._private import ray_constants
from ray.data._internal.execution.execution_callback import ExecutionCallback
from ray.data._internal.execution.operators.actor_pool_map_operator import ActorPoolMapOperator


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


def silence_autoscaler() -> None:
    """Keep the autoscaler from saying every few seconds that a cluster at its largest should be larger."""
    ray_constants.AUTOSCALER_EVENTS = 0


def log_folder() -> Path:
    """Where this node's Ray keeps its logs, which its dashboard shows."""
    node = ray._private.worker.global_worker.node
    assert node is not None  # this process is connected
    return Path(node.get_logs_dir_path())


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

    The loop turns at every event, and without waiting where a block is ready that nobody takes yet: it would take a CPU
    and Python's lock from what runs beside it, each turn some milliseconds.
    """

    seconds = 0.05

    def on_execution_step(self, executor: object) -> None:
        """Called by Ray Data after each turn of its loop."""
        time.sleep(self.seconds)
