"""What is solved again where methods, their versions or parameters change, and which decisions stand."""

from dataclasses import replace

import pytest

import raymat
from raymat import steps
from raymat.methods import SOLVERS, Solver, positive
from raymat.nodule import InputError
from raymat.pipelines.build import describe, plan_build
from raymat.release.freeze import ReleaseRequest, release
from raymat.reuse import Committed, kept
from raymat.review.decisions import Decision, Decisions, mattes_of, no_longer
from raymat.sources.cases import CasesSource
from raymat.steps import MattingParameters
from raymat.store import Store
from tests.support import quiet
from tests.support.builds import build_in_a_loop
from tests.support.cases import PARAMETERS, arrays, write_cases

METHODS = ("cf", "knn", "cf+", "knn+")
COUNT = 3


def with_methods(*methods: str, kind="any", **changes):
    quality = replace(PARAMETERS.quality, kind=kind)
    return replace(PARAMETERS, matting=MattingParameters(methods, **changes), quality=quality)


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    return CasesSource(write_cases(tmp_path_factory.mktemp("reuse") / "cases", COUNT))


@pytest.fixture
def store(cases, tmp_path):
    """A dataset of three nodules with four mattes each; Ada chose cf, chose knn+, and rejected."""
    store = Store.create(tmp_path / "dataset")
    build_in_a_loop(store, cases, with_methods(*METHODS))
    decisions = Decisions(store)
    for number, label in enumerate(("cf", "knn+", "reject")):
        row = rows(store)[f"case{number}"]
        method = None if label == "reject" else label
        action = "choose" if method else "reject"
        decisions.record(
            Decision(f"decision-{number}", row["nodule_id"], mattes_of(row), "Ada", action, method, 1 + number)
        )
    return store


@pytest.fixture
def solved(monkeypatch):
    """The methods of every call of the solvers from here on."""
    calls, estimate_all = [], steps.estimate_all

    def recording(*arrays, methods, **more):
        calls.append(methods)
        return estimate_all(*arrays, methods=methods, **more)

    monkeypatch.setattr(steps, "estimate_all", recording)
    return calls


def rows(store) -> dict:
    return {row["nodule_id"]: row for row in store.outcomes().to_pylist()}


def problems(store) -> dict[str, str]:
    """What is wrong with each decision that no longer stands."""
    found = {name: no_longer(by["Ada"], rows(store)) for name, by in Decisions(store).current().items()}
    return {name: problem for name, problem in found.items() if problem}


def test_a_ninth_solver_is_solved_alone_and_every_decision_is_kept(store, cases, solved, monkeypatch, tmp_path):
    before = arrays(store.root)
    monkeypatch.setitem(SOLVERS, "toy", Solver("tests.support.toy", 1, {"softness": positive(1e-2)}))
    plan = build_in_a_loop(store, cases, with_methods(*METHODS, "toy", "toy+"))
    assert solved == [("toy", "toy+")] * COUNT
    assert (plan.changed, plan.partly, plan.rescored) == (COUNT, COUNT, 0)
    assert "(3 solve only the mattes that they lack)" in describe(plan)
    after = arrays(store.root)
    assert {key: after[key] for key in before} == before
    assert {name for _, name in after.keys() - before.keys()} == {"toy", "toy+"}
    assert [matte.method for matte in raymat.load(store.root)[0].candidates] == [
        "cf",
        "knn",
        "toy",
        *METHODS[2:],
        "toy+",
    ]
    assert problems(store) == {}
    release(ReleaseRequest(store.root, str(tmp_path / "release"), "1.0"), quiet)
    assert {nodule.nodule_id: nodule.method for nodule in raymat.load(tmp_path / "release")} == {
        "case0": "cf",
        "case1": "knn+",
    }


@pytest.mark.parametrize("methods", [METHODS[::-1], (*METHODS, "cf")])
def test_the_order_of_methods_does_not_matter(store, cases, solved, methods):
    assert build_in_a_loop(store, cases, with_methods(*methods)).to_do == 0
    assert solved == []


def test_fewer_methods_need_only_be_scored(store, cases, solved):
    plan = build_in_a_loop(store, cases, with_methods("knn+", "cf"))
    assert (plan.rescored, plan.partly, solved) == (COUNT, 0, [])
    assert set(raymat.load(store.root)[0].mattes) == {"cf", "knn+"}
    assert problems(store) == {}


def test_a_solver_of_a_new_version_is_solved_alone(store, cases, solved, monkeypatch):
    monkeypatch.setitem(SOLVERS, "knn", replace(SOLVERS["knn"], version=99))
    plan = build_in_a_loop(store, cases, with_methods(*METHODS))
    assert solved == [("knn", "knn+")] * COUNT
    assert plan.partly == COUNT
    # A new version that makes the same bytes voids no decision.
    assert problems(store) == {}


