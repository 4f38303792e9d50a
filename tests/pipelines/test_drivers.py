"""Work that is dealt to several drivers, each a process of its own, of which one is killed in the midst."""

import contextlib
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass

import psutil
import pyarrow as pa
import pytest
import ray

from raymat.engine.job import Job, new_session, part_of
from raymat.engine.stages import Pool, Stage, Work
from raymat.engine.stream import run
from raymat.engine.tries import Marks
from raymat.folder import Folder
from raymat.nodule import Nodule

pytestmark = [pytest.mark.ray, pytest.mark.slow]

ROWS, PARTS = 120, 4
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


@dataclass(frozen=True)
class Noting:
    """Commits a nodule as a line in a file of its own, so that a second commit would show."""

    files: Folder

    @property
    def work(self) -> Work:
        return Work(self.read, (Stage("wait", self.wait, cpus=0.4),), self.commit, self.recall)

    def read(self, row: dict) -> Nodule:
        return Nodule(row["nodule_id"], "p", "cases", key=row["key"])

    def wait(self, nodule: Nodule) -> Nodule:
        time.sleep(0.1)
        return nodule.without_arrays(outcome="accepted")

    def commit(self, nodules: list[Nodule]) -> pa.Table:
        for nodule in nodules:
            with open(self.files.path(nodule.key), "a") as file:
                file.write("committed\n")
        return self.rows(nodules)

    def recall(self, nodules: list[Nodule]) -> list[pa.Table]:
        return [self.rows([nodule]) for nodule in nodules if self.files.exists(nodule.key)]

    @staticmethod
    def rows(nodules: list[Nodule]) -> pa.Table:
        return pa.Table.from_pylist([{"key": nodule.key, "outcome": "accepted"} for nodule in nodules])


def drivers() -> list[psutil.Process]:
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if "ray::Pipeline" in " ".join(process.cmdline()):
                found.append(process)
    return found


def test_a_killed_driver_is_replaced_and_nothing_is_done_twice(ray_cluster, tmp_path):
    files = Folder.at(tmp_path)
    rows = [{"nodule_id": f"n{n}", "patient_id": "p", "source": "cases", "key": f"key-{n:03d}"} for n in range(ROWS)]
    work = Noting(files).work
    pools = [Pool(work.stages, workers=2)]
    parts = [part_of(rows[first::PARTS]) for first in range(PARTS)]
    job = Job(work, parts, pools, Marks(files), new_session(), pipelines=2)
    killed: list[int] = []

    def kill() -> None:
        deadline = time.monotonic() + 120
        while not killed and time.monotonic() < deadline:
            if len(files.listing("")) >= 10 and (found := drivers()):
                found[0].kill()
                killed.append(found[0].pid)
            time.sleep(0.05)

    thread = threading.Thread(target=kill)
    thread.start()
    outcomes = Counter(key for update in run(job) for table in update.rows for key in table["key"].to_pylist())
    thread.join()
    assert killed, "the work was over before a driver was killed"
    assert set(outcomes) == {row["key"] for row in rows}
    assert set(outcomes.values()) == {1}
    assert {(tmp_path / name).read_text() for name in files.listing("")} == {"committed\n"}
