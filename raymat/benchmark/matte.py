"""One matte of an entry, brought from its own grid to where its nodule is judged. Arrays and grids (z, y, x)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from raymat.arrays import AnyArray, Box, Float32Array, triple
from raymat.nodule import InputError
from raymat.volume import PLACEMENT_TOLERANCE_MM, Grid, read_volume, to_sitk

ROUNDING = 1e-3  # below 0 and above 1: what interpolation and single precision leave
FINEST = 4  # parts of a voxel along an axis over which a finer grid is averaged
SAME_AXES = 1e-3


def read_matte(path: str | Path, grid: Grid, box: Box) -> tuple[Float32Array, str]:
    """An entry's matte in a box of its nodule's grid.

    A matte on another grid is resampled in patient space, linearly, and is 0 beyond its own grid. On a finer grid the
    mean over each voxel counts.

    Parameters
    ----------
    path : a volume of alpha, 0 to 1, in any format that ``raymat.volume.read_volume`` reads
    grid : of the nodule's crop
    box : of that grid

    Returns
    -------
    alpha : float32, 0 to 1, of the shape of the box
    note : what was done to bring it there; empty where it lies on the nodule's grid

    Raises
    ------
    InputError
        The file cannot be read, is no 3D volume, has values that are no alpha, or lies in another place.
    """
    try:
        values, own = read_volume(path)
    except InputError as error:
        raise InputError(f"{error}; a matte is one 3D volume, alpha from 0 to 1, placed in the patient") from error
    bare = np.allclose(own.origin, 0) and np.allclose(own.spacing, 1) and np.allclose(np.abs(own.direction), np.eye(3))
    values, own = _along_axes_of(grid, _alpha_of(path, values), own)
    if own.shape == grid.shape and own.placement_difference(grid) <= PLACEMENT_TOLERANCE_MM:
        return values[box], ""
    if bare:
        raise InputError(f"{path}: misplaced: its header has no placement (origin 0, spacing 1 mm); {_ADVICE}")
    _refuse_shifted(path, own, grid)
    part = grid.crop([side.start for side in box], [side.stop - side.start for side in box])
    inside = own.to_index(_centres(part))
    share = float(np.all((inside > -0.5) & (inside < np.array(own.shape) - 0.5), axis=1).mean())
    if share == 0:
        apart = np.linalg.norm(np.subtract(_middle(own), _middle(part)))
        raise InputError(
            f"{path}: misplaced: the middle of its grid lies {apart:.0f} mm from the nodule's, and it covers no voxel "
            f"that is judged; {_ADVICE}"
        )
    size, mm = " x ".join(map(str, own.shape)), " x ".join(f"{one:.4g}" for one in own.spacing)
    note = f"resampled from {size} voxels of {mm} mm (z, y, x)"
    if share < 1:
        note += f"; it covers {100 * share:.0f} % of the judged box, alpha is 0 beyond"
    return _resampled(values, own, part), note


_ADVICE = (
    "give the file spacing, origin and direction of nodule.spacing, nodule.origin and nodule.direction, which are "
    "(z, y, x) in LPS; an affine of NIfTI is (x, y, z) in RAS"
)


def _alpha_of(path: str | Path, values: AnyArray) -> Float32Array:
    if values.dtype.kind not in "biuf":
        raise InputError(f"{path}: holds {values.dtype}; alpha is a real number from 0 to 1 for each voxel")
    bad = ~np.isfinite(values)
    if bad.any():
        first = tuple(int(i) for i in np.argwhere(bad)[0])
        raise InputError(
            f"{path}: {np.count_nonzero(bad)} voxels are NaN or infinite, the first at {first} (z, y, x); replace them"
        )
    low, high = float(values.min()), float(values.max())
    if low < -ROUNDING or high > 1 + ROUNDING:
        if low >= 0 and high <= 255:
            advice = "divide by 255, or by the largest value that stands for lesion"
        elif low < -200:
            advice = "these look like HU: write the matte, not the image"
        else:
            advice = "apply the network's last function (sigmoid), or clip to 0 and 1"
        raise InputError(f"{path}: holds values from {low:.4g} to {high:.4g}; alpha is 0 to 1: {advice}")
    clipped: Float32Array = np.clip(values.astype(np.float32), 0, 1)
    return clipped


def _along_axes_of(grid: Grid, values: Float32Array, own: Grid) -> tuple[Float32Array, Grid]:
    """The same voxels in the order of the grid's axes, where the two differ by swaps and flips alone."""
    turn = np.asarray(grid.direction).T @ np.asarray(own.direction)
    signs = np.rint(turn)
    if np.abs(turn - signs).max() > SAME_AXES or not (np.abs(signs).sum(axis=0) == 1).all():
        return values, own
    axes = np.abs(signs).argmax(axis=1)  # which of its own axes runs along each one of the grid
    flipped = [axis for axis in range(3) if signs[axis, axes[axis]] < 0]
    corner = [own.shape[axes[axis]] - 1 if axis in flipped else 0 for axis in range(3)]
    index = np.zeros(3)
    index[axes] = corner
    turned = np.flip(values.transpose(axes), tuple(flipped))
    direction = np.asarray(own.direction)[:, axes] * np.array([-1 if axis in flipped else 1 for axis in range(3)])
    origin = triple(own.to_patient(index).tolist())
    return turned, Grid(triple(turned.shape), triple(own.spacing[axis] for axis in axes), origin, direction)


