"""The case table: what it takes, and what it refuses in which words."""

import csv
import json
import pickle
import tracemalloc

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raymat.nodule import InputError
from raymat.sources.cases import CasesSource
from raymat.volume import Grid, write_volume

HEADER = ["case_id", "patient_id", "image", "masks", "site"]
GRID = Grid((4, 6, 8), (2.5, 0.7, 0.7), (-10.0, 20.0, 30.0), np.diag([1.0, -1.0, -1.0]))


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    write_volume(tmp_path / "image.nii.gz", rng.normal(-700, 50, GRID.shape).astype(np.float32), GRID)
    for reader in (1, 2):
        mask = np.zeros(GRID.shape, np.uint8)
        mask[1:3, 2:4, 3 : 4 + reader] = 1
        write_volume(tmp_path / f"mask{reader}.nrrd", mask, GRID)
    trimap = np.zeros(GRID.shape, np.uint8)
    trimap[1:3, 1:5, 2:6] = 128
    trimap[2, 3, 4] = 255
    write_volume(tmp_path / "trimap.mha", trimap, GRID)
    return tmp_path


def table(folder, *rows, header=HEADER, name="cases.csv"):
    with open(folder / name, "w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return CasesSource(folder / name)


GOOD = ["A", "P1", "image.nii.gz", "mask1.nrrd;mask2.nrrd", "1;2"]


def problem(source) -> str:
    (ref,) = source.plan()
    assert ref.problem
    with pytest.raises(InputError) as caught:
        source.read(ref)
    assert str(caught.value) == ref.problem
    return ref.problem


def error(source) -> str:
    (ref,) = source.plan()
    assert not ref.problem
    with pytest.raises(InputError) as caught:
        source.read(ref)
    return str(caught.value)


def test_a_case_as_its_files_have_it(folder):
    source = pickle.loads(pickle.dumps(table(folder, GOOD)))
    (ref,) = source.plan()
    assert (ref.nodule_id, ref.patient_id, ref.readers, ref.source) == ("A", "P1", 2, "cases")
    nodule = source.read(ref)
    assert nodule.image.dtype == np.float32
    assert [mask.sum() for mask in nodule.readers] == [8, 12]
    assert nodule.trimap is None
    assert nodule.spacing == pytest.approx(GRID.spacing)
    assert nodule.origin == pytest.approx(GRID.origin)
    np.testing.assert_allclose(nodule.direction, GRID.direction)
    assert nodule.metadata["site"] == "1;2"


def test_a_trimap_may_stand_in_for_masks_row_by_row(folder):
    header = ["case_id", "patient_id", "image", "masks", "trimap"]
    source = table(
        folder,
        ["A", "P1", "image.nii.gz", "mask1.nrrd", ""],
        ["B", "P1", "image.nii.gz", "", "trimap.mha"],
        header=header,
    )
    first, second = source.plan()
    assert (first.readers, second.readers) == (1, -1)
    nodule = source.read(second)
    assert nodule.readers == []
    assert sorted(np.unique(nodule.trimap)) == [0, 128, 255]
    assert source.read(first).trimap is None


def test_parquet_reads_as_csv_does(folder):
    rows = {"case_id": ["A"], "patient_id": ["P1"], "image": ["image.nii.gz"], "masks": [["mask1.nrrd", "mask2.nrrd"]]}
    pq.write_table(pa.table({**rows, "age": [61]}), folder / "cases.parquet")
    source = CasesSource(folder / "cases.parquet")
    (ref,) = source.plan()
    nodule = source.read(ref)
    assert nodule.metadata["age"] == 61
    assert len(nodule.readers) == 2


def test_any_one_value_is_inside(folder):
    mask = np.zeros(GRID.shape, np.float32)
    mask[1, 2, 3] = 255
    write_volume(folder / "mask1.nrrd", mask, GRID)
    source = table(folder, GOOD)
    (ref,) = source.plan()
    assert source.read(ref).readers[0].sum() == 1


def test_fingerprint_follows_the_files_and_the_row(folder):
    def fingerprint(*row):
        (ref,) = table(folder, row).plan()
        return ref.fingerprint

    before = fingerprint(*GOOD)
    assert fingerprint(*GOOD) == before
    assert fingerprint(*GOOD[:4], "other") != before
    assert fingerprint("A", "P2", *GOOD[2:]) != before
    write_volume(folder / "mask2.nrrd", np.ones(GRID.shape, np.uint8), GRID)
    assert fingerprint(*GOOD) != before


def test_fingerprint_follows_the_voxels_beside_a_detached_header(folder):
    write_volume(folder / "image.mhd", np.zeros(GRID.shape, np.float32), GRID)
    source = table(folder, ["A", "P1", "image.mhd", "mask1.nrrd", ""])
    (before,) = source.plan()
    (voxels,) = folder.glob("image.*raw")
    voxels.write_bytes(voxels.read_bytes() + b"more")
    (after,) = source.plan()
    assert after.fingerprint != before.fingerprint


def test_duplicate_ids_are_one_failed_record_that_names_the_rows(folder):
    source = table(folder, GOOD, ["B", *GOOD[1:]], GOOD, GOOD)
    refs = list(source.plan())
    assert [ref.nodule_id for ref in refs] == ["A", "B"]
    assert "case id 'A' stands in rows 1, 3, 4" in refs[0].problem
    assert not refs[1].problem


def test_a_missing_file_is_seen_while_planning_and_harms_no_other(folder):
    source = table(folder, GOOD, ["B", "P1", "image.nii.gz", "mask1.nrrd;gone.nrrd", ""])
    good, bad = source.plan()
    assert not good.problem
    assert f"row 2 (B): {folder / 'gone.nrrd'}: no such file" in bad.problem
    assert source.read(good).nodule_id == "A"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (["", *GOOD[1:]], "row 1: the cell of case_id is empty"),
        (["A", " ", *GOOD[2:]], "row 1: the cell of patient_id is empty"),
        (["A", "P1", "", *GOOD[3:]], "row 1: the cell of image is empty"),
        (["A", "P1", "image.nii.gz", "", ""], "neither masks nor a trimap"),
        (["A", "P1", "image.nii.gz", "mask1.nrrd;", ""], "an empty entry among the masks"),
        (["A", "P1", "image.nii.gz", "mask1.nrrd;mask1.nrrd", ""], "one file named twice"),
        (["A", "P1", "image.nii.gz"], "the row has fewer cells than the header has columns"),
        ([*GOOD, "x"], "the row has more cells than the header has columns"),
        (["A", "P1", ".", "mask1.nrrd", ""], "a folder, not an image file"),
        (["A", "P1", "../image.nii.gz", "mask1.nrrd", ""], "leads out of the table's folder"),
        (["A", "P1", "/etc/hostname", "mask1.nrrd", ""], "leads out of the table's folder"),
    ],
)
def test_rows_that_cannot_be_used(folder, row, message):
    assert message in problem(table(folder, row))


