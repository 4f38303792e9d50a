"""Systems that the diagonal solves slowly or not at all."""

import numpy as np
import pytest
from scipy.sparse import csr_array, diags_array

from raymat.matting import METHODS, closed_form, estimate_alpha, knn, memory_needed, windows
from raymat.matting import solve as solve_module
from raymat.matting.multigrid import Cycle
from raymat.matting.region import Region
from raymat.matting.solve import Dear, GraphLaplacian, solve
from raymat.matting.windows import WindowLaplacian, windows_around
from raymat.methods import SOLVERS
from tests.support.nodules import bumpy_ball


def thick(length: int, rows: int = 12, slope: bool = True):
    """A slice with an unknown region as long as the slice: image, trimap."""
    image = np.tile(np.linspace(-900.0, 90.0, length) if slope else np.full(length, -400.0), (rows, 1))
    trimap = np.full(image.shape, 128, dtype=np.uint8)
    trimap[:, :3], trimap[:, -3:] = 0, 255
    return image, trimap


@pytest.mark.parametrize("method", ["cf", "lb", "knn"])
def test_both_preconditioners_lead_to_the_same_matte(method):
    image, trimap = bumpy_ball(0, (14, 15, 16))
    (one, by_diagonal), (two, by_multigrid) = (
        estimate_alpha(image, trimap, method, preconditioner=name) for name in ("jacobi", "amg")
    )
    assert (by_diagonal.solver, by_multigrid.solver) == ("cg, jacobi", "cg, amg")
    assert by_diagonal.converged
    assert by_multigrid.converged
    assert np.abs(one - two).max() < 1e-4


@pytest.mark.parametrize("method", ["cf", "knn"])
def test_multigrid_takes_fewer_steps_and_auto_takes_it_where_the_region_is_thick(method):
    image, trimap = thick(700)
    names = ("jacobi", "amg", "auto")
    infos = {name: estimate_alpha(image, trimap, method, preconditioner=name)[1] for name in names}
    assert all(info.converged for info in infos.values())
    assert infos["amg"].iterations < infos["jacobi"].iterations / 5
    assert infos["auto"].solver == "cg, amg"
    assert infos["auto"].iterations == infos["amg"].iterations


def test_what_five_thousand_steps_with_the_diagonal_do_not_solve_converges():
    image, trimap = thick(700)
    info = estimate_alpha(image, trimap, "lb")[1]
    assert info.converged
    assert info.iterations < 200


def test_a_flat_region_takes_the_diagonal_longer():
    for length, solver in ((50, "cg, jacobi"), (200, "cg, amg")):
        image, trimap = thick(length, slope=False)
        assert estimate_alpha(image, trimap, "cf")[1].solver == solver


def test_where_the_diagonal_stalls_auto_turns_to_multigrid(monkeypatch):
    image, trimap = thick(700)
    monkeypatch.setattr(solve_module, "MAX_ITERATIONS", 150)
    assert not estimate_alpha(image, trimap, "cf", preconditioner="jacobi")[1].converged
    # The depth does not say so here.
    monkeypatch.setattr(windows, "STEPS_OF_DEPTH", 0.0)
    alpha, info = estimate_alpha(image, trimap, "cf", preconditioner="auto")
    assert info.solver == "cg, jacobi, then amg"
    assert info.converged
    np.testing.assert_allclose(alpha[6, [175, 350, 525]], [0.25, 0.5, 0.75], atol=0.02)


def test_auto_is_the_diagonal_for_a_nodule():
    image, trimap = bumpy_ball(1, (20, 20, 20))
    for method in ("cf", "knn", "if"):
        one, two = (estimate_alpha(image, trimap, method, preconditioner=name) for name in ("jacobi", "auto"))
        assert one[0].tobytes() == two[0].tobytes()
        assert "amg" not in two[1].solver


def test_if_is_not_symmetric_and_takes_the_diagonal():
    image, trimap = bumpy_ball(2, (10, 10, 10))
    assert estimate_alpha(image, trimap, "if", preconditioner="amg")[1].solver == "bicgstab, jacobi"


def test_more_methods_need_more_memory():
    assert memory_needed(1000, 100, ("cf", "cf+")) < memory_needed(1000, 100, METHODS)
    # One solver after the other from a size on.
    assert memory_needed(10**8, 5_000_000) < 24 * 2**30


