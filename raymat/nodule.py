"""The record that every room speaks: one nodule, from its crop to its chosen matte.

The two dataclasses here name the record's fields, and nothing else does: schema, row and the way back follow from them
(``raymat.arrow``), as do the rows of the index (``raymat.store``) and of a release (``raymat.release.record``). Arrays
are (z, y, x). A field that is added, or changed, raises ``FORMAT_VERSION`` there, and ``raymat.format_1`` shows how
earlier files stay readable.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, TypedDict, TypeVar, Unpack

import numpy as np
import pyarrow as pa

from raymat.arrays import AnyArray, Box, Float32Array, Float64Array, UInt8Array, box_around
from raymat.arrow import ARRAY as ARRAY
from raymat.arrow import MATRIX, from_row, schema_of, to_row
from raymat.arrow import array_to_struct as array_to_struct
from raymat.arrow import struct_to_array as struct_to_array
from raymat.errors import InputError as InputError
from raymat.errors import NoduleExcluded as NoduleExcluded
from raymat.methods import ANY, CALIBRATED, MEMBERSHIP, METHODS, SolveInfo, kind_of

ACCEPTED, REJECTED, EXCLUDED, FAILED = OUTCOMES = ("accepted", "rejected", "excluded", "failed")

# The ratings of LIDC-IDRI's readers, by the names of its database.
RATINGS = (
    "malignancy",
    "subtlety",
    "internalStructure",
    "calcification",
    "sphericity",
    "margin",
    "lobulation",
    "spiculation",
    "texture",
)
IMAGE_CHANNEL = "image_channel"  # in the metadata of a nodule with several channels: name and range of its image
_PLACES = {method: place for place, method in enumerate(METHODS)}  # decides between equal scores
Matrix = Annotated[Float64Array, MATRIX]
T = TypeVar("T")


@dataclass
class Matte:
    """One candidate: a method's alpha, how its solve went, and its scores.

    Attributes
    ----------
    method : one of ``raymat.matting.METHODS``
    alpha : float32 (z, y, x), 0 to 1
    solve : how the solver did
    scores : name of a quality term to its value, 0 (bad) to 1 (good)
    score : the combined score, 0 to 1; NaN before quality control
    key : of all that alpha depends on (``raymat.steps.BuildParameters.matte_key``); empty in a record of format 1
    digest : of the bytes of alpha, given when it is committed; what a reviewer's decision is bound to
    key_1 : the first part of the nodule's key in the dataset of format 1 that the matte was solved for; empty for any
        other. What decisions of that time are bound to.
    kind : what its alpha means, "membership" or "calibrated"; that of the method where it is not given
    """

    method: str
    alpha: Float32Array
    solve: SolveInfo = field(default_factory=SolveInfo)
    scores: dict[str, float] = field(default_factory=dict)
    score: float = float("nan")
    key: str = ""
    digest: str = ""
    key_1: str = ""
    kind: str = ""

    def __post_init__(self) -> None:
        self.kind = self.kind or kind_of(self.method)


@dataclass
class Channel:
    """A channel of a nodule that has several: CT and PET, sequences of MR.

    Attributes
    ----------
    name : what it is called ("PET"); the name of its file until the nodule is prepared
    image : float32 (z, y, x), in its own unit
    low, high : the range of intensities that solvers and network take in, in that unit
    spacing, origin, direction : where its voxels lie, as those of ``Nodule``, until they are brought to the nodule's
        own grid; None from then on
    """

    name: str
    image: Float32Array
    low: float = 0.0
    high: float = 1.0
    spacing: tuple[float, float, float] | None = None
    origin: tuple[float, float, float] | None = None
    direction: Matrix | None = None

    @property
    def intensity_range(self) -> tuple[float, float]:
        """``low`` and ``high``."""
        return self.low, self.high


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
        The name of its kind, one of ``raymat.sources.kinds.KINDS``, or "3dmm" for a prediction.
    image : float32 (z, y, x), HU; of several channels the one that calibrates
    spacing : (z, y, x) mm
    origin : (z, y, x) mm, patient coordinates (LPS) of the centre of voxel [0, 0, 0]
    direction : 3 x 3, (z, y, x) rows and columns
    readers : list of uint8 (z, y, x), 1 inside
    trimap : uint8 (z, y, x), 0 background, 128 unknown, 255 foreground; None before it is made
    true_membership, true_calibrated : float32 (z, y, x), phantoms only: the truth of either kind
    metadata : dict
        What the source knows beyond the images (series UID, annotation ids, further columns of a case table); as
        "ratings" what the readers said, feature to a list with one entry per reader.
    notes : list of str
        What a user should know about this nodule ("more than four marks", "padded with air").
    candidates : list of Matte
    method : str or None
        The chosen candidate.
    kind : one of ``raymat.methods.ALPHA_KINDS``
        Of the dataset, and so what ``alpha`` means; "any" where the best of all candidates was chosen.
    outcome : one of ``OUTCOMES``; stage, reason : where and why it was rejected, excluded or failed
    channels : list of Channel
        The other channels of a nodule that has several, on the same grid as the image; see ``all_channels``.
    """

    nodule_id: str
    patient_id: str
    source: str
    key: str = ""
    outcome: str | None = None
    stage: str | None = None
    reason: str | None = None
    method: str | None = None
    kind: str = ANY
    spacing: tuple[float, float, float] | None = None
    origin: tuple[float, float, float] | None = None
    direction: Matrix | None = None
    metadata: dict[str, object] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    image: Float32Array | None = None
    readers: list[UInt8Array] = field(default_factory=list)
    trimap: UInt8Array | None = None
    true_membership: Float32Array | None = None
    true_calibrated: Float32Array | None = None
    candidates: list[Matte] = field(default_factory=list, metadata={"column": "mattes"})
    channels: list[Channel] = field(default_factory=list)

    @property
    def all_channels(self) -> list[Channel]:
        """The image as a channel, under its own name, and those beside it; empty for a nodule without an image."""
        if self.image is None:
            return []
        about = self.metadata.get(IMAGE_CHANNEL)
        named = about if self.channels and isinstance(about, Mapping) else {}
        low, high = named.get("intensity_range", (-1000.0, 400.0))
        return [Channel(str(named.get("name", "image")), self.image, float(low), float(high)), *self.channels]

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
        """The chosen matte, float32 (z, y, x), of the dataset's kind; None where none was chosen."""
        return self.mattes.get(self.method) if self.method else None

    @property
    def membership(self) -> Float32Array | None:
        """The chosen matte of the kind membership, how much of a voxel is lesion, float32 (z, y, x).

        None where no matte was chosen, or none is of that kind.
        """
        return self._chosen(MEMBERSHIP)

    @property
    def calibrated(self) -> Float32Array | None:
        """The chosen matte of the kind calibrated, which says how dense the lesion is (Eq. 4), float32 (z, y, x).

        None where no matte was chosen, or none is of that kind.
        """
        return self._chosen(CALIBRATED)

    def _chosen(self, kind: str) -> Float32Array | None:
        best = self.best(kind) if self.method else None
        return best.alpha if best else None

    @property
    def true_alpha(self) -> Float32Array | None:
        """What ``alpha`` should be, of phantoms: the truth of the dataset's kind; membership where it is "any"."""
        return self.truth(self.kind)

    def truth(self, kind: str) -> Float32Array | None:
        """What a matte of that kind should be, float32 (z, y, x), of phantoms; None for any other nodule."""
        return self.true_calibrated if kind == CALIBRATED else self.true_membership

    def best(self, kind: str) -> Matte | None:
        """The candidate of that kind that was chosen; where none of them was, the one of the highest score.

        Of equal scores the first in the order of ``METHODS``. None where no candidate is of that kind.
        """
        of_kind = [matte for matte in self.candidates if kind in (matte.kind, ANY)]
        return max(of_kind, key=self._precedence, default=None)

    def _precedence(self, matte: Matte) -> tuple[bool, float, int]:
        score = matte.score if math.isfinite(matte.score) else -1.0
        return matte.method == self.method, score, -_PLACES.get(matte.method, len(_PLACES))

    @property
    def ratings(self) -> dict[str, list[object]]:
        """What the readers said of the nodule: feature to one entry per reader.

        A source gives them as ``metadata["ratings"]``. A table of cases has them in columns of its own, which are
        ``metadata`` as they are: those with one entry per reader, separated by ``;``, and those named in ``RATINGS``.
        """
        given = self.metadata.get("ratings")
        if isinstance(given, Mapping):
            return dict(given)
        found = {name: _entries(value) for name, value in self.metadata.items() if name not in ("image", "masks")}
        several = {name for name, values in found.items() if len(values) == len(self.readers) > 1}
        return {name: values for name, values in found.items() if values and (name in RATINGS or name in several)}

    def without_arrays(self, **changes: Unpack[_Changes]) -> Nodule:
        """A copy that keeps what is said of the nodule and none of its arrays, with ``changes`` of other fields."""
        kept = replace(self, readers=[], candidates=[], channels=[], **changes)
        return replace(kept, image=None, trimap=None, true_membership=None, true_calibrated=None)


