"""The whole build from and to an object store, over S3's real wire protocol: harm, resume, no secret told."""

import contextlib
import json
import tempfile
from pathlib import Path

import pyarrow.fs as pafs
import pytest

import raymat
from raymat.cli import main
from raymat.pipelines.build import Build, build
from raymat.sources.cases import CasesSource
from raymat.store import Store
from tests.support import quiet
from tests.support.cases import OPTIONS, PARAMETERS, arrays, write_cases
from tests.support.harm import await_commits, start

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1800)]

CASES = 8


def test_a_build_from_s3_to_s3_outlives_a_store_that_stops_answering(ray_cluster, s3, tmp_path, capsys):
    table = write_cases(tmp_path / "cases", CASES)
    undisturbed = Store.create(tmp_path / "undisturbed")
    build(Build(undisturbed, CasesSource(table), PARAMETERS), say=quiet)
    expected = arrays(undisturbed.root)
    cases, out = f"{s3.bucket('study', tmp_path / 'cases')}/cases.csv", f"{s3.bucket('out')}/dataset"
    record = tmp_path / "solves"
    with tempfile.TemporaryDirectory(prefix="rs3-", dir="/tmp") as name, contextlib.ExitStack() as ending:
        folder = Path(name)
        # Some are committed, the others wait until the store is silent: on a machine of any speed.
        go = folder / "go"
        first = start(cases, out, folder=folder, record=str(record), slow=0.5, free=4, until=str(go))
        ending.callback(first.kill)
        await_commits(out, 2, first, limit_s=900)
        assert first.poll() is None, first.stdout.read()
        store = Store.open(out)
        said, _ = (second := start(cases, out, folder=folder)).communicate(timeout=600)
        assert second.returncode == 2, said
        assert f"another command is at work here (process {first.pid}" in said
        s3.stop_answering()
        go.touch()
        try:
            told, _ = first.communicate(timeout=900)
        finally:
            s3.answer_again()
        assert first.returncode == 2, told
        assert "the store does not answer" in told.splitlines()[-1]
        assert "what is committed stands" in told.splitlines()[-1]
        assert "Traceback" not in told
        before, solves = set(store.index()["nodule_id"].to_pylist()), len(record.read_text().splitlines())
        assert 2 <= len(before) < CASES

        again, _ = (third := start(cases, out, folder=folder, record=str(record))).communicate(timeout=900)
        assert third.returncode == 0, again
        assert f"{len(before)} committed already" in again
        assert not before & set(record.read_text().splitlines()[solves:]), "a committed nodule was solved again"
        assert arrays(out) == expected
        assert main(["build", "--cases", cases, "-o", out, *OPTIONS, "--no-tracking"]) == 0
        assert "nothing to solve" in capsys.readouterr().out

        assert main(["inspect", out, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["outcomes"]["accepted"] == CASES
        assert main(["show", out, "case0", "-o", str(tmp_path / "case0.png")]) == 0
        assert next(raymat.load(out)).nodule_id == "case0"
        assert s3.secret not in told + said + again
        pafs.copy_files("out", str(folder / "kept"), s3.filesystem, pafs.LocalFileSystem())
        written = [path for path in folder.rglob("*") if path.is_file()]
        assert {"dataset.json", "contact_sheet.png", "mlflow.db", "raylet.out"} <= {path.name for path in written}
        assert [path for path in written if s3.secret.encode() in path.read_bytes()] == []
