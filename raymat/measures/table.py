"""Rows of measures as a table with units, and the file of it: Parquet, or CSV with its metadata beside it.

Parquet has unit and meaning in the metadata of every field. CSV has no place for them: they are in
``NAME.csv-metadata.json``, as the W3C's Metadata Vocabulary for Tabular Data names and forms that file.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raymat.errors import InputError
from raymat.folder import Folder
from raymat.measures.dictionary import COUNT, MEASURES, NUMBER, NUMBERS, TEXT, TEXTS, Measure

TYPES = {
    NUMBER: pa.float64(),
    COUNT: pa.int32(),
    TEXT: pa.string(),
    NUMBERS: pa.list_(pa.float64()),
    TEXTS: pa.list_(pa.string()),
}
W3C_TYPES = {NUMBER: "number", COUNT: "integer", TEXT: "string", NUMBERS: "number", TEXTS: "string"}
SEPARATOR = ";"
CSV, PARQUET = ENDINGS = (".csv", ".parquet")


def schema_of(measures: Mapping[str, Measure]) -> pa.Schema:
    """The Arrow schema of columns, each field with its unit and meaning."""
    return pa.schema(
        pa.field(name, TYPES[one.type], metadata={"unit": one.unit, "description": one.meaning})
        for name, one in measures.items()
    )


SCHEMA = schema_of(MEASURES)


def as_table(
    rows: Iterable[Mapping[str, object]], about: Mapping[str, str], measures: Mapping[str, Measure] = MEASURES
) -> pa.Table:
    """Rows as a table, NaN as null; ``about`` becomes the table's metadata."""
    schema = schema_of(measures).with_metadata(dict(about))
    return pa.Table.from_pylist([{name: _plain(value) for name, value in row.items()} for row in rows], schema=schema)


def _plain(value: object) -> object:
    return None if isinstance(value, float) and math.isnan(value) else value


@dataclass(frozen=True)
class TableFile:
    """A file for a table: its folder and its name, which ends with .csv or .parquet."""

    folder: Folder
    name: str

    @classmethod
    def at(cls, path: str) -> TableFile:
        """The file at a path or URI.

        Raises
        ------
        InputError
            Its name has another ending, or the place cannot be opened.
        """
        if not path.endswith(ENDINGS):
            raise InputError(f"{path}: a table is written as {' or '.join(ENDINGS)}; give the file one of them")
        folder, _, name = path.rpartition("/")
        return cls(Folder.at(folder or ("/" if path.startswith("/") else ".")), name)

    def write(self, table: pa.Table) -> list[str]:
        """Write the table, whole or not at all; the names of the files.

        Raises
        ------
        InputError
            The folder cannot be written.
        """
        if self.name.endswith(PARQUET):
            buffer = io.BytesIO()
            pq.write_table(table, buffer, compression="zstd")
            self.folder.write(self.name, buffer.getvalue())
            return [self.name]
        beside = f"{self.name}-metadata.json"
        self.folder.write(beside, json.dumps(metadata_of(self.name, table), indent=1).encode())
        self.folder.write(self.name, as_csv(table).encode())
        return [self.name, beside]


def as_csv(table: pa.Table) -> str:
    """The table as CSV: numbers with six digits, lists separated by ";", nothing for null."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(table.column_names)
    for batch in table.to_batches(max_chunksize=1_000):
        writer.writerows([_cell(row[name]) for name in table.column_names] for row in batch.to_pylist())
    return out.getvalue()


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, list):
        return SEPARATOR.join(_cell(one).replace(SEPARATOR, ",") for one in value)
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def metadata_of(name: str, table: pa.Table) -> dict[str, object]:
    """What the W3C's vocabulary says of a CSV file: each column's type, unit and meaning."""
    columns = []
    for field in table.schema:
        about = {key.decode(): value.decode() for key, value in (field.metadata or {}).items()}
        kind = next(kind for kind, arrow in TYPES.items() if arrow == field.type)
        column: dict[str, object] = {"name": field.name, "datatype": W3C_TYPES[kind]}
        column["dc:description"] = about["description"]
        if about["unit"]:
            column["schema:unitText"] = about["unit"]
        if kind in (NUMBERS, TEXTS):
            column["separator"] = SEPARATOR
        columns.append(column)
    about = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
    return {
        "@context": ["http://www.w3.org/ns/csvw", {"@language": "en"}],
        "url": name,
        "dc:source": about,
        "tableSchema": {"columns": columns},
    }


def read_table(path: str) -> pa.Table:
    """A table that ``TableFile.write`` wrote, as Parquet or CSV; its columns that raymat knows, with their types.

    Raises
    ------
    InputError
        There is no such file, or it is no table of measures.
    """
    file = TableFile.at(path)
    try:
        data = file.folder.read(file.name)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    try:
        if file.name.endswith(PARQUET):
            found = pq.read_table(io.BytesIO(data))
            names = [name for name in found.column_names if name in SCHEMA.names]
            return found.select(names)
        rows = list(csv.DictReader(io.StringIO(data.decode(), newline="")))
        names = [name for name in (rows[0] if rows else ()) if name in SCHEMA.names]
        parsed = [{name: _parsed(row[name], MEASURES[name].type) for name in names} for row in rows]
        return pa.Table.from_pylist(parsed, schema=pa.schema([SCHEMA.field(name) for name in names]))
    except (ValueError, TypeError, UnicodeDecodeError, pa.ArrowException) as error:
        raise InputError(f"{path}: is no table of measures ({error}); write it again with raymat measure") from error


STORED = "measures.parquet"  # of a dataset, in its folder
DIGEST = "dataset_digest"
PERCENTS = (5, 25, 50, 75, 95)
# Of a nodule, as pages and sheets show them.
SHOWN = (
    "volume_mm3",
    "volume_estimate_mm3",
    "mean_diameter_mm",
    "tissue_mass_mg",
    "solid_share",
    "sphericity",
    "border_width_mm",
)


def stored_measures(dataset: Folder, digest: str) -> pa.Table | None:
    """The measures that lie in a dataset's folder; None where there are none, or they are of other nodules.

    Parameters
    ----------
    digest : of the keys of the accepted nodules, ``raymat.sources.digest`` of them in order

    Raises
    ------
    InputError
        The file is damaged.
    """
    if not dataset.exists(STORED):
        return None
    try:
        table = pq.read_table(io.BytesIO(dataset.read(STORED)))
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{dataset.path(STORED)}: cannot be read ({error}); run raymat measure again") from error
    return table if (table.schema.metadata or {}).get(DIGEST.encode()) == digest.encode() else None


def distribution_rows(table: pa.Table) -> list[tuple[str, ...]]:
    """Name with unit, number of nodules and percentiles of each of ``SHOWN`` that a nodule has, as texts."""
    rows = []
    for name in SHOWN:
        known = table[name].drop_null().to_numpy()
        if len(known):
            unit = MEASURES[name].unit
            words = name.removesuffix(f"_{unit}").replace("_", " ") + ("" if unit == "1" else f", {unit}")
            rows.append((words, str(len(known)), *(f"{part:.3g}" for part in np.percentile(known, PERCENTS))))
    return rows


DISTRIBUTION_HEAD = ("measure", "nodules", *(f"{percent} %" for percent in PERCENTS))


def _parsed(text: str, kind: str) -> object:
    if kind in (NUMBERS, TEXTS):
        parts = text.split(SEPARATOR) if text else []
        return [float(part) for part in parts] if kind == NUMBERS else parts
    if not text:
        return None
    return float(text) if kind == NUMBER else int(text) if kind == COUNT else text
