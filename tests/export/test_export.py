"""Exports land where the scan is, in readers that are not raymat's."""

import shutil
import subprocess
from dataclasses import replace

import highdicom
import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk

from raymat.cli import main
from raymat.export.dicom_seg import find_series
from raymat.export.dicom_sr import CODES
from raymat.loading import load
from raymat.measures.nodule import measure
from raymat.methods import CALIBRATED, MEMBERSHIP
from raymat.nodule import ACCEPTED, Matte, Nodule
from raymat.prepare import prepare
from raymat.release.freeze import ReleaseRequest, release
from raymat.sources.lidc import LidcSource
from raymat.sources.phantom import PhantomSource, write_phantoms
from tests.support.nodules import draw_nodule, predicted_nodule, write_dataset


def as_accepted(nodule: Nodule, **alphas) -> Nodule:
    """The prepared nodule with a matte per method, of what a function makes of it; that of the first is chosen."""
    nodule = prepare(nodule)
    nodule.candidates = [
        Matte(method, alpha(nodule).astype(np.float32), score=0.9 - place / 10)
        for place, (method, alpha) in enumerate(alphas.items())
    ]
    nodule.method, nodule.outcome, nodule.key = next(iter(alphas)), ACCEPTED, f"{nodule.nodule_id:0>32}"
    return nodule


@pytest.fixture(scope="module")
def phantom(tmp_path_factory):
    """A phantom's DICOM, and a dataset that holds its one nodule with the truth of each kind for its mattes."""
    folder = tmp_path_factory.mktemp("export")
    write_phantoms(folder / "scans", 1, 3, progress=lambda _: None)
    source = PhantomSource.from_folder(folder / "scans")
    (ref,) = source.plan()
    truths = {
        "cf+": lambda nodule: nodule.true_calibrated * (nodule.trimap > 0),
        "cf": lambda nodule: nodule.true_membership * (nodule.trimap > 0),
    }
    nodule = replace(as_accepted(source.read(ref), **truths), kind=CALIBRATED)
    write_dataset(folder / "dataset", [nodule])
    return folder, nodule


def centroid(values: np.ndarray, to_world) -> np.ndarray:
    """Centre of mass in world coordinates, `to_world` taking indices (n, 3) there."""
    at = np.argwhere(values > 0)
    return np.average(to_world(at), axis=0, weights=values[tuple(at.T)])


def lesion_centre(nodule: Nodule) -> np.ndarray:
    """Of the chosen matte, (x, y, z) mm, LPS, from the record alone."""
    step = np.asarray(nodule.direction) * np.asarray(nodule.spacing)
    return centroid(nodule.alpha, lambda at: np.asarray(nodule.origin) + at @ step.T)[::-1]


def scan_of(folder) -> list[pydicom.Dataset]:
    return sorted((pydicom.dcmread(path) for path in folder.rglob("*.dcm")), key=lambda d: d.ImagePositionPatient[2])


def centre_in_the_scan(seg: pydicom.Dataset, frames: np.ndarray) -> np.ndarray:
    """Centre of mass of a SEG's frames by their own plane positions, (x, y, z) mm."""
    shared = seg.SharedFunctionalGroupsSequence[0]
    row_mm, column_mm = shared.PixelMeasuresSequence[0].PixelSpacing
    along_row, along_column = np.reshape(shared.PlaneOrientationSequence[0].ImageOrientationPatient, (2, 3)).astype(
        float
    )
    corners = np.array(
        [group.PlanePositionSequence[0].ImagePositionPatient for group in seg.PerFrameFunctionalGroupsSequence], float
    )

    def to_world(at):
        return corners[at[:, 0]] + np.outer(at[:, 1] * row_mm, along_column) + np.outer(at[:, 2] * column_mm, along_row)

    return centroid(frames, to_world)


