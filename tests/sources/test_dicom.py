"""Series by their UIDs, slices by their positions, HU whatever the transfer syntax."""

import shutil

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.uid import DeflatedExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless

from raymat.nodule import InputError
from raymat.sources.dicom import index_tree, read_slab, read_slice


def series_of(tree):
    (series,) = tree.series.values()
    return series


def test_slices_are_found_by_header_and_sorted_by_position(tmp_path, write, first_scan, second_scan):
    for k in (7, 3, 5):
        write(tmp_path / "b" / f"image {9 - k}", first_scan, k)
        write(tmp_path / "b" / f"other {k}.bin", second_scan, k)
    (tmp_path / "b" / "readers.xml").write_text("<LidcReadMessage/>")
    (tmp_path / "b" / "empty folder").mkdir()
    tree = index_tree(tmp_path)
    assert set(tree.series) == {first_scan.series_uid, second_scan.series_uid}
    series = tree.series[first_scan.series_uid]
    assert [item.z for item in series.slices] == [first_scan.slice_z[k] for k in (3, 5, 7)]
    assert series.slices[0].path == "b/image 6"
    assert not tree.broken


def test_series_not_asked_for_are_counted(archive, tmp_path, first_scan):
    tree = index_tree(tmp_path, {"1.2.3"})
    assert not tree.series
    assert tree.others == {first_scan.series_uid: len(archive)}


def test_slab_is_hu_on_the_patients_grid(archive, tmp_path, first_scan):
    series = series_of(index_tree(tmp_path))
    image, grid = read_slab(tmp_path, series.slices)
    assert image.shape == (11, 512, 512)
    assert image.dtype == np.float32
    assert image[2, 100, 0] == 2 * (100 + 97) - 1024
    assert grid.origin == (first_scan.slice_z[95], -150.0, -170.0)
    assert grid.spacing == pytest.approx((2.5, first_scan.pixel_spacing, first_scan.pixel_spacing))
    np.testing.assert_allclose(
        grid.to_patient([1, 2, 3]),
        [first_scan.slice_z[96], -150 + 2 * first_scan.pixel_spacing, -170 + 3 * first_scan.pixel_spacing],
    )


@pytest.mark.parametrize("orientation", [[-1, 0, 0, 0, -1, 0], [0, 1, 0, -1, 0, 0], [1, 0, 0, 0, -1, 0]])
def test_turned_and_mirrored_axial_slices_keep_their_place(tmp_path, write, first_scan, orientation):
    for k in (50, 51):
        write(tmp_path / f"{k}", first_scan, k, ImageOrientationPatient=orientation, PixelSpacing=[0.5, 0.7])
    _, grid = read_slab(tmp_path, series_of(index_tree(tmp_path)).slices)
    # DICOM C.7.6.2.1.1: column j along the first triple, row i along the second.
    i, j = 30, 40
    x, y, _ = np.array([-170.0, -150.0, 0]) + np.array(orientation[:3]) * 0.7 * j + np.array(orientation[3:]) * 0.5 * i
    np.testing.assert_allclose(grid.to_patient([1, i, j]), [first_scan.slice_z[51], y, x])


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, RLELossless])
def test_transfer_syntaxes_of_pydicom_give_the_same_hu(tmp_path, write, first_scan, syntax):
    path = write(tmp_path / "plain.dcm", first_scan, 10)
    expected = read_slice(path, (512, 512))
    image = pydicom.dcmread(path)
    if syntax == RLELossless:
        image.compress(RLELossless)
    else:
        image.file_meta.TransferSyntaxUID = syntax
    other = tmp_path / "other.dcm"
    image.save_as(other, implicit_vr=syntax == ImplicitVRLittleEndian, little_endian=True)
    np.testing.assert_array_equal(read_slice(other, (512, 512)), expected)


def test_jpeg_2000_is_read_through_gdcm(tmp_path, write, first_scan):
    path = write(tmp_path / "plain.dcm", first_scan, 10)
    writer = sitk.ImageFileWriter()
    writer.SetImageIO("GDCMImageIO")
    writer.SetUseCompression(True)
    writer.SetFileName(str(tmp_path / "jpeg.dcm"))
    image = sitk.Cast(sitk.ReadImage(str(path)), sitk.sitkInt16)
    image.SetMetaData("0008|0060", "CT")
    image.SetMetaData("0028|1052", "0")
    image.SetMetaData("0028|1053", "1")
    writer.Execute(image)
    syntax = pydicom.dcmread(tmp_path / "jpeg.dcm").file_meta.TransferSyntaxUID
    assert syntax.is_compressed
    np.testing.assert_array_equal(read_slice(tmp_path / "jpeg.dcm", (512, 512)), read_slice(path, (512, 512)))


