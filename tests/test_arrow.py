"""A field of a dataclass is named once: schema, row and the way back follow from it."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, make_dataclass

import numpy as np
import pyarrow as pa
import pytest

from raymat import format_1
from raymat.arrays import Float32Array, UInt8Array
from raymat.arrow import columns_of, conform, from_row, schema_of, small_fields, to_row
from raymat.methods import SolveInfo
from raymat.nodule import SCHEMA, InputError, Matte, Nodule, from_table, to_table
from raymat.release.record import RECORD, nodule_of, record_of, released
from raymat.store import OUTCOME, SOLVE, outcome_row
from tests.support.nodules import draw_nodule, random_nodule


@dataclass
class Part:
    length_mm: float
    name: str | None = None


@dataclass
class Thing:
    title: str
    image: Float32Array
    part: Part = field(default_factory=lambda: Part(1.0))
    count: int = field(default=3, metadata={"arrow": "int16"})
    masks: list[UInt8Array] = field(default_factory=list)
    said: dict[str, object] = field(default_factory=dict, metadata={"column": "metadata"})
    spacing: tuple[float, float, float] | None = None


def there_and_back(thing):
    table = pa.Table.from_pylist([to_row(thing)], schema=schema_of(type(thing)))
    return from_row(type(thing), {name: table[name][0] for name in table.column_names})


def test_a_dataclass_comes_back_as_it_was():
    image = np.arange(6, dtype=np.float32).reshape(1, 2, 3)
    thing = Thing("a", image, Part(2.5, "b"), 7, [np.ones((2, 2), np.uint8)] * 2, {"x": [1, None]}, (1.0, 2.0, 3.0))
    back = there_and_back(thing)
    np.testing.assert_array_equal(back.image, image)
    assert back.image.dtype == np.float32
    assert [mask.sum() for mask in back.masks] == [4, 4]
    assert (back.part, back.count, back.said, back.spacing) == (thing.part, 7, thing.said, thing.spacing)
    assert there_and_back(Thing("a", image)).spacing is None


def test_types_follow_the_annotations_and_nested_fields_are_columns():
    assert schema_of(Thing).names == ["title", "image", "length_mm", "name", "count", "masks", "metadata", "spacing"]
    assert schema_of(Thing).field("count").type == pa.int16()
    assert [column.name for column in small_fields(Thing)] == ["title", "length_mm", "name", "count"]


def test_what_is_null_or_absent_takes_the_default_and_an_array_must_not_be():
    table = pa.Table.from_pylist([to_row(Thing("a", np.zeros((1, 1, 1), np.float32)))], schema=schema_of(Thing))
    row = {name: table[name][0] for name in table.column_names}
    assert from_row(Thing, {name: row[name] for name in ("title", "image")}).count == 3
    with pytest.raises(InputError, match="image is null"):
        from_row(Thing, row | {"image": pa.scalar(None, table["image"].type)})


def test_a_field_that_cannot_be_stored_is_refused_when_the_schema_is_made():
    with pytest.raises(TypeError, match="complex"):
        schema_of(make_dataclass("Odd", [("value", complex)]))


def test_every_field_of_a_matte_is_stored_indexed_and_comes_back():
    """Set to something other than its default, so that a field that is forgotten on the way is seen."""
    nodule = random_nodule()
    matte = nodule.candidates[0]
    matte.solve = SolveInfo(7, 1e-6, False, 0.5, 9, "cg")
    matte.key, matte.key_1 = "k", "k1"
    back = from_table(to_table([nodule]))[0]
    for name in (f.name for f in fields(Matte)):
        assert np.all(getattr(back.candidates[0], name) == getattr(matte, name)) or name == "digest", name
    for name in (f.name for f in fields(Nodule) if f.name != "candidates"):
        assert np.all(np.asarray(getattr(back, name)) == np.asarray(getattr(nodule, name))), name
    solve = outcome_row(back)["solves"][0]
    assert set(solve) == {column.name for column in SOLVE} == set(columns_of(Matte)) - {"alpha", "scores"}
    assert (solve["converged"], solve["unknowns"], solve["key_1"]) == (False, 9, "k1")
    assert len(solve["digest"]) == 24
    assert set(outcome_row(back)) | {"shard"} == set(OUTCOME.names)


def test_a_released_nodule_has_all_of_its_matte_but_what_concerns_the_dataset():
    nodule = draw_nodule(0)
    row = record_of(released(nodule, "knn+"), "reviewers", ["Ada"])
    assert list(pa.Table.from_pylist([row], schema=RECORD).column_names) == RECORD.names
    assert set(row) == set(RECORD.names)
    table = pa.Table.from_pylist([row], schema=RECORD)
    back = nodule_of({name: table[name][0] for name in RECORD.names})
    assert (back.method, back.key, back.candidates[0].key) == ("knn+", nodule.key, "")
    assert back.candidates[0].scores == nodule.candidates[5].scores
    for name in ("iterations", "converged", "unknowns", "solver", "alpha", "score"):
        assert name in RECORD.names
    assert not {"seconds", "digest", "outcome"} & set(RECORD.names)


def test_tables_of_format_1_become_those_of_today():
    today = to_table([draw_nodule(0), draw_nodule(1)])
    before = conform(today, format_1.SCHEMA)
    assert before.schema.equals(format_1.SCHEMA)
    again = conform(before, SCHEMA)
    assert again.schema.equals(SCHEMA)
    for one, other in zip(from_table(today), from_table(again), strict=True):
        assert (one.nodule_id, one.metadata, one.scores) == (other.nodule_id, other.metadata, other.scores)
        assert all((one.mattes[name] == other.mattes[name]).all() for name in one.mattes)
        assert {matte.digest for matte in other.candidates} == {""}


def test_lists_that_are_null_or_sliced_keep_their_elements():
    kind = pa.list_(pa.struct([("a", pa.int32())]))
    table = pa.table({"x": pa.array([[{"a": 1}], None, [{"a": 2}, {"a": 3}], []], kind)}).slice(1)
    wider = pa.schema([("x", pa.list_(pa.struct([("b", pa.string()), ("a", pa.int64())])))])
    found = conform(table, wider)["x"].to_pylist()
    assert found == [None, [{"b": None, "a": 2}, {"b": None, "a": 3}], []]
