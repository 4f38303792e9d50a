"""Any lesion of any modality: a table with an image and one mask per reader, or a trimap, in each row."""

from __future__ import annotations

import contextlib
import csv
import functools
import hashlib
import io
import json
import os
import stat
from array import array
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raymat.channels import files_of
from raymat.nodule import Channel, InputError, Nodule
from raymat.places import ObjectFolder, State, is_uri
from raymat.sources import NoduleRef, digest
from raymat.volume import PLACEMENT_TOLERANCE_MM, Grid, read_volume

SOURCE_VERSION = "cases-1"
OWN_COLUMNS = ("case_id", "patient_id", "image", "masks", "trimap")
SEVERAL_FILES = ("image", "masks")  # the columns whose cells may name several
BATCH_ROWS = 4096
ROWS_NAMED = 10
STATE_ROWS = 1000  # of a table in an object store, whose files are looked at together
TABLE_BYTES = 8 << 20  # read at once of such a table
# Formats whose header names the file that holds the voxels, by the endings those go by.
DETACHED = {
    ".mhd": (".raw", ".zraw"),
    ".nhdr": (".raw", ".raw.gz", ".raw.bz2"),
    ".hdr": (".img", ".img.gz"),
    ".img": (".hdr",),
}

Row = dict[str | None, Any]


