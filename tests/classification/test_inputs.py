"""The inputs of a nodule, its label and its size."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from raymat.classification.inputs import (
    CropConfig,
    axial_diameter,
    coarse_cube,
    crops_of,
    random_reader,
    size_of,
)
from raymat.classification.labels import label_of, malignancy_ratings
from raymat.classification.recipe import Recipe
from raymat.classification.samples import SAMPLE, column_of, labelled, read_crops, refuse_missing, sample_of
from raymat.evidence.inputs import FURTHER, INPUTS, inputs_of
from raymat.methods import ALPHA_KINDS, ANY, CALIBRATED, MEMBERSHIP
from raymat.nodule import InputError, matte_box
from tests.support.channels import two_channel_nodule
from tests.support.kinds import nodule_of_kind
from tests.support.nodules import draw_nodule

CROP = CropConfig(side=8, spacing_mm=1.0, margin=2)


def test_there_are_sixteen_and_each_is_of_the_same_grid():
    of_one_channel = set(INPUTS) - set(FURTHER)
    assert len(of_one_channel) == 16
    crops = crops_of(draw_nodule(0), CROP)
    readers = crops.pop("readers")
    assert set(crops) | {"random"} == of_one_channel
    np.testing.assert_array_equal(crops["chosen"], crops["cf"])
    for crop in [*crops.values(), *readers]:
        assert crop.shape == (12, 12, 12)
        assert crop.dtype == np.float16
        assert crop.min() >= 0
        assert crop.max() <= 1
    assert (crops["overlap"] <= crops["mean"]).all()
    assert (crops["mean"] <= crops["union"]).all()
    np.testing.assert_allclose(np.mean(readers, axis=0, dtype=float), crops["mean"], atol=2e-3)


@pytest.mark.parametrize("kind", ALPHA_KINDS)
def test_the_best_matte_of_each_kind_is_an_input_beside_the_chosen_one(kind):
    nodule = nodule_of_kind(0, kind)
    crops = crops_of(nodule, CROP)
    for name, method in (("chosen", nodule.method), (MEMBERSHIP, "cf"), (CALIBRATED, "cf+")):
        np.testing.assert_array_equal(crops[name], crops[method])
    assert np.abs(crops[MEMBERSHIP] - crops[CALIBRATED]).max() > 0.1
    # The dataset's own best matte is the chosen one: the trials would be the same.
    assert set(INPUTS) - set(inputs_of(kind)) == ({kind} - {ANY}) | set(FURTHER)
    assert "chosen" in inputs_of(kind)


def test_what_readers_and_mattes_say_elsewhere_changes_no_image():
    nodule = draw_nodule(0)
    other = replace(nodule, readers=[mask[::-1] for mask in nodule.readers])
    np.testing.assert_array_equal(crops_of(nodule, CROP)["image"], crops_of(other, CROP)["image"])


def test_blocks_are_means_around_the_middle_and_filled_beyond():
    array = np.arange(4 * 4 * 4, dtype=np.float32).reshape(4, 4, 4)
    np.testing.assert_allclose(coarse_cube(array, (2, 2, 2), 2, 2, 0.0)[0, 0, 0], array[:2, :2, :2].mean())
    corner = coarse_cube(array, (0, 0, 0), 2, 2, -5.0)
    assert corner[0, 0, 0] == -5
    np.testing.assert_allclose(corner[1, 1, 1], array[:2, :2, :2].mean())
    assert (coarse_cube(array, (40, 2, 2), 2, 2, -5.0) == -5).all()


def test_a_grid_that_does_not_fit_is_refused():
    with pytest.raises(InputError, match=r"case-000: .*whole multiple"):
        crops_of(draw_nodule(0), CropConfig(side=8, spacing_mm=0.7))
    with pytest.raises(InputError, match="no readers' masks"):
        crops_of(replace(draw_nodule(0), readers=[]), CROP)


def test_the_random_reader_changes_with_the_seed_and_is_drawn_evenly():
    drawn = np.array([[random_reader(f"n{n}", 4, seed) for n in range(400)] for seed in range(2)])
    assert (np.bincount(drawn.ravel(), minlength=4) > 140).all()
    assert 0.15 < np.mean(drawn[0] == drawn[1]) < 0.35


def test_size_is_that_of_a_ball():
    z, y, x = np.indices((41, 41, 41)) - 20
    ball = (z**2 + y**2 + x**2 <= 12.5**2).astype(np.uint8)
    volume, diameter = size_of(replace(draw_nodule(0), readers=[ball, ball], spacing=(0.5, 0.5, 0.5)))
    assert volume == pytest.approx(4 / 3 * np.pi * 6.25**3, rel=0.02)
    assert diameter == pytest.approx(12.5, rel=0.03)
    assert axial_diameter(ball != 0, (0.5, 0.5, 0.5)) == pytest.approx(12.5, rel=0.03)


def test_labels_follow_the_mean_rating():
    assert [label_of(rating) for rating in (1.0, 2.75, 3.0, 3.25, 5.0)] == [0, 0, None, 1, 1]
    assert [label_of(rating, margin=0.5) for rating in (2.25, 2.5, 3.5, 3.75)] == [0, None, None, 1]
    assert label_of(3.0, threshold=2.5) == 1
    assert label_of(float("nan")) is None
    nodule = draw_nodule(1)
    assert malignancy_ratings(nodule) == [2, 3, 3, 4]
    assert malignancy_ratings(replace(nodule, metadata={"malignancy": "5;4; 3"})) == [5, 4, 3]
    assert malignancy_ratings(replace(nodule, metadata={"malignancy": 4})) == [4]
    assert malignancy_ratings(replace(nodule, metadata={})) == []
    with pytest.raises(InputError, match=r"case-001: the rating of malignancy 'high' is no number"):
        malignancy_ratings(replace(nodule, metadata={"malignancy": "high"}))


def test_a_sample_gives_back_the_input_that_was_stored():
    nodules = [draw_nodule(n) for n in range(3)]
    recipe = Recipe(crop=CROP)
    table = pa.Table.from_pylist([sample_of(nodule, recipe) for nodule in nodules], schema=SAMPLE)
    wanted = ["case-002", "case-000"]
    for name in inputs_of(ANY):
        got = read_crops([table.select(["nodule_id", column_of(name)])], name, 5, CROP.stored, wanted)
        crops = crops_of(nodules[2], CROP)
        if name == "random":
            expected = crops["readers"][random_reader("case-002", 4, 5)]
        else:
            expected = crops[{"chosen": nodules[2].method, MEMBERSHIP: "cf", CALIBRATED: "cf+"}.get(name, name)]
        np.testing.assert_array_equal(got[0], expected)
    facts = table.to_pandas()
    refuse_missing(facts, inputs_of(ANY))
    fewer = replace(nodules[0], candidates=nodules[0].candidates[:1])
    facts = pa.Table.from_pylist([sample_of(fewer, recipe)], schema=SAMPLE).to_pandas()
    for name in ("lb", CALIBRATED):
        with pytest.raises(InputError, match=f"case-000: has no matte {name}"):
            refuse_missing(facts, ("image", name))
    refuse_missing(facts, ("image", "random", "chosen", MEMBERSHIP))


def facts_of(ratings):
    return pd.DataFrame(
        {"nodule_id": [f"n{n}" for n in range(len(ratings))], "patient_id": [f"p{n}" for n in range(len(ratings))]}
        | {"rating": ratings}
    )


@pytest.mark.parametrize(
    ("ratings", "words"),
    [
        ([np.nan] * 9, "has the readers' ratings"),
        ([1.0] * 9, "9 of its nodules are benign and none malignant .*: one class only"),
        ([5.0] * 8 + [3.0], "8 of its nodules are malignant and none benign"),
        ([1.0] * 8 + [5.0], "too few patients: the training part"),
    ],
)
def test_what_no_classifier_can_learn_from_is_refused(ratings, words):
    parts = {0: {f"p{n}": ("training", "validation", "test")[n % 3] for n in range(len(ratings))}}
    with pytest.raises(InputError, match=words):
        labelled(facts_of(ratings), Recipe(), parts, "data")


def test_indeterminate_nodules_are_left_out():
    ratings = [1.0, 5.0, 3.0] * 12
    parts = {0: {f"p{n}": ("training", "validation", "test")[n // 12] for n in range(36)}}
    nodules = labelled(facts_of(ratings), Recipe(), parts, "data")
    assert len(nodules) == 24
    assert set(nodules["rating"]) == {1.0, 5.0}


def test_further_channels_are_inputs_in_their_own_range():
    nodule = two_channel_nodule()
    config = CropConfig(side=8, spacing_mm=0.5, margin=0)
    crops = crops_of(nodule, config)
    assert {"image", "channel-2"} <= set(crops)
    assert "channel-3" not in crops
    middle = tuple(slice(n - 4, n + 4) for n in ((p.start + p.stop) // 2 for p in matte_box(nodule.trimap)))
    np.testing.assert_allclose(crops["channel-2"], nodule.true_membership[middle], atol=1e-3)
    alone = crops_of(replace(nodule, channels=[]), config)
    assert "channel-2" not in alone
    np.testing.assert_array_equal(alone["image"], crops["image"])
    assert set(inputs_of("calibrated", 2)) - set(inputs_of("calibrated")) == {"channel-2"}
