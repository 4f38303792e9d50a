"""One command at a time on one output: a lock in the store that a dead command cannot keep.

The lock is a small file that its holder writes again every few seconds. Who meets it asks whether the holder lives:

- On the holder's machine (the same boot of the same kernel, containers included) the lock has the time of the kernel's
  monotonic clock, which all processes share and which stands still while the machine sleeps. Where both commands see
  the same processes (one PID namespace), a holder whose process is gone is dead at once.
- From another machine the file is watched: the holder lives when its content changes, and is dead when it does not for
  ``DEAD_AFTER_S``. No clock of one machine is compared with one of another, and none of the store's is trusted.

A holder that was suspended is taken for dead, and may wake up. So it reads the lock before it writes or deletes it; one
that finds the lock of another command is stopped.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from raymat.errors import InputError
from raymat.folder import Folder
from raymat.places import Unreachable

logger = logging.getLogger(__name__)

NAME = "build.lock"
BEAT_S = 10.0
DEAD_AFTER_S = 120.0
WATCH_S = 1.0
# In which two that begin at once have both written; a put may be on its way for longer than a rename.
SETTLE_S, STORE_SETTLE_S = 0.2, 3.0


@dataclass(frozen=True)
class Holder:
    """Who holds a lock, as the lock says.

    Attributes
    ----------
    session : unique to the command
    host, pid : for people
    started : when the process began, in the kernel's ticks since its boot; "" where unknown
    clock : names the monotonic clock of ``seen``, equal for all processes of a machine until it boots again; "" where
        unknown
    processes : names the table of processes that ``pid`` is of; "" where unknown
    seen : s by that clock
    """

    session: str
    host: str
    pid: int
    started: str
    clock: str
    processes: str
    seen: float

    @classmethod
    def here(cls, session: str) -> Holder:
        """The process that asks, now."""
        pid, (clock, processes) = os.getpid(), _machine()
        return cls(session, socket.gethostname(), pid, _started(pid) or "", clock, processes, time.monotonic())


@contextlib.contextmanager
def held(folder: Folder, session: str | None = None) -> Iterator[None]:
    """No other command holds the output's lock while this context lasts.

    Where another command has taken it over all the same, because this process was suspended or the store out of reach
    for longer than ``DEAD_AFTER_S``, a KeyboardInterrupt ends the work in the main thread, and becomes an InputError
    here. In another thread, or where SIGINT and SIGTERM have handlers of their own, the error comes at the end alone.

    Parameters
    ----------
    folder : of the output
    session : unique to this command; drawn where None

    Raises
    ------
    InputError
        Another command holds it, or has taken it over; the message says which.
    """
    session = session or secrets.token_hex(8)
    _take(folder, session)
    heartbeat = _Heartbeat(folder, session)
    heartbeat.start()
    try:
        try:
            yield
        finally:
            heartbeat.stop()
    except Unreachable:
        # The lock stays, its holder soon dead: to ask the store again would only take as long again.
        raise
    except BaseException as error:
        if heartbeat.lost:
            raise _taken_over(folder) from error
        _release(folder, session)
        raise
    if heartbeat.lost or not _release(folder, session):
        raise _taken_over(folder)


def refuse_if_held(folder: Folder, session: str = "") -> None:
    """Raise InputError where one other than ``session`` holds the lock and is alive.

    Whether one on another machine is alive takes up to ``DEAD_AFTER_S`` to see.
    """
    while (data := _read(folder)) is not None:
        holder = _holder(data)
        if holder is None or holder.session == session:
            return  # nobody's, or ours
        here = Holder.here(session)
        if holder.clock and holder.clock == here.clock:
            quiet = here.seen - holder.seen
            if not quiet <= DEAD_AFTER_S or _is_gone(holder, here):
                return
            raise _refusal(folder, holder, f"seen {max(0.0, quiet):.0f} s ago", DEAD_AFTER_S - quiet)
        if _watched(folder, holder, data):
            return


def _watched(folder: Folder, holder: Holder, data: bytes) -> bool:
    """Watch the lock of another machine: True where its holder is dead, False where the lock is gone.

    Raises InputError where it changes.
    """
    start = _unchanged.setdefault((folder.root, data), time.monotonic())
    if time.monotonic() - start <= DEAD_AFTER_S:
        logger.warning(
            "%s: watching for up to %.0f s whether process %d on %s still works here",
            folder.root,
            DEAD_AFTER_S,
            holder.pid,
            holder.host,
        )
    while time.monotonic() - start <= DEAD_AFTER_S:
        time.sleep(WATCH_S)
        now = _read(folder)
        if now is None:
            return False
        if now != data:
            raise _refusal(folder, holder, "its lock was written again just now")
    return True


# Locks of other machines and when this process first saw each: a command that looks twice need not wait twice.
_unchanged: dict[tuple[str, bytes], float] = {}


def _refusal(folder: Folder, holder: Holder, why: str, seconds: float | None = None) -> InputError:
    dead = "" if seconds is None else f"; if it is dead, run this again in {max(1.0, seconds):.0f} s"
    return InputError(
        f"{folder.root}: another command is at work here (process {holder.pid} on {holder.host}, {why}). Wait until it "
        f"is done{dead}"
    )


def _taken_over(folder: Folder) -> InputError:
    by = ""
    with contextlib.suppress(InputError, OSError):
        data = _read(folder)
        holder = _holder(data) if data else None
        by = f" (process {holder.pid} on {holder.host})" if holder else ""
    return InputError(
        f"{folder.root}: this command was suspended or cut off for so long that another{by} took over its output; it "
        "has stopped. What is committed stays: when the other is done, run this again"
    )


def _take(folder: Folder, session: str) -> None:
    refuse_if_held(folder, session)
    _write(folder, session)
    time.sleep(SETTLE_S if folder.is_local else STORE_SETTLE_S)
    data = _read(folder)
    holder = _holder(data) if data else None
    if holder is None:
        raise InputError(f"{folder.root}: its lock was removed while this command began; run it again")
    if holder.session != session:
        # Whoever writes last of two that begin at once.
        raise _refusal(folder, holder, "begun just now")


def _release(folder: Folder, session: str) -> bool:
    """Delete the lock; False where it is no longer this command's, and stays."""
    # A store that does not answer now keeps the lock, its holder soon dead.
    with contextlib.suppress(InputError, OSError):
        if not _is_held_by(folder, session):
            return False
        folder.delete(NAME)
    return True