def _entries(value: object) -> list[object]:
    """The readers' entries in one cell of a table, numbers as numbers."""
    if isinstance(value, list | tuple):
        return list(value)
    if isinstance(value, int | float):
        return [value]
    parts = [] if value is None else [part.strip() for part in str(value).split(";")]
    return [int(part) if part.isdecimal() else part for part in parts if part]


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


# Of one channel there is no column of channels: files are those of before there could be several.
SCHEMA_OF_CHANNELS = schema_of(Nodule)
SCHEMA = pa.schema([column for column in SCHEMA_OF_CHANNELS if column.name != "channels"])


def alpha_digest(alpha: Float32Array) -> str:
    """A digest of a matte's type, shape and bytes."""
    hasher = hashlib.blake2b(f"{alpha.dtype.str} {list(alpha.shape)}".encode(), digest_size=12)
    hasher.update(alpha.tobytes())
    return hasher.hexdigest()


def matte_box(trimap: AnyArray) -> Box:
    """The smallest box that holds all of the trimap but background: outside it every matte is 0."""
    return box_around(trimap)


def to_table(nodules: list[Nodule], packed: bool = False) -> pa.Table:
    """Nodules as one Arrow table, with the digests of their mattes; of ``SCHEMA`` unless one has several channels.

    With ``packed`` the mattes are cut to ``matte_box``, a tenth and less of what they are, and have no new digests: for
    the way between workers. ``from_table`` gives them back whole.
    """
    prepared = _packed if packed else _digested
    schema = SCHEMA_OF_CHANNELS if any(nodule.channels for nodule in nodules) else SCHEMA
    return pa.Table.from_pylist([to_row(prepared(nodule), schema.names) for nodule in nodules], schema=schema)


