"""What this machine lets a process use, and what keeps Ray from starting on it."""

from __future__ import annotations

import contextlib
import math
import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from raymat.errors import InputError

GIB = 2**30
LEAST_STORE_BYTES = 100 << 20
# The longest path of a socket that Linux takes, and the longest that Ray makes in its temporary folder.
SOCKET_BYTES = 107
RAY_SOCKET = "/ray/session_2026-01-01_00-00-00_000000_{pid}/sockets/plasma_store"
TOKEN, TOKEN_PATH = "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"
CGROUPS = Path("/sys/fs/cgroup")


# CPUs and memory ------------------------------------------------------------------------------------------------------


def usable_cpus() -> int:
    """CPUs that this process may use: of its affinity, or fewer where its control group has a quota; at least 1."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for quota in _cpu_quotas():
        cpus = min(cpus, math.floor(quota))
    return max(1, cpus)


def _cpu_quotas() -> Iterator[float]:
    for group in _groups(""):
        with contextlib.suppress(OSError, ValueError):
            quota, period = (group / "cpu.max").read_text().split()
            if quota != "max":
                yield float(quota) / float(period)
    for group in _groups("cpu"):
        with contextlib.suppress(OSError, ValueError):
            quota_us, period_us = (int((group / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
            if quota_us > 0:
                yield quota_us / period_us


def free_memory_bytes() -> int:
    """Memory that this process may use and that nothing else uses now."""
    import psutil

    return min(psutil.virtual_memory().available, usable_memory_bytes())


def usable_memory_bytes() -> int:
    """Memory that this process may use: of the machine, or less where its control group has a limit."""
    import psutil

    memory = psutil.virtual_memory().total
    for kind, name in (("", "memory.max"), ("memory", "memory.limit_in_bytes")):
        for group in _groups(kind):
            with contextlib.suppress(OSError, ValueError):  # "max" is no number
                memory = min(memory, int((group / name).read_text()))
    return memory


def _groups(controller: str) -> list[Path]:
    """The control group of this process and those above it: each may have a limit.

    ``controller`` is one of version 1, "" is version 2. A container sees its own group as the root; a batch system
    and systemd put a process into a group far below it.
    """
    root = CGROUPS / controller
    with contextlib.suppress(OSError):
        for line in _own_groups().splitlines():
            _, controllers, path = line.split(":", 2)
            if controller in controllers.split(","):
                own = root / path.lstrip("/")
                return [own, *(folder for folder in own.parents if folder == root or root in folder.parents)]
    return [root]


def _own_groups() -> str:
    return Path("/proc/self/cgroup").read_text()


def shared_memory_bytes() -> int | None:
    """Free room in /dev/shm; None on a system without it."""
    return shutil.disk_usage("/dev/shm").free if Path("/dev/shm").is_dir() else None


def object_store_bytes(cpus: int, holds_dataset: bool = False) -> int:
    """Shared memory for a local cluster: room for a few large nodules per CPU, or, where it ``holds_dataset``, a third.

    Never more than a third of the memory, nor than /dev/shm has room for: Ray would refuse to start, or use a disk.
    Every worker maps what it touches of it, so that it counts in the memory that tools show for each of them.
    """
    third = usable_memory_bytes() // 3
    wanted = third if holds_dataset else min(third, int((1 + 0.5 * cpus) * GIB))
    shared = shared_memory_bytes()
    if shared is not None:
        wanted = min(wanted, int(0.9 * shared))
    return max(wanted, LEAST_STORE_BYTES)


# Folders --------------------------------------------------------------------------------------------------------------


def home() -> Path | None:
    """The user's home; None where there is no such folder, or a user without a name has none."""
    with contextlib.suppress(RuntimeError):
        folder = Path.home()
        return folder if folder.is_dir() else None
    return None


def can_make(path: Path) -> bool:
    """Whether a folder can be written, or be made where it is missing."""
    path = path.absolute()
    there = next(folder for folder in (path, *path.parents) if os.path.lexists(folder))
    return there.is_dir() and os.access(there, os.W_OK | os.X_OK)


