"""The dataset on disk or in an object store: committed shards, manifest, outcomes. pyarrow alone, no Ray.

    OUT/dataset.json               what this folder is
    OUT/parameters.json            what the latest build was asked for
    OUT/manifest/*.parquet         every nodule of the source: reference and key
    OUT/nodules/ab/<shard>.parquet committed nodules (``raymat.nodule.SCHEMA``), one to a few dozen a file
    OUT/outcomes/*.parquet         the index: one small row a committed nodule, without arrays
    OUT/attempts/ab/<key>.*        marks of work under way, so that a nodule that kills its worker is known

A nodule's *key* is the digest of all that its record depends on; a shard is named by the digest of the keys in it. A
shard exists or it does not: on a local disk it is written beside its place and renamed, in an object store it is one
put. What is committed is therefore seen from a listing, and only files that no index part knows are opened. A thing
that was solved for another key of the same nodule is *superseded*: it stays until its successor is committed.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from raymat.nodule import FAILED, OUTCOMES, SCHEMA, InputError, Nodule, from_table

FORMAT = "raymat dataset"
FORMAT_VERSION = 1
PARAMETERS = "parameters.json"

MANIFEST = pa.schema(
    [
        ("nodule_id", pa.string()),
        ("patient_id", pa.string()),
        ("source", pa.string()),
        ("readers", pa.int32()),
        ("fingerprint", pa.string()),
        ("location", pa.string()),
        ("problem", pa.string()),
        ("key", pa.string()),
    ]
)

SOLVE = pa.struct(
    [
        ("method", pa.string()),
        ("seconds", pa.float64()),
        ("iterations", pa.int32()),
        ("converged", pa.bool_()),
        ("unknowns", pa.int64()),
        ("solver", pa.string()),
        ("score", pa.float64()),
    ]
)
OUTCOME = pa.schema(
    [
        ("nodule_id", pa.string()),
        ("patient_id", pa.string()),
        ("key", pa.string()),
        ("outcome", pa.string()),
        ("stage", pa.string()),
        ("reason", pa.string()),
        ("method", pa.string()),
        ("notes", pa.list_(pa.string())),
        ("shape", pa.list_(pa.int32())),
        ("solves", pa.list_(SOLVE)),
        ("shard", pa.string()),
    ]
)

SCHEMAS = {"manifest": MANIFEST, "outcomes": OUTCOME, "nodules": SCHEMA}  # by folder


def outcome_row(nodule: Nodule) -> dict:
    """The nodule's row of ``OUTCOME``, its shard still unnamed."""
    return {
        "nodule_id": nodule.nodule_id,
        "patient_id": nodule.patient_id,
        "key": nodule.key,
        "outcome": nodule.outcome,
        "stage": nodule.stage,
        "reason": nodule.reason,
        "method": nodule.method,
        "notes": list(nodule.notes),
        "shape": None if nodule.image is None else list(nodule.image.shape),
        "solves": [
            {name: getattr(matte, name) for name in ("method", "seconds", "iterations", "converged", "unknowns")}
            | {"solver": matte.solver, "score": matte.score}
            for matte in nodule.candidates
        ],
    }


def shard_name(keys: Iterable[str], suffix: str = "") -> str:
    """The path of a shard under the dataset's root; the same keys give the same name."""
    name = hashlib.blake2b("\n".join(sorted(keys)).encode(), digest_size=16).hexdigest()
    return f"nodules/{name[:2]}/{name}{suffix}.parquet"


def open_filesystem(path: str | Path) -> tuple[pafs.FileSystem, str]:
    """The pyarrow filesystem of a local path or URI (``s3://bucket/prefix``) and the path within it.

    Raises
    ------
    InputError
        The URI's scheme is unknown or its service cannot be set up.
    """
    text = str(path)
    if "://" not in text:
        return pafs.LocalFileSystem(), str(Path(text).expanduser().absolute())
    try:
        return pafs.FileSystem.from_uri(text)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise InputError(f"{text}: not a place that can be opened ({error})") from error


