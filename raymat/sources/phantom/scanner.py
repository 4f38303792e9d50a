"""The scanner: blur within the slice, the slice's profile, noise, integers.

The blur is a positive kernel of sum 1 applied alike to the image and to both true alphas, so what is kept of them is
what the scanner shows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import fft, ndimage, special

HU_RANGE = (-1024, 3071)


@dataclass(frozen=True)
class Scanner:
    """How a scan was made.

    Attributes
    ----------
    blur_mm : full width at half maximum of the point spread within the slice
    thickness_mm : slice thickness
    noise_hu : standard deviation of the noise
    streak : 0 to 1, the part of the noise that runs along x, as beside the shoulders
    """

    blur_mm: float
    thickness_mm: float
    noise_hu: float
    streak: float = 0.0

    @property
    def kernel(self) -> str:
        """A name for DICOM's ConvolutionKernel."""
        return "PHANTOM-SHARP" if self.blur_mm < 1.0 else "PHANTOM-STANDARD"


def profile(scanner: Scanner, plane_mm: float) -> np.ndarray:
    """Weights of the planes about a slice: a slice of ``thickness_mm`` with soft flanks; odd length, sum 1."""
    half = scanner.thickness_mm / 2
    soft = 0.2 * scanner.thickness_mm
    reach = int(np.ceil((half + 2 * soft) / plane_mm))
    z = np.arange(-reach, reach + 1) * plane_mm
    weights = special.ndtr((z + half) / soft) - special.ndtr((z - half) / soft)
    return (weights / weights.sum()).astype(np.float32)


def show(volume: np.ndarray, spacing, planes: int, first: int, slices: int, scanner: Scanner) -> np.ndarray:
    """What the scanner shows of a finely drawn volume, before noise.

    Parameters
    ----------
    volume : float32 (z, y, x) on the fine grid
    spacing : (z, y, x) mm of the fine grid
    planes : planes per slice
    first : index of the plane on which slice 0 lies; the profile must fit below it and above the last slice
    slices : number of slices
    scanner : Scanner

    Returns
    -------
    float32 (slices, y, x)
    """
    weights = profile(scanner, spacing[0])
    reach = len(weights) // 2
    shown = np.zeros((slices, *volume.shape[1:]), np.float32)
    for k in range(slices):
        centre = first + k * planes
        for weight, plane in zip(weights, volume[centre - reach : centre + reach + 1], strict=True):
            shown[k] += weight * plane
    sigma = scanner.blur_mm / 2.3548
    return ndimage.gaussian_filter(shown, [0, sigma / spacing[1], sigma / spacing[2]], mode="nearest", truncate=3.5)


def noise(shape, spacing, scanner: Scanner, rng: np.random.Generator) -> np.ndarray:
    """Noise of a filtered back projection: its power rises with frequency, then falls with the kernel.

    Parameters
    ----------
    shape : (z, y, x) of the slices
    spacing : (z, y, x) mm of the slices
    scanner : Scanner
    rng : numpy Generator

    Returns
    -------
    float32 (z, y, x), HU
    """
    white = rng.standard_normal(shape, dtype=np.float32)
    frequency_y = fft.fftfreq(shape[1], spacing[1])[:, None]
    frequency_x = fft.rfftfreq(shape[2], spacing[2])[None, :]
    radial = np.hypot(frequency_y, frequency_x)
    sigma = 0.7 * scanner.blur_mm / 2.3548
    falling = np.exp(-2 * (np.pi * sigma * radial) ** 2)
    amplitude = (np.sqrt(radial) + 0.08) * falling
    # Streaks along x: power only where the frequency along x is low.
    streaks = amplitude * np.exp(-((frequency_x / 0.08) ** 2))
    waves = fft.rfft2(white, axes=(1, 2))
    field = fft.irfft2(waves * amplitude, s=shape[1:], axes=(1, 2))
    field /= field.std()
    if scanner.streak:
        along = fft.irfft2(waves * streaks, s=shape[1:], axes=(1, 2))
        field = field * (1 - scanner.streak) + along / along.std() * scanner.streak
        field /= field.std()
    # Slices that overlap share photons.
    overlap = np.clip(scanner.thickness_mm / spacing[0] - 1, 0, 1)
    share = 0.1 + 0.35 * overlap
    field = ndimage.correlate1d(field, [share, 1, share], axis=0, mode="mirror")
    return (field * (scanner.noise_hu / field.std())).astype(np.float32)


def to_hounsfield(volume: np.ndarray) -> np.ndarray:
    """Integer HU of a 12-bit scanner, int16."""
    return np.clip(np.rint(volume), *HU_RANGE).astype(np.int16)
