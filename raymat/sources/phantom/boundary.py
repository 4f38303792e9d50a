"""The true boundary: one smooth surface somewhere within the readers' disagreement.

It is not the readers' average, or their mean mask would be right by construction. Every reader's outline becomes a
signed distance in 3D; a smooth random field says, place by place, where between the innermost and the outermost
outline the surface runs; a second one moves it further, because readers that agree were not exactly right either.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage, special

from raymat.nodule import InputError
from raymat.sources.phantom.fields import smooth_field

CLOSES = 0.95


def slice_distance(mask: np.ndarray, spacing) -> np.ndarray:
    """Signed distance in mm, negative inside, of a 2D mask (y, x); zero runs half-way between pixels in and out."""
    inside = ndimage.distance_transform_edt(mask, spacing)
    outside = ndimage.distance_transform_edt(~mask, spacing)
    half = np.sqrt(spacing[0] * spacing[1]) / 2
    return np.where(mask, half - inside, outside - half).astype(np.float32)


def signed_distance(mask: np.ndarray, spacing, planes: int) -> np.ndarray:
    """Signed distance of a mask drawn slice by slice, interpolated between its slices.

    Shape-based interpolation (Raya and Udupa, IEEE TMI 1990): the distances within each slice are interpolated in z,
    and the interpolated shape gets its distance in 3D. The shape closes ``CLOSES`` of a slice beyond its first and last
    slice: on lidc-voi the slices at the ends contain as much of a solid nodule as the readers' masks, or more.

    Parameters
    ----------
    mask : bool (z, y, x), with at least one empty slice at both ends
    spacing : (z, y, x) mm
    planes : planes per slice; plane ``planes * i`` lies on slice i

    Returns
    -------
    float32 ((z - 1) * planes + 1, y, x), mm, negative inside
    """
    filled = np.flatnonzero(mask.any((1, 2)))
    flat = np.empty(mask.shape, np.float32)
    for k in range(filled[0], filled[-1] + 1):
        if mask[k].any():
            flat[k] = slice_distance(mask[k], spacing[1:])
    # A slice the reader left out in the middle of the nodule is bridged, not cut through.
    for k in range(filled[0], filled[-1] + 1):
        if not mask[k].any():
            below, above = filled[filled < k].max(), filled[filled > k].min()
            flat[k] = flat[below] + (flat[above] - flat[below]) * ((k - below) / (above - below))
    # Beyond an end the value at the deepest point of the end slice rises to zero at CLOSES.
    for end, step in ((filled[0], -1), (filled[-1], 1)):
        depth = -flat[end].min()
        k = end + step
        while 0 <= k < len(flat):
            flat[k] = flat[end] + depth / CLOSES * abs(k - end)
            k += step
    steps = (len(flat) - 1) * planes + 1
    position = np.arange(steps) / planes
    low = np.minimum(position.astype(int), len(flat) - 2)
    t = (position - low).astype(np.float32)[:, None, None]
    between = flat[low] * (1 - t) + flat[low + 1] * t
    fine = (spacing[0] / planes, spacing[1], spacing[2])
    shape = between < 0
    distance = ndimage.distance_transform_edt(~shape, fine) - ndimage.distance_transform_edt(shape, fine)
    # Within a voxel of the surface the interpolated value is finer than a count of voxels.
    distance = np.where(np.abs(distance) <= 1.5 * max(fine), between, distance)
    distance = np.clip(distance, -60, 60).astype(np.float32)
    return ndimage.gaussian_filter(distance, [0.3 / step for step in fine], truncate=3)


def true_surface(
    distances: np.ndarray, spacing, rng: np.random.Generator, *, displacement: float, roughness: float = 0.0
) -> np.ndarray:
    """The drawn surface as a signed distance.

    Parameters
    ----------
    distances : float32 (reader, z, y, x), mm, negative inside
    spacing : (z, y, x) mm
    rng : numpy Generator
    displacement : standard deviation in mm of the movement that is added to the place between the outlines
    roughness : 0 to 1, how much of the movement is of short wavelength (lobules, spicules' roots)

    Returns
    -------
    float32 (z, y, x), mm, negative inside; one connected piece

    Raises
    ------
    InputError
        The readers have no voxel in common.
    """
    inner, outer = distances.max(0), distances.min(0)
    if not (inner < 0).any():
        raise InputError("the readers have no voxel in common, so there is no disagreement to draw a boundary in")
    shape = inner.shape
    radius = float(-outer.min())
    scale = float(np.clip(0.8 * radius, 2.5, 7.0))
    # A part of the place between the outlines is common to the whole nodule: all readers a bit wide, or a bit tight.
    level = 0.8 * smooth_field(shape, spacing, scale, rng) + 0.6 * np.float32(rng.standard_normal())
    level = special.ndtr(level).astype(np.float32)
    moved = (1 - roughness) * smooth_field(shape, spacing, scale, rng)
    moved += roughness * smooth_field(shape, spacing, max(scale / 2.5, 1.6), rng)
    moved *= displacement / max(np.hypot(1 - roughness, roughness), 1e-6)
    # The deepest voxel that all readers share stays inside, however small the nodule.
    limit = 0.5 * float(-inner.min())
    surface = inner + (outer - inner) * level + np.clip(moved, -limit, limit)
    surface = ndimage.gaussian_filter(surface, [0.25 / step for step in spacing], truncate=3)
    label, count = ndimage.label(surface < 0)
    if count > 1:
        largest = np.argmax(np.bincount(label.ravel())[1:]) + 1
        surface = np.where((label > 0) & (label != largest), np.float32(0.5), surface)
    return surface
