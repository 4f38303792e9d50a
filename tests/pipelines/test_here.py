"""A job in the process that asks for it: the steps, their order and what comes of them, as on a cluster."""

from dataclasses import replace

import pyarrow as pa
import pytest

from raymat.engine import here
from raymat.engine.here import is_here, run_here
from raymat.engine.job import Job, new_session, part_of
from raymat.engine.sharing import shared
from raymat.engine.stages import Pool, Stage, Work
from raymat.engine.tries import Marks
from raymat.folder import Folder
from raymat.nodule import ACCEPTED, FAILED, Nodule

ROWS = [{"nodule_id": name, "patient_id": "p", "source": "s", "key": name} for name in "abcde"]


@pytest.fixture
def job(tmp_path) -> Job:
    """Two stages over five nodules, committed in twos; what they do is noted in `steps` of what is shared."""
    session = new_session()

    def note(step: str) -> None:
        shared(session, "steps").append(step)

    def read(row: dict) -> Nodule:
        note(f"read {row['key']}")
        return Nodule(row["nodule_id"], row["patient_id"], row["source"], key=row["key"])

    def first(nodule: Nodule) -> Nodule:
        note(f"first {nodule.key}")
        return replace(nodule, outcome=FAILED) if nodule.key == "b" else nodule

    def last(nodule: Nodule) -> Nodule:
        note(f"last {nodule.key}")
        return replace(nodule, outcome=ACCEPTED)

    def commit(nodules: list[Nodule]) -> pa.Table:
        note("commit " + "".join(nodule.key for nodule in nodules))
        return pa.Table.from_pylist([{"key": nodule.key, "outcome": nodule.outcome} for nodule in nodules])

    stages = (Stage("first", first, prepare=lambda: note("prepare")), Stage("last", last))
    work = Work(read, stages, commit, group=2)
    marks = Marks(Folder.at(tmp_path))
    return Job(work, [part_of(ROWS[:3]), part_of(ROWS[3:])], [Pool(stages, 1)], marks, session, shared={"steps": []})


def test_each_nodule_goes_through_the_stages_until_it_has_its_outcome(job):
    said: list[str] = []
    rows = run_here(job, said.append)
    assert rows.to_pylist() == [{"key": k, "outcome": FAILED if k == "b" else ACCEPTED} for k in "abcde"]
    expected = [
        "read a",
        "prepare",
        "first a",
        "last a",
        "read b",
        "first b",
        "commit ab",
        "read c",
        "first c",
        "last c",
    ]
    expected += ["read d", "first d", "last d", "commit cd", "read e", "first e", "last e", "commit e"]
    assert job.shared["steps"] == expected
    assert said[-1].startswith("5/5 nodules")
    assert said[-1].endswith(": 1 failed")


def test_work_is_done_here_where_nothing_asks_for_a_cluster(monkeypatch):
    monkeypatch.setattr(here, "_is_connected", lambda: False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert is_here(1)
    assert not is_here(2)
    assert not is_here(1, "ray://head:10001")
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert not is_here(1)
