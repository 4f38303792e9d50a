"""Dataclasses in Arrow: schema, row and the way back follow from their fields, which are named nowhere else.

An array is a struct of raw bytes (C order, little endian), shape and dtype, so that plain pyarrow, pandas or DuckDB can
open it without raymat: ``np.frombuffer(a["data"], a["dtype"]).reshape(a["shape"])``. A field that is a dataclass takes
part with its own fields. Two entries of a field's metadata say what its annotation cannot: ``column``, the name of its
column where it is another, and ``arrow``, the alias of an Arrow type.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np
import pyarrow as pa

from raymat.arrays import AnyArray, triple
from raymat.errors import InputError
from raymat.words import utf8

T = TypeVar("T")

ARRAY = pa.struct([("data", pa.large_binary()), ("shape", pa.list_(pa.int32())), ("dtype", pa.string())])
JSON = pa.string()
Row = dict[str, Any]


@dataclass(frozen=True)
class Column:
    """How values of one kind are stored.

    Attributes
    ----------
    type : of Arrow
    write : a value to what pyarrow makes an element of that type of
    read : such an element, which is not null, to the value; without a copy arrays are read-only views
    small : whether an index of many records can hold it
    """

    type: pa.DataType
    write: Callable[[Any], object]
    read: Callable[[pa.Scalar, bool], Any]
    small: bool = False


def array_to_struct(array: AnyArray | None) -> dict[str, object] | None:
    """An array as the Arrow struct of bytes, shape and dtype."""
    if array is None:
        return None
    array = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    # Bytes, no memoryview: pyarrow 25 never lets go of a memoryview that it has taken a value from.
    return {"data": array.tobytes(), "shape": list(array.shape), "dtype": array.dtype.str}


def struct_to_array(value: pa.StructScalar, copy: bool = True) -> AnyArray | None:
    """The inverse of ``array_to_struct``; without ``copy`` a read-only view of Arrow's memory.

    Raises
    ------
    InputError
        Bytes, shape and dtype disagree, or the dtype is no plain number.
    """
    if not value.is_valid:
        return None
    try:
        dtype = np.dtype(value["dtype"].as_py())
        if dtype.kind not in "iufb":
            raise ValueError(f"dtype {dtype} is refused")
        array = np.frombuffer(value["data"].as_buffer(), dtype).reshape(value["shape"].as_py())
    except (TypeError, ValueError) as error:
        raise InputError(f"an array of the record is damaged ({error})") from error
    return array.copy() if copy else array


def schema_of(kind: type) -> pa.Schema:
    """The schema of a table of such dataclasses."""
    return pa.schema([(name, column.type) for name, column in columns_of(kind).items()])


def small_fields(kind: type) -> list[pa.Field]:
    """The columns that an index of many records can hold: texts, numbers, and lists of texts."""
    return [pa.field(name, column.type) for name, column in columns_of(kind).items() if column.small]


def to_row(value: object, names: Collection[str] | None = None) -> Row:
    """A dataclass as a row of ``schema_of`` its class, or the columns named of it."""
    row: Row = {}
    kind: Any = type(value)
    for field in fields(kind):
        content = getattr(value, field.name)
        if is_dataclass(content):
            row |= to_row(content, names)
            continue
        name = _column_name(field)
        if names is None or name in names:
            row[name] = None if content is None else columns_of(kind)[name].write(content)
    return row


def from_row(kind: type[T], row: Mapping[str, pa.Scalar], copy: bool = True) -> T:
    """The dataclass of a row, a column's name to its element; what is null or absent takes the field's default.

    Raises
    ------
    InputError
        An array is damaged, or null where there has to be one.
    """
    values: Row = {}
    known: Any = kind
    for field, hint in _hints(known):
        if is_dataclass(hint):
            values[field.name] = from_row(hint, row, copy)  # type: ignore[arg-type]
            continue
        name = _column_name(field)
        if name in row and row[name].is_valid:
            values[field.name] = columns_of(known)[name].read(row[name], copy)
        elif field.default is MISSING and field.default_factory is MISSING:
            if _is_array(hint):
                raise InputError(f"an array of the record is damaged ({name} is null)")
            values[field.name] = None
    return kind(**values)


def conform(table: pa.Table, schema: pa.Schema, formerly: Mapping[str, str] | None = None) -> pa.Table:
    """A table of an earlier schema with the columns of a later one; what it lacks is null.

    ``formerly`` has the earlier names of columns, by those of today.
    """
    columns = []
    for field in schema:
        name = field.name if field.name in table.column_names else (formerly or {}).get(field.name)
        if name in table.column_names:
            chunks = [_conformed(chunk, field.type) for chunk in table[name].chunks]
            columns.append(pa.chunked_array(chunks, field.type))
        else:
            columns.append(pa.nulls(table.num_rows, field.type))
    return pa.Table.from_arrays(columns, schema=schema)


def _conformed(array: pa.Array, kind: pa.DataType) -> pa.Array:
    if array.type.equals(kind):
        return array
    if pa.types.is_struct(kind):
        present = {field.name for field in array.type}
        parts = [
            _conformed(array.field(field.name), field.type)
            if field.name in present
            else pa.nulls(len(array), field.type)
            for field in kind
        ]
        return pa.StructArray.from_arrays(parts, fields=list(kind), mask=array.is_null())
    if pa.types.is_list(kind):
        values = _conformed(array.flatten(), kind.value_type)
        lengths = array.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
        offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
        return pa.ListArray.from_arrays(offsets, values, type=kind, mask=array.is_null())
    return array.cast(kind)


@cache
def _hints(kind: type) -> list[tuple[Field, Any]]:
    hints = get_type_hints(kind, include_extras=True)
    return [(field, hints[field.name]) for field in fields(kind)]


@cache
def columns_of(kind: type) -> dict[str, Column]:
    """A dataclass's columns by name, in the order of its fields.

    Raises
    ------
    TypeError
        A field's annotation is of a kind that cannot be stored.
    """
    found: dict[str, Column] = {}
    for field, hint in _hints(kind):
        if is_dataclass(hint):
            found |= columns_of(hint)  # type: ignore[arg-type]
            continue
        column = _column(hint)
        alias = field.metadata.get("arrow")
        if alias:
            column = Column(pa.type_for_alias(alias), column.write, column.read, column.small)
        found[_column_name(field)] = column
    return found


def _column_name(field: Field) -> str:
    return str(field.metadata.get("column", field.name))


def _is_array(hint: Any) -> bool:
    return get_origin(hint) is np.ndarray


def _python(scalar: pa.Scalar, copy: bool) -> Any:
    return scalar.as_py()


def _text(value: object) -> str:
    return utf8(str(value))


PLAIN = {str: pa.string(), bool: pa.bool_(), int: pa.int64(), float: pa.float64()}


def _column(hint: Any) -> Column:
    """The column of an annotation; a value that may be None is stored as one that may not."""
    if get_origin(hint) in (Union, UnionType):
        (hint,) = (part for part in get_args(hint) if part is not NoneType)
    if hint in PLAIN:
        return Column(PLAIN[hint], _text if hint is str else hint, _python, small=True)
    if _is_array(hint):
        return Column(ARRAY, array_to_struct, struct_to_array)
    parts = get_args(hint)
    for matches, make in (
        (get_origin(hint) is list, _list_column),
        (get_origin(hint) is tuple and set(parts) == {float} and len(parts) == 3, _triple_column),
        (get_origin(hint) is dict and parts == (str, float), _map_column),
        (get_origin(hint) is dict and parts == (str, object), _json_column),
        (getattr(hint, "__metadata__", ()) == (MATRIX,), _matrix_column),
    ):
        if matches:
            return make(*parts[:1])
    raise TypeError(f"a field of {hint} cannot be stored")


def _list_column(hint: Any) -> Column:
    inner = _struct_column(hint) if is_dataclass(hint) else _column(hint)

    def read(scalar: pa.ListScalar, copy: bool) -> list[Any]:
        if not all(element.is_valid for element in scalar.values):
            raise InputError("the record is damaged (an element of a list is null)")
        return [inner.read(element, copy) for element in scalar.values]

    return Column(pa.list_(inner.type), lambda values: [inner.write(value) for value in values], read, inner.small)


def _struct_column(kind: Any) -> Column:
    return Column(pa.struct(list(schema_of(kind))), to_row, lambda scalar, copy: from_row(kind, scalar, copy))


def _triple_column(_: Any) -> Column:
    def write(values: Sequence[float]) -> list[float]:
        return [float(value) for value in values]

    return Column(pa.list_(pa.float64()), write, lambda scalar, copy: triple(scalar.as_py()))


def _map_column(_: Any) -> Column:
    return Column(
        pa.map_(pa.string(), pa.float64()),
        lambda value: [(name, float(number)) for name, number in value.items()],
        lambda scalar, copy: dict(scalar.as_py()),
    )


def _as_json(value: object) -> str:
    text = json.dumps(value, sort_keys=True, default=str)
    # JSON can write a lone surrogate, which no reader but Python's takes.
    return text if "\\ud" not in text else json.dumps(_in_utf8(json.loads(text)), sort_keys=True)


def _in_utf8(value: object) -> object:
    if isinstance(value, str):
        return utf8(value)
    if isinstance(value, dict):
        return {utf8(key): _in_utf8(item) for key, item in value.items()}
    return [_in_utf8(item) for item in value] if isinstance(value, list) else value


def _json_column(_: Any) -> Column:
    return Column(
        JSON,
        _as_json,
        lambda scalar, copy: json.loads(scalar.as_py()),
    )


MATRIX = "3 x 3"  # Annotated[array, MATRIX]: stored as a list of nine numbers, row by row


def _matrix_column(_: Any) -> Column:
    return Column(
        pa.list_(pa.float64()),
        lambda value: np.asarray(value, float).ravel().tolist(),
        lambda scalar, copy: np.array(scalar.as_py()).reshape(3, 3),
    )