def test_only_the_decision_for_a_matte_that_changed_is_void(store, cases, solved, monkeypatch):
    other = SOLVERS["knn"].parameters | {"neighbors": replace(SOLVERS["knn"].parameters["neighbors"], default=(9, 4))}
    monkeypatch.setitem(SOLVERS, "knn", replace(SOLVERS["knn"], parameters=other))
    build_in_a_loop(store, cases, with_methods(*METHODS))
    assert solved == [("knn", "knn+")] * COUNT
    assert problems(store) == {"case1": "its matte knn+ was solved again since, with another result"}


def test_a_dataset_of_another_kind_voids_the_choices_of_mattes_that_are_not_of_it(store, cases, solved, tmp_path):
    plan = build_in_a_loop(store, cases, with_methods(*METHODS, kind="calibrated"))
    assert (plan.rescored, solved) == (COUNT, [])
    assert problems(store) == {"case0": "chooses a membership matte; the dataset is of the kind calibrated now"}
    with pytest.raises(InputError, match=r"case0: Ada's decision \(cf\): chooses a membership matte"):
        release(ReleaseRequest(store.root, str(tmp_path / "release"), "1.0"), quiet)
    build_in_a_loop(store, cases, with_methods(*METHODS, kind="membership"))
    assert problems(store) == {"case1": "chooses a calibrated matte; the dataset is of the kind membership now"}
    # As it was: nothing is lost.
    build_in_a_loop(store, cases, with_methods(*METHODS))
    assert (problems(store), solved) == ({}, [])


def test_a_rejection_is_kept_until_nothing_is_left_of_what_was_rejected(store, cases, solved):
    build_in_a_loop(store, cases, with_methods("lb", "cf"))
    assert set(problems(store)) == {"case1"}
    assert problems(store)["case1"] == "there is no matte knn+; there are cf, lb"
    build_in_a_loop(store, cases, with_methods("lb"))
    assert problems(store)["case2"] == "its mattes were solved again since, all with another result"


def test_the_window_concerns_the_calibrated_mattes_alone(store, cases, solved):
    build_in_a_loop(store, cases, with_methods(*METHODS, window_level=-500.0))
    assert solved == [("cf+", "knn+")] * COUNT


def test_another_trimap_leaves_nothing(store, cases, solved):
    parameters = with_methods(*METHODS)
    plan = build_in_a_loop(store, cases, replace(parameters, prepare=replace(parameters.prepare, grow_out_mm=3.0)))
    assert (plan.changed, plan.partly, plan.rescored) == (COUNT, 0, 0)
    assert solved == [METHODS] * COUNT


def test_reused_mattes_are_those_of_a_build_from_scratch(store, cases, tmp_path):
    build_in_a_loop(store, cases, with_methods("lb", *METHODS))
    scratch = Store.create(tmp_path / "scratch")
    build_in_a_loop(scratch, cases, with_methods("lb", *METHODS))
    assert arrays(store.root) == arrays(scratch.root)
    keys = [[solve["key"] for solve in row["solves"]] for row in rows(store).values()]
    assert keys == [[solve["key"] for solve in row["solves"]] for row in rows(scratch).values()]
    assert len({key for of_one in keys for key in of_one}) == COUNT * 5
    assert [row["key"] for row in rows(store).values()] == [row["key"] for row in rows(scratch).values()]


@pytest.mark.parametrize("nodule_id", ["case0", "case1"])
def test_a_damaged_file_costs_a_solve(store, cases, solved, nodule_id):
    name = rows(store)[nodule_id]["shard"]
    store.write(name, store.read(name)[:-100])
    plan = plan_build(store, cases, with_methods("lb", *METHODS))
    assert plan.partly == COUNT
    build_in_a_loop(store, cases, with_methods("lb", *METHODS))
    assert sorted(solved) == sorted([("lb",), ("lb",), ("cf", "knn", "lb", "cf+", "knn+")])


def test_a_measured_nodule_that_was_not_kept_whole_is_read_again(store, cases):
    """As the reader experiment commits them: an outcome and no arrays."""
    for ref in cases.plan():
        measured = store.find(ref.nodule_id).without_arrays()
        with pytest.raises(InputError, match="not kept whole"):
            kept(measured, ref, with_methods(*METHODS))
    bare = Store.create(f"{store.root}-bare")
    bare.commit_nodules([store.find(ref.nodule_id).without_arrays() for ref in cases.plan()], "session")
    bare.write_manifest(store.manifest().to_pylist())
    shards, lacking = Committed(bare, with_methods("cf"), False).shards(bare.manifest())
    assert (shards.null_count, lacking) == (COUNT, [])