def _refuse_shifted(path: str | Path, own: Grid, grid: Grid) -> None:
    """Raise InputError for a grid of the nodule's size in another place: a mistake, and no other grid."""
    if own.shape == grid.shape and np.allclose(own.spacing, grid.spacing, rtol=1e-3):
        apart = own.placement_difference(grid)
        mirrored = np.allclose(np.multiply(own.origin, (1, -1, -1)), grid.origin, atol=PLACEMENT_TOLERANCE_MM)
        why = ", because x and y of its origin have the opposite sign (RAS for LPS)" if mirrored else ""
        raise InputError(
            f"{path}: misplaced: it has the size of the nodule's crop and lies up to {apart:.4g} mm from it{why}; "
            f"{_ADVICE}"
        )


def _middle(grid: Grid) -> AnyArray:
    return np.asarray(grid.to_patient((np.array(grid.shape) - 1) / 2))


def _centres(grid: Grid) -> AnyArray:
    return np.asarray(grid.to_patient(np.indices(grid.shape).reshape(3, -1).T))


def _resampled(values: Float32Array, own: Grid, grid: Grid) -> Float32Array:
    """Linear interpolation at the voxels of a grid; their parts' mean where its own voxels are finer."""
    import SimpleITK as sitk  # see raymat.volume

    along = np.abs(np.asarray(grid.direction).T @ np.asarray(own.direction)) @ np.asarray(own.spacing)
    parts = np.clip(np.rint(np.asarray(grid.spacing) / along), 1, FINEST).astype(int)
    spacing = np.asarray(grid.spacing) / parts
    shape = triple(int(n) for n in np.array(grid.shape) * parts)
    origin = grid.to_patient((1 / parts - 1) / 2)  # the centre of the first part of the first voxel
    fine = Grid(shape, triple(spacing.tolist()), triple(origin.tolist()), grid.direction)
    resampler = sitk.ResampleImageFilter()
    resampler.SetReferenceImage(to_sitk(np.zeros(shape, np.uint8), fine))
    resampler.SetOutputPixelType(sitk.sitkFloat32)
    resampler.SetInterpolator(sitk.sitkLinear)
    resampler.SetNumberOfThreads(1)
    resampler.SetDefaultPixelValue(0)
    found = sitk.GetArrayFromImage(resampler.Execute(to_sitk(np.ascontiguousarray(values), own)))
    z, y, x = grid.shape
    means: Float32Array = found.reshape(z, parts[0], y, parts[1], x, parts[2]).mean(axis=(1, 3, 5), dtype=np.float32)
    return np.clip(means, 0, 1)