@pytest.mark.parametrize("kept", [0.02, 0.5, 0.999])
def test_truncated_pixels_name_the_file(tmp_path, write, first_scan, kept):
    path = write(tmp_path / "cut.dcm", first_scan, 10)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * kept)])
    assert len(series_of(index_tree(tmp_path)).slices) == 1
    with pytest.raises(InputError, match=r"cut\.dcm.*truncated"):
        read_slice(path, (512, 512))


def test_files_cut_in_the_header_are_remembered(archive, tmp_path):
    whole = archive[99].read_bytes()
    position = whole.index(b"\x20\x00\x32\x00DS")  # (0020,0032) ImagePositionPatient
    archive[99].write_bytes(whole[:position])
    archive[100].write_bytes(whole[:200])
    archive[101].write_bytes(b"")
    archive[102].write_bytes(b"not DICOM" * 100)
    tree = index_tree(tmp_path)
    reasons = {item.path.rsplit("/")[-1]: item.reason for item in series_of(tree).broken}
    assert reasons["000099.dcm"].startswith("its header has no ImagePositionPatient")
    assert set(reasons) == {"000099.dcm", "000100.dcm", "000101.dcm", "000102.dcm"}
    assert reasons["000101.dcm"] == "empty file"
    assert len(series_of(tree).slices) == 7


def test_dicom_without_a_place_in_space_is_passed_over(tmp_path, write, first_scan):
    write(
        tmp_path / "report.dcm",
        first_scan,
        0,
        SOPClassUID="1.2.840.10008.5.1.4.1.1.88.11",
        ImagePositionPatient=None,
        PixelData=None,
    )
    tree = index_tree(tmp_path)
    assert not tree.series
    assert not tree.broken


def test_of_two_copies_the_whole_one_is_used(archive, tmp_path):
    copy = tmp_path / "tree" / "again"
    shutil.copytree(archive[95].parent, copy)
    archive[97].write_bytes(archive[97].read_bytes()[:100_000])
    series = series_of(index_tree(tmp_path))
    assert len(series.slices) == len(archive)
    image, _ = read_slab(tmp_path, series.slices)
    assert np.isfinite(image).all()


def test_folders_linked_in_circles_are_walked_once(archive, tmp_path):
    (tmp_path / "tree" / "loop").symlink_to(tmp_path / "tree", target_is_directory=True)
    assert len(series_of(index_tree(tmp_path)).slices) == len(archive)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"ImageOrientationPatient": [0, 1, 0, 0, 0, -1]}, "not axial"),
        ({"ImageOrientationPatient": [1, 0, 0, 0, 0.9397, 0.342]}, "not axial"),
        ({"PixelSpacing": [0.1, 0.1]}, "mixes images of different grids"),
    ],
)
def test_what_is_no_axial_stack_is_refused(tmp_path, write, first_scan, changed, message):
    for k in (3, 4, 5):
        write(tmp_path / f"{k}.dcm", first_scan, k, **(changed if k == 5 or "Orientation" in str(changed) else {}))
    with pytest.raises(InputError, match=message):
        read_slab(tmp_path, series_of(index_tree(tmp_path)).slices)


def test_one_slice_of_another_orientation_is_refused(tmp_path, write, first_scan):
    write(tmp_path / "3.dcm", first_scan, 3)
    write(tmp_path / "4.dcm", first_scan, 4, ImageOrientationPatient=[-1, 0, 0, 0, -1, 0])
    with pytest.raises(InputError, match=r"4\.dcm: another orientation"):
        read_slab(tmp_path, series_of(index_tree(tmp_path)).slices)


def test_sheared_stack_is_refused(tmp_path, write, first_scan):
    for k in (3, 4):
        z = float(first_scan.slice_z[k])
        write(tmp_path / f"{k}.dcm", first_scan, k, ImagePositionPatient=[-170.0, -150.0 + k, z])
    with pytest.raises(InputError, match=r"shifted against each other by up to 1\.00 mm"):
        read_slab(tmp_path, series_of(index_tree(tmp_path)).slices)


def test_uneven_steps_are_refused(tmp_path, write, first_scan):
    for k in (3, 4, 6):
        write(tmp_path / f"{k}.dcm", first_scan, k)
    with pytest.raises(InputError, match=r"not evenly spaced: 2\.500, 5\.000 mm"):
        read_slab(tmp_path, series_of(index_tree(tmp_path)).slices)


def test_stored_values_without_a_scale_are_refused(tmp_path, write, first_scan):
    path = write(tmp_path / "1.dcm", first_scan, 1, RescaleIntercept=None)
    with pytest.raises(InputError, match="RescaleIntercept is missing"):
        read_slice(path, (512, 512))


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        index_tree(tmp_path / "nowhere")
