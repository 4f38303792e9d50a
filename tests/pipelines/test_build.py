"""The build on a real local Ray, from real files: outcomes, resume, equal arrays, and no fault that spreads."""

import json
import shutil
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ray.util.placement_group import placement_group, remove_placement_group

import raymat
from raymat import steps
from raymat.engine import stream
from raymat.engine.cluster import Pools
from raymat.nodule import InputError
from raymat.pipelines.build import Build, build, describe, nodules_per_shard, plan_build
from raymat.quality import QualityParameters
from raymat.sources.cases import CasesSource
from raymat.steps import BuildParameters, MattingParameters, read_and_prepare, score, solve
from raymat.store import Store
from raymat.volume import write_volume
from tests.support import quiet
from tests.support.cases import GRID, PARAMETERS, PET_PARAMETERS, arrays, write_cases, write_pet_cases
from tests.support.harm.harmed import harmed

pytestmark = pytest.mark.ray

# To start a worker takes longer than a few small nodules.
ONE = Pools(workers=1)


@pytest.fixture(scope="module")
def built(ray_cluster, tmp_path_factory):
    """A table of six cases, the dataset built from it and the build's result."""
    folder = tmp_path_factory.mktemp("built")
    table = write_cases(folder / "cases", 6)
    store = Store.create(folder / "dataset")
    return table, store, build(Build(store, CasesSource(table), PARAMETERS), say=quiet)


def test_every_nodule_is_there_with_eight_mattes_and_its_further_columns(built):
    _, store, result = built
    assert result.counts == {"accepted": 6}
    nodules = list(raymat.load(store.root))
    assert [nodule.nodule_id for nodule in nodules] == [f"case{i}" for i in range(6)]
    for nodule in nodules:
        assert set(nodule.mattes) == set(raymat.matting.METHODS)
        assert nodule.method in nodule.mattes
        assert json.dumps(nodule.metadata).count("malignancy") == 1
        unknown = nodule.trimap == 128
        assert all(((alpha >= 0) & (alpha <= 1)).all() and alpha[unknown].std() > 0 for alpha in nodule.mattes.values())


def test_the_same_command_again_solves_nothing_and_says_so(built):
    table, store, _ = built
    said = []
    before = store.listing("nodules")
    again = build(Build(store, CasesSource(table), PARAMETERS), say=said.append)
    assert said == ["6 nodules, all committed: nothing to solve"]
    assert again.plan.to_do == 0
    assert again.counts == {"accepted": 6}
    assert store.listing("nodules") == before


def test_workers_and_order_change_nothing_in_the_arrays(built, tmp_path):
    table, store, _ = built
    lines = Path(table).read_text().splitlines()
    shuffled = table.replace("cases.csv", "shuffled.csv")
    Path(shuffled).write_text("\n".join([lines[0], *lines[:0:-1]]) + "\n")
    one = Store.create(tmp_path / "one")
    build(Build(one, CasesSource(shuffled), PARAMETERS, ONE), say=quiet)
    assert arrays(one.root) == arrays(store.root)


def test_an_interrupted_build_resumes_where_it_stopped(built, tmp_path):
    table, store, _ = built
    part = tmp_path / "part"
    shutil.copytree(store.root, part)
    shutil.rmtree(part / "outcomes")
    kept = Store.open(part)
    lost = kept.listing("nodules")[:2]
    for name in lost:
        kept.delete(name)
    stamps = {name: (part / name).stat().st_mtime_ns for name in kept.listing("nodules")}
    result = build(Build(kept, CasesSource(table), PARAMETERS, ONE), say=quiet)
    assert (result.plan.committed, result.plan.to_do) == (4, 2)
    assert {name: (part / name).stat().st_mtime_ns for name in stamps} == stamps
    assert arrays(part) == arrays(store.root)


def test_nodules_that_the_source_no_longer_names_are_counted_out_loud(built, tmp_path):
    table, store, _ = built
    shutil.copytree(store.root, tmp_path / "copy")
    fewer = Path(table.replace("cases.csv", "fewer.csv"))
    fewer.write_text("\n".join(Path(table).read_text().splitlines()[:3]) + "\n")
    said = []
    result = build(Build(Store.open(tmp_path / "copy"), CasesSource(str(fewer)), PARAMETERS), say=said.append)
    assert result.counts == {"accepted": 2}
    assert "4 nodules of an earlier source" in said[0]
    assert len(Store.open(tmp_path / "copy").listing("nodules")) == 6


