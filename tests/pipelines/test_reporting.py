"""A build can be watched while it runs and looked into afterwards: real metrics, logs and MLflow runs."""

import re
import time
import urllib.request
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import mlflow
import pytest
from mlflow.tracking import MlflowClient

from raymat import tracking
from raymat.engine.reports import Report, reports
from raymat.nodule import InputError
from raymat.pipelines.build import Build, build
from raymat.sources.cases import CasesSource
from raymat.store import Store
from raymat.tracking import Run
from tests.support import quiet
from tests.support.cases import PARAMETERS, first_cases, write_cases
from tests.support.harm.harmed import harmed

pytestmark = pytest.mark.ray


class Watched(NamedTuple):
    """A build of three nodules, one of them without success, and what MLflow showed while it ran."""

    names: list[str]
    runs: list[tuple[mlflow.entities.Run, bool]]


@pytest.fixture(scope="module")
def watched(ray_cluster, tmp_path_factory):
    folder = tmp_path_factory.mktemp("watched")
    table = write_cases(folder / "cases", 2)
    names = ["watched-a", "watched-b", "watched-c"]
    lines = Path(table).read_text().replace("case0,", "watched-a,").replace("case1,", "watched-b,")
    Path(table).write_text(lines + "watched-c,p,none.nii.gz,0.r0.nii.gz;0.r1.nii.gz,1\n")
    uri = f"sqlite:///{folder}/runs.db"
    run, runs = Run(uri, "watched", {}), []
    go = folder / "go"

    def look(counts: Counter, seconds: float, finished: bool) -> None:
        run.progress(counts, seconds, finished)
        runs.append((MlflowClient(tracking_uri=uri).get_run(run.id), finished))
        if counts:
            go.touch()

    store = Store.create(folder / "dataset")
    with pytest.MonkeyPatch.context() as patch, harmed(record=f"{folder}/solves", free=1, until=str(go)):
        patch.setattr(tracking, "PROGRESS_EVERY_S", 0.0)
        result = build(Build(store, CasesSource(table), PARAMETERS), say=quiet, on_progress=look)
    assert result.counts == {"accepted": 2, "failed": 1}
    return Watched(names, runs)


def exported(ray) -> dict[str, Counter]:
    """raymat's metrics as the node exports them to Prometheus: name to the sum over workers, by label."""
    (node,) = ray.nodes()
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    with urllib.request.urlopen(url, timeout=30) as answer:
        text = answer.read().decode()
    found: dict[str, Counter] = {}
    for name, labels, value in re.findall(r"^ray_(raymat_\w+)\{(.*)\} (\S+)$", text, re.MULTILINE):
        label = re.search(r'(?:outcome|stage)="(\w+)"', labels)[1]
        found.setdefault(name, Counter())[label] += float(value)
    return found


def test_a_node_exports_nodules_by_outcome_and_the_seconds_of_each_stage(watched, ray_cluster, cases, tmp_path):
    # Slow enough for its workers to export what they did while they are there.
    with harmed(record=f"{tmp_path}/solves", slow=0.5):
        source = CasesSource(first_cases(cases[0], 10))
        build(Build(Store.create(tmp_path / "out"), source, PARAMETERS), say=quiet)
    deadline = time.monotonic() + 120
    while (found := exported(ray_cluster)).get("raymat_nodules_total", Counter())["accepted"] < 12:
        assert time.monotonic() < deadline, found
        time.sleep(1)
    assert found["raymat_nodules_total"]["failed"] >= 1
    for stage in ("read", "solve", "score", "commit"):
        assert found["raymat_stage_seconds_count"][stage] >= 3
        assert found["raymat_stage_seconds_sum"][stage] > 0
        assert stage in found["raymat_nodules_in_flight"]


def test_mlflow_shows_a_run_while_it_lasts(watched):
    first, over = next(seen for seen in watched.runs if seen[0].data.metrics["progress/done"])
    assert first.info.status == "RUNNING"
    assert not over
    assert 1 <= first.data.metrics["progress/done"] < 3
    assert first.data.metrics["progress/per_minute"] > 0
    last, over = watched.runs[-1]
    assert over
    assert last.data.metrics["progress/done"] == 3
    assert (last.data.metrics["progress/accepted"], last.data.metrics["progress/failed"]) == (2, 1)


def test_the_logs_say_of_each_nodule_when_each_stage_began_and_ended(watched, ray_cluster):
    logs = Path(ray_cluster._private.worker.global_worker.node.get_logs_dir_path())
    lines = [line for file in logs.glob("raymat-*.log") for line in file.read_text().splitlines()]
    for name in watched.names[:2]:
        of_nodule = [line.partition(f"nodule {name}: ")[2] for line in lines if f"nodule {name}: " in line]
        lines_of_nodule = [re.sub(r"[\d.]+ s$", "", line).split(" (")[0].strip() for line in of_nodule]
        stages = ["read", "solve", "score", "commit"]
        assert Counter(lines_of_nodule) == Counter(
            [*(f"{s} begins" for s in stages), *(f"{s} ends after" for s in stages), "committed, accepted"]
        )
    assert any(re.search(r"nodule watched-c: committed, failed \(.*none.nii.gz", line) for line in lines)


def test_a_report_that_cannot_be_taken_loses_no_other_and_is_raised_at_the_end(ray_cluster):
    taken = []

    def take(report: Report) -> None:
        if report.line == "bad":
            raise InputError("the disk is full")
        taken.append(report.line)

    def say_three() -> None:
        with reports(take) as reporter:
            for line in ("one", "bad", "two"):
                reporter.say(line)

    with pytest.raises(InputError, match="the disk is full"):
        say_three()
    assert taken == ["one", "two"]
