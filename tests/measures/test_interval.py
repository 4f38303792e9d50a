"""Estimate and interval of the volume: what they are made of, and that the interval holds what it promises."""

import math

import numpy as np
import pytest

from raymat.measures.interval import (
    FEATURES,
    MATTE_MODEL,
    READERS_MODEL,
    Evidence,
    VolumeModel,
    evidence_of,
    fitted,
    volume_interval,
    without_readers,
)

READERS = (90.0, 110.0, 120.0, 160.0)


def drawn(rng: np.random.Generator, count: int) -> tuple[list[Evidence], list[float]]:
    """Nodules whose error is as wide as their border share, and whose matte leans towards the readers."""
    found, truth = [], []
    for _ in range(count):
        volume = math.exp(rng.uniform(3, 8))
        border = rng.uniform(0.05, 0.35)
        true = volume * math.exp(rng.normal(0, 0.15 * border))
        readers = tuple(true * math.exp(0.1 + rng.normal(0, 0.3)) for _ in range(4))
        lean = 0.3 * math.log(np.mean(readers) / true)
        found.append(Evidence(volume * math.exp(lean), border * volume, 0.0, readers))
        truth.append(true)
    return found, truth


def test_evidence_is_what_the_arrays_show():
    membership = np.zeros((4, 4, 4), np.float32)
    membership[1:3, 1:3, 1:3] = 1
    membership[0, 0, :2] = 0.5
    trimap = np.full((4, 4, 4), 128, np.uint8)
    trimap[3] = 0
    image = np.full((4, 4, 4), -800.0)
    image[:, 3, 3] = 50  # in the unknown region in three slices of four; a reader has one of the voxels
    reader = np.zeros((4, 4, 4), np.uint8)
    reader[1, 3, 3] = reader[1:3, 1:3, 1:3] = 1
    found = evidence_of(membership, image, trimap, [reader], (1.0, 0.5, 0.5))
    assert found == Evidence(volume=9 / 4, border=0.5 / 4, dense=2 / 4, readers=(9 / 4,))
    assert len(found.features) == len(FEATURES)


def test_readers_count_from_three_on():
    known = Evidence(100.0, 25.0, 5.0, READERS)
    assert volume_interval(known) == READERS_MODEL.interval(known)
    two = Evidence(100.0, 25.0, 5.0, READERS[:2])
    assert volume_interval(two) == MATTE_MODEL.interval(without_readers(known)) == MATTE_MODEL.interval(two)


def test_an_interval_lies_about_its_estimate_and_is_wider_where_more_is_border():
    sharp, blurred = (volume_interval(Evidence(500.0, border, 0.0, (480.0,) * 4)) for border in (50.0, 200.0))
    assert sharp.low < sharp.estimate < sharp.high
    assert sharp.low * sharp.high == pytest.approx(sharp.estimate**2)
    assert blurred.width > 1.5 * sharp.width


def test_a_fit_finds_the_lean_and_covers_nodules_it_has_not_seen():
    rng = np.random.default_rng(7)
    known, truth = drawn(rng, 400)
    model = fitted(known, truth, [f"p{number // 2}" for number in range(400)])
    off = np.log(truth) - np.log([one.volume for one in known])
    slope, shift = np.polyfit([one.readers_over_matte for one in known], off, 1)
    assert slope < -0.2
    assert (model.weight, model.shift) == (pytest.approx(slope, abs=0.03), pytest.approx(shift, abs=0.01))
    assert dict(zip(FEATURES, model.scale, strict=True))["log border share"] > 0.4
    unseen, true = drawn(rng, 1000)
    held = [found.low <= one <= found.high for found, one in zip(map(model.interval, unseen), true, strict=True)]
    assert np.mean(held) == pytest.approx(0.9, abs=0.04)
    for part in (slice(None, 500), slice(500, None)):
        widths = np.array([model.interval(one).width for one in unseen[part]])
        assert widths.std() > 0.1 * widths.mean()


def test_the_fit_of_few_nodules_is_wide_and_finite():
    known, truth = drawn(np.random.default_rng(1), 12)
    model = fitted(known, truth, [f"p{number}" for number in range(12)])
    assert all(map(math.isfinite, model.scale))
    assert any(map(math.isfinite, model.quantiles))


def test_small_nodules_have_a_quantile_of_their_own():
    model = VolumeModel(0.0, 0.0, (-2.0, 0.0, 0.0, 0.0, 0.0), (3.0, 1.0))
    small, large = (model.interval(Evidence(volume, 0.1 * volume, 0.0)) for volume in (112.0, 114.0))
    assert small.width > 2 * large.width
