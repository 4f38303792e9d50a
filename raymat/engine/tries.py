"""How often a nodule may cost a worker its life, and how the guilty one of a batch is found.

A worker keeps a small file on its node that says which nodule and stage it is at; the kernel keeps it when the process
is killed. The worker that gets the batch next reads it. A nodule that was named there gets a mark in the store,
``died/KEY``, which outlives the driver; its neighbours in the batch get none. From then on each of its tries is counted
there before it begins, and after ``MAX_TRIES`` of them it has failed.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import logging
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from raymat.folder import Folder

logger = logging.getLogger(__name__)

MAX_TRIES = 3
DIED = "died"
POSITION_BYTES = 512  # of the file; what the time limit writes comes after them


@dataclass(frozen=True)
class Deaths:
    """What is known of a nodule that killed a worker.

    Attributes
    ----------
    count : its tries that began and came to no end
    too_long : how many of them were ended because a stage took too long
    stage : the latest stage that a worker died in; empty where unknown
    """

    count: int = 0
    too_long: int = 0
    stage: str = ""

    def reason(self, limit_s: float) -> str:
        """Why the nodule has failed."""
        where = f" in {self.stage}" if self.stage else ""
        if self.count and self.too_long == self.count:
            return f"{self.stage} took longer than {limit_s:g} s, {self.count} times (--nodule-timeout)"
        return f"its worker died {self.count} times (killed, out of memory or crashed){where}"


@dataclass(frozen=True)
class Marks:
    """The marks of a dataset's nodules that killed a worker and have no outcome yet."""

    store: Folder

    def read(self, keys: Iterable[str]) -> dict[str, Deaths]:
        """Those of ``keys`` that have a mark."""
        wanted = set(keys)
        return {key: deaths for key, deaths in self.read_all().items() if key in wanted}

    def read_all(self) -> dict[str, Deaths]:
        """All of them, by key."""
        deaths = {}
        for name in self.store.listing(DIED):
            with contextlib.suppress(FileNotFoundError):
                deaths[name.partition("/")[2]] = _deaths(self.store.read(name))
        return deaths

    def blame(self, key: str, stage: str, too_long: bool) -> None:
        """A worker died of the nodule: its first try is counted now, later ones were when they began."""
        before = self.read([key]).get(key, Deaths())
        self._write(key, Deaths(max(before.count, 1), before.too_long + too_long, stage or before.stage))

    def begin(self, key: str, deaths: Deaths) -> None:
        """The nodule is tried again: counted before it begins, so that a driver's death gives it no further try."""
        self._write(key, replace(deaths, count=deaths.count + 1))

    def _write(self, key: str, deaths: Deaths) -> None:
        self.store.write(f"{DIED}/{key}", json.dumps(asdict(deaths)).encode())

    def remove(self, key: str) -> None:
        """Forget a nodule that has its outcome."""
        self.store.delete_many([f"{DIED}/{key}"])

    def remove_all(self) -> None:
        """Forget all of them, when every nodule has its outcome."""
        self.store.delete_all(DIED)


def _deaths(data: bytes) -> Deaths:
    try:
        note = json.loads(data)
        # A plain number is the mark of an earlier version.
        return Deaths(note) if isinstance(note, int) else Deaths(**note)
    except (ValueError, TypeError):
        return Deaths(1)


@dataclass(frozen=True)
class LastPosition:
    """What a worker that died was at."""

    key: str
    stage: str
    too_long: bool
    trace: str


def log_folder() -> Path:
    """Where this process's log lies on its node."""
    # What counts a nodule's tries needs no Ray.
    from raymat.engine import ray_private

    return ray_private.log_folder()


class Position:
    """The file of a worker: nodule and stage that it is at, and the end that the time limit puts to it.

    Parameters
    ----------
    batch : what the file is named by, so that the next worker on the batch finds it
    limit_s : seconds that one stage may take on one nodule
    """

    def __init__(self, batch: str, limit_s: float) -> None:
        self.limit_s = limit_s
        self.path = log_folder() / f"raymat-batch-{batch}"
        self.before = _last_position(self.path)
        self.file = open(self.path, "wb", buffering=0)  # noqa: SIM115
        # What follows goes behind the position; the file is as long as that from the start.
        self.file.write(b" " * POSITION_BYTES)

    @contextlib.contextmanager
    def at(self, key: str, stage: str) -> Iterator[None]:
        """The nodule is being worked on in here; a process that takes too long is ended, even in compiled code."""
        text = json.dumps({"key": key, "stage": stage}).encode()
        os.pwrite(self.file.fileno(), text.ljust(POSITION_BYTES), 0)
        faulthandler.dump_traceback_later(self.limit_s, exit=True, file=self.file)
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()

    def close(self) -> None:
        """The batch is done: no worker has to look here."""
        self.file.close()
        self.path.unlink(missing_ok=True)


def _last_position(path: Path) -> LastPosition | None:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        note = json.loads(data[:POSITION_BYTES])
        key, stage = note["key"], note["stage"]
    except (ValueError, KeyError, TypeError):
        return None
    trace = data[POSITION_BYTES:].decode(errors="replace").strip()
    if trace:
        logger.warning("a worker took too long in %s of nodule %s and was ended there:\n%s", stage, key, trace)
    return LastPosition(key, stage, trace.startswith("Timeout"), trace)
