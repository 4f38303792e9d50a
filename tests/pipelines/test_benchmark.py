"""Somebody who has only the page of the benchmark takes part, on a real local Ray."""

import re
import shlex

import pytest
from mlflow.tracking import MlflowClient

import raymat
from raymat.cli import main
from raymat.tracking import EVIDENCE
from tests.support import REPOSITORY
from tests.support.entries import write_release

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def block(mark: str) -> str:
    text = (REPOSITORY / "docs/guides/benchmark.md").read_text()
    return re.search(rf"<!-- {mark} -->\n```\w*\n(.*?)```", text, re.DOTALL)[1]


def test_the_example_of_the_page_takes_part(ray_cluster, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / write_release(tmp_path, 10)).rename(tmp_path / "release-1.0")
    code = block("example")
    assert len([line for line in code.splitlines() if line and not line.startswith(("import", "from"))]) <= 15
    exec(compile(code, "benchmark.md", "exec"), {})
    nodules = raymat.load("release-1.0")
    assert len(list((tmp_path / "mattes").iterdir())) == len(nodules)
    benchmark, leaderboard = (shlex.split(line)[1:] for line in block("commands").splitlines())
    store = f"sqlite:///{tmp_path}/runs.db"
    assert main([*benchmark, "--workers", "2", "--tracking-uri", store]) == 0
    assert main(leaderboard) == 0
    page = (tmp_path / "leaderboard.md").read_text()
    tests = sum(len(nodules.split(split, "test")) for split in range(4))
    assert f"| 1 | ramp, 8 mm | yes | {tests} |" in page
    client = MlflowClient(store)
    (run,) = client.search_runs([client.get_experiment_by_name(EVIDENCE).experiment_id])
    assert (run.info.status, run.data.metrics["mattes/answered"]) == ("FINISHED", tests)
    assert run.data.metrics["calibrated_true_alpha/sad"] > 0
    artifacts = {one.path for one in client.list_artifacts(run.info.run_id)}
    assert {"table.md", "errors.csv", "mattes.csv", "summary.json", "errors-calibrated_true_alpha.png"} <= artifacts
    # Once more without two of its files: they are named, and count.
    for name in nodules.split(0, "test").ids[:2]:
        (tmp_path / f"mattes/{name}.nii.gz").unlink()
    capsys.readouterr()
    assert main([*benchmark, "--no-tracking"]) == 1
    said = capsys.readouterr().out
    for name in nodules.split(0, "test").ids[:2]:
        assert f"missing  {name}: no matte in {tmp_path}/mattes: write {name}.nii.gz" in said
