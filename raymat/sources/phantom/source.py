"""Phantoms on disk and as a source: drawn once, then read back through the LIDC path."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from raymat.nodule import InputError, Nodule, required
from raymat.places import ObjectFolder, is_uri
from raymat.sources import NoduleRef, digest
from raymat.sources.lidc import LidcSource
from raymat.sources.phantom import choice, dicom
from raymat.sources.phantom.draw import Phantom, draw_phantom
from raymat.volume import Grid, nodule_grid, read_volume, write_volume

# Of the drawing: raised whenever the same seed gives another phantom.
VERSION = 2
TABLE = "phantoms.csv"
RECORD = "phantom.json"
TRUTHS = ("membership", "calibrated")
HEAD = ("nodule_id", "patient_id", "series_instance_uid", *TRUTHS, "annotation_ids", "seed", "version")


def phantom_of(case: choice.Case, seed: int = 0) -> Phantom:
    """The phantom of a case: its window, not the whole matrix."""
    middle = (choice.MATRIX - 1) / 2
    offset = (choice.WINDOW - 1) / 2
    return draw_phantom(
        case.readers,
        case.spacing,
        [annotation.ratings for annotation in case.annotations],
        thickness_mm=case.scan.slice_thickness,
        position_mm=tuple((corner + offset - middle) * case.scan.pixel_spacing for corner in case.window),
        seed=seed,
        name=case.nodule_id,
    )


def write_phantom(root: str | Path, case: choice.Case, seed: int = 0) -> Path:
    """Draw a phantom under ``root/PATIENT/STUDY/SERIES`` unless it is there already.

    The folder appears whole or not at all, and two processes that write the same phantom end with one.

    Returns
    -------
    Path
        The series' folder.

    Raises
    ------
    InputError
        The folder contains something else, or cannot be written.
    """
    scan = case.scan
    folder = Path(root) / scan.patient_id / scan.study_uid / scan.series_uid
    if folder.exists():
        _check_same(folder, case, seed)
        return folder
    phantom = phantom_of(case, seed)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        # Hidden and beside its place, so that the rename stays within one file system and no reader sees it.
        partial = folder.parent / f".{scan.series_uid}.{uuid.uuid4().hex}"
        partial.mkdir()
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror}); choose another folder") from error
    try:
        _write_files(partial, phantom, case, seed)
        partial.rename(folder)
    except OSError as error:
        # Where another process was first, its bytes are the same.
        if not folder.exists():
            raise InputError(f"{folder}: cannot be written ({error}); choose another folder") from error
        _check_same(folder, case, seed)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _write_files(folder: Path, phantom: Phantom, case: choice.Case, seed: int) -> None:
    scan = case.scan
    heights = scan.slice_z[case.slices[0] : case.slices[1]]
    row, column = case.window
    window = (slice(None), slice(row, row + choice.WINDOW), slice(column, column + choice.WINDOW))
    image = np.full((len(heights), choice.MATRIX, choice.MATRIX), -1000, np.int16)
    image[window] = phantom.image
    dicom.write_series(folder, image, heights, scan, phantom.scanner.kernel, seed=seed, version=VERSION)
    corner = dicom.corner_mm(choice.MATRIX, choice.MATRIX, scan.pixel_spacing)
    whole = Grid(image.shape, case.spacing, (float(heights[0]), *corner), np.eye(3))
    grid = whole.crop((0, row, column), phantom.image.shape)
    for name in TRUTHS:
        write_volume(folder / f"{name}.nii.gz", getattr(phantom, name), grid)
    record = {
        "nodule_id": case.nodule_id,
        "patient_id": scan.patient_id,
        "series_instance_uid": scan.series_uid,
        **{name: f"{scan.patient_id}/{scan.study_uid}/{scan.series_uid}/{name}.nii.gz" for name in TRUTHS},
        "annotation_ids": [annotation.annotation_id for annotation in case.annotations],
        "seed": seed,
        "version": VERSION,
        "parameters": phantom.parameters,
    }
    (folder / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _read_record(folder: Path) -> dict:
    try:
        return json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{folder}: is not a phantom of this program ({RECORD} cannot be read); choose another folder"
        ) from error


def _check_same(folder: Path, case: choice.Case, seed: int) -> None:
    record = _read_record(folder)
    found = (record.get("nodule_id"), record.get("seed"), record.get("version"))
    wanted = (case.nodule_id, seed, VERSION)
    if found != wanted:
        raise InputError(
            f"{folder}: holds the phantom of {found[0]}, seed {found[1]}, version {found[2]}, not of {wanted[0]}, "
            f"seed {wanted[1]}, version {wanted[2]}; choose another folder or remove it"
        )


def is_phantom_folder(root: str | Path) -> bool:
    """Whether ``write_phantoms`` made this folder and finished."""
    if is_uri(root):
        return ObjectFolder(str(root).rstrip("/")).states([TABLE])[TABLE] is not None
    return (Path(root) / TABLE).is_file()


def write_phantoms(
    out: str | Path, n: int, seed: int = 0, progress: Callable[[str], None] | None = None, workers: int = 1
) -> Path | str:
    """Write n phantoms as DICOM in the archive's layout, each with both true mattes, and a table of what was drawn.

    A run after an interruption resumes; a run with a larger n adds phantoms to the folder.

    Parameters
    ----------
    out : an empty or new folder, or one of phantoms of the same seed; also in an object store
    n, seed : see ``choose``; the same n and seed give the same bytes
    progress : called with a line of text for each phantom
    workers : processes that draw

    Returns
    -------
    Path (or URI) of ``phantoms.csv``

    Raises
    ------
    InputError
        The folder contains anything else, cannot be written, or there are not n nodules to draw from.
    """
    say = progress or (lambda line: None)
    if is_uri(out):
        return _write_objects(str(out), n, seed, say)
    out = Path(out)
    _check_folder(out, seed)
    cases = choice.choose(n, seed)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror}); choose another folder") from error
    folders = []
    jobs = ((str(out), case, seed) for case in cases)
    for number, (case, folder) in enumerate(zip(cases, _each(_write_job, jobs, workers), strict=True), start=1):
        folders.append(folder)
        say(f"phantom {number} of {n}: {case.nodule_id}")
        # Unfinished files of a killed run beside the folder would be read as slices of the series.
        for left in folder.parent.glob(f".{folder.name}.*"):
            shutil.rmtree(left, ignore_errors=True)
    return _write_table(out, folders)


def _write_job(job: tuple) -> Path:
    return write_phantom(*job)


def _each(function, jobs, workers: int):
    if workers <= 1:
        yield from map(function, jobs)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        yield from pool.map(function, jobs)


def _check_folder(out: Path, seed: int) -> None:
    """Refuse a folder that contains anything but phantoms of this seed and version."""
    if not out.exists():
        return
    if not out.is_dir():
        raise InputError(f"{out}: is a file; give a folder for the phantoms")
    for entry in out.iterdir():
        if entry.name == TABLE:
            continue
        records = sorted(entry.glob(f"*/*/{RECORD}")) if entry.is_dir() else []
        # A patient's folder without a whole phantom is what an interrupted run leaves behind.
        unfinished = entry.is_dir() and not records and not any(p.is_file() for p in entry.glob("*/[!.]*/*"))
        if not records and not (unfinished and entry.name.startswith("LIDC-IDRI-")):
            raise InputError(
                f"{out}: is not empty and {entry.name} is no phantom of this program; give a new or empty folder"
            )
        for record in records:
            found = _read_record(record.parent)
            if (found.get("seed"), found.get("version")) != (seed, VERSION):
                raise InputError(
                    f"{out}: holds phantoms of seed {found.get('seed')}, version {found.get('version')}; seed {seed}, "
                    f"version {VERSION} needs a folder of its own"
                )


def _write_table(out: Path, folders: list[Path]) -> Path:
    """``phantoms.csv``: every phantom under ``out``; those of this run first, in their order."""
    # A later run with a smaller n must not make the table forget what is there.
    others = sorted(p.parent for p in out.glob(f"*/*/*/{RECORD}") if p.parent not in set(folders))
    records = [_read_record(folder) for folder in [*folders, *others]]
    table = out / TABLE
    partial = out / f".{TABLE}.{uuid.uuid4().hex}"
    try:
        partial.write_text(_table_text(records), newline="", encoding="utf-8")
        os.replace(partial, table)
    except OSError as error:
        raise InputError(f"{table}: cannot be written ({error.strerror})") from error
    return table


def _table_text(records: list[dict]) -> str:
    names = list(records[0]["parameters"])
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*HEAD, *names])
    for record in records:
        fixed = [";".join(map(str, record[name])) if name == "annotation_ids" else record[name] for name in HEAD]
        writer.writerow([*fixed, *(record["parameters"][name] for name in names)])
    return text.getvalue()


def _write_objects(out: str, n: int, seed: int, say: Callable[[str], None]) -> str:
    """``write_phantoms`` into an object store: drawn on this machine, uploaded phantom by phantom."""
    place = ObjectFolder(out.rstrip("/"))
    present = {name for _, files in place.walk() for name in files}
    records = {name: json.loads(place.read(name)) for name in sorted(present) if name.endswith(f"/{RECORD}")}
    stranger = next((name for name in sorted(present) if not name.startswith("LIDC-IDRI-") and name != TABLE), None)
    if stranger or any((r["seed"], r["version"]) != (seed, VERSION) for r in records.values()):
        raise InputError(
            f"{out}: holds {stranger or 'phantoms of another seed or version'}; give a new or empty place, or one of "
            f"phantoms of seed {seed}, version {VERSION}"
        )
    drawn = {}
    with tempfile.TemporaryDirectory(prefix="raymat-") as scratch:
        for number, case in enumerate(choice.choose(n, seed), start=1):
            scan = case.scan
            name = f"{scan.patient_id}/{scan.study_uid}/{scan.series_uid}"
            if f"{name}/{RECORD}" not in records:
                folder = write_phantom(scratch, case, seed)
                # The record last: with it the phantom is there whole.
                for file in sorted(folder.iterdir(), key=lambda file: (file.name == RECORD, file.name)):
                    place.write(f"{name}/{file.name}", file.read_bytes())
                drawn[f"{name}/{RECORD}"] = _read_record(folder)
                shutil.rmtree(folder)
            else:
                drawn[f"{name}/{RECORD}"] = records[f"{name}/{RECORD}"]
            say(f"phantom {number} of {n}: {case.nodule_id}")
    place.write(
        TABLE, _table_text(list((drawn | {k: r for k, r in records.items() if k not in drawn}).values())).encode()
    )
    return place.where(TABLE)


class PhantomSource:
    """Phantoms as a source of nodules.

    ``PhantomSource(root, n, seed)`` plans n phantoms and draws each when it is first read, under a folder of ``root``
    that is named by seed and version. ``PhantomSource.from_folder(root)`` lists what ``write_phantoms`` drew.

    Parameters
    ----------
    root : where the DICOM files go; local to the worker that reads (what `from_folder` lists may be an object store)
    n : how many
    seed : see ``choose``
    """

    kind = "phantoms"

    def __init__(self, root: str | Path, n: int, seed: int = 0):
        if n < 1:
            raise InputError(f"{n} phantoms were asked for; ask for 1 or more")
        self.root = str(root).rstrip("/")
        self.n: int | None = int(n)
        self.seed = int(seed)

    @classmethod
    def from_folder(cls, root: str | Path) -> PhantomSource:
        """The phantoms of a folder that ``write_phantoms`` made.

        Raises
        ------
        InputError
            The folder has no ``phantoms.csv``, or it lists nothing.
        """
        rows = _read_table(str(root).rstrip("/"))
        source = cls(root, len(rows), int(rows[0]["seed"]))
        source.n = None
        return source

    @property
    def remote(self) -> bool:
        """Whether the images lie in an object store."""
        return is_uri(str(self.root))

    def plan(self) -> Iterator[NoduleRef]:
        """One reference per phantom; nothing is drawn.

        Raises
        ------
        InputError
            There are not n nodules to draw from, or the folder's table cannot be used.
        """
        if self.n is None:
            rows = _read_table(self.root)
            present = self._present([f"{Path(row['membership']).parent}/{RECORD}" for row in rows])
            for row in rows:
                folder = Path(row["membership"]).parent
                missing = "" if f"{folder}/{RECORD}" in present else "its files are missing"
                readers = len(row["annotation_ids"].split(";"))
                yield self._ref(row["nodule_id"], row["patient_id"], readers, row["version"], str(folder), missing)
            return
        for case in choice.choose(self.n, self.seed):
            yield self._ref(case.nodule_id, case.scan.patient_id, len(case.annotations), VERSION, "", "")

    def _present(self, names: list[str]) -> set[str]:
        if is_uri(self.root):
            return {name for name, state in ObjectFolder(self.root).states(names).items() if state}
        return {name for name in names if (Path(self.root) / name).is_file()}

    def _ref(self, nodule_id, patient_id, readers, version, folder, missing) -> NoduleRef:
        return NoduleRef(
            nodule_id=nodule_id,
            patient_id=patient_id,
            source=self.kind,
            readers=readers,
            # Not the files' times: a phantom is what its seed and version make it, wherever it is drawn.
            fingerprint=digest("phantom", version, self.seed, nodule_id),
            location=json.dumps({"folder": folder}),
            problem=f"{self.root}/{folder}: {missing}" if missing else "",
        )

    def read(self, ref: NoduleRef) -> Nodule:
        """The phantom, drawn first if need be, read by ``LidcSource``, with both true mattes on the same grid.

        Raises
        ------
        InputError
            It cannot be drawn, written or read.
        """
        drawn = json.loads(ref.location)["folder"]
        if not drawn:
            case = choice.case(ref.nodule_id)
            return self._read(
                write_phantom(Path(self.root) / f"seed-{self.seed}-version-{VERSION}", case, self.seed), ref
            )
        if is_uri(self.root):
            place = ObjectFolder(f"{self.root}/{drawn}")
            with place.at_hand([name for _, files in place.walk() for name in files]) as folder:
                return self._read(Path(folder), ref)
        return self._read(Path(self.root) / drawn, ref)

    def _read(self, folder: Path, ref: NoduleRef) -> Nodule:
        record = _read_record(folder)
        archive = LidcSource(str(folder))
        found = [seen for seen in archive.plan() if seen.nodule_id == ref.nodule_id]
        if not found:
            raise InputError(f"{folder}: does not hold {ref.nodule_id}; remove the folder and run again")
        nodule = archive.read(found[0])
        nodule.source = self.kind
        nodule.true_membership, nodule.true_calibrated = (
            _on_grid(folder / f"{name}.nii.gz", nodule) for name in TRUTHS
        )
        nodule.metadata = {
            **nodule.metadata,
            "phantom": {"seed": record["seed"], "version": record["version"], **record["parameters"]},
        }
        return nodule


def _read_table(root: str) -> list[dict]:
    path = f"{root}/{TABLE}"
    try:
        data = ObjectFolder(root).read(TABLE) if is_uri(root) else Path(path).read_bytes()
        rows = list(csv.DictReader(io.StringIO(data.decode(), newline="")))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error}); raymat phantom writes such folders") from error
    if not rows or not set(HEAD) <= set(rows[0]):
        raise InputError(f"{path}: lists no phantoms; write the folder again with raymat phantom")
    return rows


def _on_grid(path: Path, nodule: Nodule) -> np.ndarray:
    """A true matte of ``path`` on the nodule's grid, 0 beyond what was drawn; float32 (z, y, x)."""
    alpha, grid = read_volume(path)
    own = nodule_grid(nodule, required(nodule.image, nodule, "image"))
    shape = own.shape
    first = np.rint(own.to_index(grid.origin)).astype(int)
    here = own.crop(first, alpha.shape)
    if here.placement_difference(grid) > 0.1:
        raise InputError(f"{path}: is not on the grid of its image; remove the folder and draw it again")
    out = np.zeros(shape, np.float32)
    low, high = np.maximum(first, 0), np.minimum(first + alpha.shape, shape)
    if (high > low).all():
        target = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        out[target] = alpha[tuple(slice(a - f, b - f) for a, b, f in zip(low, high, first, strict=True))]
    return out
