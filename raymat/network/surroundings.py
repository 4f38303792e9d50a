"""The part of a scan around the centre of a target, on the network's grid."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from raymat.arrays import box_around, triple
from raymat.channels import resampled, seen_by, shortfall
from raymat.errors import InputError
from raymat.network.model import ModelConfig
from raymat.network.targets import Target
from raymat.nodule import Channel
from raymat.prepare import FIELD_OF_VIEW_FLOOR, Crop
from raymat.sources.dicom import index_tree, read_slab
from raymat.sources.series import Scan, scan_of, slab_around, usual_step
from raymat.volume import Grid, read_volume
from raymat.words import counted

MARGIN_MM = 8.0  # of surroundings, at each side of a lesion that fills the network's input


def scans_of(targets: Sequence[Target]) -> dict[str, Scan]:
    """The scan of each series that a target names and the tree of the first one has, by series UID."""
    series = {target.series for target in targets if target.series}
    found = index_tree(targets[0].image, series).series if series else {}
    return {uid: scan_of(one) for uid, one in found.items()}


def sides_around(target: Target, least_mm: Sequence[float], direction: np.ndarray) -> tuple[float, float, float]:
    """Sides (z, y, x) mm along the axes of a grid of the box to read: ``least_mm``, wider for a larger lesion."""
    if target.sides is None:
        return triple(least_mm)
    lesion = np.abs(np.asarray(direction)).T @ np.add(target.sides, 2 * MARGIN_MM)
    return triple(np.maximum(lesion, least_mm).tolist())


def read_around(target: Target, scan: Scan | None, sides_mm: Sequence[float]) -> tuple[np.ndarray, Grid]:
    """The target's scan, HU (z, y, x): the whole volume, or of a DICOM series the slices near the centre.

    ``sides_mm`` as for ``around``.

    Raises
    ------
    InputError
        The image or the series is missing or damaged, or its slices near the centre are.
    """
    if not target.series:
        path = Path(target.image)
        state = path.stat() if path.is_file() else None
        return _volume(target.image, (state.st_size, state.st_mtime_ns) if state else None)
    if scan is None:
        raise InputError(f"{target.image}: holds no images of series {target.series}")
    if scan.problem:
        raise InputError(f"{target.image}: {scan.problem}")
    step = usual_step(np.array([item.z for item in scan.slices]))
    half = sides_around(target, sides_mm, np.eye(3))[0] / 2
    try:
        return read_slab(target.image, slab_around(scan.slices, target.centre[0], half), step)
    except InputError as error:
        raise InputError(f"{target.name}: series {target.series}: {error}") from error


def read_channels(target: Target, scanner: Grid, grid: Grid, config: ModelConfig) -> list[Channel]:
    """The channels of a target on the grid of its image's part (``around``); none for a network of one.

    Parameters
    ----------
    scanner : grid of the target's image; what lies beyond it is the low end of a channel's range
    grid : of the part
    config : names and ranges of the network's channels

    Raises
    ------
    InputError
        The target has other channels than the network takes, a file cannot be read, or one does not cover the part.
    """
    names = [name for name, _, _ in config.channels] or ["image"]
    if 1 + len(target.channels) != len(names):
        raise InputError(
            f"{target.name}: {counted(1 + len(target.channels), 'image')}, but the network takes "
            f"{', '.join(names)}: name one volume per channel, in this order, separated by ;"
        )
    if not target.channels:
        return []
    inside = seen_by(scanner, grid)
    box = box_around(inside)
    seen = grid.crop([part.start for part in box], [part.stop - part.start for part in box])
    found = []
    for path, (name, low, high) in zip(target.channels, config.channels[1:], strict=True):
        values, own = read_volume(path)
        if missing := shortfall(own, seen):
            raise InputError(f"{target.name}: {path} does not cover the lesion's surroundings, which reach {missing}")
        values = np.where(inside, resampled(values, own, grid), np.float32(low))
        found.append(Channel(name, values, low, high))
    return found


@functools.lru_cache(maxsize=1)
def _volume(path: str, state: tuple[int, int] | None) -> tuple[np.ndarray, Grid]:
    """The volume of a file of that size and time of change: the next target is often of the same."""
    return read_volume(path)


def refuse_outside(target: Target, grid: Grid) -> None:
    """Raise InputError where the target's centre is not in the scan."""
    index = grid.to_index(target.centre)
    if ((index < -0.5) | (index > np.array(grid.shape) - 0.5)).any():
        corners = grid.to_patient([(0, 0, 0), np.array(grid.shape) - 1])
        low, high = corners.min(axis=0)[::-1].round(1).tolist(), corners.max(axis=0)[::-1].round(1).tolist()
        raise InputError(
            f"{target.name}: the centre {tuple(target.centre[::-1])} (x, y, z; mm, LPS) lies outside the scan, "
            f"which runs from {low} to {high}; viewers that show RAS have the other sign in x and y (--coordinates RAS)"
        )


def around(
    target: Target, image: np.ndarray, grid: Grid, sides_mm: Sequence[float], spacing_mm: float
) -> tuple[np.ndarray, Grid]:
    """The box around the target's centre, resampled to ``spacing_mm``; air beyond the scan.

    The box has ``sides_mm`` (z, y, x) along the scan's axes, and is wider where the lesion with a margin is.

    Raises
    ------
    InputError
        The centre lies outside the scan.
    """
    refuse_outside(target, grid)
    sides_mm = sides_around(target, sides_mm, grid.direction)
    index = grid.to_index(target.centre)
    half = np.asarray(sides_mm) / 2 / np.asarray(grid.spacing) + 1
    start, stop = np.floor(index - half).astype(int), np.ceil(index + half).astype(int) + 1
    crop = Crop(grid, start, stop, spacing_mm)
    values = crop.resample(np.maximum(crop.cut(image), np.float32(FIELD_OF_VIEW_FLOOR)), fill=-1000.0)
    middle = crop.grid.to_index(target.centre)
    sides = [round(side / spacing_mm) for side in sides_mm]
    first = [
        int(np.clip(round(at - (side - 1) / 2), 0, n - side))
        for at, side, n in zip(middle, sides, values.shape, strict=True)
    ]
    box = tuple(slice(f, f + side) for f, side in zip(first, sides, strict=True))
    return np.ascontiguousarray(values[box]), crop.grid.crop(first, sides)