@dataclass(frozen=True)
class CasesSource:
    """A CSV or Parquet table with the columns ``case_id, patient_id, image, masks``.

    ``masks`` holds one file per reader, separated by ``;``, and ``image`` one file per channel (CT and PET): masks lie
    on the grid of the first, the others may have a grid of their own. A ``trimap`` column may replace ``masks``, for
    the whole table or row by row. Paths are relative to the table's folder and stay inside it; images are of any
    format SimpleITK reads. Further columns are carried through into ``metadata`` as they stand.

    Attributes
    ----------
    table : path of the table, or its URI in an object store (``s3://bucket/cases.csv``), where its images then lie,
        too; its ending gives the format (``.csv``, ``.parquet``)
    allow_absolute : whether absolute paths may lead out of the table's folder (on disk)
    """

    table: str
    allow_absolute: bool = False

    kind = "cases"

    def __post_init__(self) -> None:
        table = str(self.table)
        object.__setattr__(self, "table", table if is_uri(table) else os.path.abspath(table))

    @property
    def remote(self) -> bool:
        """Whether the images lie in an object store."""
        return is_uri(self.table)

    def plan(self) -> Iterator[NoduleRef]:
        """One reference per row, in the table's order; rows that share a case id become one that names them.

        The table is streamed three times at most, its ids kept as 8 bytes each. Rows count from 1, the header left out.

        Raises
        ------
        InputError
            The table is missing, unreadable or empty, or lacks columns.
        """
        columns = self._columns()
        missing = [name for name in ("case_id", "patient_id", "image") if name not in columns]
        if not {"masks", "trimap"} & set(columns):
            missing.append("masks (or trimap)")
        if missing:
            raise InputError(
                f"{self.table}: missing columns: {', '.join(missing)}; the table has {', '.join(columns) or 'none'}"
            )
        repeated = sorted({name for name in columns if columns.count(name) > 1})
        if repeated:
            raise InputError(f"{self.table}: columns named twice: {', '.join(repeated)}")
        duplicates = self._duplicates()
        return self._references(duplicates)

    def read(self, ref: NoduleRef) -> Nodule:
        """The case's image, masks (or trimap) and placement, as the files have them.

        Raises
        ------
        InputError
            A file is missing or no 3D image, has voxels that are not finite, or a mask or trimap has another shape or
            placement than the image, is empty, or has stray values.
        """
        if ref.problem:
            raise InputError(ref.problem)
        place = json.loads(ref.location)
        if self._objects:
            cells = [*files_of(place["image"]), *place["masks"], *([place["trimap"]] if place["trimap"] else [])]
            names = [name for cell in cells for name in with_voxels(self._objects.name_of(cell))]
            with self._objects.at_hand(names) as folder:
                return CasesSource(os.path.join(folder, os.path.basename(self.table))).read(ref)
        drawn = self._path(place["trimap"]) if place["trimap"] else None
        masks = [] if drawn else [self._path(mask) for mask in place["masks"]]
        images = [self._path(cell) for cell in files_of(place["image"])]
        image, readers, trimap, grid = read_case(images[0], masks, drawn)
        return Nodule(
            nodule_id=ref.nodule_id,
            patient_id=ref.patient_id,
            source=self.kind,
            image=image,
            spacing=grid.spacing,
            origin=grid.origin,
            direction=np.asarray(grid.direction),
            readers=readers,
            trimap=trimap,
            channels=[read_channel(path) for path in images[1:]],
            metadata={**place["metadata"], **{key: place[key] for key in ("image", "masks", "trimap") if place[key]}},
        )

    def _references(self, duplicates: dict[str, list[int]]) -> Iterator[NoduleRef]:
        rows = self._rows()
        while batch := list(islice(rows, STATE_ROWS)):
            states = self._states(row for _, row in batch)
            for number, row in batch:
                case_id = _text(row.get("case_id"))
                if case_id in duplicates:
                    same = duplicates[case_id]
                    if number == same[0]:
                        named = ", ".join(map(str, same[:ROWS_NAMED])) + (" ..." if len(same) > ROWS_NAMED else "")
                        problem = f"{self.table}: case id {case_id!r} stands in rows {named}: give each case its own id"
                        yield self._problem(case_id, row, problem)
                    continue
                yield self._reference(number, case_id, row, states)

    def _states(self, rows: Iterable[Row]) -> dict[str, State | None]:
        """The states of the objects that the rows name, asked for all at once; a disk is asked file by file."""
        if not self._objects:
            return {}
        names = set()
        for row in rows:
            cells = [cell for name in SEVERAL_FILES for cell in files_of(_text(row.get(name)))]
            for cell in (*cells, _text(row.get("trimap"))):
                # What leads out of the folder is reported with its row.
                with contextlib.suppress(InputError):
                    names.update(with_voxels(self._objects.name_of(cell.strip())))
        return self._objects.states(sorted(names))

    def _state(self, cell: str, states: dict[str, State | None]) -> str:
        """Size and time of change of the file that a cell names, and of the one beside it that holds its voxels."""
        if not self._objects:
            return _file_state(self._path(cell))
        name = self._objects.name_of(cell)
        if states[name] is None:
            raise InputError(f"{self._objects.where(name)}: no such file")
        return " ".join(f"{s.size}:{s.mtime_ns}" for s in map(states.get, with_voxels(name)) if s)

    def _reference(self, number: int, case_id: str, row: Row, found: dict[str, State | None]) -> NoduleRef:
        where = f"{self.table}, row {number}"
        if None in row:
            problem = f"{where}: the row has {'more' if row[None] else 'fewer'} cells than the header has columns"
            return self._problem(case_id or f"unnamed-row-{number}", row, problem)
        image, masks, trimap = (_text(row.get(name)) for name in ("image", "masks", "trimap"))
        for name in ("case_id", "patient_id", "image"):
            if not _text(row[name]):
                return self._problem(case_id or f"unnamed-row-{number}", row, f"{where}: the cell of {name} is empty")
        if bool(masks) == bool(trimap):
            problem = "both masks and a trimap: give one of them" if masks else "neither masks nor a trimap"
            return self._problem(case_id, row, f"{where} ({case_id}): {problem}")
        image_list, mask_list = files_of(image), files_of(masks)
        for name, cells, text in (("images", image_list, image), ("masks", mask_list, masks)):
            if not all(cells):
                return self._problem(case_id, row, f"{where} ({case_id}): an empty entry among the {name} {text!r}")
            if len(set(cells)) < len(cells):
                return self._problem(
                    case_id, row, f"{where} ({case_id}): one file named twice among the {name} {text!r}"
                )
        states = []
        for cell in (*image_list, *mask_list, *([trimap] if trimap else [])):
            try:
                states.append(self._state(cell, found))
            except InputError as error:
                return self._problem(case_id, row, f"{where} ({case_id}): {error}")
        metadata = {name: _plain(value) for name, value in row.items() if name not in OWN_COLUMNS}
        location = {"image": image, "masks": mask_list, "trimap": trimap, "metadata": metadata}
        text = json.dumps(location, sort_keys=True)
        return NoduleRef(
            nodule_id=case_id,
            patient_id=_text(row["patient_id"]),
            source=self.kind,
            readers=len(mask_list) or -1,
            fingerprint=digest(SOURCE_VERSION, row["patient_id"], text, *states),
            location=text,
        )

    def _problem(self, nodule_id: str, row: Row, problem: str) -> NoduleRef:
        patient_id = _text(row.get("patient_id"))
        return NoduleRef(nodule_id, patient_id, self.kind, 0, digest(SOURCE_VERSION, problem), "{}", problem)

    @property
    def _objects(self) -> ObjectFolder | None:
        """Where in an object store the table lies; None for a table on disk."""
        return ObjectFolder(os.path.dirname(self.table)) if is_uri(self.table) else None

    def _path(self, cell: str) -> str:
        """The file that a cell names; the one place where cells become paths, as `ObjectFolder.name_of` for a store."""
        base = os.path.dirname(self.table)
        if "\0" in cell:
            raise InputError(f"the path {cell!r} holds a zero byte: mend the table")
        path = os.path.normpath(os.path.join(base, cell))
        if not _below(path, base) and not (self.allow_absolute and os.path.isabs(cell)):
            raise InputError(f"the path {cell!r} leads out of the table's folder {base}: move the file or the table")
        if not self.allow_absolute and not _below(os.path.realpath(path), _real_folder(base)):
            raise InputError(f"the path {cell!r} is a link out of the table's folder {base}: put the file there itself")
        return path

    def _duplicates(self) -> dict[str, list[int]]:
        """Case ids that stand in more than one row, with their rows (the first few)."""
        hashes = array("Q")
        for _, row in self._rows(["case_id"]):
            hashes.append(_hash(_text(row.get("case_id"))))
        if not hashes:
            raise InputError(f"{self.table}: the table has no rows")
        ordered = np.sort(np.frombuffer(hashes, dtype=np.uint64))
        suspects = set(ordered[1:][ordered[1:] == ordered[:-1]].tolist())
        if not suspects:
            return {}
        rows: defaultdict[str, list[int]] = defaultdict(list)
        for number, row in self._rows(["case_id"]):
            case_id = _text(row.get("case_id"))
            if case_id and _hash(case_id) in suspects and len(rows[case_id]) <= ROWS_NAMED:
                rows[case_id].append(number)
        return {case_id: numbers for case_id, numbers in rows.items() if len(numbers) > 1}

    def _columns(self) -> list[str]:
        if not self._objects and os.path.isdir(self.table):
            raise InputError(f"{self.table}: a folder; name the CSV or Parquet table in it")
        if not self._objects and not os.path.isfile(self.table):
            raise InputError(f"{self.table}: no such table")
        if self._is_parquet:
            return [name for name in self._parquet().schema_arrow.names if name.strip()]
        with self._text_file() as file:
            try:
                return [name for name in next(csv.reader(file), []) if name.strip()]
            except (csv.Error, UnicodeDecodeError) as error:
                raise InputError(f"{self.table}: not a CSV file in UTF-8: {error}") from error

    def _rows(self, columns: list[str] | None = None) -> Iterator[tuple[int, Row]]:
        """Row number (from 1) and cells by column; key None holds what a row has too many (or [], too few) of.

        Columns without a name and rows without a text, as spreadsheets leave them, are left aside.
        """
        if self._is_parquet:
            number = 0
            try:
                for batch in self._parquet().iter_batches(BATCH_ROWS, columns=columns):
                    for row in batch.to_pylist():
                        number += 1
                        named = {name: value for name, value in row.items() if name.strip()}
                        if any(map(_text, named.values())):
                            yield number, named
            except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
                raise InputError(f"{self.table}: damaged after row {number}: {error}") from error
            return
        number = 0
        with self._text_file() as file:
            lines = csv.reader(file)
            try:
                header = next(lines, [])
                for cells in lines:
                    number += bool(cells)
                    if any(map(_text, cells)):
                        yield number, _named(header, cells)
            except (csv.Error, UnicodeDecodeError) as error:
                raise InputError(f"{self.table}: damaged after row {number}: {error}") from error

    @property
    def _is_parquet(self) -> bool:
        return self.table.lower().endswith((".parquet", ".pq"))

    def _text_file(self) -> io.TextIOBase:
        if not self._objects:
            return open(self.table, encoding="utf-8-sig", newline="")
        raw = self._objects.open(os.path.basename(self.table))
        return io.TextIOWrapper(io.BufferedReader(raw, TABLE_BYTES), encoding="utf-8-sig", newline="")

    def _parquet(self) -> pq.ParquetFile:
        try:
            if self._objects:
                file = pq.ParquetFile(self._objects.open(os.path.basename(self.table)))
            else:
                file = pq.ParquetFile(self.table)
        except (OSError, pa.ArrowException) as error:
            raise InputError(f"{self.table}: not a Parquet file: {error}") from error
        for field in file.schema_arrow:
            if _holds_objects(field.type):
                raise InputError(f"{self.table}: column {field.name} holds objects of {field.type}: leave it out")
        return file