def _packed(nodule: Nodule) -> Nodule:
    if not nodule.candidates:
        return nodule
    box = matte_box(required(nodule.trimap, nodule, "trimap"))
    return replace(nodule, candidates=[replace(matte, alpha=matte.alpha[box]) for matte in nodule.candidates])


def _digested(nodule: Nodule) -> Nodule:
    candidates = [replace(matte, digest=alpha_digest(matte.alpha)) for matte in nodule.candidates]
    return replace(nodule, candidates=candidates)


def from_table(table: pa.Table, copy: bool = True) -> list[Nodule]:
    """The nodules of a table of ``to_table``; without ``copy`` their arrays are read-only views of its memory."""
    names = [name for name in SCHEMA_OF_CHANNELS.names if name in table.column_names]
    rows = ({name: table[name][i] for name in names} for i in range(table.num_rows))
    return [_unpacked(from_row(Nodule, row, copy)) for row in rows]


def _unpacked(nodule: Nodule) -> Nodule:
    """The nodule with its mattes on its whole grid."""
    trimap = nodule.trimap
    for matte in nodule.candidates:
        if trimap is not None and matte.alpha.shape != trimap.shape:
            packed, matte.alpha = matte.alpha, np.zeros(trimap.shape, matte.alpha.dtype)
            matte.alpha[matte_box(trimap)] = packed
    return nodule
