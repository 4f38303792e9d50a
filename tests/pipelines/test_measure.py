"""Measures of datasets, releases and predictions on a real local Ray."""

import csv
from dataclasses import replace

import pyarrow.parquet as pq
import pytest
from mlflow.tracking import MlflowClient

from raymat.calibration import HUWindow
from raymat.cli import main
from raymat.experiment import Output
from raymat.loading import window_of
from raymat.measures.nodule import measure
from raymat.methods import CALIBRATED
from raymat.nodule import ACCEPTED, InputError, Matte
from raymat.pipelines.measure import MeasureJob, measure_all
from raymat.release.freeze import ReleaseRequest, release
from raymat.tracking import EVIDENCE
from tests.support import quiet
from tests.support.nodules import draw_nodule, write_dataset

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def nodules() -> list:
    """Three that are accepted and one that is rejected."""
    return [draw_nodule(n, outcome="rejected" if n == 2 else ACCEPTED) for n in range(4)]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory, nodules) -> str:
    return write_dataset(tmp_path_factory.mktemp("measure") / "dataset", nodules).root


def test_dataset_and_release_have_one_row_per_accepted_nodule(ray_cluster, dataset, nodules, tmp_path):
    store = f"sqlite:///{tmp_path}/mlflow.db"
    said = []
    job = MeasureJob(dataset, Output(str(tmp_path / "m.parquet"), store), workers=2)
    table, failed = measure_all(job, said.append)
    assert failed == 0
    expected = [measure(nodule) for nodule in nodules if nodule.outcome == ACCEPTED]
    assert table.to_pylist() == expected == pq.read_table(tmp_path / "m.parquet").to_pylist()
    assert any(line == f"3 nodules  {tmp_path}/m.parquet" for line in said)
    assert not (tmp_path / "m.parquet.work").exists()
    client = MlflowClient(store)
    (run,) = client.search_runs([client.get_experiment_by_name(EVIDENCE).experiment_id])
    assert run.data.metrics["nodules/measured"] == 3
    volumes = sorted(row["volume_mm3"] for row in expected)
    assert run.data.metrics["volume_mm3/p50"] == pytest.approx(volumes[1])
    release(ReleaseRequest(dataset, str(tmp_path / "release"), "1.0"), say=quiet)
    assert main(["measure", str(tmp_path / "release"), "-o", str(tmp_path / "r.csv"), "--no-tracking"]) == 0
    rows = list(csv.DictReader((tmp_path / "r.csv").open()))
    assert [row["nodule_id"] for row in rows] == [row["nodule_id"] for row in expected]
    for row, one in zip(rows, expected, strict=True):
        assert float(row["volume_mm3"]) == pytest.approx(one["volume_mm3"], rel=1e-5)


def test_a_nodule_without_a_membership_matte_has_a_row_with_a_note(ray_cluster, nodules, tmp_path, capsys):
    calibrated = [matte for matte in nodules[1].candidates if matte.kind == CALIBRATED]
    bare = replace(nodules[1], candidates=calibrated, method=calibrated[0].method)
    root = write_dataset(tmp_path / "dataset", [nodules[0], bare]).root
    assert main(["measure", root, "-o", str(tmp_path / "m.csv"), "--no-tracking"]) == 1
    assert f"failed {bare.nodule_id}: {bare.nodule_id}: has no chosen membership matte" in capsys.readouterr().out
    first, second = csv.DictReader((tmp_path / "m.csv").open())
    assert first["volume_mm3"]
    assert second["volume_mm3"] == second["readers"] == ""
    assert second["notes"].startswith("not measured: ")


def test_predictions_of_calibrated_alpha_and_an_empty_dataset_are_refused(ray_cluster, nodules, tmp_path, capsys):
    network = [Matte("3dmm", nodules[0].candidates[0].alpha, kind=CALIBRATED)]
    predicted = replace(nodules[0], candidates=network, method="3dmm", readers=[], source="3dmm")
    root = write_dataset(tmp_path / "predictions", [predicted]).root
    assert main(["measure", root, "-o", str(tmp_path / "m.csv"), "--no-tracking"]) == 2
    said = capsys.readouterr().err
    assert "no nodule can be measured" in said
    assert "predict with a network that learnt membership" in said
    assert not (tmp_path / "m.csv").exists()
    none = write_dataset(tmp_path / "none", [nodules[2]]).root
    with pytest.raises(InputError, match="holds no accepted nodule to measure"):
        measure_all(MeasureJob(none, Output(str(tmp_path / "m.csv"))), quiet)


def test_the_window_is_that_of_the_build(tmp_path, nodules):
    store = write_dataset(tmp_path / "dataset", nodules[:1])
    store.write_json("parameters.json", {"parameters": {"matting": {"window_level": -500.0, "window_width": 1200.0}}})
    assert window_of(store.root) == HUWindow(-500.0, 1200.0)
