"""A reader left out: what is measured, and that nothing but the measurement sees him."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.ndimage import distance_transform_edt
from sklearn.metrics import brier_score_loss, roc_auc_score

from raymat.evidence import reader_prediction
from raymat.evidence.bootstrap import by_patient, mean_by_patient
from raymat.evidence.left_out import LeftOutSource
from raymat.evidence.readers_table import as_markdown, summarise
from raymat.methods import ALPHA_KINDS, CALIBRATED
from raymat.nodule import InputError
from raymat.steps import BuildParameters, read_and_prepare, score, solve
from tests.support.kinds import nodule_of_kind
from tests.support.nodules import DrawnSource, draw_nodule

PARAMETERS = BuildParameters(min_readers=3)


def measured(source, ref):
    nodule = solve(read_and_prepare(source, ref, PARAMETERS), PARAMETERS)
    return score(nodule, PARAMETERS, reader_prediction.measure)


def test_every_reader_is_left_out_once_and_only_nodules_of_four_count():
    three = replace(draw_nodule(2), readers=draw_nodule(2).readers[:3])
    source = LeftOutSource(DrawnSource([draw_nodule(0), three]))
    refs = list(source.plan())
    assert [ref.nodule_id for ref in refs] == [f"case-000-without-{n}" for n in (1, 2, 3, 4)]
    assert {ref.readers for ref in refs} == {3}
    assert len({ref.fingerprint for ref in refs}) == 4
    whole = draw_nodule(0)
    for reader, ref in enumerate(refs):
        nodule = source.read(ref)
        np.testing.assert_array_equal(nodule.true_membership, whole.readers[reader])
        assert len(nodule.readers) == 3
        assert not any(np.array_equal(mask, whole.readers[reader]) for mask in nodule.readers)
    with pytest.raises(InputError, match="4 readers"):
        list(LeftOutSource(DrawnSource([three])).plan())


def test_a_sample_grows_without_losing_what_it_had():
    source = DrawnSource([draw_nodule(n) for n in range(8)])
    drawn = [{ref.nodule_id for ref in LeftOutSource(source, nodules=n).plan()} for n in (2, 5)]
    assert len(drawn[0]) == 8
    assert drawn[0] < drawn[1]


def test_the_left_out_reader_changes_the_truth_and_nothing_else():
    whole = draw_nodule(0)
    other = replace(whole, readers=[*whole.readers[:3], np.roll(whole.readers[3], 2, axis=1)])
    found = []
    for nodule in (whole, other):
        source = LeftOutSource(DrawnSource([nodule]))
        ref = list(source.plan())[3]
        found.append(solve(read_and_prepare(source, ref, PARAMETERS), PARAMETERS))
    for name in ("image", "trimap"):
        np.testing.assert_array_equal(getattr(found[0], name), getattr(found[1], name))
    for method, alpha in found[0].mattes.items():
        np.testing.assert_array_equal(alpha, found[1].mattes[method])
    assert not np.array_equal(found[0].true_membership, found[1].true_membership)


def test_what_is_measured_is_what_other_libraries_say():
    source = LeftOutSource(DrawnSource([draw_nodule(1)]))
    ref = next(source.plan())
    whole = solve(read_and_prepare(source, ref, PARAMETERS), PARAMETERS)
    done = measured(source, ref)
    unknown = whole.trimap == 128
    truth = (whole.true_membership >= 0.5)[unknown]
    for method, alpha in whole.mattes.items():
        found = done.metadata["measured"][method]
        assert found["auroc"] == pytest.approx(roc_auc_score(truth, alpha[unknown]), abs=1e-9)
        assert found["brier"] == pytest.approx(brier_score_loss(truth, np.clip(alpha[unknown], 0, 1)), abs=1e-6)
        assert sum(found["bins"][0]) == unknown.sum()
    assert done.image is None
    assert not done.candidates
    json.dumps(done.metadata)
    rows = reader_prediction.rows_of(done)
    assert {row["method"] for row in rows} == set(reader_prediction.ordered([row["method"] for row in rows]))
    assert {row["nodule_id"] for row in rows} == {"case-001"}


@pytest.mark.parametrize("kind", ALPHA_KINDS)
def test_the_chosen_matte_is_the_best_one_of_membership_whatever_was_built(kind):
    nodule = nodule_of_kind(0, kind)
    predicted = reader_prediction.predictions(nodule)
    for name, method in (("chosen", "cf"), ("chosen, calibrated", "cf+")):
        np.testing.assert_array_equal(predicted[name], nodule.mattes[method])
        for base, other in ((" & mean", "mean of three"), (" & distance", "distance of three")):
            np.testing.assert_allclose(predicted[f"{name}{base}"], (nodule.mattes[method] + predicted[other]) / 2)
    assert set(reader_prediction.ordered(predicted)) == set(predicted)
    measured = reader_prediction.measure(replace(nodule, metadata={"nodule": "case-000", "left_out": 1}))
    for row in reader_prediction.rows_of(measured):
        assert (row["chosen"], row["chosen_calibrated"]) == ("cf", "cf+")
    alone = replace(nodule, candidates=[matte for matte in nodule.candidates if matte.kind == CALIBRATED])
    assert "chosen" not in reader_prediction.predictions(alone)
    assert "chosen, calibrated" in reader_prediction.predictions(alone)


def test_the_distance_ramp_is_one_half_at_the_border_and_mirrors():
    mask = np.zeros((9, 9, 20), np.uint8)
    mask[:, :, :10] = 1
    ramp = reader_prediction.distance_ramp([mask, mask], (0.5, 0.5, 0.5))
    np.testing.assert_allclose(ramp + ramp[:, :, ::-1], 1)
    assert ramp[4, 4, 9] == pytest.approx(0.5 + 0.5 / 4)


@pytest.mark.parametrize("spacing", [(0.5, 0.5, 0.5), (2.5, 0.7, 0.7)])
def test_the_ramp_is_that_of_distances_over_the_whole_volume(spacing):
    rng = np.random.default_rng(0)
    readers = [np.zeros((14, 30, 34), np.uint8) for _ in range(3)]
    for mask in readers:
        # One touches the volume's border; none is in its middle.
        z, y, x = rng.integers(0, 6, 3)
        mask[z : z + 5, y : y + 8, x : x + 7] = rng.random((5, 8, 7)) < 0.7
    signed = [
        distance_transform_edt(mask, sampling=spacing) - distance_transform_edt(mask == 0, sampling=spacing)
        for mask in readers
    ]
    whole = np.clip(0.5 + np.mean(signed, axis=0) / 4.0, 0, 1)
    np.testing.assert_array_equal(reader_prediction.distance_ramp(readers, spacing), whole)


def test_the_table_compares_on_the_same_splits():
    rng = np.random.default_rng(0)
    rows = []
    for nodule in range(6):
        for reader in range(1, 5):
            for method, shift in (("mean of three", 0.1), ("cf", 0.05)):
                rows.append(
                    {
                        "nodule_id": f"n{nodule}",
                        "patient_id": f"p{nodule // 2}",
                        "left_out": reader,
                        "chosen": "cf",
                        "voxels": 10,
                        "inside": 5,
                        "method": method,
                        "brier": shift + 0.001 * rng.random(),
                        "auroc": 1 - shift,
                        "dice_unknown": 1 - shift,
                        "dice": 1 - shift,
                        "bin_count": [1.0] * 10,
                        "bin_given": [0.5] * 10,
                        "bin_inside": [0.25] * 10,
                    }
                )
    table = summarise(pd.DataFrame(rows)).set_index("method")
    assert table.loc["cf", "auroc_gain"] == pytest.approx(0.05)
    assert table.loc["cf", "brier_gain_low"] > 0.04
    assert table.loc["cf", "calibration_error"] == pytest.approx(0.25)
    assert "**0.950**" in as_markdown(table.reset_index())


def test_intervals_are_over_patients():
    values, patients = [0.0] * 10 + [1.0] * 10, ["a"] * 10 + ["b"] * 10
    found = mean_by_patient(values, patients)
    # Two patients: every third or fourth resample holds only one of them.
    assert (found.value, found.low, found.high) == (0.5, 0.0, 1.0)
    again = by_patient(lambda rows: float(np.mean(np.array(values)[rows])), patients, 200)
    assert (again.value, again.low, again.high) == (0.5, 0.0, 1.0)
    assert mean_by_patient([np.nan, 1.0], ["a", "b"]).value == 1.0