def test_of_a_prediction_what_there_is_is_exported(tmp_path):
    write_dataset(tmp_path / "predictions", [predicted_nodule(0)])
    assert main(["export", str(tmp_path / "predictions"), "-o", str(tmp_path / "out"), "--format", "nifti"]) == 0
    out = tmp_path / "out" / "case-000"
    assert {path.name for path in out.iterdir()} == {"image.nii.gz", "alpha.nii.gz"}
    alpha = sitk.GetArrayFromImage(sitk.ReadImage(str(out / "alpha.nii.gz")))
    np.testing.assert_array_equal(alpha, predicted_nodule(0).alpha)


@pytest.mark.parametrize("form", ["nifti", "nrrd"])
def test_volumes_lie_in_the_patient_for_an_independent_reader(phantom, tmp_path, form, capsys):
    folder, nodule = phantom
    assert main(["export", str(folder / "dataset"), "-o", str(tmp_path), "--format", form]) == 0
    out = tmp_path / nodule.nodule_id
    ending = {"nifti": ".nii.gz", "nrrd": ".nrrd"}[form]
    names = {"image", "alpha", "trimap", *(f"reader{n}" for n in range(1, 5))}
    assert {path.name for path in out.iterdir()} == {name + ending for name in names}
    if form == "nifti":
        file = nibabel.load(out / "alpha.nii.gz")
        alpha = np.asarray(file.dataobj)
        affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ file.affine  # RAS to LPS
        found = centroid(alpha, lambda at: at @ affine[:3, :3].T + affine[:3, 3])
        np.testing.assert_array_equal(alpha.transpose(2, 1, 0), nodule.alpha)
    else:
        file = sitk.ReadImage(out / "alpha.nrrd")
        alpha = sitk.GetArrayFromImage(file).transpose(2, 1, 0)
        step = np.reshape(file.GetDirection(), (3, 3)) * file.GetSpacing()
        found = centroid(alpha, lambda at: np.array(file.GetOrigin()) + at @ step.T)
    assert np.abs(found - lesion_centre(nodule)).max() < 0.01
    trimap = sitk.GetArrayFromImage(sitk.ReadImage(out / f"trimap{ending}"))
    np.testing.assert_array_equal(trimap, nodule.trimap)


@pytest.fixture(scope="module")
def fractional(phantom, tmp_path_factory):
    folder, nodule = phantom
    out = tmp_path_factory.mktemp("seg")
    arguments = ["export", str(folder / "dataset"), "-o", str(out), "--format", "dicom-seg"]
    assert main([*arguments, "--lidc", str(folder / "scans")]) == 0
    return out / f"{nodule.nodule_id}.seg.dcm"


def test_a_fractional_segmentation_refers_to_the_slices_it_lies_on(phantom, fractional):
    folder, nodule = phantom
    seg = pydicom.dcmread(fractional)
    assert (seg.SegmentationType, seg.SegmentationFractionalType, seg.MaximumFractionalValue) == (
        "FRACTIONAL",
        "OCCUPANCY",
        255,
    )
    scan = {slice_.SOPInstanceUID: slice_ for slice_ in scan_of(folder / "scans")}
    first = next(iter(scan.values()))
    assert seg.FrameOfReferenceUID == first.FrameOfReferenceUID
    assert seg.StudyInstanceUID == first.StudyInstanceUID
    assert seg.ReferencedSeriesSequence[0].SeriesInstanceUID == nodule.metadata["series_uid"]
    for group in seg.PerFrameFunctionalGroupsSequence:
        (source,) = group.DerivationImageSequence[0].SourceImageSequence
        slice_ = scan[source.ReferencedSOPInstanceUID]
        assert group.PlanePositionSequence[0].ImagePositionPatient == slice_.ImagePositionPatient
    half_voxel = 0.5 * np.array([*first.PixelSpacing[::-1], float(first.SliceThickness)])
    apart = np.abs(centre_in_the_scan(seg, seg.pixel_array) - lesion_centre(nodule))
    assert (apart < half_voxel).all()


