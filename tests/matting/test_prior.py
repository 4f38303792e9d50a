"""The readers' mean mask as a data term, where the image cannot tell the lesion from what lies beside it."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from raymat import steps
from raymat.calibration import LUNG_WINDOW
from raymat.matting import METHODS, Prior, estimate_all, estimate_alpha, readers_prior
from raymat.methods import SOLVERS
from raymat.prepare import make_trimap
from raymat.steps import BuildParameters, MattingParameters
from tests.support import dense
from tests.support.nodules import bumpy_ball, distances, draw_nodule

SPACING = (0.5, 0.5, 0.5)
SHAPE = (28, 44, 44)
CENTRE = (13.5, 22.0, 21.0)


def scene(hu: float = 40.0):
    """A ball beside a chest wall of its own density: image, trimap, readers, membership."""
    distance = 5.0 - distances(SHAPE, CENTRE, SPACING)
    share = gaussian_filter((distance > 0).astype(np.float32), 1.0)
    wall = gaussian_filter((np.indices(SHAPE)[2] > 31).astype(np.float32), 1.0)
    rng = np.random.default_rng(3)
    image = -860 + np.maximum(share * (hu + 860), wall * (hu + 860)) + rng.normal(0, 15, SHAPE)
    readers = [(distance > step).astype(np.uint8) for step in (-0.6, -0.2, 0.2, 0.5)]
    return image.astype(np.float32), make_trimap(readers, SPACING, 2.0, 1.0, "intersection"), readers, share


@pytest.mark.parametrize("method", ["cf", "knn", "lb", "if"])
def test_alpha_runs_less_far_along_a_wall_of_the_lesions_density(method):
    image, trimap, readers, share = scene()
    unknown = trimap == 128
    beside = unknown & (np.indices(SHAPE)[2] > 28)
    plain = estimate_alpha(image, trimap, method, spacing=SPACING)[0]
    prior = readers_prior(image, trimap, readers, SPACING)
    known = estimate_alpha(image, trimap, method, spacing=SPACING, prior=prior)[0]

    def error(alpha, where):
        return np.mean((alpha - share)[where] ** 2)

    assert error(known, beside) < 0.85 * error(plain, beside)
    assert error(known, unknown) < error(plain, unknown)
    assert (known[~unknown] == plain[~unknown]).all()


@pytest.mark.parametrize("method", METHODS)
def test_a_prior_that_nobody_trusts_changes_no_bit(method):
    image, trimap, readers, _ = scene()
    nobody = replace(readers_prior(image, trimap, readers, SPACING), trust=np.zeros(SHAPE, np.float32))
    plain, known = (estimate_alpha(image, trimap, method, spacing=SPACING, prior=p)[0] for p in (None, nobody))
    np.testing.assert_array_equal(known, plain)


def test_trust_lies_beside_the_wall_alone():
    image, trimap, readers, _ = scene()
    prior = readers_prior(image, trimap, readers, SPACING)
    unknown, x = trimap == 128, np.indices(SHAPE)[2]
    assert prior.trust[unknown & (x > 30)].mean() > 0.5
    assert prior.trust[unknown & (x < 20)].max() < 0.01
    assert (prior.alpha.dtype, prior.trust.dtype) == (np.float32, np.float32)
    assert prior.alpha.max() <= 1


@pytest.mark.parametrize("base", SOLVERS)
def test_the_data_term_is_that_of_a_dense_direct_solve(base):
    image, trimap = bumpy_ball(7, (9, 9, 9))
    rng = np.random.default_rng(1)
    prior = Prior(rng.random(trimap.shape, np.float32), rng.random(trimap.shape, np.float32))
    alpha = estimate_alpha(image, trimap, base, spacing=SPACING, prior=prior)[0]
    given = prior.alpha, prior.trust, SOLVERS[base].prior_weight
    expected = dense.alpha(image, trimap, base, SPACING, prior=given)
    assert np.abs(alpha - expected).max() < 3e-4
    assert np.abs(alpha - dense.alpha(image, trimap, base, SPACING)).max() > 0.01


def test_calibrated_methods_expect_the_share_of_what_the_foreground_is_calibrated_to():
    image, trimap, _, _ = scene(-560.0)
    unknown = trimap == 128
    sure = Prior(np.ones(SHAPE, np.float32), np.full(SHAPE, 1e6, np.float32))
    mattes = estimate_all(image, trimap, ("cf", "cf+"), spacing=SPACING, prior=sure)
    density = float(LUNG_WINDOW.alpha(np.float32(-560.0)))
    assert mattes["cf"][0][unknown] == pytest.approx(1.0, abs=1e-3)
    assert mattes["cf+"][0][unknown] == pytest.approx(density, abs=0.06)


def test_no_prior_where_there_is_nothing_to_compare():
    image, trimap, readers, _ = scene()
    assert readers_prior(-image, trimap, readers, SPACING) is None
    for value in (0, 255):
        assert readers_prior(image, np.where(trimap == value, 128, trimap), readers, SPACING) is None


def test_a_prior_of_another_shape_or_of_no_numbers_is_refused():
    image, trimap, readers, _ = scene()
    prior = readers_prior(image, trimap, readers, SPACING)
    for wrong, words in (
        (replace(prior, trust=prior.trust[1:]), r"prior.trust has shape \(27, 44, 44\)"),
        (replace(prior, alpha=np.full(SHAPE, np.nan)), "prior.alpha must be finite"),
        (replace(prior, trust=-prior.trust), "prior.trust must be finite and not negative"),
    ):
        with pytest.raises(ValueError, match=words):
            estimate_alpha(image, trimap, "cf", spacing=SPACING, prior=wrong)


def test_a_build_has_it_unless_told_otherwise_and_its_mattes_say_so(monkeypatch):
    given = []
    monkeypatch.setattr(steps, "estimate_all", lambda *arrays, prior, **more: given.append(prior) or {})
    nodule = replace(draw_nodule(0), candidates=[], outcome=None, method=None)
    with_prior, without = BuildParameters(), BuildParameters(matting=MattingParameters(prior=False))
    for parameters in (with_prior, without):
        steps.solve(nodule, parameters)
    steps.solve(replace(nodule, readers=[]), with_prior)
    assert [prior is not None for prior in given] == [True, False, False]
    assert not set(with_prior.mattes.values()) & set(without.mattes.values())
