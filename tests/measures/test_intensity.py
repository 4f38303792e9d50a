"""Intensity statistics against IBSI's published values and numpy's weighted percentiles."""

import numpy as np
import pytest

from raymat.measures.intensity import intensity_statistics, weighted_percentiles
from tests.support.ibsi import IMAGE, MASK, STATISTICS


def test_with_weights_of_zero_and_one_the_values_are_those_that_ibsi_published():
    found = intensity_statistics(IMAGE.astype(np.float32), MASK.astype(np.float32))
    for name, value in STATISTICS.items():
        assert found[name] == pytest.approx(value, abs=0.005 if abs(value) < 100 else 0.5), name
    assert set(found) - set(STATISTICS) == {"p25", "p75"}


def test_a_weight_of_a_third_counts_as_a_voxel_among_three():
    rng = np.random.default_rng(5)
    values = rng.normal(-200, 150, 40)
    times = rng.integers(0, 4, 40)
    repeated = intensity_statistics(np.repeat(values, times), np.ones(times.sum()))
    weighted = intensity_statistics(values, times / 3)
    # Energy grows with the weight, minimum and maximum are of voxels that count half and more.
    for name in set(repeated) - {"energy", "minimum", "maximum", "range"}:
        assert weighted[name] == pytest.approx(repeated[name]), name
    assert weighted["energy"] * 3 == pytest.approx(repeated["energy"])
    assert weighted["minimum"] == values[times >= 2].min()


def test_percentiles_are_numpys():
    rng = np.random.default_rng(6)
    values, weights = rng.normal(size=500), rng.random(500)
    percents = (0.0, 3.0, 50.0, 88.0, 100.0)
    expected = np.percentile(values, percents, weights=weights, method="inverted_cdf")
    assert weighted_percentiles(values, weights, percents) == pytest.approx(list(expected))


def test_values_that_are_all_equal_have_no_skewness_and_no_kurtosis():
    found = intensity_statistics(np.full(9, -600.0), np.full(9, 0.7))
    assert found["variance"] == found["skewness"] == found["excess_kurtosis"] == found["interquartile_range"] == 0
