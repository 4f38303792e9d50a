"""A second scan of a phantom: the same lesion in the same lung, all else drawn anew.

Another scanner (kernel, noise, slice thickness and spacing), another position of the voxels, and other readers, who
disagree as the real ones do. What differs between measures of the two scans is how far a measure repeats.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from scipy import ndimage

from raymat.nodule import InputError
from raymat.sources.phantom import scanner
from raymat.sources.phantom.choice import LEAST_COMMON_VOXELS, MATRIX, MOST_DISAGREEMENT, WINDOW, Case
from raymat.sources.phantom.draw import MARGIN_MM, Fine, choose_scanner, draw_fine, plain
from raymat.sources.phantom.fields import generator, smooth_field

# How much thicker or thinner the slices of the second scan are.
THICKNESS = (0.7, 1.4)
# mm, over which a reader changes between wide and tight.
SCALE_MM = 6.0
TRIES = 50


def fine_of(case: Case, seed: int = 0) -> Fine:
    """The anatomy of a case on its fine lattice, before a scanner sees it."""
    middle, half = (MATRIX - 1) / 2, (WINDOW - 1) / 2
    return draw_fine(
        case.readers,
        case.spacing,
        [annotation.ratings for annotation in case.annotations],
        thickness_mm=case.scan.slice_thickness,
        position_mm=tuple((corner + half - middle) * case.scan.pixel_spacing for corner in case.window),
        seed=seed,
        name=case.nodule_id,
    )


@dataclass
class Retest:
    """The second scan.

    Attributes
    ----------
    image : int16 (z, y, x), HU
    membership, calibrated : float32 (z, y, x), what the scanner shows of either truth
    readers : uint8 (reader, z, y, x), new masks
    spacing : (z, y, x) mm
    offset : (z, y, x) mm from the first voxel of the first scan's window to that of this one
    parameters : what was drawn, by name
    """

    image: np.ndarray
    membership: np.ndarray
    calibrated: np.ndarray
    readers: np.ndarray
    spacing: tuple[float, float, float]
    offset: tuple[float, float, float]
    parameters: dict


def retest_of(case: Case, seed: int = 0) -> Retest:
    """The second scan of the phantom of a case.

    Raises
    ------
    InputError
        No readers who have enough voxels in common could be drawn.
    """
    fine = fine_of(case, seed)
    return scan_again(fine, case.scan.slice_thickness, seed, case.nodule_id)


def scan_again(fine: Fine, thickness_mm: float, seed: int, name: str) -> Retest:
    """The second scan of what was drawn; ``thickness_mm`` is that of the first."""

    def random(what: str) -> np.random.Generator:
        return generator(seed, name, f"retest {what}")

    how = random("scanner")
    factor = float(np.exp(how.uniform(*np.log(THICKNESS))))
    drawn = choose_scanner(thickness_mm * factor, how)
    planes = max(1, round(fine.planes * factor))
    spacing = (fine.spacing[0] * planes, *fine.spacing[1:])
    place = random("position")
    # In planes from the first slice of the first scan, and in pixels.
    first, moved = int(place.integers(0, planes)), place.uniform(-0.5, 0.5, 2)
    slices = ((fine.slices - 1) * fine.planes - first) // planes + 1
    beyond = len(scanner.profile(drawn, fine.spacing[0])) // 2

    def shown(volume: np.ndarray) -> np.ndarray:
        # Beyond the planes that were drawn the last one continues: a wider profile reaches there.
        wider = np.pad(_moved(volume, moved), ((beyond, beyond), (0, 0), (0, 0)), mode="edge")
        return scanner.show(wider, fine.spacing, planes, beyond + fine.reach + first, slices, drawn)

    image = shown(fine.volume)
    image += scanner.noise(image.shape, spacing, drawn, random("noise"))
    membership, calibrated = (np.clip(shown(truth), 0, 1).astype(np.float32) for truth in (fine.share, fine.pure))
    at = fine.reach + first + planes * np.arange(slices)
    readers = _readers(fine, at, moved, planes / fine.planes, random("readers"), name)
    parameters = plain({**fine.parameters, **asdict(drawn), "retest": True})
    offset = (first * fine.spacing[0], *(moved * fine.spacing[1:]).tolist())
    return Retest(scanner.to_hounsfield(image), membership, calibrated, readers, spacing, offset, parameters)


def _moved(volume: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """A volume at places that lie some parts of a pixel further along y and x, interpolated linearly."""
    return ndimage.shift(volume, (0, *-pixels), order=1, mode="nearest")


def _readers(
    fine: Fine, at: np.ndarray, moved: np.ndarray, thicker: float, rng: np.random.Generator, name: str
) -> np.ndarray:
    """New readers' masks on the planes ``at``, uint8 (reader, z, y, x)."""
    least = max(1, round(LEAST_COMMON_VOXELS / thicker))
    for _ in range(TRIES):
        masks = []
        for distance in redrawn(fine.distances, fine.spacing, rng):
            whole = np.full(fine.share.shape, MARGIN_MM, np.float32)
            whole[fine.inner] = np.minimum(distance, MARGIN_MM)
            masks.append(_moved(whole, moved)[at] < 0)
        readers = np.stack(masks)
        common, union = readers.all(0).sum(), readers.any(0).sum()
        if common >= least and union <= MOST_DISAGREEMENT * common:
            return readers.astype(np.uint8)
    raise InputError(f"{name}: no readers with enough voxels in common could be drawn in {TRIES} tries")


def redrawn(distances: np.ndarray, spacing, rng: np.random.Generator) -> np.ndarray:
    """Outlines of as many new readers, as signed distances, who disagree as those of ``distances``.

    A new reader differs from the readers' mean by a sum of their own differences from it, each times a random field of
    mean 0 and variance 1 over the square root of n - 1. So at every place the new readers have the variance of the old
    ones, and who draws wide in one place draws wide where one of the old readers did. Half of the field's variance is
    the same everywhere.

    Parameters
    ----------
    distances : float32 (reader, z, y, x), mm, negative inside
    spacing : (z, y, x) mm
    rng : numpy Generator

    Returns
    -------
    float32 (reader, z, y, x)
    """
    mean = distances.mean(0)
    off = distances - mean
    count, shape = len(distances), mean.shape
    new = np.repeat(mean[None], count, axis=0)
    for number in range(count):
        for one in off:
            field = np.float32(rng.standard_normal()) + smooth_field(shape, spacing, SCALE_MM, rng)
            new[number] += field * one / np.float32(np.sqrt(2 * max(count - 1, 1)))
    return new
