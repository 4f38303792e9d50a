import numpy as np
import pytest
from scipy import ndimage

from raymat import metrics

ALL = (metrics.sad, metrics.mse, metrics.gradient, metrics.connectivity)


def smooth(seed, shape):
    a = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 2)
    return np.clip((a - a.min()) / np.ptp(a), 0, 1)


@pytest.mark.parametrize("metric", ALL)
@pytest.mark.parametrize("shape", [(20, 17), (12, 15, 13)])
def test_a_matte_has_no_error_against_itself_and_errors_are_symmetric(metric, shape):
    a, b = smooth(0, shape), smooth(1, shape)
    assert metric(a, a) == 0.0
    assert metric(a, b) == pytest.approx(metric(b, a))
    assert metric(a, b) > 0.0


def test_sad_and_mse_by_hand():
    a, b = np.zeros((2, 2, 2)), np.zeros((2, 2, 2))
    a[0, 0, 0], b[1, 1, 1] = 0.5, 1.0
    assert metrics.sad(a, b) == 1.5
    assert metrics.mse(a, b) == 1.25 / 8


def test_a_region_restricts_the_sum_and_the_mean():
    a, b = smooth(0, (9, 9, 9)), smooth(1, (9, 9, 9))
    region = np.zeros(a.shape, dtype=bool)
    region[:4] = True
    for metric in (metrics.sad, metrics.gradient, metrics.connectivity):
        assert metric(a, b, region=region) + metric(a, b, region=~region) == pytest.approx(metric(a, b))
    assert metrics.mse(a, b, region=region) == pytest.approx(((a - b) ** 2)[:4].mean())


def test_the_gradient_of_a_blurred_step_has_the_slope_of_a_gaussian():
    step = np.zeros((31, 31, 31))
    step[:, :, 16:] = 1.0
    total = metrics.gradient(step, np.zeros_like(step))
    x = np.arange(-15, 16)
    slope = np.exp(-((x - 0.5) ** 2) / (2 * 1.4**2)) / (1.4 * np.sqrt(2 * np.pi))
    assert total == pytest.approx(31 * 31 * (slope**2).sum(), rel=0.05)


def test_connectivity_charges_an_island_by_its_alpha():
    truth = np.zeros((12, 12, 12))
    truth[2:6, 2:6, 2:6] = 1.0
    islands = truth.copy()
    islands[9, 9, 9] = 0.7
    islands[9, 2, 9] = 0.1  # below theta: free
    assert metrics.connectivity(islands, truth) == pytest.approx(0.7)


def test_connectivity_joins_voxels_that_touch_at_a_corner():
    a = np.zeros((6, 6, 6))
    a[1:3, 1:3, 1:3] = 1.0
    a[3, 3, 3] = 1.0
    assert metrics.connectivity(a, np.where(a > 0, 1.0, 0.0)) == 0.0
    b = a.copy()
    b[3, 3, 3] = 0.5
    # In a the corner voxel stays in Omega up to 0.5, so d = 0.5 there; in b d = 0.
    assert metrics.connectivity(a, b) == pytest.approx(0.5)


def test_connectivity_follows_the_public_2d_code():
    a, b = smooth(3, (24, 24)), smooth(4, (24, 24))
    level_of = -np.ones(a.shape)
    for step in range(1, 11):
        both = (a >= step / 10) & (b >= step / 10)
        components, count = ndimage.label(both, np.ones((3, 3)))
        omega = np.zeros(a.shape, dtype=bool)
        if count:
            omega = components == 1 + np.argmax(np.bincount(components.ravel())[1:])
        level_of[(level_of == -1) & ~omega] = (step - 1) / 10
    level_of[level_of == -1] = 1.0

    def phi(x):
        return 1 - (x - level_of) * (x - level_of >= 0.15)

    assert metrics.connectivity(a, b) == pytest.approx(np.abs(phi(a) - phi(b)).sum())


@pytest.mark.parametrize("metric", ALL)
def test_bad_arguments_are_refused_by_name(metric):
    a = np.zeros((4, 4, 4))
    with pytest.raises(ValueError, match="differ in shape"):
        metric(a, np.zeros((4, 4, 5)))
    with pytest.raises(ValueError, match="2 or 3 axes"):
        metric(np.zeros(4), np.zeros(4))
    with pytest.raises(ValueError, match="NaN"):
        metric(a, np.full(a.shape, np.nan))
    with pytest.raises(ValueError, match="region must be"):
        metric(a, a, region=np.ones(a.shape, dtype=np.uint8))
    with pytest.raises(ValueError, match="no voxel"):
        metric(a, a, region=np.zeros(a.shape, dtype=bool))


def test_every_metric_has_the_scale_of_the_papers_tables():
    assert metrics.REPORT_SCALE == {"sad": 1e-2, "mse": 1e3, "gradient": 1e-2, "connectivity": 1e-2}
