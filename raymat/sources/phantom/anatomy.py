"""What surrounds the lesion: parenchyma, vessels, bronchi, fissures, and the wall of the chest.

Coordinates are millimetres, (z, y, x), relative to the nodule's centre; y grows to the back, as in an axial slice of
a patient on the back.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from raymat.sources.phantom import tubes
from raymat.sources.phantom.fields import grain, smooth_field, smoothstep

AIR, FAT, MUSCLE, BLOOD, SKIN = -1000.0, -105.0, 50.0, 45.0, 20.0


@dataclass(frozen=True)
class Surroundings:
    """What was drawn around a lesion.

    Attributes
    ----------
    outward : (z, y, x) unit vector, from the nodule to the nearest wall
    wall : "chest", "mediastinum" or "none"
    gap_mm : from the nodule's outermost point to the pleura; NaN where there is no wall
    lung_hu : mean of the parenchyma without its vessels
    contrast : whether vessels are enhanced
    attached : number of vessels that begin at the nodule
    """

    outward: tuple[float, float, float]
    wall: str
    gap_mm: float
    lung_hu: float
    contrast: bool
    attached: int


def choose_surroundings(position_mm, rng: np.random.Generator) -> Surroundings:
    """Draw what lies around a nodule from where it lies in the slice.

    The contours say where the nodule is in the image but not where the pleura was, so whether a wall is near is drawn
    at random: in one of four phantoms the nodule touches it, in two of five it is near.

    Parameters
    ----------
    position_mm : (y, x) mm, the nodule's centre relative to the centre of the image
    rng : numpy Generator
    """
    y, x = position_mm
    # The lungs lie left and right of the image's centre by about 75 mm.
    lung = np.array([0.0, -5.0, np.copysign(75.0, x)])
    away = np.array([0.0, y, x]) - lung
    if np.linalg.norm(away) < 1.0:
        away = np.array([0.0, 0.0, np.copysign(1.0, x)])
    angle = np.arctan2(away[1], away[2]) + rng.normal(0, 0.35)
    outward = np.array([rng.normal(0, 0.12), np.sin(angle), np.cos(angle)])
    outward /= np.linalg.norm(outward)
    draw = rng.random()
    if draw < 0.25:
        gap = rng.uniform(-1.2, 0.3)
    elif draw < 0.65:
        gap = 2.5 + rng.gamma(1.6, 6.0)
    else:
        gap = np.nan
    medial = outward[2] * np.copysign(1.0, x) < -0.5
    kind = "none" if np.isnan(gap) else ("mediastinum" if medial else "chest")
    return Surroundings(
        outward=tuple(outward.tolist()),
        wall=kind,
        gap_mm=float(gap),
        lung_hu=float(rng.uniform(-885, -815)),
        contrast=bool(rng.random() < 0.4),
        attached=int(rng.choice(5, p=[0.2, 0.35, 0.25, 0.14, 0.06])),
    )


class Wall:
    """The inner surface of the chest, or of the mediastinum, as a slightly dented cylinder.

    ``depth(z, y, x)`` is the signed depth below the pleura in mm, positive in the wall.
    """

    def __init__(self, outward, distance: float, radius: float):
        self.outward = np.asarray(outward, float)
        self.radius = radius
        self.axis = self.outward * (distance - radius)

    def depth(self, z, y, x):
        """Depth in mm of points given by broadcastable coordinates in mm."""
        # The cylinder's axis runs along z and leans with the wall.
        lean = self.outward[0] / max(np.hypot(self.outward[1], self.outward[2]), 1e-6)
        in_plane = np.hypot(y - self.axis[1], x - self.axis[2])
        return in_plane + lean * (z - self.axis[0]) - self.radius


def wall_tissue(depth: np.ndarray, at, wall: Wall, kind: str, spacing, rng: np.random.Generator) -> np.ndarray:
    """HU of the wall at every voxel, whatever its depth; the caller cuts it at the pleura.

    Parameters
    ----------
    depth : float32 (z, y, x), mm below the pleura
    at : z, y and x, coordinates in mm, broadcastable
    wall : Wall
    kind : "chest" or "mediastinum"
    spacing : (z, y, x) mm
    rng : numpy Generator

    Returns
    -------
    float32 (z, y, x)
    """
    z, y, x = at
    shape = depth.shape
    tissue = MUSCLE + 8 * smooth_field(shape, spacing, 6.0, rng)
    if kind == "mediastinum":
        streaks = smooth_field(shape, spacing, 7.0, rng) + 0.5 * smooth_field(shape, spacing, 3.0, rng)
        fat = smoothstep((streaks - rng.uniform(0.2, 1.2)) / 0.6) * smoothstep((depth - 3.0) / 3.0)
        return tissue + fat * (FAT - tissue)

    def mix(cover, hu):
        nonlocal tissue
        tissue = tissue + cover * (hu - tissue)

    # A film of fat under the pleura, here and there.
    film = 0.8 + 1.3 * smooth_field(shape, spacing, 14.0, rng)
    mix(smoothstep((film - np.abs(depth - 1.2)) / 0.8) * 0.8, FAT)
    angle = np.arctan2(y - wall.axis[1], x - wall.axis[2])
    arc = angle * wall.radius
    # Ribs run down and forward: in an axial slice each is a long strip that enters and leaves the slice.
    slope = rng.uniform(0.35, 0.8)
    phase = (z + slope * arc * np.sign(wall.outward[1] + 0.01)) / np.hypot(1, slope)
    period, breadth, thick = rng.uniform(21, 27), rng.uniform(6.0, 7.5), rng.uniform(3.2, 4.5)
    from_middle = np.abs((phase / period + rng.random()) % 1.0 - 0.5) * period
    layer = rng.uniform(6.0, 8.0)
    rib = np.hypot(from_middle / breadth, (depth - layer) / thick)
    shell = (1 - rib) * thick
    mix(smoothstep(shell / 0.8), 520 + 90 * smooth_field(shape, spacing, 5.0, rng))
    mix(smoothstep((shell - 1.5) / 1.0), 190 + 60 * smooth_field(shape, spacing, 2.5, rng))
    # Muscle in sheets with fat between them, then the fat under the skin, the skin, the room.
    sheets = layer + thick + 1.5 + 1.5 * smooth_field(shape, spacing, 18.0, rng)
    mix(smoothstep((1.1 - np.abs(depth - sheets)) / 1.2) * 0.9, FAT)
    end = sheets + rng.uniform(5, 16) + 2.5 * smooth_field(shape, spacing, 22.0, rng)
    mix(smoothstep((depth - end) / 1.0), FAT + 6 * smooth_field(shape, spacing, 5.0, rng))
    skin = end + rng.uniform(6, 28)
    mix(smoothstep((depth - skin) / 1.0), SKIN)
    mix(smoothstep((depth - skin - 1.8) / 1.0), AIR)
    return tissue


def lung(shape, spacing, y, hu: float, rng: np.random.Generator) -> np.ndarray:
    """Parenchyma without the vessels one can follow: HU with a slope to the back, lobules and unresolved vessels.

    Parameters
    ----------
    shape : (z, y, x) voxels
    spacing : (z, y, x) mm
    y : mm, broadcastable
    hu : the mean
    rng : numpy Generator
    """
    tissue = hu + rng.uniform(0.1, 0.5) * np.asarray(y, np.float32)
    tissue = tissue + 12 * smooth_field(shape, spacing, 9.0, rng)
    tissue = tissue + 10 * smooth_field(shape, spacing, 3.5, rng)
    fine = grain(shape, spacing, 0.6, rng)
    # Vessels below the scanner's resolution are specks brighter than the air around them.
    tissue = tissue + 26 * fine + 14 * np.maximum(fine - 1.2, 0) ** 2
    if rng.random() < 0.2:
        # Centrilobular emphysema: holes of some millimetres.
        holes = smooth_field(shape, spacing, rng.uniform(4, 7), rng)
        tissue = tissue + smoothstep((holes - 1.1) / 0.8) * (-960 - tissue) * 0.8
    return tissue.astype(np.float32)


def draw(
    shape, spacing, centre, distance: np.ndarray, around: Surroundings, rng: np.random.Generator, spiculation: float
) -> np.ndarray:
    """Everything but the lesion.

    Parameters
    ----------
    shape : (z, y, x) voxels of the fine grid
    spacing : (z, y, x) mm
    centre : (z, y, x) voxels, the nodule's centre
    distance : float32 (z, y, x), mm to the nodule's surface, negative inside; what is far off may be cut at any value
    around : Surroundings
    rng : numpy Generator
    spiculation : the readers' mean rating, 1 to 5; how many strands leave the nodule

    Returns
    -------
    float32 (z, y, x), HU
    """
    z, y, x = np.ogrid[: shape[0], : shape[1], : shape[2]]
    z, y, x = ((axis - c) * step for axis, c, step in zip((z, y, x), centre, spacing, strict=True))
    z, y, x = (axis.astype(np.float32) for axis in (z, y, x))
    outward = np.array(around.outward)
    tissue = lung(shape, spacing, y, around.lung_hu, rng)

    wall = None
    if around.wall != "none":
        reach = np.where(distance < 0, z * outward[0] + y * outward[1] + x * outward[2], -np.inf).max()
        radius = rng.uniform(65, 120) if around.wall == "chest" else rng.uniform(30, 60) * 3
        wall = Wall(outward, float(reach) + around.gap_mm, radius)

    low = [-c * s - 4 for c, s in zip(centre, spacing, strict=True)]
    high = [(n - c) * s + 4 for n, c, s in zip(shape, centre, spacing, strict=True)]

    def in_lung(point) -> bool:
        if not all(a <= p <= b for a, p, b in zip(low, point, high, strict=True)):
            return False
        return wall is None or wall.depth(*point) < -0.5

    def outside_nodule(point) -> bool:
        if not in_lung(point):
            return False
        k, j, i = (round(p / s + c) for p, s, c in zip(point, spacing, centre, strict=True))
        within = 0 <= k < shape[0] and 0 <= j < shape[1] and 0 <= i < shape[2]
        return not within or distance[k, j, i] > 0.8

    pieces = _background_vessels(low, high, outward, outside_nodule, rng, wall is None)
    pieces += _attached(distance, spacing, centre, around, spiculation, in_lung, rng)
    vessels = tubes.Tubes.of(pieces)
    blood = BLOOD + (rng.uniform(50, 140) if around.contrast else 0.0)
    cover = tubes.cover(vessels, shape, spacing, centre)
    tissue += cover * (blood - tissue)

    for bronchus, wide in _bronchi(low, high, outward, outside_nodule, rng):
        outer = tubes.cover(bronchus, shape, spacing, centre)
        inner = tubes.cover(bronchus, shape, spacing, centre, scale=0.72)
        tissue += outer * (-60.0 - tissue)
        tissue += inner * (-985.0 - tissue)
        artery = tubes.cover(bronchus, shape, spacing, centre, scale=0.85, shift=wide)
        tissue += artery * (1 - inner) * (blood - tissue)

    if rng.random() < 0.25:
        tissue += _fissure(shape, spacing, z, y, x, distance, rng) * (-520 - tissue)
    if wall is not None:
        depth = wall.depth(z, y, x).astype(np.float32)
        depth += 1.2 * smooth_field(shape, spacing, 16.0, rng) * smoothstep((np.abs(distance) - 4) / 6)
        beyond = wall_tissue(depth, (z, y, x), wall, around.wall, spacing, rng)
        tissue += smoothstep(depth / 0.7) * (beyond - tissue)
    return tissue.astype(np.float32)


def _background_vessels(low, high, outward, inside, rng, deep: bool) -> list:
    size = np.array(high) - np.array(low)
    volume = float(np.prod(size)) / 1000.0
    pieces = []
    for _ in range(int(rng.poisson(volume * rng.uniform(0.05, 0.11)) + 4)):
        start = np.array(low) + rng.random(3) * size
        way = 0.6 * outward + rng.normal(0, 0.6, 3)
        radius = float(np.clip(rng.lognormal(-0.45, 0.5), 0.32, 3.2 if deep else 1.8))
        if inside(start):
            # Vessels come from the hilum: the root lies as far upstream as the box reaches.
            back = start.copy()
            unit = way / np.linalg.norm(way)
            for _ in range(25):
                if not inside(back - 2.0 * unit):
                    break
                back -= 2.0 * unit
            pieces += tubes.grow(back, way, radius, inside, rng)
    return pieces


def _surface_point(distance, spacing, centre, way) -> np.ndarray:
    """Where a ray from the nodule's centre leaves the nodule for good, mm."""
    unit = way / np.linalg.norm(way)
    last = 0.0
    for t in np.arange(0.0, 40.0, 0.4):
        k, j, i = (round(p / s + c) for p, s, c in zip(unit * t, spacing, centre, strict=True))
        if not (0 <= k < distance.shape[0] and 0 <= j < distance.shape[1] and 0 <= i < distance.shape[2]):
            break
        if distance[k, j, i] < 0:
            last = t
    return unit * last


