"""Errors of every method, as Table 1 counts them."""

from dataclasses import replace

import numpy as np
import pytest

from raymat import metrics
from raymat.matting import METHODS
from raymat.methods import ALPHA_KINDS, CALIBRATED, MEMBERSHIP, kind_of
from raymat.network.evaluation import (
    CHOSEN,
    NOTHING,
    RAMP,
    READERS,
    TRUE,
    as_markdown,
    differences,
    differences_as_markdown,
    errors_of,
    evaluation_box,
    masks_score,
    nodules_of,
    reliability_curve,
    summarise,
)
from raymat.network.evaluation import METRICS as ERRORS
from raymat.network.inference import Predicted
from raymat.nodule import InputError
from raymat.pictures.network import error_bars, heat_map, reliability, show_predictions
from tests.support.kinds import BEST, nodule_of_kind
from tests.support.nodules import draw_nodule, small_nodule

WHOLE = (slice(None),) * 3


def predicted(nodule) -> Predicted:
    union, overlap = nodule.readers[1].astype(np.float32), nodule.readers[0].astype(np.float32)
    return Predicted(nodule.true_alpha, union, overlap, np.zeros_like(union))


def rows(nodule, truth: str) -> dict:
    found = errors_of(nodule, WHOLE, {"3DMM": predicted(nodule)})
    return {(row["method"], row["metric"]): row["value"] for row in found if row["truth"] == truth}


def test_the_method_that_the_ground_truth_was_made_by_is_left_out_of_its_own_comparison():
    nodule = small_nodule(0)
    against_chosen, against_true = rows(nodule, CHOSEN), rows(nodule, TRUE)
    assert nodule.method == "cf+"
    assert {method for method, _ in against_chosen} == {
        READERS,
        RAMP,
        NOTHING,
        "knn+",
        "3DMM",
        "3DMM, mean of its masks",
    }
    assert {method for method, _ in against_true} - {method for method, _ in against_chosen} == {"cf+"}
    assert all(against_true["3DMM", metric] == 0 for metric in ERRORS)
    assert against_true[NOTHING, "sad"] == pytest.approx(nodule.true_alpha.sum())
    assert against_true["knn+", "sad"] == metrics.sad(nodule.mattes["knn+"], nodule.true_alpha)


def test_a_methods_twin_is_left_out_with_it():
    nodule = draw_nodule(0, known=True)
    for chosen, left_out in (("cf", {"cf", "lb"}), ("lb+", {"cf+", "lb+"}), ("knn", {"knn"}), ("if+", {"if+"})):
        found = errors_of(replace(nodule, method=chosen), WHOLE, {})
        assert {row["method"] for row in found if row["truth"] == CHOSEN} & set(METHODS) == set(METHODS) - left_out
        assert {row["method"] for row in found if row["truth"] == TRUE} >= set(METHODS)


@pytest.mark.parametrize("of_dataset", ALPHA_KINDS)
@pytest.mark.parametrize(("kind", "others"), [(MEMBERSHIP, {"cf+", "knn+"}), (CALIBRATED, {"cf", "knn"})])
def test_the_ground_truth_is_of_the_networks_kind_and_the_methods_of_the_other_kind_come_last(kind, others, of_dataset):
    nodule, made_by = nodule_of_kind(0, of_dataset), BEST[kind]
    network = Predicted(nodule.mattes[made_by], *(nodule.mattes["cf"],) * 3)
    found = [row | {"split": 0} for row in errors_of(nodule, WHOLE, {"3DMM": network}, kind)]
    tables = {truth: summarise(found, truth, kind) for truth in (CHOSEN, TRUE)}
    assert tables[CHOSEN]["3DMM"]["sad"][0] == tables[TRUE]["3DMM"]["sad"][0] == 0
    # The chosen matte of the other kind made no ground truth here, and is far from this one.
    assert made_by not in tables[CHOSEN]
    assert min(tables[CHOSEN][name]["sad"][0] for name in others) > 0.1
    own = [name for name in METHODS if kind_of(name) == kind and name in tables[CHOSEN]]
    methods = list(tables[CHOSEN])
    assert methods[1 : 1 + len(own)] == own
    assert set(methods[-2:]) == others
    text = as_markdown(tables[CHOSEN], nodules_of(found, CHOSEN), kind)
    text += differences_as_markdown(found, CHOSEN, "3DMM", kind)
    for name in others:
        assert text.count(f"| {name} ({kind_of(name)}) | no | 1 |") == 2
    assert f"| {own[0]} | no | 1 |" in text


def test_a_nodule_without_a_matte_of_the_networks_kind_is_named():
    with pytest.raises(InputError, match="case-000: has no matte of the kind membership"):
        errors_of(small_nodule(0), WHOLE, {}, MEMBERSHIP)


