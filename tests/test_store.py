"""The store: what is committed stands, whole and once."""

import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import raymat
from raymat.methods import MEANINGS, METHODS
from raymat.nodule import InputError, Matte, Nodule, from_table, to_table
from raymat.store import Store, shard_name
from tests.support.nodules import failed_nodule, manifest_row, random_nodule


@pytest.fixture
def store(tmp_path) -> Store:
    return Store.create(tmp_path / "dataset")


def test_a_nodule_comes_back_as_it_was_committed(store):
    nodule = random_nodule(
        true_membership=np.zeros((3, 4, 5), np.float32),
        true_calibrated=np.ones((3, 4, 5), np.float32),
        kind="calibrated",
    )
    store.commit(to_table([nodule]))
    store.write_manifest([manifest_row("a")])
    back = next(raymat.load(store.root))
    for name in (
        "nodule_id",
        "patient_id",
        "spacing",
        "origin",
        "metadata",
        "notes",
        "method",
        "kind",
        "outcome",
        "scores",
    ):
        assert getattr(back, name) == getattr(nodule, name)
    for name in ("image", "direction", "trimap", "true_membership", "true_calibrated", "true_alpha", "alpha"):
        np.testing.assert_array_equal(getattr(back, name), getattr(nodule, name))
    assert back.image.dtype == np.float32
    assert len(back.readers) == 2
    assert back.candidates[0].scores == {"agreement": 0.5}


def test_mattes_packed_for_the_way_between_workers_come_back_whole():
    nodule = random_nodule()
    nodule.trimap[:] = 0
    nodule.trimap[1:, 2, 3:] = 128
    nodule.candidates[0].alpha[nodule.trimap == 0] = 0
    packed = to_table([nodule], packed=True)
    assert packed["mattes"][0][0]["alpha"]["shape"].as_py() == [2, 1, 2]
    np.testing.assert_array_equal(from_table(packed)[0].mattes["cf+"], nodule.mattes["cf+"])


def test_plain_pyarrow_pandas_and_duckdb_read_the_arrays(store):
    nodule = random_nodule()
    store.commit(to_table([nodule]))
    folder = f"{store.root}/nodules"
    structs = [
        pq.read_table(folder)["image"].to_pylist()[0],
        pd.read_parquet(folder)["image"][0],
        duckdb.sql(f"select image from read_parquet('{folder}/**/*.parquet')").fetchall()[0][0],
    ]
    for struct in structs:
        image = np.frombuffer(struct["data"], struct["dtype"]).reshape(struct["shape"])
        np.testing.assert_array_equal(image, nodule.image)


def test_outcomes_follow_the_manifest_and_leave_strangers_out(store):
    store.commit(to_table([random_nodule("b"), random_nodule("gone")]))
    store.commit(to_table([random_nodule("a", outcome="rejected")]))
    store.write_manifest([manifest_row("a"), manifest_row("not yet"), manifest_row("b")])
    assert store.outcomes()["nodule_id"].to_pylist() == ["a", "b"]
    assert [nodule.nodule_id for nodule in raymat.load(store.root)] == ["b"]
    assert [n.nodule_id for n in raymat.load(store.root, outcomes=("accepted", "rejected"))] == ["a", "b"]


def test_the_index_finds_shards_that_no_part_knows(store):
    known = store.commit(to_table([random_nodule("a")]))
    store.add_to_index(known)
    unknown = store.commit(to_table([random_nodule("b")]))
    assert store.index().sort_by("nodule_id").to_pylist() == known.to_pylist() + unknown.to_pylist()


def test_compacting_keeps_every_row_in_few_parts(store):
    for name in "abc":
        store.add_to_index(store.commit(to_table([random_nodule(name)])))
    store.commit(to_table([random_nodule("d")]))
    rows = store.index()
    store.compact_index()
    assert len(store.listing("outcomes")) == 1
    assert store.index().equals(rows)


