"""One phantom, from the readers' masks and ratings to what the scanner shows of it; plain arrays."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

from raymat.arrays import box_around
from raymat.calibration import LUNG_WINDOW
from raymat.sources.phantom import anatomy, boundary, lesion, scanner
from raymat.sources.phantom.fields import generator

# The finest plane spacing in mm.
PLANE_MM = 0.5
# Around the readers' union, what is drawn of the nodule's own distance, mm.
MARGIN_MM = 9.0
# Measured on lidc-voi: the half-way surface between a solid nodule and its lung lies 0.24 mm inside the edge of the
# readers' mean mask, 0.26 mm more or less from nodule to nodule and 0.4 mm from place to place, half of it pixels.
OFFSET_MM, OFFSET_SD_MM, DISPLACEMENT_MM = -0.08, 0.25, 0.3


@dataclass
class Phantom:
    """A drawn phantom on the scanner's slices.

    Attributes
    ----------
    image : int16 (z, y, x), HU
    membership : float32 (z, y, x), 0 to 1, what the scanner shows of the share of lesion in every voxel
    calibrated : float32 (z, y, x), 0 to 1, what it shows of that share times the share of pure lesion tissue that the
        lesion's own density stands for (Eq. 4, in the lung window)
    parameters : what was drawn, by name: HU, mm, flags
    scanner : the scanner
    """

    image: np.ndarray
    membership: np.ndarray
    calibrated: np.ndarray
    parameters: dict
    scanner: scanner.Scanner


def draw_phantom(
    readers: np.ndarray,
    spacing,
    ratings: list[dict[str, int]],
    *,
    thickness_mm: float,
    position_mm=(0.0, 75.0),
    seed: int = 0,
    name: str = "",
) -> Phantom:
    """Draw a phantom.

    Parameters
    ----------
    readers : bool or uint8 (reader, z, y, x), the masks; at least one empty slice at both ends
    spacing : (z, y, x) mm
    ratings : one dict per reader, rating name to score
    thickness_mm : slice thickness
    position_mm : (y, x) mm of the window's centre from the image's centre: which lung, which wall
    seed, name : decide everything that is random

    Returns
    -------
    Phantom

    Raises
    ------
    InputError
        The readers have no voxel in common.
    """
    fine = draw_fine(
        readers, spacing, ratings, thickness_mm=thickness_mm, position_mm=position_mm, seed=seed, name=name
    )
    image = fine.shown(fine.volume)
    image += scanner.noise(image.shape, tuple(map(float, spacing)), fine.scanner, generator(seed, name, "noise"))
    membership, calibrated = (np.clip(fine.shown(t), 0, 1).astype(np.float32) for t in (fine.share, fine.pure))
    parameters = plain({**fine.parameters, **asdict(fine.scanner)})
    return Phantom(scanner.to_hounsfield(image), membership, calibrated, parameters, fine.scanner)


@dataclass
class Fine:
    """A lesion and what surrounds it on the planes from which slices are made, before any scanner.

    Attributes
    ----------
    volume : float32 (z, y, x), HU
    share, pure : float32 (z, y, x), the drawn share of lesion, and that times the share of pure lesion tissue
    distances : float32 (reader, z, y, x), mm to each reader's outline, negative inside, within ``inner``
    inner : the part of the planes and the window that the lesion lies in
    spacing : (z, y, x) mm
    planes : planes per slice of the readers' scan
    reach : planes before the first slice
    slices : slices of the readers' scan
    scanner : of the readers' scan
    parameters : what was drawn, by name
    """

    volume: np.ndarray
    share: np.ndarray
    pure: np.ndarray
    distances: np.ndarray
    inner: tuple[slice, ...]
    spacing: tuple[float, float, float]
    planes: int
    reach: int
    slices: int
    scanner: scanner.Scanner
    parameters: dict

    def shown(self, volume: np.ndarray) -> np.ndarray:
        """What the scanner shows of one of the volumes, without noise; float32 (z, y, x) of the slices."""
        return scanner.show(volume, self.spacing, self.planes, self.reach, self.slices, self.scanner)


def draw_fine(
    readers: np.ndarray,
    spacing,
    ratings: list[dict[str, int]],
    *,
    thickness_mm: float,
    position_mm=(0.0, 75.0),
    seed: int = 0,
    name: str = "",
) -> Fine:
    """What ``draw_phantom`` draws before the scanner; parameters and errors as there."""
    readers = np.asarray(readers).astype(bool)
    spacing = tuple(float(v) for v in spacing)
    slices = readers.shape[1]
    planes = max(1, int(np.ceil(spacing[0] / PLANE_MM - 1e-6)))
    step = (spacing[0] / planes, spacing[1], spacing[2])

    def random(what: str) -> np.random.Generator:
        return generator(seed, name, what)

    drawn = choose_scanner(thickness_mm, random("scanner"))
    looks = lesion.choose_lesion(ratings, random("lesion"))
    spiculation, lobulation = lesion.rating(ratings, "spiculation"), lesion.rating(ratings, "lobulation")

    reach = len(scanner.profile(drawn, step[0])) // 2
    shape = ((slices - 1) * planes + 1 + 2 * reach, *readers.shape[2:])
    box = box_around(np.any(readers, axis=0), [max(1, int(np.ceil(MARGIN_MM / mm))) for mm in spacing])
    distances = np.stack([boundary.signed_distance(mask[box], spacing, planes) for mask in readers])
    shift = random("boundary")
    offset = float(OFFSET_MM + OFFSET_SD_MM * shift.standard_normal())
    # A nodule of a few voxels is not moved by as much as it measures.
    deepest = float(-distances.max(0).min())
    offset = float(np.clip(offset, -0.3 * deepest, 0.2 * deepest))
    surface = offset + boundary.true_surface(
        distances,
        step,
        shift,
        displacement=DISPLACEMENT_MM,
        roughness=float(np.clip(0.25 + (max(spiculation, lobulation) - 1) / 5, 0, 0.8)),
    )
    inner = (slice(reach + box[0].start * planes, reach + (box[0].stop - 1) * planes + 1), box[1], box[2])
    distance = np.full(shape, MARGIN_MM, np.float32)
    distance[inner] = np.minimum(surface, MARGIN_MM)

    inside = np.argwhere(distance < 0)
    centre = (inside.min(0) + inside.max(0)) / 2
    around = anatomy.choose_surroundings(position_mm, random("surroundings"))
    volume = anatomy.draw(shape, step, centre, distance, around, random("anatomy"), spiculation)
    share = np.zeros(shape, np.float32)
    share[inner] = lesion.alpha(surface, step, looks, random("transition"))
    tissue = lesion.tissue(surface, step, looks, random("tissue"))
    volume[inner] += share[inner] * (tissue - volume[inner])
    pure = share.copy()
    pure[inner] *= LUNG_WINDOW.alpha(tissue)

    parameters = {
        "lesion_hu": looks.hu,
        "core_hu": looks.core_hu if looks.core_part else None,
        "core_part": looks.core_part,
        "unevenness_hu": looks.unevenness_hu,
        "transition_mm": looks.transition_mm,
        "calcification": looks.calcification,
        "cavity": looks.cavity,
        "offset_mm": offset,
        **{k: v for k, v in asdict(around).items() if k != "outward"},
    }
    return Fine(volume, share, pure, distances, inner, step, planes, reach, slices, drawn, parameters)


def choose_scanner(thickness_mm: float, rng: np.random.Generator) -> scanner.Scanner:
    """A scanner: half soft, half sharper; thin slices and sharp kernels are noisy, as they are.

    The noise is that of lidc-voi's parenchyma: 26 HU in the median, 15 at 5 %, 63 at 95 %.
    """
    sharp = rng.random() < 0.45
    blur = rng.uniform(0.8, 1.0) if sharp else rng.uniform(1.1, 1.6)
    level = 30.0 if sharp else 19.0
    noise = float(np.clip(level * np.sqrt(1.8 / thickness_mm) * rng.lognormal(0.05, 0.42), 11, 85))
    streak = float(rng.uniform(0.3, 0.7)) if rng.random() < 0.1 else 0.0
    return scanner.Scanner(float(blur), float(thickness_mm), noise * (1.4 if streak else 1.0), streak)


def plain(parameters: dict) -> dict:
    """Parameters as a record stores them: four decimals are finer than anything drawn, and JSON has no NaN."""

    def of(value):
        if not isinstance(value, float):
            return value
        return round(value, 4) if np.isfinite(value) else None

    return {name: of(value) for name, value in parameters.items()}
