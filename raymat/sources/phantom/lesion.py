"""The lesion: its alpha and its own HU, as the readers rated it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from raymat.sources.phantom.fields import grain, smooth_field, smoothstep

# HU of the lesion for texture ratings 1 (ground glass) to 5 (solid); 3 is the part that is not its solid core.
TEXTURE_HU = (-590.0, -500.0, -420.0, -40.0, 45.0)
# 10-90 % width in mm of the transition for margin ratings 1 (poorly defined) to 5 (sharp).
MARGIN_MM = (3.4, 2.7, 2.0, 1.2, 0.5)
# Within smoothstep's unit, 10 % to 90 % takes this part.
RISE = 0.608
ABSENT = 6
CALCIUM_HU = (450.0, 1100.0)


@dataclass(frozen=True)
class Lesion:
    """What was drawn of a lesion.

    Attributes
    ----------
    hu : the mean HU of the lesion's tissue
    core_hu, core_part : HU of a denser core and its share of the depth; a part of 0 is no core
    transition_mm : 10-90 % width of alpha across the boundary, before the scanner
    calcification : "absent", "popcorn", "laminated", "solid", "non-central" or "central"
    unevenness_hu : standard deviation of the tissue's own texture
    cavity : whether there is air inside
    """

    hu: float
    core_hu: float
    core_part: float
    transition_mm: float
    calcification: str
    unevenness_hu: float
    cavity: bool


def rating(ratings: list[dict[str, int]], name: str) -> float:
    """The readers' mean rating."""
    return float(np.mean([r[name] for r in ratings]))


def choose_lesion(ratings: list[dict[str, int]], rng: np.random.Generator) -> Lesion:
    """Draw a lesion's appearance from the readers' ratings (one dict of ``FEATURES`` per reader)."""
    texture = rating(ratings, "texture")
    steps = np.arange(1, 6)
    hu = float(np.interp(texture, steps, TEXTURE_HU) + rng.normal(0, 30))
    core_part = float(rng.uniform(0.35, 0.65)) if 2 <= texture < 4.2 else 0.0
    margin = rating(ratings, "margin")
    transition = float(np.interp(margin, steps, MARGIN_MM) * rng.uniform(0.85, 1.15))
    votes = [r["calcification"] for r in ratings]
    names = {1: "popcorn", 2: "laminated", 3: "solid", 4: "non-central", 5: "central"}
    # A pattern counts where at least half the readers saw calcium; the commonest is drawn, the lower number in a tie.
    seen = [v for v in votes if v != ABSENT]
    pattern = names[max(sorted(set(seen)), key=seen.count)] if 2 * len(seen) >= len(votes) else "absent"
    hollow = sum(r["internalStructure"] == 4 for r in ratings) * 2 >= len(ratings)
    return Lesion(
        hu=hu,
        core_hu=float(rng.uniform(-40, 40)),
        core_part=core_part,
        transition_mm=transition,
        calcification=pattern,
        unevenness_hu=float(rng.uniform(55, 95) if texture < 3.5 else rng.uniform(10, 30)),
        cavity=bool(hollow),
    )


def alpha(distance: np.ndarray, spacing, lesion: Lesion, rng: np.random.Generator) -> np.ndarray:
    """The share of lesion tissue before the scanner's blur.

    Parameters
    ----------
    distance : float32 (z, y, x), mm to the true surface, negative inside
    spacing : (z, y, x) mm
    lesion : Lesion
    rng : numpy Generator

    Returns
    -------
    float32 (z, y, x), 0 to 1; 1/2 on the surface
    """
    width = lesion.transition_mm / RISE
    # The deepest point keeps alpha = 1, however ill-defined a small nodule is.
    width = min(width, 1.4 * float(-distance.min()))
    # An ill-defined margin is not ill-defined everywhere alike.
    place = 1 + 0.25 * np.clip(smooth_field(distance.shape, spacing, 6.0, rng), -2, 1.4)
    # A voxel is never sharper than itself: an edge narrower than a voxel is averaged over it.
    voxel = max(spacing)
    return smoothstep(-distance / np.maximum(width * place, voxel)).astype(np.float32)


def tissue(distance: np.ndarray, spacing, lesion: Lesion, rng: np.random.Generator) -> np.ndarray:
    """HU of the lesion's own tissue at every voxel.

    Parameters and shapes as in ``alpha``.
    """
    shape = distance.shape
    deepest = float(-distance.min())
    depth = -distance / deepest
    uneven = 0.7 * smooth_field(shape, spacing, 4.0, rng) + 0.6 * smooth_field(shape, spacing, 2.0, rng)
    uneven += 0.4 * grain(shape, spacing, 0.6, rng)
    hu = lesion.hu + lesion.unevenness_hu * uneven
    if lesion.core_part:
        wobble = 0.25 * smooth_field(shape, spacing, max(2.0, 0.5 * deepest), rng)
        core = smoothstep((depth + wobble - (1 - lesion.core_part)) / 0.35)
        hu = hu + core * (lesion.core_hu - hu)
    calcium = _calcium(distance, depth, spacing, lesion.calcification, rng)
    if calcium is not None:
        hu = hu + calcium * (rng.uniform(*CALCIUM_HU) - hu)
    if lesion.cavity:
        wobble = 0.2 * smooth_field(shape, spacing, max(2.0, 0.5 * deepest), rng)
        hu = hu + smoothstep((depth + wobble - 0.7) / 0.3) * (-950 - hu)
    return hu.astype(np.float32)


def _calcium(distance, depth, spacing, pattern: str, rng) -> np.ndarray | None:
    """How calcified every voxel is, 0 to 1."""
    shape = distance.shape
    if pattern == "absent":
        return None
    if pattern == "solid":
        return smoothstep((depth - 0.1) / 0.35)
    if pattern == "central":
        return smoothstep((depth - 0.6) / 0.3)
    if pattern == "laminated":
        return smoothstep((0.12 - np.abs(depth - 0.35)) / 0.12) + smoothstep((depth - 0.85) / 0.15)
    specks = grain(shape, spacing, 0.9 if pattern == "popcorn" else 0.7, rng)
    threshold = 0.9 if pattern == "popcorn" else 1.6
    return smoothstep((specks - threshold) / 0.5) * smoothstep((depth - 0.2) / 0.2)