def test_compacting_leaves_large_parts_alone_until_half_of_them_is_gone(store):
    shards = [store.commit(to_table([random_nodule(name)])) for name in "abcdef"]
    large = store.add_to_index(pa.concat_tables(shards[:4]))
    for small in shards[4:]:
        store.add_to_index(small)
    store.compact_index(part_rows=4)
    assert large in store.listing("outcomes")
    assert len(store.listing("outcomes")) == 2
    for gone in shards[:3]:
        store.delete(gone["shard"][0].as_py())
    rows = store.index()
    store.compact_index(part_rows=4)
    assert large not in store.listing("outcomes")
    assert store.index().equals(rows)


def test_solves_are_those_of_the_nodules_asked_for(store):
    store.add_to_index(store.commit(to_table([random_nodule("a"), random_nodule("bb")])))
    store.add_to_index(store.commit(to_table([random_nodule("ccc")])))
    rows = store.index(["key", "shard"])
    assert sum(table.num_rows for table in store.solves(rows)) == 3
    assert sum(table.num_rows for table in store.solves(rows[:1])) == 1


def test_the_best_method_of_a_kind_is_what_a_nodule_says_of_itself(store):
    """Of scores that are equal, absent or not the chosen matte's, in an index of several parts and beside it."""
    rng, nodules = np.random.default_rng(0), []
    for number in range(40):
        methods = [METHODS[place] for place in rng.permutation(8)[: rng.integers(1, 9)]]
        scores = rng.choice([0.2, 0.5, 0.5, np.nan], len(methods))
        alpha = np.zeros((1, 1, 1), np.float32)
        mattes = [Matte(method, alpha, score=score) for method, score in zip(methods, scores, strict=True)]
        nodules.append(replace(random_nodule(f"n{number}"), candidates=mattes, method=str(rng.choice(methods))))
    for start in range(0, 30, 10):
        store.add_to_index(store.commit(to_table(nodules[start : start + 10])))
    store.commit(to_table(nodules[30:]))
    rows = store.index(["key", "shard"])
    assert rows.num_rows == 40
    for kind in MEANINGS:
        best = Counter(matte.method for nodule in nodules if (matte := nodule.best(kind)))
        assert store.best_methods(kind, rows) == best
    assert store.best_methods("membership", rows[:0]) == Counter()


def test_one_nodule_of_many_in_a_shard_is_read_alone(store, monkeypatch):
    rows = store.commit(to_table([random_nodule(name) for name in "abc"]))
    whole = pq.ParquetFile.read
    monkeypatch.setattr(
        pq.ParquetFile, "read", lambda self, columns=None, **how: whole(self, columns or ["nothing"], **how)
    )
    for row in rows.to_pylist():
        assert store.read_committed(row["key"], row["shard"]).nodule_id == row["nodule_id"]


def test_the_index_forgets_a_shard_that_was_deleted(store):
    store.add_to_index(store.commit(to_table([random_nodule("a")])))
    store.delete(shard_name(["key-a"]))
    assert store.index().num_rows == 0


def test_a_later_success_takes_the_place_of_failed_nodule_whatever_the_order(store):
    store.add_to_index(store.commit(to_table([failed_nodule("a")]), suffix="-20260101T000000-aa"))
    store.add_to_index(store.commit(to_table([random_nodule("a")])))
    store.write_manifest([manifest_row("a")])
    assert store.outcomes()["outcome"].to_pylist() == ["accepted"]
    assert store.remove_superseded() == 1
    assert store.outcomes()["outcome"].to_pylist() == ["accepted"]


def test_what_a_killed_write_left_goes_and_nothing_else(store):
    shard = store.commit(to_table([random_nodule("a")]))["shard"][0].as_py()
    left, written_now = Path(store.root, f"{shard}.0123456789ab.tmp"), Path(store.root, "decisions", "a.tmp")
    for path in (left, written_now):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"half")
    store.delete_unfinished("nodules", "outcomes", "manifest")
    assert not left.exists()
    assert written_now.exists()
    assert store.exists(shard)


def test_of_two_failures_the_later_one_counts(store):
    store.commit(to_table([failed_nodule(reason="first")]), suffix="-20260101T000000-aa")
    store.commit(to_table([failed_nodule(reason="second")]), suffix="-20260102T000000-aa")
    assert store.index()["reason"].to_pylist() == ["second"]