def _holds_objects(kind: pa.DataType) -> bool:
    # Where Ray is at work, Arrow would unpickle them, which runs whatever the table's author put there.
    if isinstance(kind, pa.BaseExtensionType):
        return True
    return any(_holds_objects(kind.field(i).type) for i in range(kind.num_fields))


def _named(header: Sequence[str], cells: Sequence[str]) -> Row:
    """The cells of a line by their columns."""
    named: Row = {name: cell for name, cell in zip(header, cells, strict=False) if name.strip()}
    more = cells[len(header) :]
    if any(map(_text, more)) or any(name.strip() for name in header[len(cells) :]):
        named[None] = more
    return named


def _hash(case_id: str) -> int:
    return int.from_bytes(hashlib.blake2b(case_id.encode(), digest_size=8).digest(), "little")


def _text(cell: object) -> str:
    if isinstance(cell, list):
        return ";".join(_text(item) for item in cell)
    return "" if cell is None else str(cell).strip()


def _plain(cell: object) -> object:
    """A cell as JSON has it."""
    return cell if cell is None or isinstance(cell, (str, int, float, bool)) else str(cell)


def read_channel(path: str | Path, pictures: bool = False) -> Channel:
    """A further image of a case, on its own grid, under the name of its file; ``pictures`` as in ``read_case``.

    Raises
    ------
    InputError
        The file is missing or no 3D image, or has voxels that are not finite.
    """
    values, grid = _read(Path(path), pictures)
    return Channel(
        Path(path).name,
        values.astype(np.float32),
        spacing=grid.spacing,
        origin=grid.origin,
        direction=np.asarray(grid.direction),
    )