def test_the_box_is_the_networks_input_unless_the_lesion_is_larger():
    nodule = small_nodule(0)
    box = evaluation_box(nodule, (4, 24, 100))
    lesion = np.flatnonzero((nodule.trimap != 0).any(axis=(1, 2)))
    assert (box[0].start, box[0].stop) == (lesion[0], lesion[-1] + 1)
    assert box[1:] == (slice(0, 24), slice(0, 24))
    assert evaluation_box(small_nodule(0, shape=(40, 40, 40)), (30, 30, 30)) == (slice(5, 35),) * 3


def test_the_table_is_the_mean_and_deviation_over_splits_in_the_papers_units():
    found = [
        {"split": split, "truth": CHOSEN, "method": "cf+", "metric": metric, "value": value}
        for metric in ERRORS
        for split, value in ((0, 100.0), (0, 300.0), (1, 400.0))
    ]
    table = summarise(found, CHOSEN)
    # Of two splits, of means 2 and 4: that of a sample, not of all there are.
    assert table["cf+"]["sad"] == pytest.approx((3.0, 2**0.5))
    assert table["cf+"]["mse"] == pytest.approx((3e5, 2**0.5 * 1e5))
    assert summarise(found, TRUE) == {}
    assert "| cf+ | no | 3 | 3.00 (± 1.41) |" in as_markdown(table, {"cf+": 3})
    assert "| 3DMM | yes | 3 |" in as_markdown({"3DMM": table["cf+"]}, {"3DMM": 3})
    once = summarise([row for row in found if row["split"] == 1], CHOSEN)
    assert "| cf+ | no | 1 | 4.00 | " in as_markdown(once, {"cf+": 1})


def test_a_solver_and_a_network_are_compared_on_the_nodules_that_both_have():
    """Large nodules, hard for all, were matted best by cf+: without them it seems the better by far."""
    errors = {"a": (100.0, 110.0), "b": (120.0, 110.0), "large": (None, 900.0)}
    found = [
        {"split": split, "nodule_id": name, "truth": CHOSEN, "method": method, "metric": metric, "value": value}
        for split in (0, 1)
        for name, both in errors.items()
        for method, value in zip(("cf+", "3DMM"), both, strict=True)
        for metric in ERRORS
        if value is not None
    ]
    table = summarise(found, CHOSEN)
    assert table["3DMM"]["sad"][0] - table["cf+"]["sad"][0] == pytest.approx(2.633, abs=1e-3)
    less = summarise(differences(found, CHOSEN, "3DMM"), CHOSEN)
    assert set(less) == {"cf+"}
    assert less["cf+"]["sad"] == pytest.approx((0.0, 0.0))
    assert nodules_of(found, CHOSEN) == {"cf+": 4, "3DMM": 6}
    assert "| cf+ | no | 4 | +0.00 (± 0.00) |" in differences_as_markdown(found, CHOSEN, "3DMM")


def test_masks_are_scored_by_dice_and_by_how_often_they_are_right():
    nodule = small_nodule(1)
    score = masks_score(nodule, WHOLE, predicted(nodule))
    assert score["union"]["dice"] == score["overlap"]["dice"] == 1
    half = Predicted(*(np.full(nodule.image.shape, 0.25, np.float32),) * 4)
    bins = masks_score(nodule, WHOLE, half)["union"]["bins"]
    given, found = reliability_curve([bins, bins])
    assert given.tolist() == [0.25]
    assert found[0] == pytest.approx(nodule.readers[1].mean())
    assert masks_score(nodule, WHOLE, half)["union"]["dice"] == 0


def test_a_dice_by_hand():
    a, b = np.zeros(8, bool), np.zeros(8, bool)
    assert metrics.dice(a, b) == 1
    a[:4], b[2:4] = True, True
    assert metrics.dice(a, b) == pytest.approx(2 * 2 / 6)


def test_pictures_show_what_they_are_given():
    nodule = small_nodule(0)
    arrays = {"image": nodule.image, "alpha": nodule.alpha, "union": nodule.readers[1], "overlap": nodule.readers[0]}
    arrays |= {f"predicted {name}": arrays[name] for name in ("alpha", "union", "overlap")}
    figure = show_predictions([arrays, arrays], ["one", "two"])
    assert len(figure.axes) == 14
    of_kind = show_predictions([arrays], kind=MEMBERSHIP)
    titles = [axes.get_title() for axes in of_kind.axes]
    assert [title for title in titles if "membership" in title] == ["alpha\nmembership", "predicted alpha\nmembership"]
    table = {"cf+": dict.fromkeys(ERRORS, (2.0, 0.5)), "3DMM": dict.fromkeys(ERRORS, (1.0, 0.5))}
    widths = [bar.get_width() for bar in error_bars(table, dict.fromkeys(ERRORS, "t")).axes[0].patches]
    assert widths == [2.0, 1.0]
    assert len(reliability({"union": (np.array([0.1, 0.9]), np.array([0.2, 0.8]))}).axes[0].lines) == 2
    framed = heat_map(np.array([[3.0, 2.0], [np.nan, 4.0]]), [1, 10], [1, 10], "SAD").axes[0].patches
    assert [patch.get_xy() for patch in framed] == [(0.5, -0.5)]