def test_superseded_nodules_go_and_nodules_of_an_absent_source_stay(store):
    store.commit(to_table([random_nodule("a", key="old")]))
    store.commit(to_table([random_nodule("a", key="new")]))
    store.commit(to_table([random_nodule("elsewhere")]))
    store.write_manifest([manifest_row("a", key="new")])
    assert store.remove_superseded() == 1
    assert sorted(store.index()["key"].to_pylist()) == ["key-elsewhere", "new"]


def test_a_new_manifest_takes_the_place_of_the_old(store):
    store.write_manifest([manifest_row(str(i)) for i in range(7)], part_rows=3)
    assert store.manifest().num_rows == 7
    store.write_manifest([manifest_row("a")])
    assert store.manifest()["nodule_id"].to_pylist() == ["a"]


def test_a_write_that_fails_leaves_nothing_behind(store, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(InputError, match="No space left"):
        store.commit(to_table([random_nodule()]))
    monkeypatch.undo()
    assert store.listing("nodules") == []
    assert not list(Path(store.root).rglob("*.tmp"))


def test_a_commit_is_seen_when_its_last_byte_is_on_the_disk_and_not_before(store, monkeypatch):
    to_disk, seen = os.fsync, []

    def watched(file: int) -> None:
        to_disk(file)
        seen.append(store.listing("nodules"))

    monkeypatch.setattr("os.fsync", watched)
    store.commit(to_table([random_nodule()]))
    assert seen == [[]]
    assert len(store.listing("nodules")) == 1


def test_a_nodule_without_outcome_is_not_committed(store):
    with pytest.raises(ValueError, match="without an outcome"):
        store.commit(to_table([random_nodule(outcome=None)]))


def test_a_folder_of_other_things_is_refused(tmp_path):
    (tmp_path / "thesis.doc").write_text("mine")
    with pytest.raises(InputError, match=r"thesis\.doc"):
        Store.create(tmp_path)


def test_an_unwritable_place_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file/dataset"):
        Store.create(tmp_path / "file" / "dataset")


def test_what_is_no_dataset_is_said(tmp_path):
    with pytest.raises(InputError, match="no raymat dataset"):
        raymat.load(tmp_path)


def test_a_damaged_shard_is_named(store):
    rows = store.commit(to_table([random_nodule()]))
    name = rows["shard"][0].as_py()
    store.write(name, store.read(name)[:-100])
    with pytest.raises(InputError, match=name):
        store.read_shard(name)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_records_made_and_dropped_leave_no_memory_behind():
    def anonymous_mib() -> int:
        status = Path("/proc/self/status").read_text()
        return int(status.split("RssAnon:")[1].split()[0]) // 1024

    before = anonymous_mib()
    for _ in range(40):
        image = np.ones((40, 256, 256), np.float32)  # 10 MiB
        from_table(to_table([Nodule("a", "p", "cases", image=image, outcome="accepted", key="k")]), copy=False)
    assert anonymous_mib() - before < 200


@pytest.mark.parametrize("dtype", ["O", "V4", "f8"])
def test_arrays_that_are_no_plain_numbers_or_of_another_size_are_refused(store, dtype):
    table = to_table([random_nodule()])
    rows = table.to_pylist()
    rows[0]["image"]["dtype"] = dtype
    with pytest.raises(InputError, match="damaged"):
        from_table(pa.Table.from_pylist(rows, schema=table.schema))


def test_nodules_that_all_failed_have_no_solves_and_no_best_method(store):
    for name in ("a", "b"):
        rows = store.commit(to_table([failed_nodule(name)]))
        store.add_to_index(rows)
    store.write_manifest([manifest_row("a"), manifest_row("b")])
    outcomes = store.outcomes()
    assert outcomes.num_rows == 2
    assert sum(table.num_rows for table in store.solves(outcomes)) == 0
    assert store.best_methods("calibrated", outcomes) == {}
    assert store.kind() == "any"
