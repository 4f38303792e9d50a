"""Systems that the diagonal solves slowly or not at all."""

import numpy as np
import pytest
from scipy.sparse import csr_array, diags_array

from raymat.matting import METHODS, closed_form, estimate_alpha, knn, memory_needed, windows
from raymat.matting import solve as solve_module
from raymat.matting.multigrid import Multigrid
from raymat.matting.region import Region
from raymat.matting.solve import Dear, solve
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


def test_multigrid_takes_fewer_steps_and_auto_turns_to_it():
    image, trimap = thick(700)
    infos = {name: estimate_alpha(image, trimap, "cf", preconditioner=name)[1] for name in ("jacobi", "amg", "auto")}
    assert all(info.converged for info in infos.values())
    assert infos["amg"].iterations < infos["jacobi"].iterations / 5
    assert infos["auto"].solver == "cg, jacobi, then amg"
    assert infos["auto"].iterations < infos["jacobi"].iterations


def test_where_the_diagonal_does_not_converge_auto_does(monkeypatch):
    image, trimap = thick(700)
    monkeypatch.setattr(solve_module, "MAX_ITERATIONS", 150)
    assert not estimate_alpha(image, trimap, "cf", preconditioner="jacobi")[1].converged
    alpha, info = estimate_alpha(image, trimap, "cf", preconditioner="auto")
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


def test_a_matrix_of_gigabytes_is_not_made_unasked(monkeypatch):
    image, trimap = thick(700)
    monkeypatch.setattr(windows, "MOST_ENTRIES", 1000)
    monkeypatch.setattr(solve_module, "MAX_ITERATIONS", 150)
    alone, asked = (estimate_alpha(image, trimap, "cf", preconditioner=name)[1] for name in ("auto", "amg"))
    assert (alone.solver, alone.converged) == ("cg, jacobi", False)
    assert (asked.solver, asked.converged) == ("cg, amg", True)


def test_more_methods_and_multigrid_need_more_memory():
    plain = memory_needed(1000, 100, ("cf", "cf+"))
    assert plain < memory_needed(1000, 100, ("cf", "cf+"), "amg")
    assert plain < memory_needed(1000, 100, METHODS)
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


@pytest.mark.parametrize(("shape", "c"), [((6, 7, 8), 1), ((1, 9, 8), 1), ((5, 6, 5), 3), ((2, 1, 9), 1)])
def test_the_assembled_matrix_is_the_operator(shape, c):
    rng = np.random.default_rng(0)
    unknown = rng.random(shape) < 0.2
    windows = windows_around(rng.random((*shape, c)), unknown)
    L = WindowLaplacian(windows, closed_form.projection(windows, 1e-4))
    penalty = rng.random(len(windows.voxels))
    dense = L.matrix(penalty).toarray()
    np.testing.assert_allclose(dense, L(np.eye(len(penalty))) + np.diag(penalty), atol=1e-9)


def test_the_cycle_is_symmetric_and_positive():
    rng = np.random.default_rng(1)
    n = 900  # a path: two levels
    W = diags_array([np.ones(n - 1), np.ones(n - 1)], offsets=[-1, 1], shape=(n, n))
    A = csr_array(diags_array(W.sum(axis=0) + np.eye(1, n)[0]) - W)
    M = Multigrid(A, np.ones((n, 1)))
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
    assert [stalled(0.5) for _ in range(20)].index(True) == 14