@dataclass
class Store:
    """A dataset under ``root`` of a filesystem; picklable, used by driver and workers alike."""

    filesystem: pafs.FileSystem
    root: str

    @classmethod
    def create(cls, path: str | Path) -> Store:
        """Open the dataset at ``path`` for writing, made where there is none.

        Raises
        ------
        InputError
            The place cannot be written, or holds something that is not a raymat dataset.
        """
        filesystem, root = open_filesystem(path)
        store = cls(filesystem, root)
        if not store.exists("dataset.json"):
            try:
                strangers = filesystem.get_file_info(pafs.FileSelector(root, allow_not_found=True))
            except OSError as error:
                raise InputError(f"{path}: cannot be written ({error})") from error
            if strangers:
                raise InputError(
                    f"{path}: holds {Path(strangers[0].path).name} and no raymat dataset; name a new or empty folder"
                )
            note = {"format": FORMAT, "format_version": FORMAT_VERSION}
            store.write("dataset.json", json.dumps(note, indent=1).encode())
        store.read_format()
        probe = f"attempts/writable-{uuid.uuid4().hex}"
        store.write(probe, b"")
        store.delete(probe)
        return store

    @classmethod
    def open(cls, path: str | Path) -> Store:
        """Open an existing dataset.

        Raises
        ------
        InputError
            There is no dataset at ``path``, or one of a version this raymat does not know.
        """
        filesystem, root = open_filesystem(path)
        store = cls(filesystem, root)
        if not store.exists("dataset.json"):
            raise InputError(f"{path}: no raymat dataset here (dataset.json is missing)")
        store.read_format()
        return store

    def read_format(self) -> dict:
        """``dataset.json``; raises InputError where it is damaged or of an unknown version."""
        try:
            note = json.loads(self.read("dataset.json"))
            known = note["format"] == FORMAT and note["format_version"] == FORMAT_VERSION
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise InputError(f"{self.root}/dataset.json: damaged ({error})") from error
        if not known:
            raise InputError(
                f"{self.root}: format {note['format']} {note.get('format_version')}; this raymat reads "
                f"{FORMAT} {FORMAT_VERSION}"
            )
        return note

    def path(self, name: str) -> str:
        return f"{self.root}/{name}"

    def exists(self, name: str) -> bool:
        try:
            return self.filesystem.get_file_info(self.path(name)).type != pafs.FileType.NotFound
        except OSError as error:
            raise InputError(f"{self.path(name)}: cannot be reached ({error})") from error

    def read(self, name: str) -> bytes:
        with self.filesystem.open_input_stream(self.path(name)) as stream:
            return stream.read()

    def write(self, name: str, data: bytes | pa.Buffer) -> None:
        """Write a file so that it is there whole or not at all.

        Raises
        ------
        InputError
            The store cannot be written (no permission, disk full, no connection).
        """
        path = self.path(name)
        try:
            if isinstance(self.filesystem, pafs.LocalFileSystem):
                self._write_and_rename(path, data)
            else:
                # An object appears when its upload completes: this is the one put.
                with self.filesystem.open_output_stream(path) as stream:
                    stream.write(data)
        except OSError as error:
            raise InputError(f"{path}: cannot be written ({error.strerror or error})") from error

    @staticmethod
    def _write_and_rename(path: str, data: bytes | pa.Buffer) -> None:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        temporary = f"{path}.{uuid.uuid4().hex[:12]}.tmp"
        try:
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            if os.path.exists(temporary):
                os.unlink(temporary)

    def delete(self, name: str) -> None:
        """Delete a file; one that is gone already is no error."""
        try:
            self.filesystem.delete_file(self.path(name))
        except FileNotFoundError:
            return
        except OSError:
            if self.exists(name):
                raise

    def listing(self, folder: str, suffix: str = "") -> list[str]:
        """Names (relative to the root) of the files below ``folder`` ("" for all), sorted; no unfinished writes."""
        below = self.path(folder) if folder else self.root
        selector = pafs.FileSelector(below, recursive=True, allow_not_found=True)
        start = len(self.root) + 1
        names = (
            info.path[start:] for info in self.filesystem.get_file_info(selector) if info.type == pafs.FileType.File
        )
        return sorted(name for name in names if name.endswith(suffix) and not name.endswith(".tmp"))

    def write_table(self, name: str, table: pa.Table) -> None:
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd", use_dictionary=False, write_statistics=False)
        self.write(name, sink.getvalue())

    def read_table(self, name: str, columns: Sequence[str] | None = None) -> pa.Table:
        try:
            file = pq.ParquetFile(self.filesystem.open_input_file(self.path(name)))
            schema = SCHEMAS.get(name.partition("/")[0])
            if schema is not None and not file.schema_arrow.equals(schema):
                raise self._damaged(name, "its columns are not those of such a file")
            table = file.read(columns=columns)
            table.validate(full=True)
        except (OSError, pa.ArrowException) as error:
            raise self._damaged(name, error) from error
        return table

    def _damaged(self, name: str, why: object) -> InputError:
        return InputError(f"{self.path(name)}: cannot be read ({why}); delete the file and build again to make it anew")

    # Manifest ---------------------------------------------------------------------------------------------------------

    def write_manifest(self, rows: Iterable[dict], part_rows: int = 50_000) -> int:
        """Write the manifest, part by part, and drop the parts of an earlier one. Returns the number of nodules."""
        before, written, count = set(self.listing("manifest", ".parquet")), set(), 0
        part: list[dict] = []

        def flush() -> None:
            table = pa.Table.from_pylist(part, schema=MANIFEST)
            name = f"manifest/{len(written):06d}-{_digest_of(table)}.parquet"
            self.write_table(name, table)
            written.add(name)
            part.clear()

        for row in rows:
            part.append(row)
            count += 1
            if len(part) == part_rows:
                flush()
        if part or not written:
            flush()
        for name in before - written:
            self.delete(name)
        return count

    def manifest_parts(self) -> list[str]:
        return self.listing("manifest", ".parquet")

    def manifest(self, columns: Sequence[str] | None = None) -> pa.Table:
        """The manifest's rows (``MANIFEST``)."""
        parts = [self.read_table(name, columns) for name in self.manifest_parts()]
        if not parts:
            raise InputError(f"{self.root}: no build was ever planned here (no manifest)")
        return pa.concat_tables(parts)

    # Commits and their index ------------------------------------------------------------------------------------------

    def commit(self, nodules: pa.Table, suffix: str = "") -> pa.Table:
        """Commit nodules (rows of ``raymat.nodule.SCHEMA``), all with their outcome, as one shard.

        ``suffix`` keeps the shard apart from another of the same nodules (a failed try from a later one).
        Returns their rows of ``OUTCOME``.
        """
        records = from_table(nodules, copy=False)
        for nodule in records:
            if nodule.outcome not in OUTCOMES or not nodule.key:
                raise ValueError(f"{nodule.nodule_id}: cannot be committed without an outcome and a key")
        name = shard_name((nodule.key for nodule in records), suffix)
        self.write_table(name, nodules)
        return pa.Table.from_pylist([outcome_row(nodule) | {"shard": name} for nodule in records], schema=OUTCOME)

    def add_to_index(self, outcomes: pa.Table) -> str:
        """Write rows of ``OUTCOME`` as a new index part. Returns its name."""
        name = f"outcomes/part-{_digest_of(outcomes)}.parquet"
        self.write_table(name, outcomes)
        return name

    def index(self) -> pa.Table:
        """``OUTCOME`` rows of all that is committed, one a key: the index parts and the shards they do not know."""
        shards = self.listing("nodules", ".parquet")
        parts = [self.read_table(name) for name in self.listing("outcomes", ".parquet")]
        known = pa.concat_tables([OUTCOME.empty_table(), *parts])
        unknown = sorted(set(shards) - set(known["shard"].unique().to_pylist()))
        if unknown:
            found = pa.concat_tables([self._outcomes_of_shard(name) for name in unknown])
            known = pa.concat_tables([known, found])
        known = known.filter(pc.is_in(known["shard"], pa.array(shards, pa.string())))
        return _one_row_a_key(known)

    def _outcomes_of_shard(self, name: str) -> pa.Table:
        small = [field.name for field in SCHEMA if field.name not in ("readers", "true_alpha", "trimap", "image")]
        columns = [name for name in small if name != "mattes"]
        columns += [f"mattes.list.element.{name}" for name in ("method", "seconds", "iterations", "converged")]
        columns += [f"mattes.list.element.{name}" for name in ("unknowns", "solver", "score")]
        rows = self.read_table(name, [*columns, "image.shape"]).to_pylist()
        return pa.Table.from_pylist(
            [
                {k: row[k] for k in OUTCOME.names if k in row}
                | {"shape": (row["image"] or {}).get("shape"), "solves": row["mattes"] or [], "shard": name}
                for row in rows
            ],
            schema=OUTCOME,
        )

    def compact_index(self) -> pa.Table:
        """Rewrite the index as one part; the old parts go once it stands. Returns the rows."""
        rows = self.index()
        before = self.listing("outcomes", ".parquet")
        name = self.add_to_index(rows)
        for old in before:
            if old != name:
                self.delete(old)
        return rows

    def outcomes(self) -> pa.Table:
        """``OUTCOME`` rows of the manifest's nodules, in the manifest's order; nodules not yet committed are absent."""
        keys = self.manifest(["key"]).combine_chunks()
        rows = self.index()
        position = pc.index_in(keys["key"], rows["key"].combine_chunks())
        return rows.take(position.drop_null())

    def remove_superseded(self) -> int:
        """Remove shards whose nodules all stand under the manifest's key in another shard. Returns how many.

        Nodules that the manifest no longer names stay: a source that is half mounted must not cost any work.
        """
        manifest = self.manifest(["nodule_id", "key"])
        current = {row["nodule_id"]: row["shard"] for row in self.outcomes().select(["nodule_id", "shard"]).to_pylist()}
        shards = self.listing("nodules", ".parquet")
        if len(shards) == len(set(current.values())) and manifest.num_rows == len(current):
            return 0
        removed = 0
        for name in set(shards) - set(current.values()):
            nodules = self.read_table(name, ["nodule_id"])["nodule_id"].to_pylist()
            if all(nodule in current for nodule in nodules):
                self.delete(name)
                removed += 1
        return removed

    def find(self, nodule_id: str) -> Nodule:
        """The nodule of that id, arrays and all.

        Raises
        ------
        InputError
            The dataset has no such nodule, or it is not built yet.
        """
        rows = self.outcomes()
        rows = rows.filter(pc.equal(rows["nodule_id"], nodule_id)).select(["key", "shard"]).to_pylist()
        if not rows:
            raise InputError(f"{self.root}: no nodule {nodule_id} (see `raymat inspect` for those there are)")
        return self.read_committed(rows[0]["key"], rows[0]["shard"])

    def read_committed(self, key: str, shard: str) -> Nodule:
        """The nodule of that key from its shard."""
        for nodule in self.read_shard(shard):
            if nodule.key == key:
                return nodule
        raise InputError(f"{self.path(shard)}: is not what the index says; delete {self.root}/outcomes to mend it")

    def size_bytes(self) -> int:
        """Bytes of all committed shards."""
        selector = pafs.FileSelector(self.path("nodules"), recursive=True, allow_not_found=True)
        return sum(info.size or 0 for info in self.filesystem.get_file_info(selector))

    def read_shard(self, name: str) -> list[Nodule]:
        """The nodules of a shard, arrays and all."""
        table = self.read_table(name)
        try:
            return from_table(table)
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            # Sound Parquet of the right columns, in which an array or a text is not what its nodule needs.
            raise self._damaged(name, error) from error

    # Marks of work under way ------------------------------------------------------------------------------------------

    def begin_attempt(self, key: str, stage: str, session: str) -> list[float]:
        """Mark that work on ``key`` begins; returns how many seconds ago each open try of this session began, this one
        last."""
        folder = f"attempts/{key[:2]}/{key}"
        self.write(f"{folder}/{session}-{stage}-{time.time_ns():020d}-{uuid.uuid4().hex[:8]}", b"")
        begun = sorted(int(name.rsplit("-", 2)[1]) for name in self._marks(folder, f"{session}-"))
        return [(time.time_ns() - at) / 1e9 for at in begun]

    def end_attempts(self, key: str, stage: str, session: str) -> None:
        """Take back the marks of a stage that came to its end."""
        for name in self._marks(f"attempts/{key[:2]}/{key}", f"{session}-{stage}-"):
            self.delete(name)

    def _marks(self, folder: str, start: str) -> list[str]:
        return [name for name in self.listing(folder) if name.startswith(f"{folder}/{start}")]


def _digest_of(table: pa.Table) -> str:
    hasher = hashlib.blake2b(digest_size=16)
    for column in table.columns:
        hasher.update(repr(column.to_pylist()).encode())
    return hasher.hexdigest()


def _one_row_a_key(rows: pa.Table) -> pa.Table:
    # A key can stand in two shards: after a fault between commit and report (equal copies, any will do), or where a
    # nodule failed and was tried again (what did not fail wins, then the latest try: the greatest shard name).
    if rows.num_rows == 0:
        return rows
    failed = pc.equal(rows["outcome"], FAILED)
    order = [("key", "ascending"), ("failed", "ascending"), ("shard", "descending")]
    rows = rows.take(pc.sort_indices(rows.append_column("failed", failed), order))
    keys = rows["key"].to_numpy(zero_copy_only=False)
    return rows.filter(pa.array(np.r_[True, keys[1:] != keys[:-1]]))
