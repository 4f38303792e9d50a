"""Batches of nodules on workers that die amid one: it costs the nodule that they were at a try, and no other."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

import pyarrow as pa
import pytest

from raymat.engine.cluster import Pools
from raymat.engine.job import new_session, part_of
from raymat.engine.ledger import Begun, open_ledger
from raymat.engine.stages import Pool, Stage, Work
from raymat.engine.stream import LARGEST_BATCH, batch_sizes
from raymat.engine.tries import MAX_TRIES, POSITION_BYTES, Deaths, Marks, Position
from raymat.engine.worker import Worker, as_block, from_block
from raymat.nodule import Nodule
from raymat.pipelines.build import Build, build
from raymat.sources.cases import CasesSource
from raymat.store import Store
from tests.support import quiet
from tests.support.cases import PARAMETERS, arrays, first_cases, of_first
from tests.support.harm.harmed import harmed


@pytest.mark.parametrize("total", [1, 7, 100, 5000])
@pytest.mark.parametrize("workers", [1, 2, 64])
def test_batches_are_large_at_first_and_of_one_at_the_end_and_take_every_row(total, workers):
    sizes = list(batch_sizes(0, total, total, workers))
    assert sum(sizes) == total
    assert sizes == sorted(sizes, reverse=True)
    assert max(sizes) <= LARGEST_BATCH
    assert sizes[-1] == 1
    # No worker takes more than half of what would be its share.
    assert max(sizes) <= max(1, total / workers / 2)


def test_parts_of_a_work_list_continue_in_the_sizes_of_the_whole():
    total, workers = 600, 2
    parts = [list(batch_sizes(start, 200, total, workers)) for start in (0, 200, 400)]
    assert [sum(sizes) for sizes in parts] == [200, 200, 200]
    assert parts[0][0] == LARGEST_BATCH
    assert parts[-1][-1] == 1


def test_few_nodules_are_batches_of_one():
    assert list(batch_sizes(0, 5, 5, 2)) == [1] * 5


def test_a_batch_is_one_row_of_a_block_whatever_is_in_it():
    table = part_of([{"nodule_id": f"case{i}", "notes": ["a"] * i} for i in range(5)]).load()
    block = as_block("batch-7", "rows", table.slice(1, 3))
    assert block.num_rows == 1
    batch, rows = from_block(block, "rows")
    assert batch == "batch-7"
    assert rows.to_pylist() == table.slice(1, 3).to_pylist()
    # As Ray Data hands it on: in several chunks, beside others.
    both = pa.concat_tables([as_block("a", "rows", table), block])
    assert from_block(both.slice(1), "rows")[1].to_pylist() == rows.to_pylist()


@pytest.fixture
def marks(tmp_path) -> Marks:
    return Marks(Store.create(tmp_path / "dataset"))


def test_tries_are_counted_as_they_begin_and_outlive_the_driver(marks):
    marks.blame("a", "solve", too_long=False)
    assert marks.read(["a", "b"]) == {"a": Deaths(1, 0, "solve")}
    for _ in range(MAX_TRIES - 1):
        marks.begin("a", Marks(marks.store).read_all()["a"])
    marks.blame("a", "score", too_long=False)
    assert marks.read(["a"]) == {"a": Deaths(MAX_TRIES, 0, "score")}
    assert marks.read(["a"])["a"].reason(5) == "its worker died 3 times (killed, out of memory or crashed) in score"
    marks.remove("a")
    assert marks.read_all() == {}


def test_only_deaths_by_the_time_limit_alone_are_called_too_long(marks):
    assert Deaths(3, 3, "solve").reason(5) == "solve took longer than 5 s, 3 times (--nodule-timeout)"
    assert "died 3 times" in Deaths(3, 2, "solve").reason(5)


@pytest.mark.parametrize("note", [b"2", b'{"count": 2}'])
def test_a_mark_of_an_earlier_version_is_read(marks, note):
    marks.store.write("died/a", note)
    assert marks.read_all() == {"a": Deaths(2)}


@pytest.mark.parametrize("note", [b"", b"no number", b'{"other": 1}', b"[]"])
def test_a_damaged_mark_is_one_try(marks, note):
    marks.store.write("died/a", note)
    assert marks.read_all() == {"a": Deaths(1)}


@pytest.fixture
def position_of(tmp_path, monkeypatch):
    monkeypatch.setattr("raymat.engine.tries.log_folder", lambda: tmp_path)
    return lambda: Position("batch", limit_s=60)


def test_the_next_worker_on_a_batch_learns_where_the_one_before_was(position_of):
    first = position_of()
    assert first.before is None
    with first.at("a", "read"), pytest.raises(ZeroDivisionError), first.at("b", "solve"):
        raise ZeroDivisionError
    first.file.close()
    before = position_of().before
    assert (before.key, before.stage, before.too_long) == ("b", "solve", False)


def test_a_position_that_the_time_limit_ended_says_so(position_of):
    first = position_of()
    with first.at("a", "solve"):
        first.file.seek(POSITION_BYTES)
        first.file.write(b"Timeout (0:00:05)!\nThread 0x1\n")
    first.file.close()
    assert position_of().before.too_long


def test_a_batch_that_is_done_leaves_no_position(position_of, tmp_path):
    first = position_of()
    with first.at("a", "solve"):
        pass
    first.close()
    assert position_of().before is None
    (tmp_path / "raymat-batch-batch").write_bytes(b"no position")
    assert position_of().before is None


# With Ray -------------------------------------------------------------------------------------------------------------


@pytest.mark.ray
def test_what_was_handed_on_of_a_batch_is_remembered_until_the_driver_has_all_of_it(ray_cluster):
    ledger = open_ledger(new_session(), {})

    def ask(call: str, *arguments: object) -> object:
        return ray_cluster.get(getattr(ledger, call).remote(*arguments))

    rows = pa.Table.from_pylist([{"key": "a", "outcome": "accepted"}])
    assert ask("begin", "B") == Begun(0, [], [], set())
    ask("hand", "B", ["a", "b"])
    ask("hand", "B", ["c"])
    ask("begin", "B.0")
    ask("report", "B.0", rows)
    known = Begun(1, [], [["a", "b"], ["c"]], {"a"})
    assert ask("begin", "B") == known
    assert ask("begin", "B.0") == Begun(1, [rows], [], set())
    assert ask("poll", ["B.0"]) == Counter()
    ask("end", "B")
    assert ask("begin", "B") == replace(known, earlier=2)
    ask("poll", ["B.1"])
    # Its node may be lost before Ray knows that it is done.
    assert ask("begin", "B") == Begun(1, [], [], set())
    assert ask("begin", "C") == Begun(0, [], [], set())
    ray_cluster.kill(ledger)


@pytest.mark.ray
def test_what_a_worker_of_a_lost_node_commits_meanwhile_is_not_solved_again(ray_cluster, marks):
    """It may outlive its node, and its connection, by seconds."""
    session = new_session()
    ledger = open_ledger(session, {})
    ray_cluster.get(ledger.begin.remote("B"))  # by that worker
    committed: set[str] = set()
    solved = []

    def solve(nodule: Nodule) -> Nodule:
        solved.append(nodule.key)
        committed.update({"b": "cd", "e": "a"}.get(nodule.key, ""))
        return replace(nodule, outcome="accepted")

    def rows(keys: Iterable[str]) -> list[pa.Table]:
        return [pa.table({"key": [key], "outcome": ["accepted"]}) for key in keys]

    work = Work(
        lambda row: Nodule(row["nodule_id"], "p", "s", key=row["key"]),
        (Stage("solve", solve),),
        lambda nodules: pa.concat_tables(rows(nodule.key for nodule in nodules)),
        lambda nodules: rows(nodule.key for nodule in nodules if nodule.key in committed),
    )
    batch = part_of([{"nodule_id": key, "patient_id": "p", "source": "s", "key": key} for key in "abcde"]).load()
    (block,) = Worker(work, Pool(work.stages, 1), marks, session, 60.0)(as_block("B", "rows", batch))
    # "a" is taken for the one that the node was lost with, and so comes last.
    assert solved == ["b", "e"]
    assert sorted(from_block(block, "rows")[1]["key"].to_pylist()) == list("abcde")
    assert not marks.read_all()
    ray_cluster.kill(ledger)


@pytest.mark.ray
@pytest.mark.parametrize("outlived", [True, False])
def test_what_workers_of_a_killed_driver_commit_after_the_plan_is_not_solved_again(ray_cluster, marks, outlived):
    session = new_session()
    ledger = open_ledger(session, {})
    committed: set[str] = set()
    solved = []

    def solve(nodule: Nodule) -> Nodule:
        solved.append(nodule.key)
        committed.update({"a": "bd"}.get(nodule.key, ""))  # by the other worker, meanwhile
        return replace(nodule, outcome="accepted")

    def rows(keys: Iterable[str]) -> list[pa.Table]:
        return [pa.table({"key": [key], "outcome": ["accepted"]}) for key in keys]

    work = Work(
        lambda row: Nodule(row["nodule_id"], "p", "s", key=row["key"]),
        (Stage("solve", solve),),
        lambda nodules: pa.concat_tables(rows(nodule.key for nodule in nodules)),
        lambda nodules: rows(nodule.key for nodule in nodules if nodule.key in committed),
    )
    batch = part_of([{"nodule_id": key, "patient_id": "p", "source": "s", "key": key} for key in "abcd"]).load()
    worker = Worker(work, Pool(work.stages, 1), marks, session, 60.0, outlived=outlived)
    (block,) = worker(as_block("B", "rows", batch))
    assert solved == (["a", "c"] if outlived else list("abcd"))
    assert sorted(from_block(block, "rows")[1]["key"].to_pylist()) == list("abcd")
    ray_cluster.kill(ledger)


@pytest.fixture
def built(ray_cluster, cases, tmp_path):
    """Builds the first ten cases by one worker with harm; outcomes and how often each was solved.

    The batches are case0 to case4, case5 and case6, and three of one.
    """
    table, _ = cases
    out, record = tmp_path / "dataset", tmp_path / "solves"

    def run(apart: bool, limit_s: float = 60.0, **harm: object) -> tuple[Counter, Counter]:
        source = CasesSource(first_cases(table, 10))
        what = Build(Store.create(out), source, PARAMETERS, Pools(workers=1, apart=apart), nodule_timeout_s=limit_s)
        with harmed(record=str(record), out=str(out), **harm):
            result = build(what, say=quiet)
        assert not what.store.listing("died")
        return result.counts, Counter(record.read_text().splitlines())

    return run


def once(*others: str) -> dict[str, int]:
    return {f"case{i}": 1 for i in range(10) if f"case{i}" not in others}


# In plain pytest a nodule that dies once is in `test_harm.py`, among others that die or hang three times.
@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.soak
def test_a_death_or_a_hang_amid_a_batch_costs_that_nodule_a_try_and_no_other(built, cases, tmp_path):
    outcomes, solves = built(False, limit_s=5.0, times=1, exit="case1", hang="case4", after={"case1": 1, "case4": 3})
    assert outcomes == {"accepted": 10}
    assert solves == {**once("case1", "case4"), "case1": 2, "case4": 2}
    assert arrays(tmp_path / "dataset") == of_first(10, cases[1])


@pytest.mark.ray
@pytest.mark.slow
def test_a_deadly_nodule_has_three_tries_where_scoring_is_apart_and_what_is_committed_is_not_solved_again(
    built, cases, tmp_path
):
    # Slower than nodules are gathered for the scorer, so that it has the first one before the second one dies.
    outcomes, solves = built(True, exit="case1", after={"case1": 1}, slow=0.3)
    assert outcomes == {"accepted": 9, "failed": 1}
    # Of its batch, case2 may die with it before it is committed; no line says that one was solved after its commit.
    assert {**solves, "case2": 1} == {**once("case1"), "case1": 3}
    expected = {key: data for key, data in of_first(10, cases[1]).items() if key[0] != "case1"}
    assert arrays(tmp_path / "dataset") == expected


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.soak
def test_a_hang_amid_a_batch_is_ended_where_scoring_is_apart(built):
    outcomes, solves = built(True, limit_s=5.0, times=1, hang="case1")
    assert outcomes == {"accepted": 10}
    assert solves["case1"] == 2
