"""Sources in an object store give what they give from a disk. S3 over its real wire protocol."""

import json

import numpy as np
import pandas as pd
import pytest

from raymat import places
from raymat.nodule import InputError
from raymat.sources.cases import CasesSource
from raymat.sources.lidc import LidcSource
from raymat.volume import read_volume, write_volume
from tests.support.cases import write_cases


def assert_same(a, b):
    assert (a.nodule_id, a.spacing, a.origin, a.metadata, a.notes) == (
        b.nodule_id,
        b.spacing,
        b.origin,
        b.metadata,
        b.notes,
    )
    np.testing.assert_array_equal(a.image, b.image)
    np.testing.assert_array_equal(a.readers, b.readers)


@pytest.fixture(scope="module")
def tables(s3, tmp_path_factory):
    """A folder with two good cases and some that are not, as CSV and Parquet, and the bucket's prefix that holds it."""
    folder = tmp_path_factory.mktemp("cases")
    table = write_cases(folder / "study", 2)
    image, grid = read_volume(folder / "study" / "0.nii.gz")
    write_volume(folder / "study" / "two.mhd", image, grid)
    (folder / "study" / "cut.nii.gz").write_bytes((folder / "study" / "0.nii.gz").read_bytes()[:200])
    masks = "0.r0.nii.gz;0.r1.nii.gz,3"
    with open(table, "a") as file:
        file.write(f"detached,p,two.mhd,{masks}\nmissing,p,none.nii.gz,{masks}\n")
        file.write(f"climbs,p,../0.nii.gz,{masks}\ncut,p,cut.nii.gz,{masks}\n")
    pd.read_csv(table).to_parquet(folder / "study" / "cases.parquet")
    return folder / "study", s3.bucket("tables", folder) + "/study"


@pytest.mark.parametrize("name", ["cases.csv", "cases.parquet"])
def test_a_case_table_in_a_store(tables, name):
    folder, uri = tables
    there, here = CasesSource(f"{uri}/{name}"), CasesSource(str(folder / name))
    refs = {ref.nodule_id: ref for ref in there.plan()}
    local = {ref.nodule_id: ref for ref in here.plan()}
    assert list(refs) == list(local)
    for case in ("case0", "case1", "detached"):
        assert_same(there.read(refs[case]), here.read(local[case]))
    assert f"{uri}/none.nii.gz: no such file" in refs["missing"].problem
    assert "leads out of" in refs["climbs"].problem
    with pytest.raises(InputError, match=f"{uri}/cut.nii.gz"):
        there.read(refs["cut"])


def test_a_changed_object_changes_the_fingerprints_that_depend_on_it(tables):
    _, uri = tables
    source = CasesSource(f"{uri}/cases.csv")
    before = {ref.nodule_id: ref.fingerprint for ref in source.plan()}
    assert before == {ref.nodule_id: ref.fingerprint for ref in source.plan()}
    places.ObjectFolder(uri).write("two.zraw", b"other")
    after = {ref.nodule_id: ref.fingerprint for ref in source.plan()}
    assert {case for case in before if before[case] != after[case]} == {"detached"}


def test_a_table_that_is_not_there_is_named(s3):
    s3.bucket("empty")
    with pytest.raises(InputError, match=r"s3://empty/cases\.csv: no such file"):
        CasesSource("s3://empty/cases.csv").plan()


def test_a_dicom_tree_in_a_store_is_indexed_by_its_first_bytes(archive, s3, tmp_path, monkeypatch):
    uri = s3.bucket("archive", tmp_path / "tree")
    moved = []
    readinto = places._Ranged.readinto
    monkeypatch.setattr(
        places._Ranged, "readinto", lambda raw, buffer: moved.append(readinto(raw, buffer)) or moved[-1]
    )
    there, here = LidcSource(uri), LidcSource(str(tmp_path / "tree"))
    refs, local = list(there.plan()), list(here.plan())
    size = sum(path.stat().st_size for path in archive.values())
    assert 0 < sum(moved) < size / 10
    (ref,), (same,) = refs, local
    assert [s[:3] for s in json.loads(ref.location)["slices"]] == [s[:3] for s in json.loads(same.location)["slices"]]
    assert_same(there.read(ref), here.read(same))
    assert [r.fingerprint for r in there.plan()] == [ref.fingerprint]
    name = str(archive[100].relative_to(tmp_path / "tree"))
    places.ObjectFolder(uri).write(name, archive[100].read_bytes()[:-2])
    with pytest.raises(InputError, match=f"{uri}/{name}: changed since the plan was made"):
        there.read(ref)