def _attached(distance, spacing, centre, around, spiculation, inside, rng) -> list:
    pieces = []
    outward = np.array(around.outward)
    depth = float(-distance.min())
    for _ in range(around.attached):
        way = -0.6 * outward + rng.normal(0, 0.7, 3) * (0.6, 1, 1)
        start = _surface_point(distance, spacing, centre, way)
        radius = float(np.clip(rng.lognormal(-0.35, 0.3), 0.4, max(0.5, min(1.8, 0.5 * depth))))
        pieces += tubes.grow(start - 0.5 * way / np.linalg.norm(way), way, radius, inside, rng, least=0.3)
    # Spicules: short strands that thin out as they leave the nodule.
    for _ in range(int(rng.poisson(1.0 + max(0.0, spiculation - 1.2) * 4.5))):
        way = rng.normal(0, 1, 3) * (0.7, 1, 1)
        unit = way / np.linalg.norm(way)
        point = _surface_point(distance, spacing, centre, way)
        length, radius = rng.uniform(2.5, 5.5 + 0.6 * depth), rng.uniform(0.35, 0.8)
        bend = tubes.across(unit, rng) * rng.normal(0, 0.03)
        steps = int(length / 0.8) + 1
        for n in range(steps):
            unit = unit + bend
            unit /= np.linalg.norm(unit)
            after = point + 0.8 * unit
            if not inside(after):
                break
            pieces.append((point, after, radius * (1 - 0.8 * n / steps), radius * (1 - 0.8 * (n + 1) / steps)))
            point = after
    return pieces


def _bronchi(low, high, outward, inside, rng):
    size = np.array(high) - np.array(low)
    found = []
    for _ in range(int(rng.integers(0, 3))):
        start = np.array(low) + rng.random(3) * size
        if not inside(start):
            continue
        way = 0.5 * outward + rng.normal(0, 0.6, 3)
        radius = float(rng.uniform(1.3, 2.4))
        pieces = tubes.grow(start, way, radius, inside, rng, least=1.0)
        if pieces:
            found.append((tubes.Tubes.of(pieces), tubes.across(way, rng) * 1.9 * radius))
    return found


def _fissure(shape, spacing, z, y, x, distance, rng) -> np.ndarray:
    normal = rng.normal(0, 1, 3) * (0.5, 1, 0.6)
    normal /= np.linalg.norm(normal)
    away = rng.uniform(8, 25)
    plane = z * normal[0] + y * normal[1] + x * normal[2] - away + 2.0 * smooth_field(shape, spacing, 18.0, rng)
    return smoothstep((0.45 - np.abs(plane)) / 0.7) * (distance > 1)
