"""The dataset on disk or in an object store: committed shards, manifest, outcomes. pyarrow alone, no Ray.

    OUT/dataset.json               what this folder is
    OUT/parameters.json            what the latest build was asked for
    OUT/manifest/*.parquet         every nodule of the source: reference and key
    OUT/nodules/ab/<shard>.parquet committed nodules (``raymat.nodule.SCHEMA``), one or several per file
    OUT/outcomes/*.parquet         the index: one small row per committed nodule, without arrays
    OUT/worklist/*.parquet         what a running build has to do; none after it
    OUT/died/<key>                 how often a nodule was tried that killed a worker and has no outcome yet

A nodule's *key* is the digest of all that its record depends on; a shard is named by the digest of the keys in it. A
shard exists or it does not: on a local disk it is written beside its place and renamed, in an object store it is one
put. What is committed is therefore seen from a listing, and only files that no index part knows are opened. A thing
that was solved for another key of the same nodule is *superseded*: it stays until its successor is committed.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from raymat import format_1, format_2
from raymat.arrow import Row, small_fields, to_row
from raymat.folder import Folder, as_parquet
from raymat.methods import ANY, METHODS, kind_of
from raymat.nodule import (
    ACCEPTED,
    FAILED,
    OUTCOMES,
    REJECTED,
    SCHEMA,
    SCHEMA_OF_CHANNELS,
    InputError,
    Matte,
    Nodule,
    from_table,
    to_table,
)
from raymat.places import open_filesystem
from raymat.words import utf8

FORMAT = "raymat dataset"
FORMAT_VERSION = 3
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
        ("notes", pa.list_(pa.string())),
        ("key", pa.string()),
    ]
)

# A row of the index: what is small of a nodule and of its mattes.
SOLVE = pa.struct(small_fields(Matte))
OUTCOME = pa.schema(
    [
        *small_fields(Nodule),
        ("shape", pa.list_(pa.int32())),
        ("solves", pa.list_(SOLVE)),
        ("shard", pa.string()),
    ]
)

# What decides and reports read of the index; the rest, ten times as large, is read part by part where it is asked for.
BRIEF = ("nodule_id", "patient_id", "key", "outcome", "stage", "reason", "method", "shard")
PART_ROWS = 50_000
DELETIONS = 16  # at once
ROWS_AT_ONCE = 2_000

_PLACES = {method: place for place, method in enumerate(METHODS)}  # decides between equal scores
SCHEMAS = {"manifest": MANIFEST, "outcomes": OUTCOME, "nodules": SCHEMA_OF_CHANNELS}  # by folder


def counts(column: pa.ChunkedArray) -> Counter[str]:
    """How often each text stands in a column; nulls left out."""
    frequencies = pc.value_counts(column.drop_null())
    return Counter(
        dict(zip(frequencies.field("values").to_pylist(), frequencies.field("counts").to_pylist(), strict=True))
    )


def outcome_row(nodule: Nodule) -> Row:
    """The nodule's row of ``OUTCOME``, its shard still unnamed."""
    solved = [field.name for field in SOLVE]
    return {
        **to_row(nodule, OUTCOME.names),
        "shape": None if nodule.image is None else list(nodule.image.shape),
        "solves": [to_row(matte, solved) for matte in nodule.candidates],
    }


def shard_name(keys: Iterable[str], suffix: str = "") -> str:
    """The path of a shard under the dataset's root; the same keys give the same name."""
    name = hashlib.blake2b("\n".join(sorted(keys)).encode(), digest_size=16).hexdigest()
    return f"nodules/{name[:2]}/{name}{suffix}.parquet"


