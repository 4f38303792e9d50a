"""The masks of a network as a solver's trimap."""

from dataclasses import replace

import numpy as np
import pytest

from raymat import metrics
from raymat.arrays import BACKGROUND, FOREGROUND, UNKNOWN
from raymat.methods import ANY, CALIBRATED, MEMBERSHIP
from raymat.network.inference import Predicted
from raymat.network.refinement import refined, solver_for, trimap_of
from raymat.nodule import InputError
from raymat.prepare import make_trimap

SPACING = (0.5, 0.5, 0.5)
SIDE, RADIUS = 40, 11.0


def distances(centre=((SIDE - 1) / 2,) * 3) -> np.ndarray:
    """Voxels from the centre."""
    return np.linalg.norm(np.indices((SIDE,) * 3) - np.reshape(centre, (3, 1, 1, 1)), axis=0)


def ball(radius: float = RADIUS) -> np.ndarray:
    """A blurred ball, 0 to 1."""
    return np.clip((radius - distances()) / 3 + 0.5, 0, 1).astype(np.float32)


def scan_of(alpha: np.ndarray) -> np.ndarray:
    """HU of a lesion of 50 HU in lung of -850."""
    noise = np.random.default_rng(0).normal(0, 10, alpha.shape)
    return (-850 + 900 * alpha + noise).astype(np.float32)


def said(union: np.ndarray, overlap: np.ndarray, alpha: np.ndarray, spread: float = 0.0) -> Predicted:
    """What a network says."""
    return Predicted(alpha, union.astype(np.float32), overlap.astype(np.float32), np.full(alpha.shape, spread))


def test_a_coarse_matte_gets_a_solvers_edge():
    true = ball()
    # A network's matte is a voxel off and too soft; its masks are right within a voxel.
    alpha = np.clip((RADIUS + 1 - distances()) / 8 + 0.5, 0, 1).astype(np.float32)
    found = said(distances() < RADIUS + 1, distances() < RADIUS - 1, alpha)
    mattes = refined(scan_of(true), found, SPACING, ("cf", "cf+"))
    assert list(mattes) == ["cf", "cf+"]
    for matte in mattes.values():
        assert matte.dtype == np.float32
        assert metrics.sad(matte, true) < 0.4 * metrics.sad(alpha, true)


def test_the_trimap_is_that_of_two_readers():
    union, overlap = distances() < 12, distances() < 10
    expected = make_trimap([union, overlap], SPACING)
    np.testing.assert_array_equal(trimap_of(said(union * 0.6, overlap * 0.7, ball()), SPACING), expected)


def test_where_an_ensemble_disagrees_voxels_are_unknown():
    union, overlap = distances() < 12, distances() < 10
    found = said(union, overlap, ball())
    plain = trimap_of(found, SPACING)
    corner, middle = (2, 2, 2), (SIDE // 2,) * 3
    assert (plain[corner], plain[middle]) == (BACKGROUND, FOREGROUND)
    found.spread[corner] = found.spread[middle] = 0.3
    asked = trimap_of(found, SPACING)
    assert (asked[corner], asked[middle]) == (UNKNOWN, UNKNOWN)
    assert np.count_nonzero(asked != plain) == 2
    everywhere = trimap_of(replace(found, spread=np.ones(plain.shape)), SPACING)
    assert (everywhere == FOREGROUND).any(), "a solver needs some foreground"


def test_a_lesion_that_no_voxel_surely_is_has_its_likeliest_as_foreground():
    faint = np.where(distances() < 8, 0.3, 0.0)
    faint[20, 20, 20] = 0.45
    trimap = trimap_of(said(distances() < 10, faint, ball()), SPACING)
    assert np.argwhere(trimap == FOREGROUND).tolist() == [[20, 20, 20]]


def test_nothing_to_refine_is_said():
    nothing = np.zeros((SIDE,) * 3)
    with pytest.raises(InputError, match="finds no lesion here"):
        refined(scan_of(ball()), said(nothing, nothing, ball()), SPACING, ("cf",))
    assert trimap_of(said(nothing + 0.4, nothing, ball()), SPACING) is None
    everything = np.ones((SIDE,) * 3)
    everything_but = np.where(distances() < 5, 1.0, 0.0)
    with pytest.raises(InputError, match=r"cannot be refined .*background.*larger box"):
        refined(scan_of(ball()), said(everything, everything_but, ball()), SPACING, ("cf",))


def test_the_solver_fits_the_networks_kind_of_alpha():
    assert [solver_for("auto", kind) for kind in (CALIBRATED, MEMBERSHIP, ANY)] == ["cf+", "cf", None]
    assert [solver_for("none", kind) for kind in (CALIBRATED, MEMBERSHIP, ANY)] == [None] * 3
    assert [solver_for("if+", CALIBRATED), solver_for("if", MEMBERSHIP), solver_for("if", ANY)] == ["if+", "if", "if"]
    with pytest.raises(InputError, match=r"cf makes membership alpha, the network predicts calibrated: .* cf\+, knn\+"):
        solver_for("cf", CALIBRATED)
    with pytest.raises(InputError, match=r"no method 'best' to refine with: choose one of cf, .*, auto or none"):
        solver_for("best", CALIBRATED)
