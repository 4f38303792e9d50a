"""What workers log of their nodules, and metrics.

Each worker has a log file beside Ray's own, ``raymat-PID.log``, which the dashboard shows; the driver prints none of
it. The metrics are in Ray's dashboard, where it has Prometheus, and at each node's metrics port.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import time
from collections.abc import Iterable, Iterator
from types import SimpleNamespace

from ray.util.metrics import Counter, Gauge, Histogram

from raymat.engine.ray_private import log_folder
from raymat.nodule import Nodule

logger = logging.getLogger(__name__)

SECONDS = [0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000]


@functools.cache
def meters() -> SimpleNamespace:
    """The metrics of this process; Ray adds ``ray_`` to their names, and node and worker to their tags."""
    return SimpleNamespace(
        outcomes=Counter("raymat_nodules", "Nodules committed, by outcome", ("outcome",)),
        seconds=Histogram("raymat_stage_seconds", "Seconds of a stage on a nodule", SECONDS, ("stage",)),
        in_flight=Gauge("raymat_nodules_in_flight", "Nodules that a stage works on", ("stage",)),
    )


@functools.cache
def keep_log() -> None:
    """Have this worker's lines in a file of its own, and its warnings and errors where the driver sees them too."""
    everything, warnings = logging.FileHandler(log_folder() / f"raymat-{os.getpid()}.log"), logging.StreamHandler()
    everything.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    warnings.setLevel(logging.WARNING)
    top = logging.getLogger("raymat")
    top.handlers, top.propagate = [everything, warnings], False
    top.setLevel(logging.INFO)


@contextlib.contextmanager
def logged(stage: str, *nodule_ids: str) -> Iterator[None]:
    """A stage is at work on the nodules in here: begin and end are logged, the time is measured."""
    keep_log()
    tags = {"stage": stage}
    for nodule_id in nodule_ids:
        logger.info("nodule %s: %s begins", nodule_id, stage)
    meters().in_flight.set(len(nodule_ids), tags)
    start = time.perf_counter()
    try:
        yield
    finally:
        seconds = time.perf_counter() - start
        meters().in_flight.set(0, tags)
        meters().seconds.observe(seconds, tags)
        for nodule_id in nodule_ids:
            logger.info("nodule %s: %s ends after %.2f s", nodule_id, stage, seconds)


def log_committed(nodules: list[Nodule]) -> None:
    """Log nodules that are committed with their outcome."""
    keep_log()
    for nodule in nodules:
        why = nodule.method or nodule.reason or ""
        logger.info("nodule %s: committed, %s (%s)", nodule.nodule_id, nodule.outcome, why)


def count_committed(outcomes: Iterable[str]) -> None:
    """Count committed nodules; by the driver, as the metrics of a worker's last seconds end with it."""
    for outcome in outcomes:
        meters().outcomes.inc(1, {"outcome": outcome})