class Store(Folder):
    """A dataset: a folder with a manifest, shards of nodules and an index of their outcomes."""

    formerly = format_2.FORMERLY

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
            strangers = store._find("", recursive=False)
            if strangers:
                raise InputError(
                    f"{path}: holds {Path(strangers[0].path).name} and no raymat dataset; name a new or empty folder"
                )
            store._write_format()
        store.raise_format()
        probe = f"writable-{uuid.uuid4().hex}"
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

    def read_format(self) -> dict[str, object]:
        """``dataset.json``; raises InputError where it is damaged or of an unknown version."""
        try:
            note: dict[str, object] = json.loads(self.read("dataset.json"))
            known = note["format"] == FORMAT and note["format_version"] in range(1, FORMAT_VERSION + 1)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise InputError(f"{self.root}/dataset.json: damaged ({error})") from error
        if not known:
            raise InputError(
                f"{self.root}: format {note['format']} {note.get('format_version')}; this raymat reads "
                f"{FORMAT} {FORMAT_VERSION}"
            )
        return note

    def raise_format(self) -> None:
        """Make a dataset of an earlier format one of today's: from now on there may be files in it of today's alone."""
        if self.read_format()["format_version"] != FORMAT_VERSION:
            self._write_format()

    def _write_format(self) -> None:
        self.write_json("dataset.json", {"format": FORMAT, "format_version": FORMAT_VERSION})

    def schema_of(self, name: str) -> pa.Schema | None:
        """The columns of the dataset's own tables."""
        return SCHEMAS.get(name.partition("/")[0])

    def earlier_schemas_of(self, name: str) -> Sequence[pa.Schema]:
        """The columns that such a table had in earlier formats, and has where nodules have one channel."""
        folder = name.partition("/")[0]
        earlier = {"nodules": SCHEMA}, format_1.SCHEMAS, format_2.SCHEMAS
        return [schemas[folder] for schemas in earlier if folder in schemas]

    def damaged(self, name: str, why: object) -> InputError:
        """The error to raise where a file cannot be read."""
        return InputError(f"{self.path(name)}: cannot be read ({why}); delete the file and build again to replace it")

    # Manifest ---------------------------------------------------------------------------------------------------------

    def write_manifest(self, rows: Iterable[Mapping[str, object]], part_rows: int = PART_ROWS) -> int:
        """Write the manifest, part by part, and drop the parts of an earlier one. Returns the number of nodules."""
        before, count = set(self.listing("manifest", ".parquet")), 0
        written: set[str] = set()
        rows = iter(rows)
        while part := self._next_rows(rows, part_rows):
            data = as_parquet(pa.concat_tables(part))
            name = f"manifest/{len(written):06d}-{_digest_of(data)}.parquet"
            if name not in before:
                self.write(name, data)
            written.add(name)
            count += sum(table.num_rows for table in part)
        if not written:
            name = f"manifest/{0:06d}-none.parquet"
            self.write_table(name, MANIFEST.empty_table())
            written.add(name)
        self.delete_many(before - written)
        # Else Arrow would keep what the parts took, for the life of the driver.
        pa.default_memory_pool().release_unused()
        return count

    @staticmethod
    def _next_rows(rows: Iterator[Mapping[str, object]], count: int) -> list[pa.Table]:
        # A few thousand at a time: as Python's objects they are ten times as large as in a table.
        taken = []
        for size in [ROWS_AT_ONCE] * (count // ROWS_AT_ONCE) + [count % ROWS_AT_ONCE]:
            some = [_in_utf8(row) for row in islice(rows, size)]
            if some:
                taken.append(pa.Table.from_pylist(some, schema=MANIFEST))
        return taken

    def manifest_parts(self) -> list[str]:
        """The names of the manifest's files, in its order."""
        return self.listing("manifest", ".parquet")

    def source_digest(self) -> str:
        """A digest of what the manifest's nodules are read from; equal for equal input."""
        hasher = hashlib.blake2b(digest_size=16)
        for name in self.manifest_parts():
            for column in self.read_table(name, ["nodule_id", "fingerprint"]).columns:
                hasher.update("\n".join(column.to_pylist()).encode())
        return hasher.hexdigest()

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
        # One nodule per row group, so that one can be read of many.
        self.write(name, as_parquet(nodules, row_group_size=1))
        return pa.Table.from_pylist([outcome_row(nodule) | {"shard": name} for nodule in records], schema=OUTCOME)

    def commit_nodules(self, nodules: Sequence[Nodule], session: str) -> pa.Table:
        """Commit nodules together, each that failed in a file of its own. Returns their rows of ``OUTCOME``.

        The name of a failed one contains the session, so that a later success can take its place.
        """
        sound = [nodule for nodule in nodules if nodule.outcome != FAILED]
        commits = [self.commit(to_table(sound))] if sound else []
        failed = [nodule for nodule in nodules if nodule.outcome == FAILED]
        commits += [self.commit(to_table([nodule]), suffix=f"-{session}") for nodule in failed]
        return pa.concat_tables(commits)

    def recall(self, nodules: Sequence[Nodule], session: str) -> list[pa.Table]:
        """The rows of ``OUTCOME`` of those nodules (their keys are enough) that have a file of their own already."""
        rows = []
        for nodule in nodules:
            names = [shard_name([nodule.key], suffix) for suffix in ("", f"-{session}")]
            rows += [self.outcomes_of_shard(name) for name in names if self.exists(name)][:1]
        return rows

    def add_to_index(self, outcomes: pa.Table) -> str:
        """Write rows of ``OUTCOME`` as a new index part. Returns its name."""
        data = as_parquet(outcomes)
        name = f"outcomes/part-{_digest_of(data)}.parquet"
        self.write(name, data)
        return name

    def index(self, columns: Sequence[str] = OUTCOME.names) -> pa.Table:
        """Columns of ``OUTCOME`` of all that is committed, a row a key: of the index and the shards unknown to it."""
        # These decide which of two rows of one key stands.
        needed = list(dict.fromkeys([*columns, "key", "outcome", "shard"]))
        known = self._indexed(needed)
        return _one_row_per_key(known).select(list(columns))

    def method_lists(self) -> set[tuple[str, ...]]:
        """The methods of the committed nodules, in the order of their mattes; each such list once."""
        lists: set[tuple[str, ...]] = set()
        indexed = []
        for name in self.listing("outcomes", ".parquet"):
            rows = self.read_table(name, ["shard", "solves.list.element.method"])
            indexed.append(rows["shard"])
            solves = rows["solves"].combine_chunks()
            methods = pa.ListArray.from_arrays(solves.offsets, solves.values.field("method"))
            lists.update(tuple(text.split(" ")) for text in pc.binary_join(methods, " ").unique().to_pylist())
        for name in self._not_among(indexed):
            solved = self.outcomes_of_shard(name)["solves"].to_pylist()
            lists.update(tuple(solve["method"] for solve in solves) for solves in solved)
        return lists - {(), ("",)}

    def _not_among(self, indexed: Sequence[pa.ChunkedArray]) -> list[str]:
        """The shards that no part of the index names; ``indexed`` has the column ``shard`` of every part."""
        shards = pa.array(self.listing("nodules", ".parquet"), pa.string())
        known = pa.chunked_array([chunk for column in indexed for chunk in column.chunks], pa.string())
        names: list[str] = shards.filter(pc.invert(pc.is_in(shards, known.unique()))).to_pylist()
        return names

    def _indexed(self, columns: list[str]) -> pa.Table:
        """All rows of the index and of the shards that it does not know; those of deleted shards left out."""
        shards = pa.array(self.listing("nodules", ".parquet"), pa.string())
        parts = [self.read_table(name, columns) for name in self.listing("outcomes", ".parquet")]
        known = pa.concat_tables([OUTCOME.empty_table().select(columns), *parts])
        unknown = shards.filter(pc.invert(pc.is_in(shards, known["shard"].unique())))
        missing = [self.outcomes_of_shard(name).select(columns) for name in unknown.to_pylist()]
        known = pa.concat_tables([known, *missing])
        return known.filter(pc.is_in(known["shard"], shards))

    def outcomes_of_shard(self, name: str) -> pa.Table:
        """Rows of ``OUTCOME`` of a shard's nodules, no array read."""
        small = [name for name in OUTCOME.names if name in SCHEMA.names]
        small += [f"mattes.list.element.{field.name}" for field in SOLVE]
        rows = self.read_table(name, [*small, "image.shape"]).to_pylist()
        return pa.Table.from_pylist(
            [
                {k: row[k] for k in OUTCOME.names if k in row}
                | {"shape": (row["image"] or {}).get("shape"), "solves": row["mattes"] or [], "shard": name}
                for row in rows
            ],
            schema=OUTCOME,
        )

    def compact_index(self, part_rows: int = PART_ROWS) -> None:
        """Make large parts of small ones, of those of which half is deleted, and of shards that no part knows.

        Large parts stay as they are and one new part is in memory at a time, whatever the size of the dataset. The old
        parts go once the new ones stand.
        """
        shards = pa.array(self.listing("nodules", ".parquet"), pa.string())
        replaced, seen = set(), []
        gathered = OUTCOME.empty_table()
        written = set()

        def gather(rows: pa.Table, last: bool = False) -> None:
            nonlocal gathered
            gathered = pa.concat_tables([gathered, rows])
            while gathered.num_rows >= part_rows or (last and gathered.num_rows):
                written.add(self.add_to_index(gathered.slice(0, part_rows).combine_chunks()))
                gathered = gathered.slice(part_rows)

        for name in self.listing("outcomes", ".parquet"):
            alive = pc.is_in(self.read_table(name, ["shard"])["shard"], shards)
            if (pc.sum(alive).as_py() or 0) < part_rows / 2:
                rows = self.read_table(name).filter(alive)
                gather(rows)
                replaced.add(name)
            else:
                rows = self.read_table(name, ["shard"]).filter(alive)
            seen.append(rows["shard"].unique())
        known = pa.chunked_array(seen, pa.string())
        for name in shards.filter(pc.invert(pc.is_in(shards, known))).to_pylist():
            gather(self.outcomes_of_shard(name))
        gather(OUTCOME.empty_table(), last=True)
        self.delete_many(replaced - written)

    def outcomes(self, columns: Sequence[str] = OUTCOME.names) -> pa.Table:
        """Columns of ``OUTCOME`` of the manifest's nodules, in its order; nodules not yet committed are absent."""
        keys = self.manifest(["key"])["key"].combine_chunks()
        rows = self.index(list(dict.fromkeys([*columns, "key"])))
        position = pc.index_in(keys, rows["key"].combine_chunks())
        return rows.take(position.drop_null()).select(list(columns))

    def kind(self) -> str:
        """What alpha means in the chosen mattes, one of ``raymat.methods.ALPHA_KINDS``; "any" before format 3."""
        rows = self.outcomes(["kind", "outcome"])
        # A nodule that was never judged, as one that killed its worker, need not say it.
        judged = pc.is_in(rows["outcome"], pa.array([ACCEPTED, REJECTED]))
        kinds = rows["kind"].filter(judged).drop_null().unique().to_pylist()
        return str(kinds[0]) if len(kinds) == 1 else ANY

    def solves(self, outcomes: pa.Table) -> Iterator[pa.Table]:
        """The solves (fields of ``SOLVE``) of nodules, index part by index part.

        ``outcomes`` has the nodules' ``key`` and ``shard``.
        """
        for rows in self._solved(outcomes):
            yield pa.Table.from_struct_array(pc.list_flatten(rows["solves"].combine_chunks()))

    def best_methods(self, kind: str, outcomes: pa.Table) -> Counter[str]:
        """How often each method has the best matte of a kind (``Nodule.best``) of a nodule that has one of that kind.

        ``outcomes`` has the ``key`` and ``shard`` of nodules for which a matte was chosen.
        """
        found: Counter[str] = Counter()
        for rows in self._solved(outcomes):
            found += counts(_best_of_each(rows, kind))
        return found

    def _solved(self, outcomes: pa.Table) -> Iterator[pa.Table]:
        """The columns ``method`` and ``solves`` of nodules: of each part of the index, then of shards unknown to it."""
        wanted = _key_and_shard(outcomes)
        for rows in self._parts(["key", "shard", "method", "solves"]):
            rows = rows.filter(pc.is_in(_key_and_shard(rows), wanted)).combine_chunks()
            if rows.num_rows:
                yield rows

    def _parts(self, columns: list[str]) -> Iterator[pa.Table]:
        """The index part by part, then the rows of each shard unknown to it; ``columns`` has ``shard``."""
        indexed = []
        for name in self.listing("outcomes", ".parquet"):
            rows = self.read_table(name, columns)
            indexed.append(rows["shard"])
            yield rows
        for name in self._not_among(indexed):
            yield self.outcomes_of_shard(name).select(columns)

    def remove_superseded(self) -> int:
        """Remove shards whose nodules all stand under the manifest's key in another shard. Returns how many.

        Nodules that the manifest no longer names stay: a source that is half mounted must not cost any work.
        """
        current = self.outcomes(["nodule_id", "shard"])
        rows = self._indexed(["nodule_id", "shard"])
        rows = rows.filter(pc.invert(pc.is_in(rows["shard"], current["shard"].unique())))
        needed = rows.filter(pc.invert(pc.is_in(rows["nodule_id"], current["nodule_id"])))["shard"]
        superseded = rows["shard"].unique()
        superseded = superseded.filter(pc.invert(pc.is_in(superseded, needed.unique())))
        self.delete_many(superseded.to_pylist())
        return len(superseded)

    def find(self, nodule_id: str) -> Nodule:
        """The nodule of that id, arrays and all.

        Raises
        ------
        InputError
            The dataset has no such nodule, or it is not built yet.
        """
        rows = self.outcomes(["nodule_id", "key", "shard"])
        rows = rows.filter(pc.equal(rows["nodule_id"], nodule_id)).to_pylist()
        if not rows:
            raise InputError(f"{self.root}: no nodule {nodule_id} (see `raymat inspect` for those there are)")
        return self.read_committed(rows[0]["key"], rows[0]["shard"])

    def read_committed(self, key: str, shard: str) -> Nodule:
        """The nodule of that key from its shard, of which no other is read."""
        keys = self.read_table(shard, ["key"])["key"].to_pylist()
        if key not in keys:
            raise InputError(f"{self.path(shard)}: is not what the index says; delete {self.root}/outcomes to mend it")
        for nodule in self._nodules(shard, self.read_table(shard, row_group=keys.index(key))):
            if nodule.key == key:
                return nodule
        raise InputError(f"{self.path(shard)}: holds no nodule {key}; delete the file and build again")

    def size_bytes(self) -> int:
        """Bytes of all committed shards."""
        return sum(info.size or 0 for info in self._find("nodules"))

    def read_shard(self, name: str) -> list[Nodule]:
        """The nodules of a shard, arrays and all."""
        return self._nodules(name, self.read_table(name))

    def _nodules(self, name: str, table: pa.Table) -> list[Nodule]:
        try:
            return from_table(table)
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            # Sound Parquet of the right columns, in which an array or a text is not what its nodule needs.
            raise self.damaged(name, error) from error


def _in_utf8(row: Mapping[str, object]) -> Row:
    """The row with its texts as Arrow can hold them: they came from paths and tables."""
    return {name: utf8(value) if isinstance(value, str) else value for name, value in row.items()}


def _digest_of(data: pa.Buffer) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _key_and_shard(rows: pa.Table) -> pa.ChunkedArray:
    return pc.binary_join_element_wise(rows["key"], rows["shard"], " ")


def _best_of_each(rows: pa.Table, kind: str) -> pa.ChunkedArray:
    """The method of the best matte of a kind of each nodule that has one; of one part of the index."""
    solves = pa.Table.from_struct_array(pc.list_flatten(rows["solves"].combine_chunks()))
    nodule = pc.list_parent_indices(rows["solves"])
    names = solves["method"].unique()
    number = pc.index_in(solves["method"], names)
    by_name = pa.array([kind_of(name) for name in names.to_pylist()], pa.string())
    places = pa.array([_PLACES.get(name, len(_PLACES)) for name in names.to_pylist()], pa.int64())
    table = pa.table(
        {
            "nodule": nodule,
            "method": solves["method"],
            "score": solves["score"],
            "chosen": pc.equal(solves["method"], rows["method"].take(nodule)),
            "place": places.take(number),
        }
    ).filter(pc.equal(pc.coalesce(solves["kind"], by_name.take(number)), kind))
    order = [("nodule", "ascending"), ("chosen", "descending"), ("score", "descending"), ("place", "ascending")]
    return table.sort_by(order).group_by("nodule", use_threads=False).aggregate([("method", "first")])["method_first"]


def _one_row_per_key(rows: pa.Table) -> pa.Table:
    # A key can stand in two shards: after a fault between commit and report (equal copies, any will do), or where a
    # nodule failed and was tried again (what did not fail wins, then the latest try: the greatest shard name).
    if rows.num_rows == 0:
        return rows
    failed = pc.equal(rows["outcome"], FAILED)
    order = [("key", "ascending"), ("failed", "ascending"), ("shard", "descending")]
    rows = rows.take(pc.sort_indices(rows.append_column("failed", failed).select(["key", "failed", "shard"]), order))
    keys = rows["key"].combine_chunks()
    first = pa.concat_arrays([pa.array([True]), pc.not_equal(keys[1:], keys[:-1])])
    return rows if pc.all(first).as_py() else rows.filter(first)
