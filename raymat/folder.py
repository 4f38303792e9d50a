"""A folder on a disk or in an object store, whose files are there whole or not at all. pyarrow alone, no Ray."""

from __future__ import annotations

import contextlib
import json
import os
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from raymat.arrow import conform
from raymat.errors import InputError
from raymat.places import NotWritten, Unreachable, open_filesystem, store_error

DELETIONS = 16  # at once


@dataclass
class Folder:
    """The files below ``root`` of a filesystem; picklable, used by driver and workers alike."""

    filesystem: pafs.FileSystem
    root: str

    @classmethod
    def at(cls, path: str | Path) -> Self:
        """The folder at a path or URI, whether there is one or not.

        Raises
        ------
        InputError
            The URI cannot be opened.
        """
        return cls(*open_filesystem(path))

    @property
    def is_local(self) -> bool:
        """Whether the dataset lies on a disk, not in an object store."""
        return isinstance(self.filesystem, pafs.LocalFileSystem)

    def path(self, name: str) -> str:
        """The path of a name on the filesystem."""
        return f"{self.root}/{name}"

    def exists(self, name: str) -> bool:
        """Whether there is such a file or folder."""
        with self._answering(name):
            return bool(self.filesystem.get_file_info(self.path(name)).type != pafs.FileType.NotFound)

    def read(self, name: str) -> bytes:
        """The bytes of a file; raises FileNotFoundError where it is not there, InputError where it cannot be read."""
        with self._answering(name), self.filesystem.open_input_stream(self.path(name)) as stream:
            return bytes(stream.read())

    @contextlib.contextmanager
    def _answering(self, name: str) -> Iterator[None]:
        """What the store itself does wrong as an InputError; a file that is not there stays a FileNotFoundError."""
        try:
            yield
        except FileNotFoundError:
            raise
        except OSError as error:
            known = store_error(self.path(name), error)
            raise known or InputError(f"{self.path(name)}: cannot be reached ({error.strerror or error})") from error

    def write(self, name: str, data: bytes | pa.Buffer) -> None:
        """Write a file so that it is there whole or not at all.

        Raises
        ------
        NotWritten, Unreachable
            The store cannot be written (no permission, disk full, no connection).
        """
        path = self.path(name)
        try:
            if self.is_local:
                self._write_and_rename(path, data)
            else:
                # An object appears when its upload completes: this is the one put.
                with self.filesystem.open_output_stream(path) as stream:
                    stream.write(data)
        except OSError as error:
            known = store_error(path, error)
            raise known or NotWritten(f"{path}: cannot be written ({error.strerror or error})") from error

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
        with contextlib.suppress(FileNotFoundError), self._answering(name):
            self.filesystem.delete_file(self.path(name))

    def delete_many(self, names: Iterable[str]) -> None:
        """Delete files, several at once."""
        with ThreadPoolExecutor(DELETIONS) as pool:
            list(pool.map(self.delete, names))

    def delete_all(self, folder: str) -> None:
        """Delete every file below ``folder``, a thousand a request in an object store."""
        with self._answering(folder):
            self.filesystem.delete_dir_contents(self.path(folder), missing_dir_ok=True)

    def _find(self, folder: str, recursive: bool = True) -> list[pafs.FileInfo]:
        selector = pafs.FileSelector(self.path(folder).rstrip("/"), recursive=recursive, allow_not_found=True)
        with self._answering(folder):
            found: list[pafs.FileInfo] = self.filesystem.get_file_info(selector)
        return found

    def listing(self, folder: str, suffix: str = "") -> list[str]:
        """Names (relative to the root) of the files below ``folder`` ("" for all), sorted; no unfinished writes."""
        start = len(self.root) + 1
        names = (info.path[start:] for info in self._find(folder) if info.type == pafs.FileType.File)
        return sorted(name for name in names if name.endswith(suffix) and not name.endswith(".tmp"))

    def delete_unfinished(self, *folders: str) -> None:
        """Delete what processes that were killed amid a write left below ``folders``, to which no other writes now."""
        if self.is_local:  # a store has no unfinished objects
            start = len(self.root) + 1
            paths = [info.path for folder in folders for info in self._find(folder)]
            self.delete_many(path[start:] for path in paths if path.endswith(".tmp"))

    def write_table(self, name: str, table: pa.Table) -> None:
        """Write a table as Parquet, whole or not at all."""
        self.write(name, as_parquet(table))

    def write_json(self, name: str, value: object) -> None:
        """Write a value as JSON, whole or not at all."""
        self.write(name, json.dumps(value, indent=1).encode())

    def read_json(self, name: str) -> dict[str, Any]:
        """The object of a JSON file.

        Raises
        ------
        FileNotFoundError
            There is no such file.
        InputError
            It holds no JSON object.
        """
        try:
            value = json.loads(self.read(name))
        except (ValueError, RecursionError) as error:
            raise InputError(f"{self.path(name)}: damaged ({error})") from error
        if not isinstance(value, dict):
            raise InputError(f"{self.path(name)}: damaged (it holds no JSON object)")
        return value

    def read_table(self, name: str, columns: Sequence[str] | None = None, row_group: int | None = None) -> pa.Table:
        """A table, or the columns named of it, or one row group where it has several."""
        try:
            file = pq.ParquetFile(self.filesystem.open_input_file(self.path(name)))
            schema = self.schema_of(name)
            earlier = schema is not None and not file.schema_arrow.equals(schema)
            if earlier and not any(file.schema_arrow.equals(before) for before in self.earlier_schemas_of(name)):
                raise self.damaged(name, "its columns are not those of such a file")
            one = row_group is not None and file.num_row_groups > 1
            # One thread: a worker has one CPU, and each of Arrow's would keep memory of its own.
            how = {"columns": columns, "use_threads": False}
            table = file.read_row_group(row_group, **how) if one else file.read(**how)
            table.validate(full=True)
            # Parts of columns (their names have a dot) stay as they are in the file.
            if schema is not None and earlier and not any("." in column for column in columns or ()):
                wanted = pa.schema([schema.field(column) for column in columns or schema.names])
                table = conform(table, wanted, self.formerly)
        except (OSError, pa.ArrowException) as error:
            known = store_error(self.path(name), error)
            raise (known if isinstance(known, Unreachable) else self.damaged(name, error)) from error
        return table

    def schema_of(self, name: str) -> pa.Schema | None:
        """The columns that a table must have; None where any will do."""
        return None

    formerly: ClassVar[Mapping[str, str]] = {}  # what columns were called in earlier schemas, by their names of today

    def earlier_schemas_of(self, name: str) -> Sequence[pa.Schema]:
        """The columns that such a table may have had, which are read as if they were those of today."""
        return ()

    def damaged(self, name: str, why: object) -> InputError:
        """The error to raise where a file cannot be read."""
        return InputError(f"{self.path(name)}: cannot be read ({why}); delete the file and run the command again")


def as_parquet(table: pa.Table, row_group_size: int | None = None) -> pa.Buffer:
    """The bytes of a table's file; equal for equal tables."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, row_group_size, compression="zstd", use_dictionary=False, write_statistics=False)
    return sink.getvalue()