def test_a_fractional_segmentation_reads_back_to_1_in_255(phantom, fractional):
    """Against alpha interpolated here, at the centres of the scan's voxels, with scipy."""
    from scipy.ndimage import map_coordinates

    _, nodule = phantom
    read = highdicom.seg.segread(fractional)
    volume = read.get_volume(combine_segments=False, rescale_fractional=True)
    values = volume.array[..., 0]
    corner = np.argwhere(np.ones(values.shape, bool))
    world = corner @ volume.affine[:3, :3].T + volume.affine[:3, 3]
    step = np.asarray(nodule.direction) * np.asarray(nodule.spacing)
    index = (world[:, ::-1] - np.asarray(nodule.origin)) @ np.linalg.inv(step).T
    expected = map_coordinates(nodule.alpha, index.T, order=1, cval=0.0).reshape(values.shape)
    assert values.max() > 0.9
    assert np.abs(values - expected).max() <= 1 / 255


def segmentations(folder, out, *more: str) -> dict[str, pydicom.Dataset]:
    """The DICOM Segmentations that a command writes of the dataset, by the names of their files."""
    arguments = ["export", str(folder / "dataset"), "-o", str(out), "--format", "dicom-seg"]
    assert main([*arguments, "--dicom", str(folder / "scans"), *more]) == 0
    return {path.name: highdicom.seg.segread(path) for path in out.iterdir()}


def inside(seg: pydicom.Dataset, level: int = 1) -> int:
    """How many voxels have a value of at least ``level``."""
    return int((seg.get_volume(combine_segments=False, rescale_fractional=False).array >= level).sum())


def test_a_binary_segmentation_is_membership_at_its_level_unless_another_matte_is_asked_for(phantom, tmp_path):
    folder, nodule = phantom
    name = f"{nodule.nodule_id}.seg.dcm"
    found = {}
    for kind in (MEMBERSHIP, CALIBRATED):
        (grey,) = segmentations(folder, tmp_path / kind, "--kind", kind).values()
        found[kind] = inside(grey, 128)
    assert found[MEMBERSHIP] > found[CALIBRATED]
    binary = segmentations(folder, tmp_path / "out", "--level", "0.5")[name]
    assert binary.SegmentationType == "BINARY"
    assert inside(binary) == found[MEMBERSHIP]
    assert binary.SegmentSequence[0].SegmentLabel == f"{nodule.nodule_id} membership alpha >= 0.5"
    chosen = segmentations(folder, tmp_path / "out", "--level", "0.5", "--kind", "chosen")[name]
    assert inside(chosen) == found[CALIBRATED]


def test_segmentations_of_both_kinds_lie_side_by_side_and_name_kind_and_method(phantom, tmp_path):
    folder, nodule = phantom
    for arguments in ([], ["--kind", "membership"], ["--kind", "calibrated"]):
        found = segmentations(folder, tmp_path / "out", *arguments)
    words = {name: (seg.ContentDescription, seg.SeriesDescription) for name, seg in found.items()}
    title = nodule.nodule_id
    calibrated = ("calibrated alpha, cf+, score 0.90", f"raymat calibrated alpha {title}")
    assert words == {
        f"{title}.seg.dcm": calibrated,
        f"{title}.calibrated.seg.dcm": calibrated,
        f"{title}.membership.seg.dcm": ("membership alpha, cf, score 0.80", f"raymat membership alpha {title}"),
    }
    # The chosen matte is the calibrated one, and the same object.
    assert len({seg.SOPInstanceUID for seg in found.values()}) == 2


