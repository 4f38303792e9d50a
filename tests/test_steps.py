"""One nodule's steps: what is known of it stays with it, whatever becomes of it."""

from dataclasses import replace

import numpy as np
import pytest

from raymat import steps
from raymat.nodule import EXCLUDED, FAILED, InputError, Nodule
from raymat.places import Unreachable
from raymat.quality import QualityParameters
from raymat.quality.selection import WEIGHTS
from raymat.sources import NoduleRef
from raymat.steps import QUALITY_DIGITS, BuildParameters, read_and_prepare, score, solve

REF = NoduleRef("N1", "P1", "lidc", 4, "f", "{}", notes=["touches or overlaps N2"])


class OneNodule:
    """A source of a nodule whose readers share no voxel, or whose file is damaged."""

    def __init__(self, damaged: bool = False) -> None:
        self.damaged = damaged

    def read(self, ref: NoduleRef) -> Nodule:
        if self.damaged:
            raise InputError("1.dcm: truncated")
        readers = [np.zeros((9, 20, 20), np.uint8) for _ in range(2)]
        readers[0][4, 5, 5] = readers[1][4, 15, 15] = 1
        image = np.zeros((9, 20, 20), np.float32)
        placed = {"spacing": (1.0, 1.0, 1.0), "origin": (0.0, 0.0, 0.0), "direction": np.eye(3)}
        notes = [*ref.notes, "one slice missing"]
        return Nodule("N1", "P1", "lidc", image=image, readers=readers, notes=notes, metadata={"ratings": 3}, **placed)


def test_the_order_in_which_weights_are_named_is_no_part_of_a_key():
    turned = BuildParameters(quality=QualityParameters(weights=dict(reversed(WEIGHTS.items()))))
    assert turned.key(REF) == BuildParameters().key(REF)
    heavier = BuildParameters(quality=QualityParameters(weights=WEIGHTS | {"noise": 0.7}))
    assert heavier.key(REF) != BuildParameters().key(REF)
    assert heavier.key(REF)[:-QUALITY_DIGITS] == BuildParameters().key(REF)[:-QUALITY_DIGITS]


def test_build_jobs_of_version_2_of_quality_are_not_scored_again():
    assert QualityParameters().version != "2" or BuildParameters().key(REF)[-QUALITY_DIGITS:] == "626224ad"


@pytest.mark.parametrize(
    ("source", "ref", "outcome", "notes"),
    [
        (OneNodule(), replace(REF, readers=1), EXCLUDED, ["touches or overlaps N2"]),
        (OneNodule(), REF, EXCLUDED, ["touches or overlaps N2", "one slice missing"]),
        (OneNodule(damaged=True), REF, FAILED, ["touches or overlaps N2"]),
    ],
)
def test_what_is_left_out_or_fails_keeps_its_notes(source, ref, outcome, notes):
    done = read_and_prepare(source, ref, BuildParameters())
    assert (done.outcome, done.notes) == (outcome, notes)
    assert done.image is None
    assert done.key == BuildParameters().key(ref)


def test_what_prepare_leaves_out_keeps_what_the_source_knew():
    assert read_and_prepare(OneNodule(), REF, BuildParameters()).metadata == {"ratings": 3}


@pytest.mark.parametrize("stage", ["read", "prepare", "solve", "quality"])
def test_an_unforeseen_error_in_a_stage_is_the_outcome_of_that_nodule(stage, monkeypatch):
    def breaks(*_: object) -> None:
        raise ZeroDivisionError("by nothing")

    source, nodule = OneNodule(), replace(OneNodule().read(REF), trimap=np.full((9, 20, 20), 128, np.uint8))
    if stage == "read":
        monkeypatch.setattr(source, "read", breaks)
    else:
        monkeypatch.setattr(steps, {"prepare": "prepare", "solve": "solve_volume", "quality": "assess"}[stage], breaks)
    if stage in ("read", "prepare"):
        done = read_and_prepare(source, REF, BuildParameters())
    else:
        done = (solve if stage == "solve" else score)(nodule, BuildParameters())
    assert (done.outcome, done.reason) == (FAILED, "ZeroDivisionError: by nothing")
    assert done.stage == stage.replace("prepare", "read")


def test_a_store_that_does_not_answer_is_no_nodules_fault(monkeypatch):
    def silent(*_: object) -> None:
        raise Unreachable("the store does not answer")

    monkeypatch.setattr(steps, "assess", silent)
    with pytest.raises(Unreachable):
        score(OneNodule().read(REF), BuildParameters())
