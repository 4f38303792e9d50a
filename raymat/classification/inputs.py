"""The inputs of a nodule (``raymat.evidence.inputs``) as crops of one channel, all around the middle of the trimap."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from raymat.blocks import block_means, factor_of
from raymat.evidence.inputs import OF_NAME
from raymat.nodule import InputError, Nodule, matte_box, required


@dataclass(frozen=True)
class CropConfig:
    """The crop around a nodule.

    Attributes
    ----------
    side : of the network's input, voxels along every axis
    spacing_mm : of its voxels; a whole multiple of the dataset's spacing
    margin : voxels more on every side, which the augmentation shifts and turns into the crop
    intensity_range : HU to which an image is clipped and from which it is scaled to 0 to 1; fixed, so that no nodule
        has a part in how another is seen
    """

    side: int = 32
    spacing_mm: float = 1.0
    margin: int = 4
    intensity_range: tuple[float, float] = (-1000.0, 400.0)

    def __post_init__(self) -> None:
        if self.side < 8 or self.margin < 0 or not self.spacing_mm > 0:
            raise InputError(
                f"a crop needs a side of 8 voxels at least, a margin of 0 or more and a spacing above 0, not "
                f"{self.side}, {self.margin} and {self.spacing_mm:g} mm"
            )

    @property
    def stored(self) -> int:
        """Side with the margins, voxels."""
        return self.side + 2 * self.margin


def crops_of(nodule: Nodule, config: CropConfig) -> dict[str, np.ndarray]:
    """What the inputs of a nodule are made of.

    Returns
    -------
    dict
        Every input that the nodule has and that is not drawn: float16 (stored, stored, stored), 0 to 1, each voxel the
        mean of those of the dataset's grid in it; and ``readers``, such a crop of each reader (readers, stored, stored,
        stored), from which the others are drawn. 0 beyond the scan.

    Raises
    ------
    InputError
        The nodule has no trimap or no readers' masks, or its grid does not fit the crop's.
    """
    if nodule.trimap is None or not nodule.readers:
        raise InputError(f"{nodule.nodule_id}: has no readers' masks; the inputs are made of masks and mattes")
    factor = factor_of(nodule, config.spacing_mm)
    middle = [(part.start + part.stop) // 2 for part in matte_box(nodule.trimap)]

    def cut(array: np.ndarray, fill: float = 0.0) -> np.ndarray:
        return coarse_cube(array, middle, config.stored, factor, fill)

    crops = {}
    for name, kind in OF_NAME.items():
        array = kind.voxels(nodule) if kind.voxels else None
        if array is not None:
            low, high = kind.range_of(nodule, config.intensity_range)
            crop = np.clip((cut(array, low) - low) / (high - low), 0, 1) if kind.hu else cut(array)
            crops[name] = crop.astype(np.float16)
    return crops | {"readers": np.stack([cut(mask != 0).astype(np.float16) for mask in nodule.readers])}


def coarse_cube(array: np.ndarray, middle: Sequence[int], side: int, factor: int, fill: float) -> np.ndarray:
    """A cube of ``side`` voxels around ``middle``, each the mean of a block of ``factor`` voxels along every axis.

    Parameters
    ----------
    array : (z, y, x)
    middle : the voxel (z, y, x) at the cube's centre
    fill : value beyond the array

    Returns
    -------
    float32 (side, side, side)
    """
    whole = side * factor
    cube = np.full((whole,) * 3, fill, np.float32)
    source, target = [], []
    for centre, size in zip(middle, array.shape, strict=True):
        start = centre - whole // 2
        first, last = max(start, 0), min(start + whole, size)
        source.append(slice(first, max(first, last)))
        target.append(slice(first - start, max(first, last) - start))
    cube[tuple(target)] = array[tuple(source)]
    return block_means(cube, factor)


def random_reader(nodule_id: str, readers: int, seed: int) -> int:
    """The reader whose mask stands for "random": another from seed to seed, the same on every machine."""
    drawn = hashlib.blake2b(f"{seed}/{nodule_id}".encode(), digest_size=8).digest()
    return int.from_bytes(drawn, "little") % readers


def size_of(nodule: Nodule) -> tuple[float, float]:
    """How large the readers say that the nodule is.

    Returns
    -------
    volume : mean over the readers' masks, mm3
    diameter : mean over the readers of the longest one in an axial slice, mm
    """
    spacing = required(nodule.spacing, nodule, "spacing")
    voxel = float(np.prod(spacing))
    volumes = [np.count_nonzero(mask) * voxel for mask in nodule.readers]
    diameters = [axial_diameter(mask != 0, spacing) for mask in nodule.readers]
    return float(np.mean(volumes)), float(np.mean(diameters))


def axial_diameter(mask: np.ndarray, spacing: Sequence[float], directions: int = 36) -> float:
    """The longest extent of a mask (z, y, x) in any of its axial slices, over directions 5 degrees apart; mm."""
    angles = np.pi * np.arange(directions) / directions
    along = np.stack([np.sin(angles), np.cos(angles)])
    longest = 0.0
    for plane in mask[mask.any(axis=(1, 2))]:
        reach = (np.argwhere(plane) * np.asarray(spacing[1:])) @ along
        longest = max(longest, float((reach.max(axis=0) - reach.min(axis=0)).max()))
    return longest + float(np.mean(spacing[1:]))
