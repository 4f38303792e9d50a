"""The whole build from and to an object store, over S3's real wire protocol: harm, resume, no secret shown."""

import contextlib
import json
import tempfile
from pathlib import Path

import pyarrow.fs as pafs
import pytest

import raymat
from raymat.cli import main
from raymat.store import Store
from tests.support.cases import OPTIONS, arrays, of_first, write_cases
from tests.support.harm import await_commits, start

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]

CASES = 6


def test_a_build_from_s3_to_s3_outlives_a_store_that_stops_answering(cases, s3, tmp_path, capfd):
    write_cases(tmp_path / "cases", CASES)  # the first ones of ``cases``
    uri, out = f"{s3.bucket('study', tmp_path / 'cases')}/cases.csv", f"{s3.bucket('out')}/dataset"
    again = ["build", "--cases", uri, "-o", out, *OPTIONS, "--no-tracking"]
    record = tmp_path / "solves"
    with tempfile.TemporaryDirectory(prefix="rs3-", dir="/tmp") as name, contextlib.ExitStack() as ending:
        folder = Path(name)
        # Some are committed, the others wait until the store is silent: on a machine of any speed.
        go = folder / "go"
        first = start(uri, out, folder=folder, record=str(record), free=3, until=str(go))
        ending.callback(first.kill)
        await_commits(out, 2, first)
        assert first.poll() is None, first.stdout.read()
        store = Store.open(out)
        assert main(again) == 2
        refused = capfd.readouterr().err
        assert f"another command is at work here (process {first.pid}" in refused
        s3.stop_answering()
        go.touch()
        try:
            printed, _ = first.communicate(timeout=300)
        finally:
            s3.answer_again()
        assert first.returncode == 2, printed
        assert "the store does not answer" in printed.splitlines()[-1]
        assert "what is committed is kept" in printed.splitlines()[-1]
        assert "Traceback" not in printed
        before, solves = set(store.index()["nodule_id"].to_pylist()), len(record.read_text().splitlines())
        assert 2 <= len(before) < CASES

        resumed, _ = (second := start(uri, out, folder=folder, record=str(record))).communicate(timeout=300)
        assert second.returncode == 0, resumed
        assert f"{len(before)} committed already" in resumed
        assert not before & set(record.read_text().splitlines()[solves:]), "a committed nodule was solved again"
        assert arrays(out) == of_first(CASES, cases[1])
        assert main(again) == 0
        assert "nothing to solve" in capfd.readouterr().out

        assert main(["inspect", out, "--json"]) == 0
        assert json.loads(capfd.readouterr().out)["outcomes"]["accepted"] == CASES
        assert main(["show", out, "case0", "-o", str(tmp_path / "case0.png")]) == 0
        assert next(raymat.load(out)).nodule_id == "case0"
        assert s3.secret not in printed + refused + resumed
        pafs.copy_files("out", str(folder / "kept"), s3.filesystem, pafs.LocalFileSystem())
        written = [path for path in folder.rglob("*") if path.is_file()]
        assert {"dataset.json", "contact_sheet.png", "mlflow.db", "raylet.out"} <= {path.name for path in written}
        assert [path for path in written if s3.secret.encode() in path.read_bytes()] == []