def test_both_masks_and_a_trimap_are_one_too_many(folder):
    source = table(
        folder,
        ["A", "P1", "image.nii.gz", "mask1.nrrd", "trimap.mha"],
        header=["case_id", "patient_id", "image", "masks", "trimap"],
    )
    assert "both masks and a trimap" in problem(source)


def test_absolute_paths_lead_out_only_where_allowed(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("tables")
    row = ["A", "P1", str(folder / "image.nii.gz"), str(folder / "mask1.nrrd"), ""]
    assert "leads out of the table's folder" in problem(table(elsewhere, row))
    (ref,) = CasesSource(elsewhere / "cases.csv", allow_absolute=True).plan()
    assert not ref.problem
    (ref,) = table(folder, row).plan()
    assert not ref.problem


def test_a_link_leads_out_no_further_than_a_path(folder, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside")
    elsewhere = outside / "elsewhere.nii.gz"
    elsewhere.write_bytes((folder / "image.nii.gz").read_bytes())
    (folder / "link.nii.gz").symlink_to(elsewhere)
    (folder / "folder").symlink_to(outside)
    for name in ("link.nii.gz", "folder/elsewhere.nii.gz"):
        assert "a link out of the table's folder" in problem(table(folder, ["A", "P1", name, "mask1.nrrd", ""]))
    (folder / "alias.nii.gz").symlink_to(folder / "image.nii.gz")
    (ref,) = table(folder, ["A", "P1", "alias.nii.gz", "mask1.nrrd", ""]).plan()
    assert not ref.problem


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "missing columns: case_id, patient_id, image, masks (or trimap); the table has none"),
        (b"case_id;patient_id;image;masks\n", "missing columns: case_id, patient_id"),
        (b"case_id,image,masks\nA,b,c\n", "missing columns: patient_id; the table has case_id, image, masks"),
        (b"case_id,patient_id,image,masks\n", "the table has no rows"),
        (b"case_id,patient_id,image,masks,image\nA,P,i,m,i\n", "columns named twice: image"),
        (b"\xff\xfe\x00", "not a CSV file in UTF-8"),
        (b"case_id,patient_id,image,masks\n" + 99999 * b"A,P,i,m\n" + b"B,\xff,i,m\n", "damaged after row 9"),
    ],
)
def test_tables_that_cannot_be_used(tmp_path, content, message):
    (tmp_path / "cases.csv").write_bytes(content)
    with pytest.raises(InputError) as caught:
        CasesSource(tmp_path / "cases.csv").plan()
    assert message in str(caught.value)
    assert "cases.csv" in str(caught.value)


def test_missing_and_damaged_tables(tmp_path):
    with pytest.raises(InputError, match="no such table"):
        CasesSource(tmp_path / "cases.csv").plan()
    (tmp_path / "cases.parquet").write_bytes(b"PAR1 but no more")
    with pytest.raises(InputError, match="not a Parquet file"):
        CasesSource(tmp_path / "cases.parquet").plan()


def test_a_byte_order_mark_is_no_part_of_the_first_column(folder):
    table(folder, GOOD)
    path = folder / "cases.csv"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    (ref,) = CasesSource(path).plan()
    assert ref.nodule_id == "A"


