"""Several images of one lesion: what each is called, the range of its intensities, and the way onto one grid."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from raymat.arrays import triple
from raymat.errors import InputError
from raymat.nodule import Channel
from raymat.volume import PLACEMENT_TOLERANCE_MM, Grid, to_sitk

SEVERAL = ";"  # between the files of a case's image
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 _.+-]*")  # also a part of a file's name


@dataclass(frozen=True)
class ChannelRange:
    """One of several channels of a case.

    Attributes
    ----------
    name : what it is called
    low, high : the range of intensities that solvers take in, in the channel's unit; low is what lies beyond its edge
    """

    name: str
    low: float
    high: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "low", float(self.low))
        object.__setattr__(self, "high", float(self.high))
        if not NAME.fullmatch(self.name):
            raise InputError(
                f"a channel cannot be named {self.name!r}: begin with a letter or digit, then those, spaces and _ . + -"
            )
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise InputError(
                f"channel {self.name}: the intensity range must rise, not {self.low:g} to {self.high:g}: give the "
                "lower end first"
            )


def channel_ranges(ranges: Sequence[Sequence[float]], names: Sequence[str] | None = None) -> tuple[ChannelRange, ...]:
    """The channels of those ranges, "channel 1" and so on where they have no names; nothing for one range.

    Raises
    ------
    InputError
        There are more or fewer names than ranges, or a name or range cannot be used.
    """
    if names is not None and len(names) != len(ranges):
        raise InputError(
            f"{len(names)} names of channels ({', '.join(names)}) for {len(ranges)} intensity ranges: give one "
            "--intensity-range per name, in the same order"
        )
    if len(ranges) < 2:
        return ()
    names = names or [f"channel {number}" for number in range(1, len(ranges) + 1)]
    return tuple(ChannelRange(name, *low_high) for name, low_high in zip(names, ranges, strict=True))


def files_of(cell: str) -> list[str]:
    """The files that a cell names, separated by ``;``; none in an empty one."""
    return [part.strip() for part in cell.split(SEVERAL)] if cell else []


def own_grid(channel: Channel, where: str) -> Grid:
    """The grid of a channel that has not been brought to its nodule's yet.

    Raises
    ------
    InputError
        It has none; the message begins with ``where``.
    """
    if channel.spacing is None or channel.origin is None or channel.direction is None:
        raise InputError(f"{where}: spacing, origin and direction are needed")
    return Grid(triple(channel.image.shape[:3]), channel.spacing, channel.origin, np.asarray(channel.direction))


def same_lattice(own: Grid, grid: Grid) -> bool:
    """Whether two grids have the same voxels, to a tenth of a millimetre."""
    return own.shape == grid.shape and own.placement_difference(grid) <= PLACEMENT_TOLERANCE_MM


def seen_by(scanner: Grid, grid: Grid) -> np.ndarray:
    """Which voxels of a grid lie within another; bool (z, y, x)."""
    index = scanner.to_index(grid.to_patient(np.indices(grid.shape).reshape(3, -1).T))
    inside = ((index >= -0.5) & (index <= np.array(scanner.shape) - 0.5)).all(axis=1)
    return np.asarray(inside).reshape(grid.shape)


def shortfall(own: Grid, wanted: Grid) -> str:
    """By how much the voxels of one grid do not cover the centres of another's, in words; empty where they do."""
    ends = [(0, n - 1) for n in wanted.shape]
    corners = wanted.to_patient(np.array(np.meshgrid(*ends, indexing="ij")).reshape(3, -1).T)
    index = own.to_index(corners)
    parts = []
    for axis, name in enumerate("zyx"):
        before = (-0.5 - float(index[:, axis].min())) * own.spacing[axis]
        after = (float(index[:, axis].max()) - (own.shape[axis] - 0.5)) * own.spacing[axis]
        for mm, end in ((before, "first"), (after, "last")):
            if mm > PLACEMENT_TOLERANCE_MM:
                parts.append(f"{mm:.1f} mm beyond its {end} voxel along {name}")
    return ", ".join(parts)


def resampled(image: np.ndarray, own: Grid, grid: Grid) -> np.ndarray:
    """An image (z, y, x) on another grid, linearly; float32. Beyond its edge its outermost values run on."""
    import SimpleITK as sitk  # see raymat.volume

    resampler = sitk.ResampleImageFilter()
    resampler.SetReferenceImage(to_sitk(np.zeros((1, 1, 1), np.float32), grid))
    resampler.SetSize([int(n) for n in grid.shape[::-1]])
    resampler.SetInterpolator(sitk.sitkLinear)
    resampler.UseNearestNeighborExtrapolatorOn()
    resampler.SetNumberOfThreads(1)  # as in raymat.prepare
    source = to_sitk(np.ascontiguousarray(image, np.float32), own)
    return np.asarray(sitk.GetArrayFromImage(resampler.Execute(source)))
