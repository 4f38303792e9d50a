"""The one lesion that a target means, of all that the network finds around it.

The network marks every lesion in its input, and some chest wall. A target is one lesion: the part of the union mask
that lies nearest to the target's centre, within the box that the detector drew where it drew one, and the soft border
around that part. The sum of what is left is the volume of one lesion.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from raymat.network.inference import Predicted
from raymat.volume import Grid

FROM = 0.5  # probability of the union mask from which a voxel is of a lesion
BORDER_MM = 3.0  # how far the soft border of a lesion reaches
BOX_SHARE, BOX_MM = 0.25, 3.0  # by how much of its side, and how many mm at least, a lesion may leave its box
CUT = "the lesion reaches the edge of the box that was predicted, and beyond it is not seen: give --size-mm, or its box"
NOTHING = "the network finds no lesion here: its union mask stays below 0.5"


def of_target(
    found: Predicted, centre: Sequence[float], sides: Sequence[float] | None, grid: Grid
) -> tuple[Predicted, str]:
    """What was predicted of the target's lesion alone, all else 0; and a note where there is none.

    Parameters
    ----------
    found : of an image on ``grid``
    centre, sides : of the target, see ``raymat.network.targets.Target``
    """
    region = region_of(found.union, centre, sides, grid)
    if region is None:
        return found, NOTHING
    return Predicted(*(np.where(region, part, np.float32(0)) for part in vars(found).values())), ""


def is_cut(union: np.ndarray) -> bool:
    """Whether a lesion reaches a face of the box that was predicted; ``union`` are its probabilities (z, y, x)."""
    return any(bool((union.take(end, axis) >= FROM).any()) for axis in range(3) for end in (0, -1))


def region_of(
    union: np.ndarray, centre: Sequence[float], sides: Sequence[float] | None, grid: Grid
) -> np.ndarray | None:
    """Bool (z, y, x): the target's lesion with its soft border; None where the union mask has no lesion.

    Parameters
    ----------
    union : probabilities (z, y, x) on ``grid``
    """
    middle = grid.to_index(centre)
    box = _box(sides, middle, grid)
    parts, count = ndimage.label((union >= FROM) & box)
    if not count:
        return None
    # From each voxel to the target's centre: the nearest part is the one that holds it, or is next to it.
    at = np.argwhere(parts)
    away = np.linalg.norm((at - middle) * np.asarray(grid.spacing), axis=1)
    chosen = parts[tuple(at[away.argmin()])]
    others = (union >= FROM) & (parts != chosen)
    near = ndimage.distance_transform_edt(parts != chosen, grid.spacing)
    if not others.any():
        return near <= BORDER_MM
    return (near <= BORDER_MM) & (near < ndimage.distance_transform_edt(~others, grid.spacing))


def _box(sides: Sequence[float] | None, middle: np.ndarray, grid: Grid) -> np.ndarray:
    """Where the target's lesion may lie: the detector's box, somewhat larger; everywhere without one."""
    if sides is None:
        return np.ones(grid.shape, bool)
    along = np.abs(np.asarray(grid.direction)).T @ np.asarray(sides)
    half: Sequence[float] = (along / 2 + np.maximum(BOX_SHARE * along, BOX_MM)) / np.asarray(grid.spacing)
    inside = [np.abs(np.arange(n) - c) <= h for n, c, h in zip(grid.shape, middle, half, strict=True)]
    return inside[0][:, None, None] & inside[1][:, None] & inside[2]
