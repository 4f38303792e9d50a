"""What alpha means: each matte says it, a nodule has the best matte of either kind, and a dataset is of one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from raymat.methods import ALPHA_KINDS, METHODS, kind_among, kind_of
from raymat.nodule import InputError, Matte, from_table, to_table
from raymat.quality import QualityParameters
from raymat.steps import BuildParameters, MattingParameters, score
from raymat.store import Store
from tests.support.nodules import draw_nodule, manifest_row, random_nodule, write_dataset


def matte(method: str, score: float, kind: str = "") -> Matte:
    return Matte(method, np.full((3, 4, 5), score, np.float32), score=score, kind=kind)


def test_a_method_and_its_matte_say_what_alpha_means():
    assert [kind_of(method) for method in METHODS] == ["membership"] * 4 + ["calibrated"] * 4
    assert (kind_of("3dmm"), matte("cf", 0.5).kind, matte("cf+", 0.5).kind) == ("any", "membership", "calibrated")
    assert matte("3dmm", 0.5, "calibrated").kind == "calibrated"
    assert [kind_among(methods) for methods in (METHODS, ("cf", "if"), ("if+",), ())] == [
        "calibrated",
        "membership",
        "calibrated",
        "any",
    ]


def test_both_winners_are_there_whichever_was_chosen():
    candidates = [matte("cf", 0.6), matte("if", 0.7), matte("cf+", 0.8), matte("knn+", 0.9)]
    nodule = replace(random_nodule(kind="calibrated"), candidates=candidates)
    # A reviewer, say, chose CF+ over the score; of the other kind nobody chose, and the score does.
    assert nodule.alpha is nodule.calibrated is candidates[2].alpha
    assert nodule.membership is candidates[1].alpha
    assert nodule.best("any") is candidates[2]
    rejected = replace(nodule, method=None)
    assert (rejected.alpha, rejected.calibrated, rejected.membership) == (None, None, None)
    assert rejected.best("calibrated") is candidates[3]
    equal = replace(nodule, candidates=[matte("lb", 0.6), matte("cf", 0.6)], method="lb+")
    assert equal.best("membership").method == "cf"
    assert equal.calibrated is None


def test_truths_follow_the_kind():
    truths = {"true_membership": np.ones((3, 4, 5), np.float32), "true_calibrated": np.zeros((3, 4, 5), np.float32)}
    for kind, sum_ in (("membership", 60), ("calibrated", 0), ("any", 60)):
        assert random_nodule(kind=kind, **truths).true_alpha.sum() == sum_


def test_kind_and_truths_survive_a_table():
    nodule = random_nodule(kind="membership", true_calibrated=np.full((3, 4, 5), 0.25, np.float32))
    nodule.candidates.append(matte("3dmm", 0.5, "calibrated"))
    (back,) = from_table(to_table([nodule]))
    assert (back.kind, [one.kind for one in back.candidates]) == ("membership", ["calibrated", "calibrated"])
    assert (back.true_calibrated == 0.25).all()
    assert back.true_membership is None


@pytest.mark.parametrize("kind", ALPHA_KINDS)
def test_the_chosen_matte_is_of_the_kind_asked_for(kind):
    parameters = BuildParameters(quality=QualityParameters(kind=kind, floor=0.0))
    drawn = replace(draw_nodule(3), outcome=None, method=None)
    judged = score(drawn, parameters)
    assert (judged.outcome, judged.kind, parameters.kind) == ("accepted", kind, kind)
    wanted = [one for one in judged.candidates if kind in (one.kind, "any")]
    assert judged.scores[judged.method] == max(one.score for one in wanted)
    assert (judged.alpha == judged.best(kind).alpha).all()


def test_without_a_calibrated_method_the_kind_is_membership_and_the_kind_is_part_of_the_key():
    of = {methods: BuildParameters(matting=MattingParameters(methods)).kind for methods in (("cf",), ("cf", "cf+"))}
    assert of == {("cf",): "membership", ("cf", "cf+"): "calibrated"}
    calibrated, membership = (
        BuildParameters(quality=QualityParameters(kind=kind)) for kind in ("calibrated", "membership")
    )
    assert calibrated.judged == BuildParameters().judged != membership.judged
    assert calibrated.mattes == membership.mattes


def test_a_kind_that_no_method_makes_is_refused():
    with pytest.raises(InputError, match=r"kind calibrated are made by cf\+, knn\+, lb\+, if\+; add one of them"):
        BuildParameters(matting=MattingParameters(("cf",)), quality=QualityParameters(kind="calibrated"))
    with pytest.raises(InputError, match="unknown kind of alpha 'soft'; there are calibrated, membership, any"):
        QualityParameters(kind="soft")


def test_a_dataset_knows_its_kind(tmp_path):
    write_dataset(tmp_path / "a", [replace(draw_nodule(n), kind="membership") for n in range(2)])
    assert Store.open(tmp_path / "a").kind() == "membership"
    store = Store.create(tmp_path / "b")
    for kind in ("membership", "calibrated"):
        store.commit(to_table([random_nodule(kind, kind=kind)]))
    store.write_manifest([manifest_row(name) for name in ("membership", "calibrated")])
    assert store.kind() == "any"