@pytest.mark.parametrize("form", ["nifti", "nrrd"])
def test_volumes_of_both_kinds_lie_side_by_side_and_name_kind_and_method(phantom, tmp_path, form):
    folder, nodule = phantom
    arguments = ["export", str(folder / "dataset"), "-o", str(tmp_path), "--format", form]
    for more in ([], ["--kind", "membership"], ["--kind", "calibrated"]):
        assert main([*arguments, *more]) == 0
    ending = {"nifti": ".nii.gz", "nrrd": ".nrrd"}[form]
    for name, words in (
        ("alpha", "calibrated alpha, cf+, score 0.90"),
        ("calibrated", "calibrated alpha, cf+, score 0.90"),
        ("membership", "membership alpha, cf, score 0.80"),
    ):
        file = sitk.ReadImage(tmp_path / nodule.nodule_id / f"{name}{ending}")
        np.testing.assert_array_equal(sitk.GetArrayFromImage(file), getattr(nodule, name))
        assert file.GetMetaData("ITK_FileNotes") == words
    if form == "nifti":
        header = nibabel.load(tmp_path / nodule.nodule_id / "membership.nii.gz").header
        assert header["descrip"].item() == words.encode()


def test_a_nodule_without_a_matte_of_the_kind_is_named_and_keeps_no_other_back(tmp_path, capsys):
    store = write_dataset(tmp_path / "dataset", [draw_nodule(0, methods=("cf+", "knn+")), draw_nodule(1)])
    arguments = ["export", store.root, "-o", str(tmp_path / "out"), "--format", "nrrd", "--kind", "membership"]
    assert main(arguments) == 1
    said = capsys.readouterr()
    assert said.err == (
        "raymat: case-000: has no membership matte (its mattes: cf+, knn+); export another one with --kind chosen or "
        "--kind calibrated\n"
    )
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["case-001"]
    assert main([*arguments, "--nodule", "case-000"]) == 2


def test_a_level_needs_membership_unless_another_matte_is_asked_for(phantom, tmp_path, capsys):
    folder, nodule = phantom
    alone = replace(nodule, candidates=nodule.candidates[:1])
    write_dataset(tmp_path / "dataset", [alone])
    arguments = ["export", str(tmp_path / "dataset"), "-o", str(tmp_path / "out"), "--format", "dicom-seg"]
    arguments += ["--dicom", str(folder / "scans"), "--level", "0.5"]
    assert main(arguments) == 2
    assert "has no membership matte, of which --level makes a binary segmentation" in capsys.readouterr().err
    assert main([*arguments, "--kind", "chosen"]) == 0
    for level, form in (("1.5", "dicom-seg"), ("0.5", "nrrd")):
        assert main([*arguments[:4], "--format", form, *arguments[6:-1], level]) == 2
        assert "--level" in capsys.readouterr().err


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dciodvfy is not here: apt-get install dicom3tools")
@pytest.mark.parametrize("level", [None, "0.5"])
def test_dciodvfy_finds_no_error(phantom, tmp_path, level):
    folder, nodule = phantom
    arguments = ["export", str(folder / "dataset"), "-o", str(tmp_path), "--format", "dicom-seg"]
    arguments += ["--lidc", str(folder / "scans"), *(["--level", level] if level else [])]
    assert main(arguments) == 0
    file = tmp_path / f"{nodule.nodule_id}.seg.dcm"
    said = subprocess.run(["dciodvfy", "-new", str(file)], capture_output=True, text=True, check=False)
    assert "SegmentationIOD" in said.stderr + said.stdout or "Segmentation" in said.stderr + said.stdout
    assert not [line for line in (said.stdout + said.stderr).splitlines() if line.startswith("Error")]


@pytest.mark.data
def test_a_real_series_carries_its_segmentation(real_data, tmp_path):
    root = str(real_data / "lidc-dicom")
    source = LidcSource(root)
    ref = next(ref for ref in source.plan() if ref.nodule_id == "LIDC-IDRI-0003-N2")
    # The readers' mean mask stands for the matte: where it lies is what is tested.
    nodule = as_accepted(source.read(ref), cf=lambda nodule: np.mean(nodule.readers, axis=0))
    write_dataset(tmp_path / "dataset", [nodule])
    arguments = ["export", str(tmp_path / "dataset"), "-o", str(tmp_path / "out"), "--format", "dicom-seg"]
    assert main([*arguments, "--lidc", root]) == 0
    file = tmp_path / "out" / "LIDC-IDRI-0003-N2.seg.dcm"
    seg = pydicom.dcmread(file)
    half_voxel = 0.5 * np.array([0.82, 0.82, 2.5])
    assert (np.abs(centre_in_the_scan(seg, seg.pixel_array) - lesion_centre(nodule)) < half_voxel).all()
    if shutil.which("dciodvfy"):
        said = subprocess.run(["dciodvfy", "-new", str(file)], capture_output=True, text=True, check=False)
        assert not [line for line in (said.stdout + said.stderr).splitlines() if line.startswith("Error")]


