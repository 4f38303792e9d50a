"""Harm that travels with the work of a build to wherever that runs.

A build's work is a value that its workers are given. Here its solver is replaced by one that does harm.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from raymat.engine.stages import Work
from raymat.nodule import InputError, Nodule
from raymat.pipelines.build import Steps
from raymat.store import shard_name


@dataclass(frozen=True)
class Harmed:
    """``solve`` of a build, with harm.

    Attributes
    ----------
    solve : nodule to nodule
    record : a file that gets a line for each solve that begins: the nodule, and "again" where it is committed already
    slow : seconds that each takes longer
    until : a file that all but the first ``free`` of them wait for
    exit, kill, hang : the nodules whose solve ends its process, is killed as for memory, and never returns (in C,
        holding the interpreter's lock)
    once : the nodule whose first solve is killed, and no other
    stop : the nodule whose solve stops the build, as a full disk does
    times : how many of its solves come to that end, the first ones
    after : by nodule, how many have to be committed before its solve continues
    out : the dataset that nodules are committed to
    """

    solve: Callable[[Nodule], Nodule]
    record: str
    slow: float = 0.0
    until: str = ""
    free: int = 0
    exit: str = ""
    kill: str = ""
    hang: str = ""
    once: str = ""
    stop: str = ""
    times: int = 1000
    after: dict[str, int] | None = None
    out: str = ""

    def __call__(self, nodule: Nodule) -> Nodule:
        name = nodule.nodule_id
        committed = self.out and Path(self.out, shard_name([nodule.key])).exists()
        with open(self.record, "a") as file:
            file.write(f"{name} again\n" if committed else f"{name}\n")
        solves = Path(self.record).read_text().splitlines()
        while len(list(Path(self.out).glob("nodules/*/*.parquet"))) < (self.after or {}).get(name, 0):
            time.sleep(0.02)
        if name == self.stop:
            raise InputError("the disk is full")
        if name == self.once and solves.count(name) == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if solves.count(name) <= self.times:
            if name == self.exit:
                os._exit(7)
            if name == self.kill:
                os.kill(os.getpid(), signal.SIGKILL)
            if name == self.hang:
                ctypes.PyDLL(None).sleep(3600)
        time.sleep(self.slow)
        while self.until and len(solves) > self.free and not os.path.exists(self.until):
            time.sleep(0.1)
        return self.solve(nodule)


@contextlib.contextmanager
def harmed(**harm: object) -> Iterator[None]:
    """Builds that this process begins in here come to harm (``Harmed``)."""
    work = Steps.work

    def harmful(steps: Steps, *arguments: object) -> Work:
        healthy = work(steps, *arguments)
        solve, *others = healthy.stages
        return replace(healthy, stages=(replace(solve, run=Harmed(solve.run, **harm)), *others))

    Steps.work = harmful
    try:
        yield
    finally:
        Steps.work = work
