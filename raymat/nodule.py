"""The record that every room speaks: one nodule, from its crop to its chosen matte.

Arrays are (z, y, x); in the Arrow form an array is a struct of raw bytes (C order, little endian), shape and dtype, so
that plain pyarrow, pandas or DuckDB can open it without raymat:
``np.frombuffer(a["data"], a["dtype"]).reshape(a["shape"])``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypedDict, TypeVar, Unpack, cast

import numpy as np
import pyarrow as pa

from raymat.arrays import AnyArray, Box, Float32Array, Float64Array, UInt8Array, triple
from raymat.errors import InputError as InputError
from raymat.errors import NoduleExcluded as NoduleExcluded

ACCEPTED, REJECTED, EXCLUDED, FAILED = OUTCOMES = ("accepted", "rejected", "excluded", "failed")


T = TypeVar("T")


@dataclass
class Matte:
    """One candidate: a method's alpha, how its solve went, and its scores.

    Attributes
    ----------
    method : one of ``raymat.matting.METHODS``
    alpha : float32 (z, y, x), 0 to 1
    iterations, residual, converged, seconds, unknowns, solver : as in ``raymat.matting.SolveInfo``
    scores : name of a quality term to its value, 0 (bad) to 1 (good)
    score : the combined score, 0 to 1; NaN before quality control
    """

    method: str
    alpha: Float32Array
    iterations: int = 0
    residual: float = 0.0
    converged: bool = True
    seconds: float = 0.0
    unknowns: int = 0
    solver: str = ""
    scores: dict[str, float] = field(default_factory=dict)
    score: float = float("nan")


class _Changes(TypedDict, total=False):
    """Fields that say how it went with a nodule."""

    outcome: str
    stage: str
    reason: str
    method: str | None
    metadata: dict[str, object]


@dataclass
class Nodule:
    """A nodule on its way from the source to the dataset.

    A source fills in the first part on the scanner's grid; ``raymat.prepare`` brings it to the working grid and adds
    the trimap; the solvers add ``candidates``, quality control ``method``; the build gives it its one ``outcome``.

    Attributes
    ----------
    nodule_id, patient_id : str
    source : str
        "lidc", "cases" or "phantoms".
    image : float32 (z, y, x), HU
    spacing : (z, y, x) mm
    origin : (z, y, x) mm, patient coordinates (LPS) of the centre of voxel [0, 0, 0]
    direction : 3 x 3, (z, y, x) rows and columns
    readers : list of uint8 (z, y, x), 1 inside
    trimap : uint8 (z, y, x), 0 background, 128 unknown, 255 foreground; None before it is made
    true_alpha : float32 (z, y, x), phantoms only
    metadata : dict
        What the source knows beyond the images (series UID, annotation ids, ratings, further columns of a case table).
    notes : list of str
        What a user should know about this nodule ("more than four marks", "padded with air").
    candidates : list of Matte
    method : str or None
        The chosen candidate.
    outcome : one of ``OUTCOMES``; stage, reason : where and why it was rejected, excluded or failed
    """

    nodule_id: str
    patient_id: str
    source: str
    image: Float32Array | None = None
    spacing: tuple[float, float, float] | None = None
    origin: tuple[float, float, float] | None = None
    direction: Float64Array | None = None
    readers: list[UInt8Array] = field(default_factory=list)
    trimap: UInt8Array | None = None
    true_alpha: Float32Array | None = None
    metadata: dict[str, object] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    candidates: list[Matte] = field(default_factory=list)
    method: str | None = None
    outcome: str | None = None
    stage: str | None = None
    reason: str | None = None
    key: str = ""

    @property
    def mattes(self) -> dict[str, Float32Array]:
        """Method to alpha, float32 (z, y, x)."""
        return {matte.method: matte.alpha for matte in self.candidates}

    @property
    def scores(self) -> dict[str, float]:
        """Method to combined quality score."""
        return {matte.method: matte.score for matte in self.candidates}

    @property
    def alpha(self) -> Float32Array | None:
        """The chosen matte, float32 (z, y, x); None where none was chosen."""
        return self.mattes.get(self.method) if self.method else None

    def without_arrays(self, **changes: Unpack[_Changes]) -> Nodule:
        """A copy that keeps what is said of the nodule and none of its arrays, with ``changes`` of other fields."""
        return replace(self, image=None, readers=[], trimap=None, true_alpha=None, candidates=[], **changes)


def required(value: T | None, nodule: Nodule, name: str) -> T:
    """The value of a nodule's field that may be None, where it must not be.

    Raises
    ------
    InputError
        It is None.
    """
    if value is None:
        raise InputError(f"{nodule.nodule_id}: has no {name}")
    return value


ARRAY = pa.struct([("data", pa.large_binary()), ("shape", pa.list_(pa.int32())), ("dtype", pa.string())])
MATTE = pa.struct(
    [
        ("method", pa.string()),
        ("alpha", ARRAY),
        ("iterations", pa.int32()),
        ("residual", pa.float64()),
        ("converged", pa.bool_()),
        ("seconds", pa.float64()),
        ("unknowns", pa.int64()),
        ("solver", pa.string()),
        ("scores", pa.map_(pa.string(), pa.float64())),
        ("score", pa.float64()),
    ]
)
SCHEMA = pa.schema(
    [
        ("nodule_id", pa.string()),
        ("patient_id", pa.string()),
        ("source", pa.string()),
        ("key", pa.string()),
        ("outcome", pa.string()),
        ("stage", pa.string()),
        ("reason", pa.string()),
        ("method", pa.string()),
        ("spacing", pa.list_(pa.float64())),
        ("origin", pa.list_(pa.float64())),
        ("direction", pa.list_(pa.float64())),
        ("metadata", pa.string()),
        ("notes", pa.list_(pa.string())),
        ("image", ARRAY),
        ("readers", pa.list_(ARRAY)),
        ("trimap", ARRAY),
        ("true_alpha", ARRAY),
        ("mattes", pa.list_(MATTE)),
    ]
)


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


def read_image(value: pa.StructScalar, copy: bool = True) -> Float32Array | None:
    """``struct_to_array`` of an image or a matte, which the record keeps as float32."""
    return cast("Float32Array | None", struct_to_array(value, copy))


def read_mask(value: pa.StructScalar, copy: bool = True) -> UInt8Array | None:
    """``struct_to_array`` of a reader's mask or a trimap, which the record keeps as uint8."""
    return cast("UInt8Array | None", struct_to_array(value, copy))


