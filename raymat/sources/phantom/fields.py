"""Random fields in millimetres: the raw material of boundaries, tissue and textures.

Everything here is elementwise arithmetic of numpy, never a BLAS product, so that the same generator gives the same
bytes whatever the number of threads.
"""

from __future__ import annotations

import hashlib

import numpy as np
from scipy import ndimage


def generator(seed: int, *names: str) -> np.random.Generator:
    """A generator of its own for every (seed, names); independent of the order in which generators are asked for."""
    text = "\x1f".join(["raymat phantom", str(int(seed)), *names])
    return np.random.default_rng(int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "little"))


def smooth_field(shape, spacing, scale: float, rng: np.random.Generator) -> np.ndarray:
    """A Gaussian random field: cubic B-splines of random coefficients on a lattice of ``scale`` mm.

    Parameters
    ----------
    shape : (z, y, x) voxels
    spacing : (z, y, x) mm
    scale : lattice constant in mm; the field's correlation falls to a half within about this distance
    rng : numpy Generator

    Returns
    -------
    float32 (z, y, x), mean 0, standard deviation 1
    """
    positions = [
        np.arange(n) * step / scale + offset for n, step, offset in zip(shape, spacing, rng.random(3), strict=True)
    ]
    field = rng.standard_normal([int(p[-1]) + 4 for p in positions]).astype(np.float32)
    variance = 1.0
    for axis, position in enumerate(positions):
        first = position.astype(int)
        t = (position - first).astype(np.float32)
        weights = ((1 - t) ** 3 / 6, (3 * t**3 - 6 * t**2 + 4) / 6, (-3 * t**3 + 3 * t**2 + 3 * t + 1) / 6, t**3 / 6)
        column = [1, 1, 1]
        column[axis] = -1
        field = sum(np.take(field, first + k, axis) * w.reshape(column) for k, w in enumerate(weights))
        # 151/315 is the mean over one lattice cell of the sum of the squared weights.
        variance *= 151 / 315
    return field / np.float32(np.sqrt(variance))


def grain(shape, spacing, scale: float, rng: np.random.Generator) -> np.ndarray:
    """White noise blurred by a Gaussian of standard deviation ``scale`` mm; float32, mean 0, standard deviation 1."""
    noise = rng.standard_normal(shape, dtype=np.float32)
    blurred = ndimage.gaussian_filter(noise, [scale / step for step in spacing], mode="wrap", truncate=3)
    return blurred / blurred.std()


def smoothstep(value: np.ndarray) -> np.ndarray:
    """0 below -1/2, 1 above 1/2, a cubic without corners between; its 10-90 % rise takes 0.608 of the unit."""
    t = np.clip(value + 0.5, 0, 1)
    return t * t * (3 - 2 * t)
