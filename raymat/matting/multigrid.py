"""Multigrid by smoothed aggregation as a preconditioner (P. Vanek, J. Mandel, M. Brezina, "Algebraic multigrid by
smoothed aggregation for second and fourth order elliptic problems", Computing 1996). pyamg makes the hierarchy.

The diagonal needs a number of steps that grows with the thickness of the unknown region in voxels; multigrid does not.
Making a hierarchy costs as much as hundreds of steps with the diagonal, which a nodule does not need.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from scipy.sparse import csr_array

from raymat.arrays import Float64Array
from raymat.compiled import compiled

Product = Callable[[Float64Array], Float64Array]
Sparse: TypeAlias = "csr_array[np.float64, tuple[int, int]]"

COARSEST = 300  # variables from which on a level is solved directly
DEGREE = 3  # of the smoother
RANGE = 20.0  # greatest over least eigenvalue that the smoother is made for
LANCZOS_STEPS = 12
DOMINANT = 1.1  # diagonal over the sum of the row's other entries from which a variable stays as it is


@dataclass(frozen=True)
class Level:
    """A level of the hierarchy.

    Attributes
    ----------
    product : x -> A x for (n, k)
    inverse : (n,) inverse of A's diagonal, 0 for an empty row
    greatest : greatest eigenvalue of the diagonal's inverse times A, about
    down, up : restriction to the next level and prolongation from it, transposes of one another
    """

    product: Product
    inverse: Float64Array
    greatest: float
    down: Product
    up: Product


class Multigrid:
    """A symmetric V-cycle for `A x = b`: r -> z, about `A^-1 r`.

    No BLAS and no chance: the same input gives the same bits for any number of threads.

    Parameters
    ----------
    A : csr array (n, n), symmetric positive (semi)definite
    candidates : (n, b), what A maps to almost nothing, where known voxels are far: constants, say
    product : p -> A p for each row of p, (k, n), where that is cheaper than with the matrix
    """

    def __init__(self, A: Sparse, candidates: Float64Array, product: Product | None = None) -> None:
        from pyamg import smoothed_aggregation_solver

        # "local" weights: pyamg's estimate of an eigenvalue begins with a vector drawn at random.
        hierarchy = smoothed_aggregation_solver(
            A,
            candidates,
            symmetry="symmetric",
            smooth=("jacobi", {"weighting": "local"}),
            presmoother=None,
            postsmoother=None,
            improve_candidates=None,
            diagonal_dominance=(True, {"theta": DOMINANT}),
            max_coarse=COARSEST,
            coarse_solver=None,
        ).levels
        self.levels: list[Level] = []
        for number, level in enumerate(hierarchy[:-1]):
            matrix = level.A.tocsr()
            inverse = inverted(matrix.diagonal())
            multiply = _by_rows(product) if number == 0 and product is not None else matrix.__matmul__
            up = level.P.tocsr()
            self.levels.append(
                Level(multiply, inverse, _greatest(multiply, inverse), up.T.tocsr().__matmul__, up.__matmul__)
            )
        last = hierarchy[-1].A
        self._inverse, self._last = inverted(last.diagonal()), None
        if last.shape[0] <= 4 * COARSEST:
            self._last = last.toarray()
            _factor(self._last)

    def __call__(self, r: Float64Array) -> Float64Array:
        """z for one right-hand side, (n,)."""
        return np.ascontiguousarray(self._cycle(0, r[:, None])[:, 0])

    def _cycle(self, number: int, b: Float64Array) -> Float64Array:
        if number == len(self.levels):
            if self._last is None:
                return self._inverse[:, None] * b
            return _substitute(self._last, b)
        level = self.levels[number]
        x = _smooth(level, None, b)
        x += level.up(self._cycle(number + 1, level.down(b - level.product(x))))
        return _smooth(level, x, b)


def inverted(diagonal: Float64Array) -> Float64Array:
    """1 / diagonal, and 0 where it is not above 0."""
    return np.where(diagonal > 0, 1.0 / np.where(diagonal > 0, diagonal, 1.0), 0.0)


def _by_rows(product: Product) -> Product:
    return lambda x: product(np.ascontiguousarray(x.T)).T


def _smooth(level: Level, x: Float64Array | None, b: Float64Array) -> Float64Array:
    """Chebyshev's iteration over the upper part of the spectrum (Y. Saad, "Iterative methods for sparse linear
    systems", 2003, algorithm 12.1); x is overwritten, None stands for 0."""
    high = 1.1 * level.greatest
    low = high / RANGE
    centre, half = (high + low) / 2, (high - low) / 2
    inverse = level.inverse[:, None]
    rho = half / centre
    residual = b if x is None else b - level.product(x)
    step = inverse * residual / centre
    for _ in range(DEGREE - 1):
        x = step.copy() if x is None else x.__iadd__(step)
        rho_next = 1 / (2 * centre / half - rho)
        step = rho_next * rho * step + 2 * rho_next / half * (inverse * (b - level.product(x)))
        rho = rho_next
    return step if x is None else x.__iadd__(step)


def _greatest(product: Product, inverse: Float64Array) -> float:
    """Greatest eigenvalue of the diagonal's inverse times A, by Lanczos' method from a fixed vector."""
    root = np.sqrt(inverse)[:, None]
    v = root * np.random.default_rng(0).uniform(-1.0, 1.0, (len(inverse), 1))
    if not (size := np.sqrt((v * v).sum())) > 0:
        return 1.0
    v, before, beta = v / size, np.zeros_like(v), 0.0
    alphas: list[float] = []
    betas: list[float] = []
    for _ in range(min(LANCZOS_STEPS, len(inverse))):
        w = root * product(root * v) - beta * before
        alphas.append(float((w * v).sum()))
        w -= alphas[-1] * v
        beta = float(np.sqrt((w * w).sum()))
        if not beta > 1e-12:
            break
        betas.append(beta)
        before, v = v, w / beta
    T = np.diag(alphas) + np.diag(betas[: len(alphas) - 1], 1) + np.diag(betas[: len(alphas) - 1], -1)
    return float(np.linalg.eigvalsh(T).max())


@compiled
def _factor(A: Float64Array) -> None:
    """`A = L D L^T` in place: L below the diagonal, 1 / D on it, 0 where rounding has left nothing of a pivot."""
    n = len(A)
    least = np.empty(n)
    for i in range(n):
        least[i] = 1e-12 * A[i, i]
    for i in range(n):
        for j in range(i):
            total = A[i, j]
            for s in range(j):
                total -= A[i, s] * A[j, s]
            A[i, j] = total
        pivot = A[i, i]
        for j in range(i):
            entry = A[i, j]
            A[i, j] = entry * A[j, j]
            pivot -= entry * A[i, j]
        A[i, i] = 1.0 / pivot if pivot > least[i] else 0.0


@compiled
def _substitute(A: Float64Array, b: Float64Array) -> Float64Array:
    x = b.copy()
    n, k = x.shape
    for q in range(k):
        for i in range(n):
            for j in range(i):
                x[i, q] -= A[i, j] * x[j, q]
        for i in range(n):
            x[i, q] *= A[i, i]
        for i in range(n - 1, -1, -1):
            for j in range(i):
                x[j, q] -= A[i, j] * x[i, q]
    return x
