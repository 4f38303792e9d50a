"""The solvers' loops compiled once on a machine, whatever the number of workers that need them at the same time."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path

import llvmlite.binding
import numba
import numpy as np
from scipy.sparse import csr_array

from raymat.compiled import KERNELS
from raymat.matting.estimate import estimate_all
from raymat.matting.multigrid import COARSEST, Cycle, Sparse
from raymat.methods import METHODS

try:
    import fcntl
except ImportError:  # a system without file locks: every process compiles for itself
    fcntl = None  # type: ignore[assignment]

SHAPE = (9, 12, 12)


def are_compiled() -> bool:
    """Whether this machine keeps the loops of this version of the package for its processor."""
    mark = _mark()
    return mark is not None and mark.exists()


@functools.cache
def compile_kernels() -> None:
    """Have every loop compiled and kept; of several processes one compiles and the others wait for it.

    Where nothing can be kept, each process compiles what it needs when it needs it.
    """
    mark = _mark()
    if mark is None or mark.exists():
        return
    with _alone(mark.with_suffix(".lock")):
        if mark.exists():
            return
        _solve_a_little()
        with contextlib.suppress(OSError):
            mark.touch()


def folder_of_code() -> str | None:
    """The folder of the solvers' machine code; None where none can be stored."""
    # Other packages compile loops too, in folders of their own.
    kernels = [kernel for kernel in KERNELS if kernel.py_func.__module__.startswith("raymat.matting.")]
    return kernels[0].stats.cache_path


def _solve_a_little() -> None:
    """All methods on a ball of a few voxels: every kernel is called with the types that it always has."""
    distance = np.sqrt(sum((axis - (n - 1) / 2) ** 2 for axis, n in zip(np.indices(SHAPE), SHAPE, strict=True)))
    rng = np.random.default_rng(0)
    image = (-850 + 880 * np.clip(4 - distance, 0, 1) + rng.normal(0, 20, SHAPE)).astype(np.float32)
    trimap = np.where(distance < 2, 255, np.where(distance < 4, 128, 0)).astype(np.uint8)
    estimate_all(image, trimap, methods=METHODS)
    estimate_all(image, trimap, methods=("cf", "knn"), preconditioner="amg")
    n = COARSEST + 1  # multigrid of more than one level
    chain: Sparse = csr_array(2.0 * np.eye(n) - np.eye(n, k=1) - np.eye(n, k=-1))
    Cycle(chain, np.ones((n, 1)))(np.ones(n))


def _mark() -> Path | None:
    """The file that says so, beside the kept machine code; None where none can be kept."""
    folder = folder_of_code()
    if folder is None:
        return None
    sources = sorted(Path(__file__).parent.glob("*.py"))
    parts = [sys.version, numba.__version__, llvmlite.binding.get_host_cpu_name()]
    # Numba keeps code by its source's size and time of change.
    parts += [f"{source.name} {source.stat().st_size} {source.stat().st_mtime_ns}" for source in sources]
    digest = hashlib.blake2b("\n".join(parts).encode(), digest_size=8).hexdigest()
    return Path(folder) / f"raymat-{digest}.compiled"


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """No other process of this machine is in here."""
    with contextlib.ExitStack() as held:
        if fcntl is not None:
            with contextlib.suppress(OSError):
                path.parent.mkdir(parents=True, exist_ok=True)
                file = held.enter_context(open(path, "w"))
                fcntl.flock(file, fcntl.LOCK_EX)
        yield