def test_a_pair_has_the_bits_of_each_alone_with_multigrid_too():
    image, trimap = thick(700, 8)
    f = ((image + 1000) / 1400)[None, ..., None]
    system = closed_form.system(Region(f, trimap[None], np.array([0.0, 0.01, 0.01])), **SOLVERS["cf"].defaults)
    known = trimap.ravel()[system.variables] != 128
    S = [(trimap.ravel()[system.variables] == 255) * level for level in (1.0, 0.7)]
    together = solve(system, known, S, 100.0 * known, "auto")
    for s, solution in zip(S, together, strict=True):
        (alone,) = solve(system, known, [s], 100.0 * known, "auto")
        assert "amg" in alone.solver
        assert alone.a.tobytes() == solution.a.tobytes()


def whole(aggregates) -> np.ndarray:
    """T of the aggregates, dense."""
    n, k = aggregates.basis.shape
    T = np.zeros((n, aggregates.system.shape[0]))
    i = np.flatnonzero(aggregates.of >= 0)
    for s in range(k):
        T[i, aggregates.of[i] * k + s] = aggregates.basis[i, s]
    return T


@pytest.mark.parametrize(("shape", "c"), [((6, 7, 8), 1), ((1, 13, 8), 1), ((5, 6, 5), 3), ((2, 1, 9), 1)])
def test_the_system_of_blocks_is_that_of_the_operator(shape, c):
    rng = np.random.default_rng(0)
    around = windows_around(rng.random((*shape, c)), rng.random(shape) < 0.2)
    L = WindowLaplacian(around, closed_form.projection(around, 1e-4))
    penalty = rng.random(len(around.voxels))
    aggregates = L.aggregates(penalty)
    T, A = whole(aggregates), L(np.eye(len(penalty))) + np.diag(penalty)
    np.testing.assert_allclose(aggregates.system.toarray(), T.T @ A @ T, atol=1e-9)
    linear = np.column_stack([np.ones(len(penalty)), around.features.T])
    np.testing.assert_allclose(T @ aggregates.candidates, linear, atol=1e-12)


def test_the_system_of_a_graphs_aggregates_is_that_of_the_operator():
    rng = np.random.default_rng(0)
    n = 60
    i, j = rng.integers(0, n - 1, (2, 150))  # the last vertex stands alone
    L = GraphLaplacian(i[i != j], j[i != j], rng.random(np.count_nonzero(i != j)), n)
    penalty = rng.random(n)
    aggregates = L.aggregates(penalty)
    assert aggregates.of[-1] == -1
    assert len(np.unique(aggregates.of[aggregates.of >= 0])) == aggregates.system.shape[0] < n / 3
    T, A = whole(aggregates), L(np.eye(n)) + np.diag(penalty)
    np.testing.assert_allclose(aggregates.system.toarray(), T.T @ A @ T, atol=1e-6)


def test_the_cycle_is_symmetric_and_positive():
    rng = np.random.default_rng(1)
    n = 900  # a path: two levels
    W = diags_array([np.ones(n - 1), np.ones(n - 1)], offsets=[-1, 1], shape=(n, n))
    A = csr_array(diags_array(W.sum(axis=0) + np.eye(1, n)[0]) - W)
    M = Cycle(A, np.ones((n, 1)))
    assert len(M.levels) >= 1
    x, y = rng.normal(size=(2, n))
    assert M(x) @ y == pytest.approx(x @ M(y), rel=1e-9)
    assert M(x) @ x > 0


def test_voxels_that_nothing_ties_do_no_harm():
    image, trimap = thick(40, 40, slope=False)
    image[:, 20:] = 5000.0
    f = np.clip((image + 1000) / 1400, 0, 1)[None, ..., None]
    # Kernel weights of 0 between the sides, and no known voxel among them.
    trimap[trimap == 255] = 128
    trimap[0, 0] = 255
    system = knn.system(Region(f, trimap[None], np.array([0.0, 0.02, 0.02])), **SOLVERS["knn"].defaults)
    known = trimap.ravel()[system.variables] != 128
    S = (trimap.ravel()[system.variables] == 255) * 1.0
    (solution,) = solve(system, known, [S], 100.0 * known, "amg")
    assert np.isfinite(solution.a).all()
    assert solution.converged


def test_what_is_dear_is_decided_by_steps():
    falling, stalled = Dear(1e-6, 100), Dear(1e-6, 100)
    assert not any(falling(0.5**step) for step in range(1, 20))
    assert [stalled(0.5) for _ in range(120)].index(True) == 99