def read_masks(values: Iterable[pa.StructScalar], copy: bool = True) -> list[UInt8Array]:
    """The readers' masks of a record.

    Raises
    ------
    InputError
        One of them is null or damaged.
    """
    masks = []
    for value in values:
        mask = read_mask(value, copy)
        if mask is None:
            raise InputError("an array of the record is damaged (a reader's mask is null)")
        masks.append(mask)
    return masks


def to_row(nodule: Nodule, packed: bool = False) -> dict[str, object]:
    """The nodule as a row of ``SCHEMA``; its mattes ``packed`` as in ``to_table``."""
    box = matte_box(required(nodule.trimap, nodule, "trimap")) if packed and nodule.candidates else ()
    return {
        "nodule_id": nodule.nodule_id,
        "patient_id": nodule.patient_id,
        "source": nodule.source,
        "key": nodule.key,
        "outcome": nodule.outcome,
        "stage": nodule.stage,
        "reason": nodule.reason,
        "method": nodule.method,
        "spacing": None if nodule.spacing is None else [float(v) for v in nodule.spacing],
        "origin": None if nodule.origin is None else [float(v) for v in nodule.origin],
        "direction": None if nodule.direction is None else np.asarray(nodule.direction, float).ravel().tolist(),
        "metadata": json.dumps(nodule.metadata, sort_keys=True, default=str),
        "notes": list(nodule.notes),
        "image": array_to_struct(nodule.image),
        "readers": [array_to_struct(mask) for mask in nodule.readers],
        "trimap": array_to_struct(nodule.trimap),
        "true_alpha": array_to_struct(nodule.true_alpha),
        "mattes": [
            {
                "method": m.method,
                "alpha": array_to_struct(m.alpha[box]),
                "iterations": m.iterations,
                "residual": m.residual,
                "converged": m.converged,
                "seconds": m.seconds,
                "unknowns": m.unknowns,
                "solver": m.solver,
                "scores": list(m.scores.items()),
                "score": m.score,
            }
            for m in nodule.candidates
        ],
    }


