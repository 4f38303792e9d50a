"""One build, training or prediction at a time on one output: a lock in the store that a dead one cannot keep.

The lock is a small file that its holder writes anew every few seconds. A holder on the same host whose process is gone,
or one that has not written for a while, is dead, and its lock is taken over.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator

from raymat.folder import Folder
from raymat.nodule import InputError
from raymat.places import Unreachable

NAME = "build.lock"
BEAT_S = 20.0
DEAD_AFTER_S = 120.0
# In which two that begin at once have both written; a put may be on its way for longer than a rename.
SETTLE_S, STORE_SETTLE_S = 0.2, 3.0


@contextlib.contextmanager
def held(folder: Folder, session: str | None = None) -> Iterator[None]:
    """With the output's lock.

    Parameters
    ----------
    folder : of the output
    session : unique to this command; drawn where None

    Raises
    ------
    InputError
        Another command holds it; the message says which, and when it would be taken for dead.
    """
    session = session or secrets.token_hex(8)
    refuse_if_held(folder, session)
    _write(folder, session)
    time.sleep(SETTLE_S if folder.is_local else STORE_SETTLE_S)
    refuse_if_held(folder, session)
    done = threading.Event()

    def beat() -> None:
        while not done.wait(BEAT_S):
            # A store that cannot be written stops the build itself at its next commit.
            with contextlib.suppress(InputError, OSError):
                _write(folder, session)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    answers = True
    try:
        yield
    except Unreachable:
        answers = False
        raise
    finally:
        done.set()
        # Else the lock stays, its holder soon dead: to ask the store again would only take as long again.
        if answers:
            thread.join()
            with contextlib.suppress(InputError, OSError):
                folder.delete(NAME)


def refuse_if_held(folder: Folder, session: str = "") -> None:
    """Raise InputError where one other than ``session`` holds the lock and may be alive."""
    if not folder.exists(NAME):
        return
    try:
        lock = json.loads(folder.read(NAME))
        holder, host, pid, seen = lock["session"], lock["host"], int(lock["pid"]), float(lock["seen"])
    except FileNotFoundError:
        return
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return  # half a lock is nobody's
    quiet = time.time() - seen
    gone = host == socket.gethostname() and not _alive(pid)
    if holder == session or gone or quiet > DEAD_AFTER_S:
        return
    raise InputError(
        f"{folder.root}: another command is at work here (process {pid} on {host}, seen {max(0, quiet):.0f} s ago). "
        f"Wait until it is done; if it is dead, run this again in {DEAD_AFTER_S - quiet:.0f} s"
    )


def _write(folder: Folder, session: str) -> None:
    lock = {"session": session, "host": socket.gethostname(), "pid": os.getpid(), "seen": time.time()}
    folder.write(NAME, json.dumps(lock).encode())


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True