def test_changed_quality_is_judged_again_without_solving(built, tmp_path):
    table, store, _ = built
    shutil.copytree(store.root, tmp_path / "copy")
    strict = BuildParameters(2, PARAMETERS.prepare, quality=QualityParameters(floor=1.0))
    said = []
    result = build(Build(Store.open(tmp_path / "copy"), CasesSource(table), strict, ONE), say=said.append)
    assert result.plan.changed == result.plan.rescored == 6
    assert "need only be scored" in said[0]
    assert result.counts == {"rejected": 6}
    before = {row["nodule_id"]: [s["seconds"] for s in row["solves"]] for row in store.outcomes().to_pylist()}
    judged = Store.open(tmp_path / "copy").outcomes().to_pylist()
    after = {row["nodule_id"]: [s["seconds"] for s in row["solves"]] for row in judged}
    assert after == before
    assert len(Store.open(tmp_path / "copy").listing("nodules")) == 6


def test_a_damaged_shard_costs_a_solve_and_not_the_build(built, tmp_path):
    table, store, _ = built
    shutil.copytree(store.root, tmp_path / "copy")
    copy = Store.open(tmp_path / "copy")
    shard = Path(copy.path(copy.outcomes()["shard"][2].as_py()))
    shard.write_bytes(shard.read_bytes()[:-100])
    floor = BuildParameters(2, PARAMETERS.prepare, quality=QualityParameters(floor=0.01))
    result = build(Build(copy, CasesSource(table), floor, ONE), say=quiet)
    assert result.plan.rescored == 6
    assert result.counts == {"accepted": 6}
    assert arrays(copy.root) == arrays(store.root)


def test_a_changed_parameter_or_input_redoes_what_depends_on_it(built, tmp_path):
    table, store, _ = built
    folder = tmp_path / "cases"
    shutil.copytree(store.root, tmp_path / "copy")
    shutil.copytree(table.removesuffix("/cases.csv"), folder, copy_function=shutil.copy2)
    copy = Store.open(tmp_path / "copy")
    assert plan_build(copy, CasesSource(table), PARAMETERS).to_do == 0
    window = BuildParameters(2, PARAMETERS.prepare, MattingParameters(window_level=-500.0), PARAMETERS.quality)
    plan = plan_build(copy, CasesSource(table), window)
    assert (plan.changed, plan.partly) == (6, 6)
    same = plan_build(copy, CasesSource(str(folder / "cases.csv")), PARAMETERS)
    assert same.changed == 0
    write_volume(folder / "3.nii.gz", np.full(GRID.shape, -800.0, np.float32), GRID)
    before = {row["nodule_id"]: row["shard"] for row in copy.outcomes().to_pylist()}
    stamps = {name: (tmp_path / "copy" / name).stat().st_mtime_ns for name in copy.listing("nodules")}
    assert build(Build(copy, CasesSource(str(folder / "cases.csv")), PARAMETERS), say=quiet).plan.changed == 1
    after = {row["nodule_id"]: row["shard"] for row in copy.outcomes().to_pylist()}
    assert {name for name in before if before[name] != after[name]} == {"case3"}
    kept = set(before.values()) & set(after.values())
    assert {name: (tmp_path / "copy" / name).stat().st_mtime_ns for name in kept} == {
        name: stamps[name] for name in kept
    }
    assert set(copy.listing("nodules")) == set(after.values())


def test_another_version_of_preparation_redoes_all_nodules_and_says_so(built, tmp_path, monkeypatch):
    table, store, _ = built
    shutil.copytree(store.root, tmp_path / "copy")
    monkeypatch.setattr(steps, "PREPARE_VERSION", "the next")
    plan = plan_build(Store.open(tmp_path / "copy"), CasesSource(table), PARAMETERS)
    assert (plan.changed, plan.rescored, plan.to_do) == (6, 0, 6)
    assert "6 of them again, as their input, a parameter or the solvers changed" in describe(plan)