def test_a_missing_series_is_named_before_anything_is_written(phantom, tmp_path, capsys):
    folder, nodule = phantom
    (tmp_path / "elsewhere").mkdir()
    arguments = ["export", str(folder / "dataset"), "-o", str(tmp_path / "out"), "--format", "dicom-seg"]
    assert main([*arguments, "--lidc", str(tmp_path / "elsewhere")]) == 2
    said = capsys.readouterr().err
    assert f"does not hold the source series {nodule.metadata['series_uid']} of {nodule.nodule_id}" in said
    assert not list((tmp_path / "out").iterdir())
    assert main(arguments) == 2
    assert "--lidc DIR" in capsys.readouterr().err
    half = tmp_path / "half"
    shutil.copytree(folder / "scans", half)
    scan = sorted(half.rglob("*.dcm"), key=lambda path: pydicom.dcmread(path).ImagePositionPatient[2])
    for path in scan[len(scan) // 2 :]:
        path.unlink()
    assert main([*arguments, "--lidc", str(half)]) == 2
    assert "download the series again" in capsys.readouterr().err


def test_the_series_of_nodules_are_found_without_their_arrays(phantom, tmp_path, monkeypatch):
    folder, nodule = phantom
    release(ReleaseRequest(str(folder / "dataset"), str(tmp_path / "release"), "1.0"), lambda _: None)
    for read in ("store.from_table", "release.record.nodule_of"):
        monkeypatch.setattr(f"raymat.{read}", lambda *_, **__: pytest.fail("a nodule's arrays were read"))
    for path in (folder / "dataset", tmp_path / "release"):
        found, problems = find_series(load(path), [nodule.nodule_id], str(folder / "scans"))
        assert not problems
        assert found[nodule.nodule_id].uid == nodule.metadata["series_uid"]
        assert load(path).metadata(nodule.nodule_id) == nodule.metadata


def test_a_nodule_that_came_from_no_dicom_says_so(tmp_path, capsys):
    store = write_dataset(tmp_path / "dataset", [draw_nodule(0)])
    arguments = ["export", store.root, "-o", str(tmp_path / "out"), "--format", "dicom-seg", "--lidc", str(tmp_path)]
    assert main(arguments) == 2
    assert "case-000: comes from no DICOM series" in capsys.readouterr().err
    assert main([*arguments, "--nodule", "nobody"]) == 2
    assert "no accepted nodule nobody" in capsys.readouterr().err


def test_an_id_that_is_no_file_name_stays_inside_the_folder(tmp_path):
    from raymat.export import ExportRequest, export
    from raymat.words import file_name

    names = ["plain-1.a", "../up", "a/b", "a_b", "..", ""]
    found = [file_name(name) for name in names]
    assert found[0] == "plain-1.a"
    assert len(set(found)) == len(names)
    assert not [name for name in found if "/" in name or name in ("", ".", "..")]
    long = [file_name("x" * 400 + end) for end in "ab"]
    assert len(set(long)) == 2
    assert all(len(name) < 200 for name in long)
    store = write_dataset(tmp_path / "dataset", [draw_nodule(0)])
    blocked = tmp_path / "file"
    blocked.write_text("")
    (done,) = export(load(store.root), ["case-000"], blocked, ExportRequest("nrrd"))
    assert done.path is None
    assert "cannot be written" in done.problem


def test_a_nodule_without_a_source_keeps_no_other_back(phantom, tmp_path, capsys):
    folder, nodule = phantom
    write_dataset(tmp_path / "dataset", [draw_nodule(0), nodule, draw_nodule(1)])
    arguments = ["export", str(tmp_path / "dataset"), "-o", str(tmp_path / "out"), "--format", "dicom-seg"]
    assert main([*arguments, "--dicom", str(folder / "scans")]) == 1
    said = capsys.readouterr()
    assert [path.name for path in (tmp_path / "out").iterdir()] == [f"{nodule.nodule_id}.seg.dcm"]
    assert said.out.count("\n") == 1
    for name in ("case-000", "case-001"):
        assert f"{name}: comes from no DICOM series" in said.err


@pytest.mark.parametrize("options", [(), ("--level", "0.5")])
def test_nodules_of_a_series_together_are_segments_of_one_file(phantom, tmp_path, options):
    folder, nodule = phantom
    z, y, x = nodule.origin
    shifted = replace(nodule, nodule_id="shifted", key="1" * 32, origin=(z - 1.0, y, x - 9.0))
    write_dataset(tmp_path / "dataset", [nodule, shifted])
    for out, more in (("alone", ()), ("one", ("--together",))):
        command = ["export", str(tmp_path / "dataset"), "-o", str(tmp_path / out), "--format", "dicom-seg"]
        assert main([*command, "--dicom", str(folder / "scans"), *options, *more]) == 0
    (path,) = (tmp_path / "one").iterdir()
    one = highdicom.seg.segread(path)
    assert path.name == f"{nodule.metadata['series_uid']}.seg.dcm"
    assert one.number_of_segments == 2
    for number, name in enumerate((nodule.nodule_id, "shifted"), start=1):
        alone = highdicom.seg.segread(tmp_path / "alone" / f"{name}.seg.dcm")
        assert one.get_segment_description(number).tracking_uid == alone.get_segment_description(1).tracking_uid
        expected = frames_by_height(alone, 1)
        found = frames_by_height(one, number)
        assert found.keys() == expected.keys()
        assert all(np.array_equal(found[height], expected[height]) for height in found)


def frames_by_height(segmentation, number: int) -> dict[float, np.ndarray]:
    """The frames of a segment, by the z of their planes, as pydicom decodes them."""
    found = {}
    shared = segmentation.SharedFunctionalGroupsSequence[0]
    pixels = segmentation.pixel_array.reshape(-1, segmentation.Rows, segmentation.Columns)
    for frame, group in zip(pixels, segmentation.PerFrameFunctionalGroupsSequence, strict=True):
        segment = group.get("SegmentIdentificationSequence") or shared.SegmentIdentificationSequence
        if segment[0].ReferencedSegmentNumber == number:
            found[float(group.PlanePositionSequence[0].ImagePositionPatient[2])] = frame
    return found


def exported_as(folder, nodule: Nodule, names: list[str], out) -> list[pydicom.Dataset]:
    """Segmentations of one nodule under other ids."""
    nodules = [replace(nodule, nodule_id=name, key=f"{number:032x}") for number, name in enumerate(names)]
    write_dataset(out / "dataset", nodules)
    arguments = ["export", str(out / "dataset"), "-o", str(out / "seg"), "--format", "dicom-seg", "--level", "0.5"]
    assert main([*arguments, "--dicom", str(folder / "scans")]) == 0
    return [pydicom.dcmread(path) for path in sorted((out / "seg").iterdir())]


def test_labels_keep_apart_what_ids_keep_apart(phantom, tmp_path):
    folder, nodule = phantom
    uid = str(nodule.metadata["series_uid"])
    names = [f"{uid}-1", f"{uid}-2", f"{uid}-2 ".replace("-", "\\"), "läsion-病変"]
    found = exported_as(folder, nodule, names, tmp_path)
    assert len(found) == len(names)
    for tag in ("SegmentLabel", "TrackingID", "TrackingUID"):
        assert len({seg.SegmentSequence[0][tag].value for seg in found}) == len(names)
    assert len({seg.SeriesDescription for seg in found}) == len(names)
    for seg in found:
        label, description = seg.SegmentSequence[0].SegmentLabel, seg.SeriesDescription
        assert all(isinstance(text, str) and len(text) <= 64 for text in (label, description))
    ends = {seg.SegmentSequence[0].TrackingID[-2:] for seg in found}
    assert {"-1", "-2"} <= ends
    assert any("病変" in seg.SegmentSequence[0].TrackingID for seg in found)


def test_a_matte_that_runs_over_the_end_of_the_scan_is_exported_as_far_as_the_scan_goes(phantom, tmp_path):
    folder, nodule = phantom
    # As a network has it: more than nothing everywhere, and air beyond the scan.
    image, alpha = nodule.image.copy(), np.full(nodule.image.shape, 0.1, np.float32)
    grown = ((40, 40), (0, 0), (0, 0))
    step = np.asarray(nodule.direction) * np.asarray(nodule.spacing)
    longer = replace(
        nodule,
        image=np.pad(image, grown, constant_values=-1000.0),
        trimap=None,
        true_membership=None,
        true_calibrated=None,
        readers=[],
        origin=tuple((np.asarray(nodule.origin) - step @ [40, 0, 0]).tolist()),
        candidates=[Matte("3dmm", np.pad(alpha, grown, constant_values=np.float32(0.1)))],
        method="3dmm",
    )
    write_dataset(tmp_path / "dataset", [longer])
    arguments = ["export", str(tmp_path / "dataset"), "-o", str(tmp_path / "out"), "--format", "dicom-seg"]
    assert main([*arguments, "--dicom", str(folder / "scans")]) == 0
    (path,) = (tmp_path / "out").iterdir()
    z = [float(g.PlanePositionSequence[0].ImagePositionPatient[2]) for g in pydicom.dcmread(path)[0x52009230].value]
    scan = [float(slice_.ImagePositionPatient[2]) for slice_ in scan_of(folder / "scans")]
    assert set(z) <= set(scan)
    assert len(z) >= len(scan) - 2


def test_headers_without_attributes_that_may_be_empty(phantom, tmp_path):
    folder, nodule = phantom
    shutil.copytree(folder / "scans", tmp_path / "scans")
    for path in (tmp_path / "scans").rglob("*.dcm"):
        image = pydicom.dcmread(path)
        for name in ("StudyID", "AccessionNumber", "PatientBirthDate", "PatientSex", "StudyTime", "StudyDate"):
            image.pop(name, None)
        image.pop("ReferringPhysicianName", None)
        image.save_as(path)
    arguments = ["export", str(folder / "dataset"), "-o", str(tmp_path / "out"), "--format", "dicom-seg"]
    assert main([*arguments, "--dicom", str(tmp_path / "scans")]) == 0
    seg = pydicom.dcmread(tmp_path / "out" / f"{nodule.nodule_id}.seg.dcm")
    for name in ("StudyID", "AccessionNumber", "PatientBirthDate", "PatientSex", "StudyTime"):
        assert name in seg
        assert not seg[name].value


@pytest.fixture(scope="module")
def report(phantom, tmp_path_factory):
    """The report of the phantom's measures and the segmentation beside it."""
    folder, nodule = phantom
    out = tmp_path_factory.mktemp("sr")
    arguments = ["export", str(folder / "dataset"), "-o", str(out), "--format", "dicom-sr"]
    assert main([*arguments, "--lidc", str(folder / "scans")]) == 0
    return out / f"{nodule.nodule_id}.sr.dcm", out / f"{nodule.nodule_id}.seg.dcm"


def test_a_report_has_the_measures_of_the_membership_matte_and_refers_to_its_segmentation(phantom, report):
    _, nodule = phantom
    row = measure(nodule)
    found = highdicom.sr.srread(report[0])
    segmented = pydicom.dcmread(report[1])
    assert found.Modality == "SR"
    assert found.StudyInstanceUID == segmented.StudyInstanceUID
    (group,) = found.content.get_volumetric_roi_measurement_groups()
    assert group.tracking_uid == segmented.SegmentSequence[0].TrackingUID
    assert group.referenced_segment.referenced_sop_instance_uid == segmented.SOPInstanceUID
    measured = {one.name.value: one for one in group.get_measurements()}
    assert {name: measured[code.value].value for name, (code, _) in CODES.items()} == {
        name: pytest.approx(row[name], rel=1e-5) for name in CODES
    }
    units = {name: measured[code.value].unit.value for name, (code, _) in CODES.items()}
    assert units["volume_mm3"] == "mm3"
    assert units["mass_mg"] == "mg"
    estimate = measured["VolumeEstimate"]
    values = sorted(float(item.MeasuredValueSequence[0].NumericValue) for item in estimate[0].ContentSequence)
    assert values == [pytest.approx(row[f"volume_{end}_mm3"], rel=1e-5) for end in ("low", "high")]
    # The fractional segmentation sums to the volume that the report gives, on the scanner's coarser grid.
    frames = segmented.pixel_array.astype(float) / segmented.MaximumFractionalValue
    shared = segmented.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    voxel = float(np.prod(shared.PixelSpacing)) * nodule.metadata["scanner_spacing"][0]
    assert frames.sum() * voxel == pytest.approx(row["volume_mm3"], rel=0.05)


def test_a_report_refers_to_the_source_images_and_is_the_same_each_time(phantom, report, tmp_path):
    folder, _ = phantom
    found = pydicom.dcmread(report[0])
    named = {
        item.ReferencedSOPInstanceUID
        for study in found.CurrentRequestedProcedureEvidenceSequence
        for series in study.ReferencedSeriesSequence
        for item in series.ReferencedSOPSequence
    }
    scan = {item.SOPInstanceUID for item in scan_of(folder / "scans")}
    segmented = pydicom.dcmread(report[1])
    assert named - scan == {segmented.SOPInstanceUID}
    assert named & scan == {
        item.ReferencedSOPInstanceUID for item in segmented.ReferencedSeriesSequence[0].ReferencedInstanceSequence
    }
    arguments = ["export", str(folder / "dataset"), "-o", str(tmp_path), "--format", "dicom-sr"]
    assert main([*arguments, "--lidc", str(folder / "scans")]) == 0
    assert pydicom.dcmread(tmp_path / report[0].name).SOPInstanceUID == found.SOPInstanceUID


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dciodvfy is not here: apt-get install dicom3tools")
def test_dciodvfy_finds_no_error_in_a_report(report):
    said = subprocess.run(["dciodvfy", "-new", str(report[0])], capture_output=True, text=True, check=False)
    assert "Comprehensive3DSR" in said.stderr + said.stdout
    assert not [line for line in (said.stdout + said.stderr).splitlines() if line.startswith("Error")]


def test_a_report_needs_a_membership_matte_and_the_series(phantom, tmp_path, capsys):
    folder, nodule = phantom
    arguments = ["export", str(folder / "dataset"), "-o", str(tmp_path / "out"), "--format", "dicom-sr"]
    assert main(arguments) == 2
    assert "--format dicom-sr needs the source series" in capsys.readouterr().err
    assert main([*arguments, "--lidc", str(folder / "scans"), "--kind", "calibrated"]) == 2
    assert "a report has the measures of the membership matte" in capsys.readouterr().err
    bare = replace(nodule, candidates=[nodule.candidates[0]])
    write_dataset(tmp_path / "dataset", [bare])
    arguments[1] = str(tmp_path / "dataset")
    assert main([*arguments, "--lidc", str(folder / "scans")]) == 2
    assert "has no membership matte, of which a report has the measures" in capsys.readouterr().err