def read_case(
    image: str | Path,
    masks: Sequence[str | Path],
    trimap: str | Path | None = None,
    pictures: bool = False,
) -> tuple[np.ndarray, list[np.ndarray], np.ndarray | None, Grid]:
    """An image with its readers' masks, or with a trimap, checked to lie on one grid.

    Parameters
    ----------
    image, masks, trimap : files of any format SimpleITK reads; one mask per reader
    pictures : whether 2D images, and images of several channels (colour), are read, too

    Returns
    -------
    image : float32 (z, y, x), HU where it is CT; (z, y, x, channels) of several channels
    readers : list of uint8 (z, y, x), 1 inside
    trimap : uint8 (z, y, x) of 0, 128 and 255, or None
    grid : Grid

    Raises
    ------
    InputError
        A file is missing or no 3D image, has voxels that are not finite, or a mask or trimap has another shape or
        placement than the image, is empty, or has stray values.
    """
    values, grid = _read(Path(image), pictures)
    readers = [_read_mask(Path(mask), grid, Path(image), pictures) for mask in masks]
    given = _read_trimap(Path(trimap), grid, Path(image), pictures) if trimap else None
    return values.astype(np.float32), readers, given, grid


def _below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)


@functools.lru_cache(1)
def _real_folder(folder: str) -> str:
    # A plan asks for every cell of a table, and each time a link could be anywhere on the way.
    return os.path.realpath(folder)


def with_voxels(path: str) -> list[str]:
    """The path of an image, and those beside it that would hold its voxels."""
    root, ending = os.path.splitext(path)
    return [path, *(root + other for other in DETACHED.get(ending.lower(), ()))]


def _file_state(path: str) -> str:
    """Size and time of change of a file, and of the one beside it that holds its voxels."""
    states = []
    for file in with_voxels(path):
        try:
            found = os.stat(file)
        except FileNotFoundError:
            if file == path:
                raise InputError(f"{path}: no such file") from None
            continue
        except OSError as error:
            raise InputError(f"{path}: {error.strerror}") from error
        if stat.S_ISDIR(found.st_mode):
            raise InputError(f"{path}: a folder, not an image file")
        states.append(f"{found.st_size}:{found.st_mtime_ns}")
    return " ".join(states)