def matte_box(trimap: AnyArray) -> Box:
    """The smallest box that holds all of the trimap but background: outside it every matte is 0."""
    return box_around(trimap)


def box_around(mask: AnyArray, margin: Sequence[int] = (0, 0, 0)) -> Box:
    """The slices around what is not 0 in a mask, so many voxels wider where the mask's grid allows; empty for none.

    Parameters
    ----------
    mask : (z, y, x)
    margin : voxels along each axis
    """
    box = []
    for axis, more in enumerate(margin):
        hit = np.flatnonzero(mask.any(axis=tuple(other for other in range(mask.ndim) if other != axis)))
        found = (max(int(hit[0]) - more, 0), min(int(hit[-1]) + 1 + more, mask.shape[axis])) if hit.size else (0, 0)
        box.append(slice(*found))
    return tuple(box)


def to_table(nodules: list[Nodule], packed: bool = False) -> pa.Table:
    """Nodules as one Arrow table of ``SCHEMA``.

    With ``packed`` the mattes are cut to ``matte_box``, a tenth and less of what they are: for the way between workers.
    ``from_table`` gives them back whole.
    """
    return pa.Table.from_pylist([to_row(nodule, packed) for nodule in nodules], schema=SCHEMA)


def from_table(table: pa.Table, copy: bool = True) -> list[Nodule]:
    """The nodules of an Arrow table of ``SCHEMA``; without ``copy`` their arrays are read-only views of its memory."""
    return [_from_row({name: table[name][i] for name in SCHEMA.names}, copy) for i in range(table.num_rows)]


def _from_row(row: dict[str, pa.Scalar], copy: bool) -> Nodule:
    def elements(scalar: pa.ListScalar) -> Iterable[pa.Scalar]:
        return scalar.values if scalar.is_valid else ()

    trimap = read_mask(row["trimap"], copy)

    def matte(struct: pa.StructScalar) -> Matte:
        plain = {name: struct[name].as_py() for name in struct if name not in ("alpha", "scores")}
        alpha = read_image(struct["alpha"], copy)
        if alpha is None:
            raise InputError(f"the matte by {plain['method']} has no alpha")
        if trimap is not None and alpha.shape != trimap.shape:
            packed, alpha = alpha, np.zeros(trimap.shape, alpha.dtype)
            alpha[matte_box(trimap)] = packed
        return Matte(**plain, alpha=alpha, scores=dict(struct["scores"].as_py() or []))

    plain = {name: row[name].as_py() for name in ("nodule_id", "patient_id", "source", "outcome", "stage", "reason")}
    spacing, origin, direction = (row[name].as_py() for name in ("spacing", "origin", "direction"))
    return Nodule(
        **plain,
        image=read_image(row["image"], copy),
        spacing=triple(spacing) if spacing else None,
        origin=triple(origin) if origin else None,
        direction=np.array(direction).reshape(3, 3) if direction else None,
        readers=read_masks(elements(row["readers"]), copy),
        trimap=trimap,
        true_alpha=read_image(row["true_alpha"], copy),
        metadata=json.loads(row["metadata"].as_py() or "{}"),
        notes=list(row["notes"].as_py() or []),
        candidates=[matte(struct) for struct in elements(row["mattes"])],
        method=row["method"].as_py(),
        key=row["key"].as_py() or "",
    )
