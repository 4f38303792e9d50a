"""What a release is on disk, and how its nodules are read.

    OUT/nodules/00000.parquet ...  the nodules (``RECORD``), one per row group: image, readers, trimap, the mattes
    OUT/nodules.parquet            the index (``INDEX``): one small row per nodule, its splits and digests among it
    OUT/left_out.parquet           the dataset's other nodules and why they are not here
    OUT/datasheet.md, contact_sheet.png, histograms.png
    OUT/release.json               version, kind of alpha, rule, counts, parameters, versions of the software
    OUT/SHA256SUMS                 digest of every file above, as ``sha256sum -c`` reads it

SHA256SUMS is written last and makes the release whole; its own digest is the release's, to be cited with it.

A nodule has two mattes at most: the chosen one, of the release's kind of alpha, in the columns ``method``, ``alpha``,
``score`` and so on, and the best one of the other kind in columns of the same names that begin with ``other_``, null
where the dataset had none.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs

from raymat import format_1, format_2
from raymat.arrow import Row, from_row, schema_of, to_row
from raymat.folder import Folder
from raymat.lock import NAME
from raymat.methods import ANY, CALIBRATED, MEMBERSHIP
from raymat.nodule import ACCEPTED, SCHEMA, SCHEMA_OF_CHANNELS, InputError, Matte, Nodule
from raymat.splits import REPETITIONS

FORMAT = "raymat release"
FORMAT_VERSION = 3
SUMS, NOTE, INDEX_FILE = "SHA256SUMS", "release.json", "nodules.parquet"
OTHER = "other_"  # begins the name of a column of the matte of the other kind

# Of a nodule, what a released one need not say; of a matte, what concerns the dataset that it was released from.
ALL_ALIKE = ("outcome", "stage", "reason", "mattes")
OF_THE_DATASET = ("seconds", "key", "digest", "key_1")
# ``method`` is a column of the nodule already, and ``kind`` follows from it.
MATTE_COLUMNS = [column for column in schema_of(Matte) if column.name not in (*SCHEMA.names, *OF_THE_DATASET)]
OF_A_MATTE = ("method", *(column.name for column in MATTE_COLUMNS))
# The record of a nodule and of the mattes that it was released with, and who decided.
RECORD = pa.schema(
    [
        *(column for column in SCHEMA if column.name not in ALL_ALIKE),
        *MATTE_COLUMNS,
        *(schema_of(Matte).field(name).with_name(OTHER + name) for name in OF_A_MATTE),
        ("decided_by", pa.string()),
        ("reviewers", pa.list_(pa.string())),
    ]
)
# As in a dataset, there is a column of channels where nodules have several.
RECORD_OF_CHANNELS = RECORD.append(SCHEMA_OF_CHANNELS.field("channels"))


def released(nodule: Nodule, method: str) -> Nodule:
    """A nodule with what a release keeps of its mattes: the one by a method, chosen, and the best of the other kind."""
    nodule = replace(nodule, method=method)
    matte = next(matte for matte in nodule.candidates if matte.method == method)
    other = nodule.best(MEMBERSHIP if matte.kind == CALIBRATED else CALIBRATED)
    return replace(nodule, candidates=[matte, other] if other else [matte])


def record_of(nodule: Nodule, decided_by: str, reviewers: Sequence[str]) -> Row:
    """A nodule of ``released`` as a row of ``schema_of_record``, with who decided."""
    chosen, *others = (to_row(matte, OF_A_MATTE) for matte in nodule.candidates)
    row = to_row(nodule, schema_of_record(nodule).names) | chosen
    for other in others:
        row |= {OTHER + name: value for name, value in other.items()}
    return row | {"decided_by": decided_by, "reviewers": list(reviewers)}


def schema_of_record(nodule: Nodule) -> pa.Schema:
    """The columns of the record of a nodule, and so of those of its dataset."""
    return RECORD_OF_CHANNELS if nodule.channels else RECORD


def nodule_of(record: Mapping[str, pa.Scalar]) -> Nodule:
    """A row of ``RECORD`` as a nodule whose candidates are the mattes it was released with, the chosen one first."""
    starts = ["", OTHER] if record["other_method"].is_valid else [""]
    mattes = [from_row(Matte, {name: record[start + name] for name in OF_A_MATTE}) for start in starts]
    return replace(from_row(Nodule, record), outcome=ACCEPTED, candidates=mattes)


# The diameter is that of a sphere of the membership matte's volume; of a nodule without one, that of the sum of its
# calibrated matte, which is less than the volume.
INDEX = pa.schema(
    [
        ("nodule_id", pa.string()),
        ("patient_id", pa.string()),
        ("kind", pa.string()),
        ("method", pa.string()),
        ("score", pa.float64()),
        ("other_method", pa.string()),
        ("other_score", pa.float64()),
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
        ("other_alpha_digest", pa.string()),
    ]
)
UNFINISHED = "unfinished"  # says that what lies beside it was left by a release that did not end
NO_PART = (SUMS, UNFINISHED, NAME)  # files that lie beside a release's own
DIGESTS = ("image", "readers", "trimap", "alpha", "other_alpha")
LEFT_OUT = pa.schema([(name, pa.string()) for name in ("nodule_id", "patient_id", "outcome", "decided_by", "reason")])


def record_digests(record: Mapping) -> dict[str, str | None]:
    """SHA-256 of what a row of ``RECORD`` is made of, by part; equal for equal arrays in equal places.

    Each is taken over dtype, shape and bytes of the arrays; that of the image over the nodule's place in the patient,
    and over the names and arrays of the channels beside it, too, that of a matte over its method. None of a matte that
    there is not.
    """
    channels = record.get("channels") or []

    def digest(arrays: Iterable[Mapping], *more: object) -> str:
        hasher = hashlib.sha256(repr(more).encode())
        for array in arrays:
            hasher.update(f"{array['dtype']} {list(array['shape'])}".encode())
            hasher.update(array["data"])
        return hasher.hexdigest()

    place = [[float(v) for v in record[name]] for name in ("spacing", "origin", "direction")]
    other = record.get("other_alpha")
    return {
        "image_digest": digest(
            [record["image"], *(channel["image"] for channel in channels)],
            *place,
            *(channel["name"] for channel in channels),
        ),
        "readers_digest": digest(record["readers"]),
        "trimap_digest": digest([record["trimap"]]),
        "alpha_digest": digest([record["alpha"]], record["method"]),
        "other_alpha_digest": digest([other], record["other_method"]) if other else None,
    }


class ReleaseFolder(Folder):
    """The files of a release, those of earlier formats read as if they were of today's."""

    formerly = format_2.FORMERLY

    def schema_of(self, name: str) -> pa.Schema | None:
        """The columns of the index, or of the nodules."""
        return INDEX if name == INDEX_FILE else RECORD_OF_CHANNELS if name.startswith("nodules/") else None

    def earlier_schemas_of(self, name: str) -> Sequence[pa.Schema]:
        """The columns that the index or the nodules had in earlier formats, and have where nodules have one channel."""
        return [format_1.INDEX] if name == INDEX_FILE else [RECORD, format_1.RECORD, format_2.RECORD]

    def damaged(self, name: str, why: object) -> InputError:
        """The error to raise where a file cannot be read."""
        return InputError(f"{self.path(name)}: cannot be read ({why}): damaged or incomplete")

    def note(self) -> dict:
        """``release.json``; raises InputError where it is missing or damaged."""
        try:
            return self.read_json(NOTE)
        except FileNotFoundError as error:
            raise InputError(f"{self.path(NOTE)}: is missing") from error


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

    place: ReleaseFolder
    index: list[dict]

    @classmethod
    def open(cls, path: str | Path) -> Release:
        """Open a release by its index; no nodule is read.

        Raises
        ------
        InputError
            There is no release at ``path``, or it is damaged or of a version this raymat does not know.
        """
        place = ReleaseFolder.at(path)
        if not place.exists(SUMS):
            raise InputError(f"{path}: no release here ({SUMS} is missing)")
        note = place.note()
        if note.get("format") != FORMAT or note.get("format_version") not in range(1, FORMAT_VERSION + 1):
            raise InputError(
                f"{path}: {note.get('format')} {note.get('format_version')}; this raymat reads "
                f"{FORMAT} {FORMAT_VERSION} and before"
            )
        return cls(place, place.read_table(INDEX_FILE).to_pylist())

    def __call__(self, position: int) -> Nodule:
        """The nodule at a position of the index, its one row group read."""
        row = self.index[position]
        record = self.place.read_table(row["file"], row_group=row["row"])
        if record["nodule_id"][0].as_py() != row["nodule_id"]:
            raise InputError(f"{self.place.path(row['file'])}: is not what the index says: damaged (raymat verify)")
        return nodule_of({name: record[name][0] for name in RECORD_OF_CHANNELS.names})

    def metadata(self, position: int) -> dict[str, object]:
        """The metadata of the nodule at a position of the index, no array read."""
        row = self.index[position]
        record = self.place.read_table(row["file"], ["metadata"], row["row"])
        try:
            found: dict[str, object] = json.loads(record["metadata"][0].as_py())
        except (ValueError, TypeError, RecursionError) as error:
            raise InputError(f"{self.place.path(row['file'])}: damaged ({error})") from error
        return found

    @property
    def digest(self) -> str:
        """What ``raymat release`` printed: the digest of the list of all digests."""
        return hashlib.sha256(self.place.read(SUMS)).hexdigest()

    def kind(self) -> str:
        """What alpha means in the chosen mattes, one of ``raymat.methods.ALPHA_KINDS``; "any" before format 3."""
        kinds = {row["kind"] or ANY for row in self.index}
        return kinds.pop() if len(kinds) == 1 else ANY

    def nodules(self, positions: Iterable[int]) -> Iterator[Nodule]:
        """The nodules at some positions, one in memory at a time."""
        return (self(position) for position in positions)