def _read(path: Path, pictures: bool = False) -> tuple[np.ndarray, Grid]:
    values, grid = read_volume(path, pictures)
    if values.dtype.kind not in "iuf":
        raise InputError(f"{path}: voxels must be whole or real numbers, not {values.dtype}")
    if values.dtype.kind == "f":
        bad = ~np.isfinite(values)
        if bad.any():
            first = tuple(int(i) for i in np.argwhere(bad)[0])
            raise InputError(
                f"{path}: {np.count_nonzero(bad)} voxels are NaN or infinite, the first at {first} (z, y, x)"
            )
    return values, grid


def _read_on(path: Path, grid: Grid, image_path: Path, pictures: bool) -> np.ndarray:
    values, own = _read(path, pictures)
    if values.ndim > len(own.shape):
        # Drawing programs save masks in colour.
        if (values[..., :3] != values[..., :1]).any():
            raise InputError(f"{path}: is coloured: a mask or trimap has one value per voxel; save it in grey")
        values = values[..., 0]
    if own.shape != grid.shape:
        return _placed(path, values, own, grid, image_path)
    apart = own.placement_difference(grid)
    if apart > PLACEMENT_TOLERANCE_MM:
        raise InputError(
            f"{path}: lies up to {apart:.2f} mm from {image_path.name}: origin, spacing or direction differ; "
            "resample it onto the image's grid"
        )
    return values


def _placed(path: Path, values: np.ndarray, own: Grid, grid: Grid, image_path: Path) -> np.ndarray:
    """A mask or trimap that covers another part of the image's lattice, on the image's grid; 0 beyond it.

    Raises
    ------
    InputError
        Its voxels are none of the image's, or it marks some beyond the image.
    """
    start = np.rint(grid.to_index(own.origin)).astype(int)
    apart = own.placement_difference(grid.crop(start, own.shape))
    if apart > PLACEMENT_TOLERANCE_MM:
        raise InputError(
            f"{path}: {own.shape} voxels (z, y, x), but {image_path.name} has {grid.shape}, and they are none of its "
            f"voxels (up to {apart:.2f} mm apart); resample it onto the image's grid"
        )
    whole = np.zeros(grid.shape, values.dtype)
    low, high = np.maximum(start, 0), np.minimum(start + own.shape, grid.shape)
    inside = tuple(slice(a, max(a, b)) for a, b in zip(low - start, high - start, strict=True))
    whole[tuple(slice(a, max(a, b)) for a, b in zip(low, high, strict=True))] = values[inside]
    beyond = np.count_nonzero(values) - np.count_nonzero(whole)
    if beyond:
        raise InputError(
            f"{path}: {own.shape} voxels (z, y, x), but {image_path.name} has {grid.shape}, and {beyond} of those that "
            "are marked lie outside it: it belongs to another image"
        )
    return whole


def _read_mask(path: Path, grid: Grid, image_path: Path, pictures: bool) -> np.ndarray:
    values = _read_on(path, grid, image_path, pictures)
    inside = values != 0
    marked = values[inside]
    if marked.size == 0:
        raise InputError(f"{path}: the mask is empty")
    if (marked != marked[0]).any():
        some = ", ".join(f"{v:g}" for v in np.unique(values)[:5])
        raise InputError(
            f"{path}: a mask holds 0 and one other value, this one more: {some} ...; give one file per reader"
        )
    return inside.astype(np.uint8)


def _read_trimap(path: Path, grid: Grid, image_path: Path, pictures: bool) -> np.ndarray:
    values = _read_on(path, grid, image_path, pictures)
    stray = ~np.isin(values, (0, 128, 255))
    if stray.any():
        some = ", ".join(f"{v:g}" for v in np.unique(values[stray])[:5])
        raise InputError(
            f"{path}: a trimap holds 0 (background), 128 (unknown) and 255 (foreground); found {some} in "
            f"{np.count_nonzero(stray)} voxels"
        )
    for name, value in (("background", 0), ("unknown", 128), ("foreground", 255)):
        if not (values == value).any():
            raise InputError(f"{path}: the trimap has no {name} voxels")
    return values.astype(np.uint8)
