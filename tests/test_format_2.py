"""A dataset and a release of format 2, whose mattes say no kind, are read, resumed and verified as they were."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import raymat
from raymat import format_2, steps
from raymat.cli import main
from raymat.learning import Data
from raymat.methods import CALIBRATED, MEMBERSHIP, SOLVERS
from raymat.pipelines.build import plan_build
from raymat.prepare import PrepareParameters
from raymat.release.freeze import ReleaseRequest, release
from raymat.release.record import Release
from raymat.release.verify import compare, verify
from raymat.review.decisions import Decisions, no_longer
from raymat.sources.cases import CasesSource
from raymat.steps import BuildParameters, MattingParameters
from raymat.store import FORMAT_VERSION, Store
from tests.support import quiet
from tests.support.builds import build_in_a_loop
from tests.support.cases import arrays

DATA = Path(__file__).parent / "data"
WRITTEN = DATA / "format-2"
CHANGED_NS = 1_700_000_000 * 10**9  # the time of change that the cases had (make.py)
DIGEST = "3724772a4ab28891070f04622424d4e46a3b477609c46dc8cd1144334836dc1f"
PARAMETERS = BuildParameters(
    2,
    PrepareParameters(crop_px=13, pad_slices=2, spacing_mm=1.0),
    MattingParameters(("cf", "knn", "cf+", "knn+"), prior=False),
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
    shutil.copytree(DATA / "format-1" / "cases", tmp_path / "cases")
    for path in (tmp_path / "cases").iterdir():
        os.utime(path, ns=(CHANGED_NS, CHANGED_NS))
    return Store.open(tmp_path / "dataset"), CasesSource(str(tmp_path / "cases" / "cases.csv"))


def test_it_opens_as_of_any_kind_with_the_best_matte_of_each(copied):
    store, _ = copied
    nodules = raymat.load(store.root)
    assert (len(nodules), nodules.kind) == (3, "any")
    for nodule in nodules:
        assert nodule.kind == "any"
        for kind, methods in ((MEMBERSHIP, ("cf", "knn")), (CALIBRATED, ("cf+", "knn+"))):
            best = max(methods, key=lambda method: (method == nodule.method, nodule.scores[method]))
            np.testing.assert_array_equal(getattr(nodule, kind), nodule.mattes[best])
    assert main(["inspect", store.root]) == 0


def test_the_same_command_scores_again_and_solves_nothing(copied, monkeypatch):
    store, source = copied
    before = arrays(store.root)
    monkeypatch.setattr(steps, "estimate_all", None)
    plan = build_in_a_loop(Store.create(store.root), source, PARAMETERS)
    assert (plan.to_do, plan.rescored, plan.partly) == (5, 4, 0)
    assert arrays(store.root) == before
    assert store.kind() == raymat.load(store.root).kind == CALIBRATED
    assert store.read_format()["format_version"] == FORMAT_VERSION
    assert plan_build(Store.open(store.root), source, PARAMETERS).to_do == 0


@pytest.mark.parametrize(("kind", "stale"), [(None, []), (CALIBRATED, []), ("any", []), (MEMBERSHIP, ["case0"])])
def test_decisions_hold_while_they_are_of_the_datasets_kind(copied, kind, stale):
    store, source = copied
    if kind is not None:
        parameters = replace(PARAMETERS, quality=replace(PARAMETERS.quality, kind=kind))
        build_in_a_loop(Store.create(store.root), source, parameters)
    rows = {row["nodule_id"]: row for row in store.outcomes().to_pylist()}
    decisions = [decision for by in Decisions(store).current().values() for decision in by.values()]
    assert len(decisions) == 2
    assert [decision.nodule_id for decision in decisions if no_longer(decision, rows)] == stale


def test_what_was_the_true_alpha_is_true_membership(copied):
    store, _ = copied
    name = store.outcomes()["shard"][0].as_py()
    table = pq.read_table(store.path(name))
    column = table.column_names.index("true_alpha")
    assert table.schema.equals(format_2.SCHEMA)
    pq.write_table(table.set_column(column, "true_alpha", table["image"]), store.path(name))
    nodule = raymat.load(store.root)[0]
    np.testing.assert_array_equal(nodule.true_membership, nodule.image)
    assert nodule.true_calibrated is None
    assert nodule.true_alpha is nodule.true_membership


def test_its_release_verifies_loads_and_exports(tmp_path):
    verified = verify(WRITTEN / "release", DIGEST)
    assert (verified.problems, verified.nodules) == ([], 2)
    found = raymat.load(WRITTEN / "release")
    assert found.kind == "any"
    assert {nodule.nodule_id: list(nodule.mattes) for nodule in found} == {"case0": ["knn+"], "case3": ["cf"]}
    dataset = raymat.load(WRITTEN / "dataset")
    for nodule in found:
        before = dataset[nodule.nodule_id]
        np.testing.assert_array_equal(nodule.alpha, before.mattes[nodule.method])
        assert nodule.scores == {nodule.method: before.scores[nodule.method]}
        assert nodule.metadata == found.metadata(nodule.nodule_id) == before.metadata
    assert (found["case0"].membership, found["case3"].calibrated) == (None, None)
    arguments = ["export", str(WRITTEN / "release"), "-o", str(tmp_path), "--format", "nrrd"]
    assert main([*arguments, "--kind", CALIBRATED]) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["case0"]
    assert main(arguments) == 0


def test_a_training_on_its_release_is_resumed():
    """What a training knows its data by is as it was, although a release of today has one more digest per nodule."""
    data = Data.open(str(WRITTEN / "release"))
    assert (data.digest, data.order) == ("9b1da2eff7d9525eeb059c9fecaf3627", "b68b7832fec59f4ebcff863c2addd8ee")


def test_tampering_with_its_release_is_named(tmp_path):
    shutil.copytree(WRITTEN / "release", tmp_path / "release")
    file = tmp_path / "release" / "nodules" / "00000.parquet"
    rows = pq.read_table(file).to_pylist()
    rows[0]["alpha"]["data"] = bytes(len(rows[0]["alpha"]["data"]))
    pq.write_table(pa.Table.from_pylist(rows, schema=format_2.RECORD), file, row_group_size=1)
    assert verify(tmp_path / "release").problems == [
        "nodules/00000.parquet: changed since the release",
        "case0: alpha not as the index says",
    ]


def test_a_release_of_today_is_compared_with_it_by_what_both_have(copied, tmp_path, capsys):
    store, source = copied
    release(ReleaseRequest(store.root, str(tmp_path / "as-it-was"), "1.0"), quiet)
    build_in_a_loop(Store.create(store.root), source, PARAMETERS)
    release(ReleaseRequest(store.root, str(tmp_path / "calibrated"), "1.0"), quiet)
    before = Release.open(WRITTEN / "release")
    found = compare(before, Release.open(tmp_path / "as-it-was"))
    assert (found.kinds, found.added, found.removed, found.changed, found.same) == (("any", "any"), [], [], {}, 2)
    found = compare(before, Release.open(tmp_path / "calibrated"))
    assert found.kinds == ("any", CALIBRATED)
    assert found.changed.keys() == {"case3"}
    assert found.changed["case3"].startswith("method cf -> ")
    assert main(["release-diff", str(WRITTEN / "release"), str(tmp_path / "calibrated")]) == 0
    said = capsys.readouterr().out
    assert "any -> calibrated" in said
    assert "mattes that one of them lacks are not compared" in said
    assert raymat.load(tmp_path / "calibrated")["case0"].method == "knn+"
