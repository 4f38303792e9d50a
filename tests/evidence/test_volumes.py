"""Errors of volumes, repeatability and agreement, against hand computation."""

import math
from dataclasses import replace

import numpy as np
import pytest

from raymat.evidence import volumes as evidence
from raymat.evidence.volumes import (
    ESTIMATE,
    HALF,
    INTERSECTION,
    MAJORITY,
    MATTE,
    MEAN,
    SINGLE,
    UNION,
    accuracy_by_group,
    accuracy_table,
    agreement_table,
    coverage_table,
    intraclass_correlation,
    pairs_of,
    repeatability,
    repeatability_by_group,
    repeatability_table,
    volumes_of,
)
from raymat.pictures.volumes import bland_altman, repeatability_figure
from tests.support.nodules import draw_nodule

DRAWN = {"gap_mm": None, "lesion_hu": 30.0, "core_part": 0.0}


def phantom(number: int, factor: float = 1.0):
    """The volumes of a drawn nodule whose first matte is the truth; all of them but the truth times a factor."""
    nodule = draw_nodule(number, known=True)
    found = volumes_of(replace(nodule, metadata={"phantom": DRAWN}))
    scaled = {name: tuple(factor * value for value in values) for name, values in found.volumes.items()}
    return replace(found, volumes=scaled)


def test_volumes_of_matte_readers_and_mask_rules():
    nodule = draw_nodule(3, known=True)
    found = volumes_of(replace(nodule, metadata={"phantom": DRAWN}))
    votes = np.sum(nodule.readers, axis=0)
    assert found.volumes[MATTE] == found.volumes["cf"] == (pytest.approx(found.truth),)
    assert found.volumes[SINGLE] == tuple(float(mask.sum()) / 8 for mask in nodule.readers)
    assert found.volumes[MEAN][0] == pytest.approx(votes.sum() / 4 / 8)
    least = {UNION: 1, HALF: 2, MAJORITY: 3, INTERSECTION: 4}
    assert {rule: found.volumes[rule][0] for rule in least} == {r: (votes >= n).sum() / 8 for r, n in least.items()}
    assert found.volumes[ESTIMATE] == (found.interval.estimate,)


def test_accuracy_has_bias_error_and_limits_of_bland_and_altman():
    phantoms = [phantom(1, 0.9), phantom(2, 1.1), phantom(4, 1.2)]
    row = next(line for line in accuracy_table(phantoms).splitlines() if line.startswith("| cf |"))
    error = np.array([-10.0, 10.0, 20.0])
    limits = error.mean() + 1.96 * error.std(ddof=1) * np.array([-1, 1])
    assert row == f"| cf | +10.0 % | 10.0 % | 18.0 % | {limits[0]:+.0f} to {limits[1]:+.0f} % |"
    by_group = accuracy_by_group(phantoms, ("cf",)).splitlines()
    assert by_group[0].startswith("| volume | all (3) | solid (3) |")
    assert "+10, 10.0" in by_group[2]


def test_coverage_counts_what_interval_and_range_hold():
    held = phantom(1)
    volume = held.truth
    held = replace(held, interval=replace(held.interval, estimate=volume, low=0.9 * volume, high=1.1 * volume))
    missed = replace(held, interval=replace(held.interval, low=1.05 * volume))
    line = coverage_table([held, missed]).splitlines()[2]
    assert line.startswith("| all | 2 | 50 % | 12 % (12 %) | 100 % |")


def test_repeatability_is_that_of_pairs_of_normal_errors():
    rng = np.random.default_rng(0)
    deviation = 0.07
    pairs = []
    for number in range(800):
        before, after = np.exp(rng.normal(0, deviation, 2)) * 100
        first = replace(PHANTOM, nodule_id=str(number), volumes={MATTE: (before,), SINGLE: (before, after)})
        pairs.append((first, replace(first, volumes={MATTE: (after,), SINGLE: (before, after)})))
    found = repeatability(pairs, MATTE)
    assert found.deviation == pytest.approx(deviation, rel=0.05)
    assert found.coefficient == pytest.approx(277 * deviation, rel=0.06)
    assert found.least_growth == pytest.approx(100 * (math.exp(2.77 * deviation) - 1), rel=0.06)
    low, high = found.outer
    assert np.mean([low <= change <= high for change in np.expm1(evidence.log_changes(pairs, MATTE))]) >= 0.94
    assert repeatability(pairs, SINGLE).count == 4 * 800
    assert repeatability(pairs[:2], MATTE) is None


PHANTOM = phantom(1)


def test_pairs_are_of_one_id_and_every_table_and_figure_is_made_of_them():
    first = [phantom(number) for number in (1, 2, 4, 5)]
    second = [phantom(number, 1.02) for number in (5, 1, 2)]
    pairs = pairs_of(first, second)
    assert [a.nodule_id for a, _ in pairs] == [b.nodule_id for _, b in pairs] == ["case-001", "case-002", "case-005"]
    assert "| cf | 4 % |" in repeatability_table(pairs)
    assert repeatability_by_group(pairs).startswith("| volume | all (3) |")
    assert len(bland_altman(first).axes) == len(repeatability_figure(pairs).axes) == 4


def test_intraclass_correlation_of_shrout_and_fleiss():
    """The example of their table 2, two of its four judges; their ICC(2,1) of all four is 0.29."""
    first, second = [9, 6, 8, 7, 10, 6], [2, 1, 4, 1, 5, 2]
    values = np.array([first, second], float).T
    rows, columns = values.mean(1) - values.mean(), values.mean(0) - values.mean()
    between, judges = 2 * (rows**2).sum() / 5, 6 * (columns**2).sum()
    error = ((values - values.mean() - rows[:, None] - columns) ** 2).sum() / 5
    by_hand = (between - error) / (between + error + 2 * (judges - error) / 6)
    assert intraclass_correlation(first, second) == pytest.approx(by_hand)
    assert intraclass_correlation(first, first) == pytest.approx(1)
    assert intraclass_correlation(first, second) < 0.3


def test_agreement_compares_every_method_with_every_reader():
    table = agreement_table([phantom(number) for number in (1, 2, 4, 5)])
    assert "| single reader |" in table
    assert table.count("\n") >= 4
