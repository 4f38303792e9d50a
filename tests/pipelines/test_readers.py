"""Leave one reader out on a real local Ray: measured, interrupted, gone on with."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from mlflow.tracking import MlflowClient

from raymat.evidence import reader_prediction
from raymat.evidence.left_out import LeftOutSource
from raymat.experiment import Output
from raymat.methods import CALIBRATED, MEMBERSHIP
from raymat.nodule import ACCEPTED, EXCLUDED, InputError
from raymat.pipelines.readers import ReadersJob, judging_membership, leave_one_reader_out
from raymat.steps import BuildParameters, MattingParameters, read_and_prepare, score, solve
from raymat.tracking import EVIDENCE
from tests.support import quiet
from tests.support.nodules import DrawnSource, draw_nodule

pytestmark = [pytest.mark.ray, pytest.mark.slow]

PARAMETERS = BuildParameters(min_readers=3, matting=MattingParameters(methods=("cf", "cf+")))


def test_every_split_is_measured_once_and_a_larger_sample_resumes(ray_cluster, new_runs, tmp_path):
    apart = draw_nodule(5)
    # Without its fourth reader the others share no voxel with the third.
    apart.readers[2] = np.roll(apart.readers[2], 16, axis=1)
    source = DrawnSource([draw_nodule(0), draw_nodule(1), draw_nodule(2), apart])
    uri = new_runs(tmp_path)

    def job(nodules):
        return ReadersJob(source, "drawn", Output(str(tmp_path / "out"), uri), PARAMETERS, nodules=nodules)

    leave_one_reader_out(job(1), quiet)
    first = pd.read_parquet(tmp_path / "out" / "measurements.parquet")
    shards = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "nodules").rglob("*.parquet")}
    assert len(shards) == 4
    said = []
    table, outcomes = leave_one_reader_out(job(None), said.append)
    assert said[0].startswith("16 nodules, 4 committed already")
    assert {path: path.stat().st_mtime_ns for path in shards} == shards
    assert sum(outcomes.values()) == 16
    assert outcomes[EXCLUDED] == 3
    rows = pd.read_parquet(tmp_path / "out" / "measurements.parquet")
    assert len(rows.drop_duplicates(["nodule_id", "left_out"])) == 13
    again = rows[rows["nodule_id"].isin(first["nodule_id"])].reset_index(drop=True)
    pd.testing.assert_frame_equal(again, first)
    methods = ["mean of three", "distance of three", "cf", "cf+", "chosen", "chosen, calibrated"]
    assert table["method"].to_list()[:6] == methods
    assert set(rows["chosen"]) == {"cf"}
    assert set(rows["chosen_calibrated"]) == {"cf+"}

    ref = next(LeftOutSource(DrawnSource([draw_nodule(1)])).plan())
    nodule = solve(read_and_prepare(LeftOutSource(source), ref, PARAMETERS), PARAMETERS)
    alone = reader_prediction.rows_of(score(nodule, PARAMETERS, reader_prediction.measure))
    mine = rows[(rows["nodule_id"] == "case-001") & (rows["left_out"] == 1)].set_index("method")
    for row in alone:
        assert mine.loc[row["method"], "brier"] == row["brier"]
        assert mine.loc[row["method"], "auroc"] == row["auroc"]

    for name in ("readers.md", "readers.csv", "readers.png", "readers.pdf"):
        assert (tmp_path / "out" / name).stat().st_size > 500
    note = json.loads((tmp_path / "out" / "readers.json").read_text())
    assert note["outcomes"][ACCEPTED] == outcomes[ACCEPTED]
    assert note["parameters"]["quality"]["kind"] == MEMBERSHIP
    client = MlflowClient(tracking_uri=uri)
    (run,) = client.search_runs([client.get_experiment_by_name(EVIDENCE).experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.metrics["auroc/cf_plus"] == pytest.approx(table.set_index("method").loc["cf+", "auroc"])


def test_masks_are_of_the_kind_membership_and_so_is_the_matte_that_is_chosen():
    assert PARAMETERS.kind == CALIBRATED
    assert judging_membership(PARAMETERS).kind == MEMBERSHIP
    alone = BuildParameters(min_readers=3, matting=MattingParameters(methods=("cf+",)))
    assert judging_membership(alone) == alone


def test_nodules_that_cannot_be_measured_are_an_error(ray_cluster, tmp_path):
    three = draw_nodule(0)
    three.readers = three.readers[:3]
    with pytest.raises(InputError, match="marked by 4 readers"):
        leave_one_reader_out(
            ReadersJob(DrawnSource([three]), "drawn", Output(str(tmp_path / "out")), PARAMETERS), quiet
        )


def test_a_nodule_that_cannot_be_read_is_not_left_out_in_silence():
    class Broken(DrawnSource):
        def plan(self):
            first, *others = super().plan()
            return iter([replace(first, readers=0, problem="its image is a link out of the folder"), *others])

    refs = list(LeftOutSource(Broken([draw_nodule(0), draw_nodule(1)])).plan())
    assert [ref.problem for ref in refs] == ["its image is a link out of the folder"] + 4 * [""]
