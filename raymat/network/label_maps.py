"""Lesions that are marked voxel by voxel: label maps (NIfTI, NRRD, MetaImage) and DICOM Segmentations.

Only where a lesion lies and how large it is are read of the marks, by the file's own place in the patient: its grid may
be another than the scan's. Of fractional segments, voxels of at least one half are marked.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from raymat.arrays import Box, box_around, triple
from raymat.errors import InputError
from raymat.network.targets import COMPONENT, LABEL, Place, Places, Reading
from raymat.volume import Grid, read_volume
from raymat.words import counted

NEIGHBOURS = np.ones((3, 3, 3))  # voxels that touch, by a corner at least, are of one component
LARGEST_LABEL = 2**31
MARKED_FROM = 0.5  # of a fractional segment
NAMED = 8


@dataclass(frozen=True)
class Marked:
    """The voxels of one label.

    Attributes
    ----------
    value : of the label map, or number of the segment
    name : as a message names it
    mask : bool (z, y, x), a part of the grid
    start : (z, y, x), where that part begins
    grid : of the whole file
    """

    value: int
    name: str
    mask: np.ndarray
    start: tuple[int, int, int]
    grid: Grid


def places_of_label_map(path: str, reading: Reading) -> Places:
    """One place per component of a mask, or per label where there are several, of a volume of whole numbers.

    Raises
    ------
    InputError
        The file is damaged or no 3D volume, holds fractions or nothing, or lacks a value that was asked for.
    """
    values, grid = read_volume(path)
    box = box_around(values)
    inside = values[box]
    if not inside.size:
        raise InputError(f"{path}: no voxel is marked: no lesion was found or drawn")
    labels = _whole(path, inside)
    present, number = np.unique(labels[labels != 0], return_inverse=True)
    # Numbers without gaps: there may be three labels, the largest of them a million.
    labels[labels != 0] = number + 1
    chosen = _chosen(path, present.tolist(), reading.labels, "value")
    marked = []
    for count, (value, part) in enumerate(zip(present.tolist(), ndimage.find_objects(labels), strict=True), start=1):
        if value in chosen:
            start = triple(outer.start + inner.start for outer, inner in zip(box, part, strict=True))
            marked.append(Marked(value, f"value {value}", labels[part] == count, start, grid))
    return _places(path, marked, "", reading)


def places_of_segmentation(path: str, reading: Reading) -> Places:
    """The same of a DICOM Segmentation, whose segments are the labels; the places name the series it refers to.

    Raises
    ------
    InputError
        The file is damaged, no segmentation in space or empty, or lacks a segment that was asked for.
    """
    # highdicom takes half a second.
    import highdicom

    try:
        segmentation = highdicom.seg.segread(path)
        described = {n: segmentation.get_segment_description(n).segment_label for n in segmentation.segment_numbers}
        series = str(segmentation.ReferencedSeriesSequence[0].SeriesInstanceUID)
    except Exception as error:
        # Damaged files, and DICOM of other kinds, make highdicom and pydicom raise almost anything.
        raise InputError(f"{path}: is no DICOM Segmentation of a series ({error})") from error
    chosen = _chosen(path, list(described), reading.labels, "segment")
    marked = []
    for number in chosen:
        try:
            volume = segmentation.get_volume(segment_numbers=[number])
        except Exception as error:
            raise InputError(f"{path}: segment {number} cannot be read as a volume ({error})") from error
        mask = volume.array.reshape(volume.array.shape[:3]) >= MARKED_FROM
        box = box_around(mask)
        name = f"segment {number} ({described[number]})"
        start = triple(part.start for part in box)
        marked.append(Marked(number, name, mask[box].copy(), start, _grid_of(volume.affine, mask.shape)))
    empty = [one.name for one in marked if not one.mask.size]
    if empty:
        raise InputError(f"{path}: {', '.join(empty)}: no voxel is marked; leave it out with --labels")
    return _places(path, marked, series, reading)


def _grid_of(affine: np.ndarray, shape: tuple[int, ...]) -> Grid:
    """The grid of an affine of highdicom: index (slice, row, column) to patient (x, y, z), LPS."""
    step = np.asarray(affine)[:3, :3][::-1]
    spacing = np.linalg.norm(step, axis=0)
    origin = np.asarray(affine)[:3, 3][::-1]
    return Grid(triple(shape), triple(spacing.tolist()), triple(origin.tolist()), step / spacing)


def _whole(path: str, values: np.ndarray) -> np.ndarray:
    if values.dtype.kind == "f":
        if not np.isfinite(values).all():
            raise InputError(
                f"{path}: {np.count_nonzero(~np.isfinite(values))} voxels are NaN or infinite; set them to 0"
            )
        stray = values[values != np.rint(values)]
        if stray.size:
            raise InputError(
                f"{path}: holds fractions such as {stray[0]:g}, but a label map has whole numbers: cut the "
                "probabilities first, at 0.5 for example"
            )
    elif values.dtype.kind not in "iub":
        raise InputError(f"{path}: voxels must be whole numbers, not {values.dtype}")
    low, high = values.min(), values.max()
    if low < 0 or high >= LARGEST_LABEL:
        raise InputError(
            f"{path}: holds {low if low < 0 else high:g}: an image, not a label map of 0 and labels above 0"
        )
    return values.astype(np.int32)


def _chosen(path: str, present: list[int], asked: tuple[int, ...], thing: str) -> list[int]:
    missing = sorted(set(asked) - set(present))
    if missing:
        known = ", ".join(map(str, present[:NAMED])) + (" ..." if len(present) > NAMED else "")
        raise InputError(f"{path}: has no {thing} {', '.join(map(str, missing))} (--labels); it has {known}")
    return sorted(set(asked)) if asked else present


def _places(path: str, marked: list[Marked], scan: str, reading: Reading) -> Places:
    per = reading.per or (LABEL if len(marked) > 1 else COMPONENT)
    found: list[Place] = []
    scattered = []
    for one in marked:
        components, count = ndimage.label(one.mask, NEIGHBOURS)
        boxes: list[Box] = ndimage.find_objects(components) if per == COMPONENT else [box_around(one.mask)]
        if per == LABEL and count > 1:
            scattered.append(f"{one.name} has {count}")
        for number, box in enumerate(boxes, start=1):
            name = one.name if per == LABEL else f"component {number} of {one.name}"
            label = str(one.value) if per == LABEL else str(len(found) + 1)
            centre, sides = _in_patient(one, box)
            found.append(Place(scan, label, centre, sides, None, f"{path}: {name}"))
    names = ", ".join(one.name for one in marked[:NAMED]) + (" ..." if len(marked) > NAMED else "")
    said = [f"{path}: {counted(len(found), 'place')}, one per {per} of {names}"]
    if scattered:
        some = ", ".join(scattered[:NAMED]) + (" ..." if len(scattered) > NAMED else "")
        said.append(f"{path}: {some} components: --per component makes each a target")
    return Places(path, found, said, marked[0].grid)


def _in_patient(marked: Marked, box: Box) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Centre and sides, (z, y, x) mm along the patient's axes, of a box of voxels."""
    low = np.add([part.start for part in box], marked.start) - 0.5
    high = np.add([part.stop for part in box], marked.start) - 0.5
    corners = np.array(np.meshgrid(*zip(low, high, strict=True), indexing="ij")).reshape(3, -1).T
    at = marked.grid.to_patient(corners)
    low_mm, high_mm = at.min(axis=0), at.max(axis=0)
    return triple(((low_mm + high_mm) / 2).tolist()), triple((high_mm - low_mm).tolist())