def test_each_bad_nodule_has_its_own_outcome_and_the_rest_is_kept(ray_cluster, tmp_path):
    table = write_cases(tmp_path / "cases", 3)
    folder = tmp_path / "cases"
    write_volume(folder / "nan.nii.gz", np.full(GRID.shape, np.nan, np.float32), GRID)
    (folder / "cut.nii.gz").write_bytes((folder / "0.nii.gz").read_bytes()[:200])
    with open(table, "a") as file:
        file.write("missing,p,none.nii.gz,0.r0.nii.gz;0.r1.nii.gz,1\n")
        file.write("nan,p,nan.nii.gz,0.r0.nii.gz;0.r1.nii.gz,1\n")
        file.write("cut,p,cut.nii.gz,0.r0.nii.gz;0.r1.nii.gz,1\n")
        file.write("one-reader,p,0.nii.gz,0.r0.nii.gz,1\n")
    store = Store.create(tmp_path / "dataset")
    result = build(Build(store, CasesSource(table), PARAMETERS, ONE), say=quiet)
    assert result.counts == {"accepted": 3, "failed": 3, "excluded": 1}
    rows = {row["nodule_id"]: row for row in result.outcomes.to_pylist()}
    assert "none.nii.gz" in rows["missing"]["reason"]
    assert "nan.nii.gz" in rows["nan"]["reason"]
    assert "cut.nii.gz" in rows["cut"]["reason"]
    assert rows["one-reader"]["reason"] == "1 reader, fewer than the 2 asked for"

    shutil.copy(folder / "0.nii.gz", folder / "cut.nii.gz")
    retried = build(Build(store, CasesSource(table), PARAMETERS, ONE, retry_failed=True), say=quiet)
    assert retried.counts == {"accepted": 4, "failed": 2, "excluded": 1}


def test_a_dataset_of_many_nodules_commits_several_at_once():
    assert [nodules_per_shard(n) for n in (1, 2_600, 40_000, 200_000, 10_000_000)] == [1, 1, 2, 10, 16]


def test_pools_that_cannot_start_are_refused(built, tmp_path):
    table, _, _ = built
    store = Store.create(tmp_path / "dataset")
    with pytest.raises(InputError, match="would never start"):
        build(Build(store, CasesSource(table), PARAMETERS, Pools(workers=9)), say=quiet)
    assert store.listing("nodules") == []


def test_a_build_to_which_the_cluster_gives_no_worker_says_so_and_resumes(ray_cluster, tmp_path, monkeypatch):
    """As where its nodes are gone and none come."""
    monkeypatch.setattr(stream, "STILL_S", 2.0)
    source = CasesSource(write_cases(tmp_path / "cases", 1))
    what = Build(Store.create(tmp_path / "dataset"), source, PARAMETERS, nodule_timeout_s=0.5)
    others = placement_group([{"CPU": 2}])
    try:
        assert others.wait(60)
        with pytest.raises(InputError, match=r"stands still \(nothing was finished for 4 s\).*same command resumes"):
            build(what, say=quiet)
    finally:
        remove_placement_group(others)
    assert build(replace(what, nodule_timeout_s=60), say=quiet).counts == {"accepted": 1}


def test_a_build_that_stops_leaves_the_cluster_to_the_next(ray_cluster, built, tmp_path):
    table, store, _ = built
    stopped = Build(Store.create(tmp_path / "stopped"), CasesSource(table), PARAMETERS)
    with harmed(record=f"{tmp_path}/solves", stop="case3"), pytest.raises(InputError, match="the disk is full"):
        build(stopped, say=quiet)
    deadline = time.monotonic() + 60
    while (free := ray_cluster.available_resources().get("CPU", 0.0)) < 2:
        assert time.monotonic() < deadline, f"its workers still hold {2 - free:.1f} CPUs"
        time.sleep(0.2)
    assert build(stopped, say=quiet).counts == {"accepted": 6}
    assert arrays(stopped.store.root) == arrays(store.root)


def test_cases_of_ct_and_pet_have_the_same_arrays_as_in_a_plain_loop_with_scoring_apart(ray_cluster, tmp_path):
    table = write_pet_cases(tmp_path / "cases", 3)
    text = Path(table).read_text()
    Path(table).write_text(text.replace("0.nii.gz;0.pet.nii.gz", "0.nii.gz"))  # it fails, and harms no other
    parameters = replace(PET_PARAMETERS, matting=MattingParameters(methods=("cf", "cf+")))
    store = Store.create(tmp_path / "dataset")
    done = build(Build(store, CasesSource(table), parameters, Pools(workers=1, apart=True)), say=quiet)
    assert done.counts == {"accepted": 2, "failed": 1}
    source = CasesSource(table)
    for ref in list(source.plan())[1:]:
        expected = score(solve(read_and_prepare(source, ref, parameters), parameters), parameters)
        nodule = store.find(ref.nodule_id)
        for one, other in zip(nodule.all_channels, expected.all_channels, strict=True):
            assert (one.name, one.image.tobytes()) == (other.name, other.image.tobytes())
        assert {name: alpha.tobytes() for name, alpha in nodule.mattes.items()} == {
            name: alpha.tobytes() for name, alpha in expected.mattes.items()
        }