class _Heartbeat(threading.Thread):
    """Writes the lock again while it is this command's, and stops the command when it is not."""

    def __init__(self, folder: Folder, session: str) -> None:
        super().__init__(daemon=True)
        self.folder, self.session, self.lost = folder, session, False
        self._done, self._guard = threading.Event(), threading.Lock()
        self._in_main = threading.current_thread() is threading.main_thread()

    def run(self) -> None:
        while not self._done.wait(BEAT_S):
            # A store that cannot be reached stops the work itself at its next commit.
            with contextlib.suppress(InputError, OSError):
                if not _is_held_by(self.folder, self.session):
                    self._interrupt()
                    return
                _write(self.folder, self.session)

    def stop(self) -> None:
        """No beat, and no interrupt, comes after this."""
        with self._guard:
            self._done.set()
        self.join()

    def _interrupt(self) -> None:
        with self._guard:
            if self._done.is_set():
                return
            self.lost = True
            if not self._in_main:
                return
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) is signal.default_int_handler:
                    # A true signal, which also ends a wait in the system.
                    signal.pthread_kill(threading.main_thread().ident or 0, number)
                    return


def _write(folder: Folder, session: str) -> None:
    folder.write(NAME, json.dumps(asdict(Holder.here(session))).encode())


def _read(folder: Folder) -> bytes | None:
    try:
        return folder.read(NAME)
    except FileNotFoundError:
        return None


def _is_held_by(folder: Folder, session: str) -> bool:
    data = _read(folder)
    holder = _holder(data) if data else None
    return holder is not None and holder.session == session


def _holder(data: bytes) -> Holder | None:
    """Who holds a lock; None for a damaged one, which is nobody's."""
    try:
        lock = json.loads(data)
        names = ("started", "clock", "processes")  # which an earlier version did not write
        return Holder(
            lock["session"],
            lock["host"],
            int(lock["pid"]),
            **{name: str(lock.get(name, "")) for name in names},
            seen=float(lock["seen"]),
        )
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return None


def _machine() -> tuple[str, str]:
    """Names of this process's monotonic clock and of the table of processes that it is in; "" where unknown."""
    try:
        clock = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        # A container may have a clock of its own; kernels before 5.6 know no such thing.
        with contextlib.suppress(FileNotFoundError):
            clock += " " + os.readlink("/proc/self/ns/time")
        return clock, f"{clock} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return "", ""


def _is_gone(holder: Holder, here: Holder) -> bool:
    """Whether the holder's process, on this machine, is seen to have ended."""
    if not holder.processes or holder.processes != here.processes:
        return False  # a container sees its own processes alone
    started = _started(holder.pid)
    if started is None:
        return not _exists(holder.pid)
    return bool(holder.started) and started != holder.started


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _started(pid: int) -> str | None:
    """When a process began, in the kernel's ticks since its boot; None where the system does not show it."""
    try:
        # The name before it, in brackets, may hold anything.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None
