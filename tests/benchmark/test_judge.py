"""Errors of one entry's matte: those of Table 1, of volume and against readers, and what counts as no answer."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from raymat import metrics
from raymat.benchmark.judge import (
    ANSWERED,
    HALF,
    MISSING,
    READERS_MASKS,
    UNUSABLE,
    Entrant,
    judge,
    judged_box,
    volume_error,
)
from raymat.evidence.reader_prediction import calibration_error
from raymat.methods import CALIBRATED, MEMBERSHIP, kind_of
from raymat.network.evaluation import CHOSEN, METRICS, NOTHING, RAMP, READERS, TRUE, errors_of
from raymat.nodule import InputError
from tests.support.entries import softened, write_matte
from tests.support.kinds import nodule_of_kind

ENTRY = Entrant("mine")
RELEASED_MATTES = {"membership matte", "calibrated matte"}


@pytest.fixture(scope="module")
def nodule():
    """As a release has it: of each kind its best matte; real, so that its mattes are the only references."""
    drawn = nodule_of_kind(0, CALIBRATED)
    best = [matte for matte in drawn.candidates if matte.method in ("cf", "cf+")]
    return replace(drawn, candidates=best, true_membership=None, true_calibrated=None)


@pytest.fixture(scope="module")
def answered(nodule, tmp_path_factory):
    return judge(nodule, write_matte(tmp_path_factory.mktemp("a") / "a.nrrd", softened(nodule), nodule), ENTRY)


def values(judged, method: str, kind: str = MEMBERSHIP, truth: str = CHOSEN) -> dict[str, float]:
    rows = [row for row in judged.rows if (row["method"], row["kind"], row["truth"]) == (method, kind, truth)]
    return {row["metric"]: row["value"] for row in rows}


def test_errors_are_those_of_table_1_in_the_same_box(nodule, answered):
    assert (answered.state, answered.note) == (ANSWERED, "")
    box = judged_box(nodule)
    found = values(answered, "mine")
    for name, error in METRICS.items():
        assert found[name] == pytest.approx(error(softened(nodule)[box], nodule.membership[box]), rel=1e-6), name
    # The baselines are those of raymat evaluate.
    table = {(row["method"], row["metric"]): row["value"] for row in errors_of(nodule, box, {}, MEMBERSHIP)}
    for method in (READERS, RAMP, NOTHING):
        for name in METRICS:
            assert values(answered, method)[name] == pytest.approx(table[method, name]), (method, name)
    assert values(answered, "calibrated matte")["sad"] == pytest.approx(table["cf+", "sad"])


def test_the_box_is_32_mm_about_the_middle_whatever_the_spacing():
    for spacing in (0.5, 1.0):
        box = judged_box(nodule_of_kind(0, CALIBRATED, shape=(80, 100, 120), spacing=spacing))
        sides = [side.stop - side.start for side in box]
        assert all(side >= 32 / spacing for side in sides)
        assert box[2].start <= (120 - 32 / spacing) / 2


def test_the_maker_of_the_reference_is_left_out_and_the_other_kind_is_not(answered):
    methods = {
        kind: {row["method"] for row in answered.rows if row["kind"] == kind} for kind in (CALIBRATED, MEMBERSHIP)
    }
    assert methods[MEMBERSHIP] == {"mine", READERS, HALF, "calibrated matte", RAMP, NOTHING}
    assert methods[CALIBRATED] == {"mine", READERS, HALF, "membership matte", RAMP, NOTHING}


def test_on_phantoms_the_true_alpha_of_each_kind_is_a_reference_too(tmp_path):
    phantom = nodule_of_kind(1, CALIBRATED)
    other = np.clip(phantom.true_calibrated * 0.8, 0, 1).astype(np.float32)
    judged = judge(phantom, write_matte(tmp_path / "a.nrrd", other, phantom), Entrant("mine", (CALIBRATED,)))
    assert {(row["kind"], row["truth"]) for row in judged.rows} == {
        (CALIBRATED, CHOSEN),
        (CALIBRATED, TRUE),
        ("", READERS_MASKS),
    }
    # The true alpha is nobody's: all of the release's mattes are held against it.
    assert {row["method"] for row in judged.rows if row["truth"] == TRUE} >= RELEASED_MATTES
    assert values(judged, "mine", CALIBRATED, TRUE)["bias"] == pytest.approx(-20, abs=0.1)


def test_volume_and_dice_by_hand(answered):
    a, b = np.zeros((2, 2, 2)), np.zeros((2, 2, 2))
    a[0], b[0, 0] = 0.5, 1.0
    assert volume_error(a, b, (1, 1, 1)) == 0
    assert volume_error(a / 2, b, (0.5, 0.7, 0.7)) == pytest.approx(-50)
    assert metrics.soft_dice(a, b) == pytest.approx(2 * 1 / 4)
    assert metrics.soft_dice(a, a) == metrics.soft_dice(0 * a, 0 * a) == 1
    with pytest.raises(InputError, match="check the release with raymat verify"):
        volume_error(a, 0 * b, (1, 1, 1))
    found = values(answered, NOTHING)
    assert (found["dice"], found["volume"], found["bias"]) == (0, 100, -100)


def test_readers_are_compared_one_by_one_in_the_unknown_region(nodule, answered):
    unknown = nodule.trimap == 128
    scores = {row["method"]: row["value"] for row in answered.rows if row["truth"] == READERS_MASKS}
    own = np.mean([(softened(nodule)[unknown] - mask[unknown]) ** 2 for mask in nodule.readers])
    assert scores["mine"] == pytest.approx(own, rel=1e-5)
    # Their own mean is as near to all of them as anything can be, and calibrated.
    assert scores[READERS] == min(scores.values())
    assert calibration_error(np.array(answered.bins[READERS])) == pytest.approx(0, abs=1e-9)
    assert np.array(answered.bins["mine"])[0].sum() == 2 * unknown.sum()


def test_no_answer_counts_as_nothing_and_says_why(nodule, tmp_path):
    missing = judge(nodule, None, ENTRY)
    several = judge(nodule, None, ENTRY, "two files")
    (tmp_path / "a.nrrd").write_text("hello")
    broken = judge(nodule, tmp_path / "a.nrrd", ENTRY)
    assert [one.state for one in (missing, several, broken)] == [MISSING, UNUSABLE, UNUSABLE]
    assert (missing.note, several.note) == ("", "two files")
    assert "SimpleITK cannot read it" in broken.note
    for one in (missing, several, broken):
        for kind in (CALIBRATED, MEMBERSHIP):
            assert values(one, "mine", kind) == values(one, NOTHING, kind)


def test_leaving_out_what_is_hard_gains_nothing_over_an_empty_matte(nodule, tmp_path):
    empty = judge(nodule, write_matte(tmp_path / "a.nrrd", np.zeros_like(nodule.alpha), nodule), ENTRY)
    assert empty.state == ANSWERED
    assert empty.rows == judge(nodule, None, ENTRY).rows


@pytest.mark.parametrize("method", ["cf", "cf+"])
def test_the_releases_own_matte_is_no_entry_but_that_of_its_solver(nodule, tmp_path, method):
    in_a_byte = np.round(nodule.mattes[method] * 255) / 255
    path = write_matte(tmp_path / "a.nrrd", in_a_byte.astype(np.float32), nodule)
    copied = judge(nodule, path, ENTRY)
    assert copied.state == UNUSABLE
    assert f"is the release's own matte ({method})" in copied.note
    assert f"--solver {method}" in copied.note
    kind = kind_of(method)
    for solver in (method, method.replace("cf", "lb")):  # itself, and its twin
        own = judge(nodule, path, Entrant(solver, (kind,), solver))
        assert own.state == ANSWERED
        # It would be judged by itself: Table 1 leaves it out.
        assert not values(own, solver, kind)
    other = judge(nodule, path, Entrant("if", (MEMBERSHIP,), "if"))
    assert other.state == UNUSABLE


def test_another_solvers_mattes_are_judged_where_it_did_not_make_the_reference(nodule, tmp_path):
    path = write_matte(tmp_path / "a.nrrd", softened(nodule), nodule)
    assert values(judge(nodule, path, Entrant("if", (MEMBERSHIP,), "if")), "if")["sad"] > 0


def test_the_true_alpha_of_a_phantom_is_no_entry(tmp_path):
    phantom = nodule_of_kind(2, CALIBRATED)
    bare = replace(phantom, true_calibrated=np.clip(phantom.true_calibrated * 1.2, 0, 1).astype(np.float32))
    judged = judge(bare, write_matte(tmp_path / "a.nrrd", bare.true_calibrated, bare), ENTRY)
    assert (judged.state, "is the phantom's true alpha" in judged.note) == (UNUSABLE, True)


@pytest.mark.parametrize(
    ("turn", "words"),
    [
        (lambda a: a[:, :, ::-1], "mirrored along x"),
        (lambda a: a[:, ::-1], "mirrored along y"),
        (lambda a: a.transpose(2, 1, 0), "with x and z exchanged"),
    ],
)
def test_a_matte_in_another_order_than_its_header_is_noticed(tmp_path, turn, words):
    """A header that is right beside voxels that are not: only the lesion shows it."""
    drawn = nodule_of_kind(0, CALIBRATED, shape=(24, 24, 24))
    shift = {"candidates": [replace(m, alpha=np.roll(m.alpha, (1, 3, 5), (0, 1, 2))) for m in drawn.candidates]}
    nodule = replace(drawn, **shift, true_membership=None, true_calibrated=None)
    path = write_matte(tmp_path / "a.nrrd", np.ascontiguousarray(turn(softened(nodule))), nodule)
    assert words in judge(nodule, path, ENTRY).turned
    sound = write_matte(tmp_path / "b.nrrd", softened(nodule), nodule)
    assert judge(nodule, sound, ENTRY).turned == []


def test_a_nodule_without_readers_or_one_kind_is_judged_by_what_it_has(nodule, tmp_path):
    path = write_matte(tmp_path / "a.nrrd", softened(nodule), nodule)
    bare = replace(nodule, readers=[], candidates=[m for m in nodule.candidates if m.kind == CALIBRATED])
    judged = judge(bare, path, ENTRY)
    assert {row["kind"] for row in judged.rows} == {CALIBRATED}
    assert {row["method"] for row in judged.rows} == {"mine", RAMP, NOTHING}
    assert judged.bins == {}


@pytest.mark.parametrize("name", ["", " ", NOTHING, "cf+", "readers' mean"])
def test_a_name_that_means_something_else_is_refused(name):
    with pytest.raises(InputError, match="give a --name"):
        Entrant(name)