def volume(**changes):
    values = {"shape": GRID.shape, "spacing": GRID.spacing, "origin": GRID.origin, "direction": GRID.direction}
    return Grid(**{**values, **changes})


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        (volume(shape=(4, 6, 9)), "(4, 6, 9) voxels (z, y, x), but image.nii.gz has (4, 6, 8)"),
        (volume(origin=(-10.0, 20.0, 30.2)), "lies up to 0.20 mm from image.nii.gz"),
        (volume(spacing=(2.5, 0.7, 0.72)), "lies up to 0.14 mm from image.nii.gz"),
        (volume(direction=np.eye(3)), "mm from image.nii.gz: origin, spacing or direction differ"),
    ],
)
def test_masks_of_another_shape_or_placement(folder, grid, message):
    write_volume(folder / "mask2.nrrd", np.ones(grid.shape, np.uint8), grid)
    text = error(table(folder, GOOD))
    assert message in text
    assert "mask2.nrrd" in text


def test_placement_within_a_tenth_of_a_millimetre_is_the_same(folder):
    write_volume(folder / "mask2.nrrd", np.ones(GRID.shape, np.uint8), volume(origin=(-10.0, 20.0, 30.05)))
    source = table(folder, GOOD)
    (ref,) = source.plan()
    assert source.read(ref).origin == pytest.approx(GRID.origin)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros(GRID.shape, np.uint8), "the mask is empty"),
        (np.arange(np.prod(GRID.shape)).reshape(GRID.shape).astype(np.int16) % 3, "a mask holds 0 and one other value"),
        (np.full(GRID.shape, np.nan, np.float32), "NaN or infinite"),
    ],
)
def test_masks_with_bad_values(folder, values, message):
    write_volume(folder / "mask2.nrrd", values, GRID)
    text = error(table(folder, GOOD))
    assert message in text
    assert "mask2.nrrd" in text


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["image.nrrd", "image.nii.gz"])
def test_an_image_with_a_voxel_that_is_not_finite(folder, bad, name):
    values = np.zeros(GRID.shape, np.float32)
    values[1, 2, 3] = bad
    write_volume(folder / name, values, GRID)
    text = error(table(folder, ["A", "P1", name, "mask1.nrrd", ""]))
    assert "1 " in text
    assert "NaN or infinite" in text
    assert "(1, 2, 3)" in text


@pytest.mark.parametrize(
    ("value", "message"), [(77, "found 77 in 1 voxels"), (255, "no unknown voxels"), (0, "no foreground voxels")]
)
def test_trimaps_with_bad_values(folder, value, message):
    trimap = np.zeros(GRID.shape, np.uint8)
    if value == 77:
        trimap[0, 0, :3] = 0, 128, 255
    trimap[2, 2, 2] = value
    write_volume(folder / "trimap.mha", trimap, GRID)
    source = table(
        folder, ["A", "P1", "image.nii.gz", "trimap.mha"], header=["case_id", "patient_id", "image", "trimap"]
    )
    assert message in error(source) if value != 0 else "the trimap has no" in error(source)


def test_images_that_are_not_volumes(folder):
    import SimpleITK as sitk

    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((6, 8), np.float32)), str(folder / "flat.nrrd"))
    assert "flat.nrrd: expected a 3D image" in error(table(folder, ["A", "P1", "flat.nrrd", "mask1.nrrd", ""]))
    four = sitk.JoinSeries([sitk.GetImageFromArray(np.zeros(GRID.shape, np.float32))] * 2)
    sitk.WriteImage(four, str(folder / "four.nrrd"))
    assert "four.nrrd: expected a 3D image" in error(table(folder, ["A", "P1", "four.nrrd", "mask1.nrrd", ""]))
    (folder / "text.nrrd").write_text("no image")
    assert "text.nrrd: SimpleITK cannot read it" in error(table(folder, ["A", "P1", "text.nrrd", "mask1.nrrd", ""]))


@pytest.mark.slow
def test_large_tables_are_not_held(tmp_path):
    def peak(rows):
        with open(tmp_path / "cases.csv", "w") as file:
            file.write("case_id,patient_id,image,masks\n")
            file.writelines(f"case-{n},patient-{n // 3},image-{n}.nii.gz,mask-{n}.nii.gz\n" for n in range(rows))
        tracemalloc.start()
        assert sum(1 for _ in CasesSource(tmp_path / "cases.csv").plan()) == rows
        _, bytes_held = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return bytes_held

    # 8 bytes an id, and as much again to sort them.
    assert (peak(10_000) - peak(2_500)) / 7_500 < 32


@pytest.mark.data
def test_every_published_case_reads_with_its_columns(real_data):
    source = CasesSource(real_data / "lidc-voi" / "cases.csv")
    refs = list(source.plan())
    assert len(refs) == 734
    assert not [ref.problem for ref in refs if ref.problem]
    for ref in refs[::60]:
        nodule = source.read(ref)
        assert len(nodule.readers) == ref.readers
        assert len(nodule.metadata["malignancy"].split(";")) == ref.readers
        assert json.dumps(nodule.metadata)
