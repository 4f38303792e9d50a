"""What a release is on disk, and how its nodules are read.

    OUT/nodules/00000.parquet ...  the nodules (``RECORD``), one per row group: image, readers, trimap, the one matte
    OUT/nodules.parquet            the index (``INDEX``): one small row per nodule, its splits and digests among it
    OUT/left_out.parquet           the dataset's other nodules and why they are not here
    OUT/datasheet.md, contact_sheet.png, histograms.png
    OUT/release.json               version, rule, counts, parameters, versions of the software
    OUT/SHA256SUMS                 digest of every file above, as ``sha256sum -c`` reads it

SHA256SUMS is written last and makes the release whole; its own digest is the release's, to be cited with it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from raymat import format_1
from raymat.arrow import Row, conform, from_row, schema_of, to_row
from raymat.folder import Folder
from raymat.lock import NAME
from raymat.nodule import ACCEPTED, SCHEMA, InputError, Matte, Nodule
from raymat.places import open_filesystem
from raymat.splits import REPETITIONS

FORMAT = "raymat release"
FORMAT_VERSION = 2
SUMS, NOTE, INDEX_FILE = "SHA256SUMS", "release.json", "nodules.parquet"

# Of a nodule, what a released one need not say; of a matte, what concerns the dataset that it was released from.
ALL_ALIKE = ("outcome", "stage", "reason", "mattes")
OF_THE_DATASET = ("seconds", "key", "digest", "key_1")
MATTE_COLUMNS = [column for column in schema_of(Matte) if column.name not in (*SCHEMA.names, *OF_THE_DATASET)]
# The record of a nodule and of the one matte that it was released with, and who decided.
RECORD = pa.schema(
    [
        *(column for column in SCHEMA if column.name not in ALL_ALIKE),
        *MATTE_COLUMNS,
        ("decided_by", pa.string()),
        ("reviewers", pa.list_(pa.string())),
    ]
)


def record_of(nodule: Nodule, method: str, decided_by: str, reviewers: Sequence[str]) -> Row:
    """A nodule as a row of ``RECORD``, with its matte by a method and who decided."""
    matte = next(matte for matte in nodule.candidates if matte.method == method)
    row = to_row(replace(nodule, method=method), RECORD.names)
    row |= to_row(matte, [column.name for column in MATTE_COLUMNS])
    return row | {"decided_by": decided_by, "reviewers": list(reviewers)}


def nodule_of(record: Mapping[str, pa.Scalar]) -> Nodule:
    """A row of ``RECORD`` as a nodule with one candidate, the matte it was released with."""
    nodule = from_row(Nodule, record)
    matte = from_row(Matte, {name: record[name] for name in ("method", *(column.name for column in MATTE_COLUMNS))})
    return replace(nodule, outcome=ACCEPTED, candidates=[matte])


INDEX = pa.schema(
    [
        ("nodule_id", pa.string()),
        ("patient_id", pa.string()),
        ("method", pa.string()),
        ("score", pa.float64()),
        ("decided_by", pa.string()),
        ("reviewers", pa.list_(pa.string())),
        ("readers", pa.int32()),
        ("shape", pa.list_(pa.int32())),
        ("scanner_spacing", pa.list_(pa.float64())),
        ("diameter_mm", pa.float64()),
        ("ratings", pa.string()),
        *((f"split_{number}", pa.string()) for number in range(REPETITIONS)),
        ("file", pa.string()),
        ("row", pa.int32()),
        ("image_digest", pa.string()),
        ("readers_digest", pa.string()),
        ("trimap_digest", pa.string()),
        ("alpha_digest", pa.string()),
    ]
)
UNFINISHED = "unfinished"  # says that what lies beside it was left by a release that did not end
NO_PART = (SUMS, UNFINISHED, NAME)  # files that lie beside a release's own
DIGESTS = ("image", "readers", "trimap", "alpha")
LEFT_OUT = pa.schema([(name, pa.string()) for name in ("nodule_id", "patient_id", "outcome", "decided_by", "reason")])


def record_digests(record: Mapping) -> dict[str, str]:
    """SHA-256 of what a row of ``RECORD`` is made of, by part; equal for equal arrays in equal places.

    Each is taken over dtype, shape and bytes of the arrays; that of the image over the nodule's place in the patient,
    too, that of the matte over its method.
    """

    def digest(arrays: Iterable[Mapping], *more: object) -> str:
        hasher = hashlib.sha256(repr(more).encode())
        for array in arrays:
            hasher.update(f"{array['dtype']} {list(array['shape'])}".encode())
            hasher.update(array["data"])
        return hasher.hexdigest()

    place = [[float(v) for v in record[name]] for name in ("spacing", "origin", "direction")]
    return {
        "image_digest": digest([record["image"]], *place),
        "readers_digest": digest(record["readers"]),
        "trimap_digest": digest([record["trimap"]]),
        "alpha_digest": digest([record["alpha"]], record["method"]),
    }


def is_release(filesystem: pafs.FileSystem, root: str) -> bool:
    """Whether a release lies there, whole."""
    return Folder(filesystem, root).exists(SUMS)


@dataclass
class Release:
    """A release on disk or in an object store; picklable.

    Attributes
    ----------
    place : where its files are
    index : rows of ``INDEX``, in order
    """

    place: Folder
    index: list[dict]

    @classmethod
    def open(cls, path: str | Path) -> Release:
        """Open a release by its index; no nodule is read.

        Raises
        ------
        InputError
            There is no release at ``path``, or it is damaged or of a version this raymat does not know.
        """
        filesystem, root = open_filesystem(path)
        place = Folder(filesystem, root)
        if not place.exists(SUMS):
            raise InputError(f"{path}: no release here ({SUMS} is missing)")
        note = read_note(place)
        if note.get("format") != FORMAT or note.get("format_version") not in (format_1.NUMBER, FORMAT_VERSION):
            raise InputError(
                f"{path}: {note.get('format')} {note.get('format_version')}; this raymat reads "
                f"{FORMAT} {FORMAT_VERSION}"
            )
        table = read_table(place, INDEX_FILE)
        if not table.schema.equals(INDEX):
            raise InputError(f"{place.path(INDEX_FILE)}: its columns are not those of a release's index: damaged")
        return cls(place, table.to_pylist())

    def __call__(self, position: int) -> Nodule:
        """The nodule at a position of the index, its one row group read."""
        row = self.index[position]
        record = read_table(self.place, row["file"], row["row"])
        if record["nodule_id"][0].as_py() != row["nodule_id"]:
            raise InputError(f"{self.place.path(row['file'])}: is not what the index says: damaged (raymat verify)")
        if record.schema.equals(format_1.RECORD):
            record = conform(record, RECORD)
        return nodule_of({name: record[name][0] for name in RECORD.names})

    def metadata(self, position: int) -> dict[str, object]:
        """The metadata of the nodule at a position of the index, no array read."""
        row = self.index[position]
        record = read_table(self.place, row["file"], row["row"], ["metadata"])
        try:
            found: dict[str, object] = json.loads(record["metadata"][0].as_py())
        except (ValueError, TypeError, RecursionError) as error:
            raise InputError(f"{self.place.path(row['file'])}: damaged ({error})") from error
        return found

    def nodules(self, positions: Iterable[int]) -> Iterator[Nodule]:
        """The nodules at some positions, one in memory at a time."""
        return (self(position) for position in positions)


def read_note(place: Folder) -> dict:
    """``release.json``; raises InputError where it is damaged."""
    try:
        return json.loads(place.read(NOTE))
    except (OSError, ValueError) as error:
        raise InputError(f"{place.path(NOTE)}: damaged ({error})") from error


def read_table(place: Folder, name: str, group: int | None = None, columns: Sequence[str] | None = None) -> pa.Table:
    """A Parquet file, or one row group or some columns of it; raises InputError where it is damaged."""
    try:
        file = pq.ParquetFile(place.filesystem.open_input_file(place.path(name)))
        return file.read(columns) if group is None else file.read_row_group(group, columns)
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{place.path(name)}: cannot be read ({error}): damaged or incomplete") from error