def name_the_user() -> None:
    """Give a user who has no name (``docker run --user 1234``) its number as one: libraries ask for a name."""
    import pwd

    try:
        pwd.getpwuid(os.getuid())
    except KeyError:
        os.environ.setdefault("USER", str(os.getuid()))


def _owner(path: Path) -> str:
    try:
        return f"it belongs to {path.owner()}"
    except (KeyError, OSError):
        return "it belongs to another user"


# Ray ------------------------------------------------------------------------------------------------------------------


def ray_folder() -> Path:
    """The folder in which Ray makes its own, "ray"."""
    return Path(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp")


def ray_folder_trouble() -> str:
    """What is wrong with Ray's temporary folder, and what to set; "" where nothing is."""
    folder = ray_folder()
    remedy = "set RAY_TMPDIR to a short path of a folder that you can write"
    length = len(os.fsencode(f"{folder.absolute()}{RAY_SOCKET.format(pid=os.getpid())}"))
    if length > SOCKET_BYTES:
        return (
            f"Ray's temporary folder {folder} has a path that is {length - SOCKET_BYTES} characters too long for its "
            f"sockets; {remedy}, for example RAY_TMPDIR=/tmp"
        )
    if not can_make(folder / "ray"):
        blocked = next(one for one in (folder / "ray", folder, *folder.parents) if os.path.lexists(one))
        return f"Ray's temporary folder {folder / 'ray'} cannot be written ({blocked}: {_owner(blocked)}); {remedy}"
    return ""


def token_file() -> Path | None:
    """The file that Ray reads its token from; None where the environment has the token, or there is no home."""
    if os.environ.get(TOKEN):
        return None
    if os.environ.get(TOKEN_PATH):
        return Path(os.environ[TOKEN_PATH])
    folder = home()
    return folder / ".ray" / "auth_token" if folder else None


def has_token() -> bool:
    """Whether Ray has a token, in the environment or in a file."""
    file = token_file()
    return bool(os.environ.get(TOKEN)) or bool(file and os.path.lexists(file))


def token_trouble() -> str:
    """What is wrong with Ray's token, and what to set; "" where nothing is, or where there is none yet."""
    file = token_file()
    if file is None or os.environ.get("RAY_AUTH_MODE", "token").lower() != "token":
        return ""
    remedy = f"set {TOKEN_PATH} to a file of your own that holds the token, or {TOKEN} to the token"
    try:
        if file.read_text().strip():
            return ""
        return f"Ray's token file {file} is empty; delete it, or {remedy}"
    except FileNotFoundError:
        return (
            f"Ray's token file {file}, which {TOKEN_PATH} names, does not exist" if os.environ.get(TOKEN_PATH) else ""
        )
    except (OSError, UnicodeDecodeError):
        return f"Ray's token file {file} cannot be read ({_owner(file)}); {remedy}"


def can_keep_token() -> bool:
    """Whether Ray can write a new token into the user's home."""
    folder = home()
    return folder is not None and can_make(folder / ".ray")


def start_troubles() -> list[str]:
    """What keeps Ray from starting on this machine, each with what to set."""
    return [trouble for trouble in (ray_folder_trouble(), token_trouble()) if trouble]


def refuse_to_start() -> None:
    """Raise InputError where a local Ray would not start; the message says what to set."""
    for trouble in start_troubles():
        raise InputError(trouble)


def quoted_interpreter() -> str | None:
    """The interpreter as a shell reads it, where that differs from its path; else None.

    Ray starts a worker that has an environment of its own through a shell, and does not quote the path.
    """
    quoted = shlex.quote(sys.executable)
    return quoted if quoted != sys.executable else None


def temporary_folder_trouble() -> str:
    """What is wrong with the folder of temporary files, and what to set; "" where nothing is."""
    try:
        with tempfile.TemporaryFile() as file:
            file.write(b"0")
    except OSError as error:
        return (
            f"no temporary file can be written ({error.strerror or error}); set TMPDIR to a folder that you can write"
        )
    return ""
