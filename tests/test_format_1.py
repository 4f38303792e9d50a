"""A dataset and a release that an earlier raymat wrote are read, resumed and verified as they were."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

import raymat
from raymat import steps
from raymat.cli import main
from raymat.methods import SOLVERS
from raymat.nodule import InputError
from raymat.pipelines.build import describe, plan_build
from raymat.prepare import PrepareParameters
from raymat.release.freeze import ReleaseRequest, release
from raymat.release.record import Release
from raymat.release.verify import compare, verify
from raymat.review.decisions import Decision, Decisions, mattes_of, no_longer
from raymat.review.payload import payload
from raymat.sources.cases import CasesSource
from raymat.steps import BuildParameters, MattingParameters
from raymat.store import FORMAT_VERSION, Store
from tests.support import quiet
from tests.support.builds import build_in_a_loop
from tests.support.cases import arrays

WRITTEN = Path(__file__).parent / "data" / "format-1"
CHANGED_NS = 1_700_000_000 * 10**9  # the time of change that the cases had (make.py)
DIGEST = "3d3945211d31e509c2346b1c382a11c42f67df2de0f78ee6994e1f223cac1634"
PARAMETERS = BuildParameters(
    2, PrepareParameters(crop_px=13, pad_slices=2, spacing_mm=1.0), MattingParameters(("knn+", "cf"), prior=False)
)


# Of the solvers that the mattes were written by; a later one would solve them again.
SOLVER_VERSION = 2


@pytest.fixture(autouse=True)
def solvers_as_they_were(monkeypatch):
    for name in ("cf", "knn", "lb", "if"):
        monkeypatch.setitem(SOLVERS, name, replace(SOLVERS[name], version=SOLVER_VERSION))


@pytest.fixture
def copied(tmp_path):
    """A copy of the dataset, and the source that it was built from."""
    shutil.copytree(WRITTEN / "dataset", tmp_path / "dataset")
    shutil.copytree(WRITTEN / "cases", tmp_path / "cases")
    for path in (tmp_path / "cases").iterdir():
        os.utime(path, ns=(CHANGED_NS, CHANGED_NS))
    return Store.open(tmp_path / "dataset"), CasesSource(str(tmp_path / "cases" / "cases.csv"))


def stale(store) -> list[str]:
    """The nodules of decisions that do not fit the dataset."""
    rows = {row["nodule_id"]: row for row in store.outcomes().to_pylist()}
    decisions = [decision for by in Decisions(store).current().values() for decision in by.values()]
    return [decision.nodule_id for decision in decisions if no_longer(decision, rows)]


def test_it_opens_and_inspects(capsys):
    nodules = {nodule.nodule_id: nodule for nodule in raymat.load(WRITTEN / "dataset", ("accepted", "rejected"))}
    assert {name: nodule.outcome for name, nodule in nodules.items()} == {
        "case0": "accepted",
        "case1": "accepted",
        "case2": "rejected",
        "case3": "accepted",
    }
    for nodule in nodules.values():
        assert set(nodule.mattes) == {"knn+", "cf"}
        assert {len(nodule.readers), len(nodule.metadata["malignancy"].split(";"))} == {2}
        assert all(alpha.shape == nodule.image.shape and alpha.max() > 0.3 for alpha in nodule.mattes.values())
        assert nodule.image.min() < -800
    assert main(["inspect", str(WRITTEN / "dataset"), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["outcomes"] == {"accepted": 3, "rejected": 1, "excluded": 1, "failed": 0}


def test_it_is_of_no_kind(copied):
    store, _ = copied
    assert store.kind() == "any"
    for nodule in raymat.load(store.root):
        assert (nodule.kind, {matte.kind for matte in nodule.candidates}) == ("any", {"calibrated", "membership"})
        assert (nodule.membership == nodule.mattes["cf"]).all()
        assert (nodule.calibrated == nodule.mattes["knn+"]).all()


def test_the_same_command_scores_again_and_solves_nothing(copied, monkeypatch):
    store, source = copied
    before = arrays(store.root)
    monkeypatch.setattr(steps, "estimate_all", None)
    plan = build_in_a_loop(Store.create(store.root), source, PARAMETERS)
    assert (plan.to_do, plan.changed, plan.rescored, plan.partly) == (5, 5, 4, 0)
    assert arrays(store.root) == before
    assert store.kind() == "calibrated"
    # And once more, on what that command has left, which an earlier raymat must not write into.
    assert store.read_format()["format_version"] == FORMAT_VERSION
    assert plan_build(Store.open(store.root), source, PARAMETERS).to_do == 0


def test_its_decisions_hold(copied, tmp_path):
    store, source = copied
    release(ReleaseRequest(store.root, str(tmp_path / "again"), "1.0"), quiet)
    difference = compare(Release.open(WRITTEN / "release"), Release.open(tmp_path / "again"))
    assert (difference.added, difference.removed, difference.changed, difference.same) == ([], [], {}, 2)
    for _ in range(2):
        decisions = Decisions(store).current()
        assert {name: by["Ada"].label for name, by in decisions.items()} == {"case0": "knn+", "case1": "reject"}
        assert stale(store) == []
        build_in_a_loop(store, source, PARAMETERS)


def test_its_release_verifies_and_loads():
    verified = verify(WRITTEN / "release", DIGEST)
    assert (verified.problems, verified.nodules) == ([], 2)
    found = {nodule.nodule_id: nodule for nodule in raymat.load(WRITTEN / "release")}
    assert {name: nodule.method for name, nodule in found.items()} == {"case0": "knn+", "case3": "cf"}
    dataset = raymat.load(WRITTEN / "dataset")
    for name, nodule in found.items():
        assert (nodule.alpha == dataset[name].mattes[nodule.method]).all()
        assert nodule.scores == {nodule.method: dataset[name].scores[nodule.method]}


def test_what_depends_on_a_changed_parameter_is_done_again(copied):
    store, source = copied
    window = BuildParameters(2, PARAMETERS.prepare, MattingParameters(("knn+", "cf"), window_level=-500.0, prior=False))
    plan = plan_build(store, source, window)
    assert (plan.changed, plan.to_do) == (5, 5)
    assert "5 of them again, as their input" in describe(plan)


def test_another_method_is_solved_alone_and_decisions_still_hold(copied, monkeypatch):
    store, source = copied
    before, solved, estimate_all = arrays(store.root), [], steps.estimate_all
    # A decision that is made today on a nodule that has no digests yet.
    row = next(row for row in store.outcomes().to_pylist() if row["nodule_id"] == "case3")
    message = payload(store.find("case3"))
    header = json.loads(message[4 : 4 + int.from_bytes(message[:4], "little")])
    assert header["mattes_id"] == mattes_of(row) == row["key"][:24]
    Decisions(store).record(Decision("decision-3", "case3", mattes_of(row), "Ben", "choose", "cf", 3))

    def recording(*arrays, methods, **more):
        solved.append(methods)
        return estimate_all(*arrays, methods=methods, **more)

    monkeypatch.setattr(steps, "estimate_all", recording)
    quality = replace(PARAMETERS.quality, kind="any")  # as it was before datasets were of a kind
    parameters = replace(PARAMETERS, matting=MattingParameters(("lb", "cf", "knn+"), prior=False), quality=quality)
    plan = build_in_a_loop(Store.create(store.root), source, parameters)
    assert (plan.partly, plan.to_do, solved) == (4, 5, [("lb",)] * 4)
    after = arrays(store.root)
    assert {key: after[key] for key in before} == before
    assert len(Decisions(store).current()) == 3
    assert stale(store) == []
    assert plan_build(store, source, parameters).to_do == 0
    # What was chosen then is void once its solver has changed; what was rejected stands for what is left of it.
    monkeypatch.setitem(SOLVERS, "knn", replace(SOLVERS["knn"], version=99))
    build_in_a_loop(store, source, replace(parameters))
    assert solved[4:] == [("knn+",)] * 4
    assert stale(store) == ["case0"]


def test_a_solver_that_changed_since_is_solved_alone(copied, monkeypatch):
    store, source = copied
    monkeypatch.setitem(SOLVERS, "knn", replace(SOLVERS["knn"], version=99))
    plan = plan_build(store, source, PARAMETERS)
    assert (plan.to_do, plan.partly) == (5, 4)


def test_the_order_of_its_methods_does_not_matter(copied):
    store, source = copied
    other = replace(PARAMETERS, matting=MattingParameters(("cf", "knn+"), prior=False))
    assert plan_build(store, source, other).rescored == 4


def test_a_lost_index_is_made_again(copied):
    store, source = copied
    store.delete_all("outcomes")
    assert plan_build(store, source, PARAMETERS).rescored == 4
    store.compact_index()
    assert len(store.listing("outcomes")) == 1
    assert store.index().num_rows == 5


def test_writing_into_it_makes_it_a_dataset_of_today(copied):
    store, _ = copied
    Store.create(store.root)
    assert store.read_format()["format_version"] == FORMAT_VERSION


def test_a_later_format_is_refused(copied):
    store, _ = copied
    note = json.loads(store.read("dataset.json"))
    store.write("dataset.json", json.dumps(note | {"format_version": 99}).encode())
    with pytest.raises(InputError, match="format raymat dataset 99"):
        Store.open(store.root)
