"""Multigrid as a preconditioner: aggregates of some dozens of variables, below them smoothed aggregation (P. Vanek,
J. Mandel, M. Brezina, "Algebraic multigrid by smoothed aggregation for second and fourth order elliptic problems",
Computing 1996), whose hierarchy pyamg makes.

The diagonal needs a number of steps that grows with the thickness of the unknown region in voxels; multigrid does not.
The first level is not smoothed and its correction is added to that of the diagonal (J. Bramble, J. Pasciak, J. Xu,
"Parallel multilevel preconditioners", Math. Comp. 1990). That takes some steps more than a V-cycle with smoothing on
all variables, but a step needs one product with the matrix in place of eight, no product of matrices is needed to set
it up, and the matrix itself may stay an operator.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np
from scipy.sparse import csr_array, diags_array

from raymat.arrays import Float64Array, Int32Array
from raymat.compiled import compiled

Sparse: TypeAlias = "csr_array[np.float64, tuple[int, int]]"

COARSEST = 300  # variables from which on a level is solved directly
DEGREE = 3  # of the smoother
RANGE = 20.0  # greatest over least eigenvalue that the smoother is made for
LANCZOS_STEPS = 12
# Added to the diagonal of the aggregates' system, as a part of theirs of the whole system: what nothing ties would else
# be of any size. Below it lies what takes ten thousand steps with the diagonal.
SHIFT = 1e-8
DOMINANT = 1.1  # diagonal over the sum of the row's other entries from which a variable stays as it is


class Rows(NamedTuple):
    """A matrix in compressed sparse rows."""

    start: Int32Array
    column: Int32Array
    value: Float64Array


@dataclass(frozen=True)
class Level:
    """A level of the hierarchy.

    Attributes
    ----------
    A : the system
    inverse : (n,) inverse of A's diagonal, 0 for an empty row
    greatest : greatest eigenvalue of the diagonal's inverse times A, about
    down, up : restriction to the next level and prolongation from it, transposes of one another
    """

    A: Rows
    inverse: Float64Array
    greatest: float
    down: Rows
    up: Rows


@dataclass(frozen=True)
class Aggregates:
    """The aggregates of n variables and their system `E = T^T A T`, with `T_i = basis_i` in the columns of i's own.

    Attributes
    ----------
    of : (n,) the aggregate of each variable, -1 for none
    basis : (n, k), the functions on each aggregate; column s of aggregate a is column a k + s of T
    system : E, csr array (m k, m k) for m aggregates
    candidates : (m k, b), what E maps to almost nothing, where known voxels are far
    """

    of: Int32Array
    basis: Float64Array
    system: Sparse
    candidates: Float64Array


class Multigrid:
    """A symmetric preconditioner for `A x = b`: r -> z = D^-1 r + T C T^T r, with a cycle C that is about E^-1.

    Parameters
    ----------
    diagonal : (n,) of A, which is symmetric positive (semi)definite
    aggregates : Aggregates
    """

    def __init__(self, diagonal: Float64Array, aggregates: Aggregates) -> None:
        self._inverse, self._aggregates = inverted(diagonal), aggregates
        shift = np.zeros(aggregates.system.shape[0])
        _restrict(diagonal, aggregates.of, aggregates.basis**2, shift)
        self.cycle = Cycle(csr_array(aggregates.system + diags_array(SHIFT * shift)), aggregates.candidates)

    def __call__(self, r: Float64Array) -> Float64Array:
        """z for one right-hand side, (n,)."""
        of, basis = self._aggregates.of, self._aggregates.basis
        coarse = np.zeros(len(self._aggregates.candidates))
        _restrict(r, of, basis, coarse)
        z = self._inverse * r
        _prolong(self.cycle(coarse), of, basis, z)
        return z


@compiled
def _restrict(r: Float64Array, of: Int32Array, basis: Float64Array, out: Float64Array) -> None:
    """Add T^T r to `out`."""
    k = basis.shape[1]
    for i in range(len(r)):
        if of[i] >= 0:
            for s in range(k):
                out[of[i] * k + s] += basis[i, s] * r[i]


@compiled
def _prolong(coarse: Float64Array, of: Int32Array, basis: Float64Array, out: Float64Array) -> None:
    """Add T c to `out`."""
    k = basis.shape[1]
    for i in range(len(out)):
        if of[i] >= 0:
            for s in range(k):
                out[i] += basis[i, s] * coarse[of[i] * k + s]


class Cycle:
    """A symmetric V-cycle for `A x = b`: r -> z, about `A^-1 r`.

    No BLAS and no chance: the same input gives the same bits for any number of threads.

    Parameters
    ----------
    A : csr array (n, n), symmetric positive (semi)definite
    candidates : (n, b), what A maps to almost nothing, where known voxels are far: constants, say
    """

    def __init__(self, A: Sparse, candidates: Float64Array) -> None:
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
        for level in hierarchy[:-1]:
            matrix, up = level.A.tocsr(), level.P.tocsr()
            inverse = inverted(matrix.diagonal())
            greatest = _greatest(matrix, inverse)
            self.levels.append(Level(_rows(matrix), inverse, greatest, _rows(up.T.tocsr()), _rows(up)))
        last = hierarchy[-1].A
        self._inverse, self._last = inverted(last.diagonal()), None
        if last.shape[0] <= 4 * COARSEST:
            self._last = last.toarray()
            _factor(self._last)

    def __call__(self, b: Float64Array, number: int = 0) -> Float64Array:
        """About A^-1 b for (n,), from a level on."""
        if number == len(self.levels):
            return self._inverse * b if self._last is None else _substitute(self._last, b)
        level = self.levels[number]
        x = np.zeros_like(b)
        _smooth(level.A, level.inverse, level.greatest, x, b, True)
        coarse = self(_product(level.down, _residual(level.A, x, b)), number + 1)
        x += _product(level.up, coarse)
        _smooth(level.A, level.inverse, level.greatest, x, b, False)
        return x


def _rows(matrix: Sparse) -> Rows:
    return Rows(matrix.indptr.astype(np.int32), matrix.indices.astype(np.int32), matrix.data.astype(np.float64))


def inverted(diagonal: Float64Array) -> Float64Array:
    """1 / diagonal, and 0 where it is not above 0."""
    return np.where(diagonal > 0, 1.0 / np.where(diagonal > 0, diagonal, 1.0), 0.0)


@compiled
def _product(A: Rows, x: Float64Array) -> Float64Array:
    y = np.empty(len(A.start) - 1)
    for i in range(len(y)):
        total = 0.0
        for e in range(A.start[i], A.start[i + 1]):
            total += A.value[e] * x[np.uint32(A.column[e])]
        y[i] = total
    return y


@compiled
def _residual(A: Rows, x: Float64Array, b: Float64Array) -> Float64Array:
    r = _product(A, x)
    for i in range(len(r)):
        r[i] = b[i] - r[i]
    return r


@compiled
def _smooth(A: Rows, inverse: Float64Array, greatest: float, x: Float64Array, b: Float64Array, from_zero: bool) -> None:
    """Chebyshev's iteration over the upper part of the spectrum (Y. Saad, "Iterative methods for sparse linear
    systems", 2003, algorithm 12.1), from x, which is overwritten."""
    high = 1.1 * greatest
    low = high / RANGE
    centre, half = (high + low) / 2, (high - low) / 2
    rho = half / centre
    step = inverse * (b if from_zero else _residual(A, x, b)) / centre
    for _ in range(DEGREE - 1):
        x += step
        r = _residual(A, x, b)
        rho_next = 1 / (2 * centre / half - rho)
        for i in range(len(r)):
            step[i] = rho_next * rho * step[i] + 2 * rho_next / half * (inverse[i] * r[i])
        rho = rho_next
    x += step


def _greatest(A: Sparse, inverse: Float64Array) -> float:
    """Greatest eigenvalue of the diagonal's inverse times A, by Lanczos' method from a fixed vector."""
    root = np.sqrt(inverse)
    v = root * np.random.default_rng(0).uniform(-1.0, 1.0, len(inverse))
    if not (size := np.sqrt((v * v).sum())) > 0:
        return 1.0
    v, before, beta = v / size, np.zeros_like(v), 0.0
    alphas: list[float] = []
    betas: list[float] = []
    for _ in range(min(LANCZOS_STEPS, len(inverse))):
        w = root * (A @ (root * v)) - beta * before
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
    n = len(x)
    for i in range(n):
        for j in range(i):
            x[i] -= A[i, j] * x[j]
    for i in range(n):
        x[i] *= A[i, i]
    for i in range(n - 1, -1, -1):
        for j in range(i):
            x[j] -= A[i, j] * x[i]
    return x
