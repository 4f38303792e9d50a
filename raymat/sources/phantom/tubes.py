"""Vessels and bronchi: branching tubes that grow through the lung."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from raymat.compiled import compiled


@dataclass
class Tubes:
    """Straight pieces of tube.

    Attributes
    ----------
    start, end : float (n, 3), mm, (z, y, x) relative to the nodule's centre
    radius : float (n, 2), mm, at start and end
    """

    start: np.ndarray
    end: np.ndarray
    radius: np.ndarray

    @classmethod
    def of(cls, pieces: list) -> Tubes:
        """From (start, end, radius at start, radius at end) tuples."""
        table = np.array([[*s, *e, r, q] for s, e, r, q in pieces], float).reshape(-1, 8)
        return cls(table[:, :3], table[:, 3:6], table[:, 6:])


def across(direction: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A random unit vector perpendicular to ``direction``."""
    vector = np.cross(direction, rng.standard_normal(3))
    return vector / max(np.linalg.norm(vector), 1e-9)


def grow(start, direction, radius: float, inside, rng: np.random.Generator, *, least: float = 0.22) -> list:
    """A tree of tubes.

    Parameters
    ----------
    start : (z, y, x) mm
    direction : (z, y, x), need not be a unit vector
    radius : mm, of the root
    inside : callable of a point (z, y, x) in mm; a branch ends where it says False
    rng : numpy Generator
    least : mm; thinner branches end

    Returns
    -------
    list of (start, end, radius at start, radius at end)
    """
    pieces: list[tuple[np.ndarray, np.ndarray, float, float]] = []
    unit = np.asarray(direction, float) / np.linalg.norm(direction)
    waiting = [(np.asarray(start, float), unit, float(radius), across(unit, rng))]
    while waiting and len(pieces) < 1200:
        point, way, r, bend = waiting.pop()
        length = rng.exponential(7.0 + 5.0 * r) + 3.0
        # A branch bends one way for a while: vessels are arcs, not jitter.
        curl = rng.normal(0.0, 0.028 / np.sqrt(r + 0.2))
        walked = 0.0
        alive = True
        while walked < length:
            step = 1.3
            way = way + bend * curl * step + rng.normal(0.0, 0.035, 3)
            way /= np.linalg.norm(way)
            after = point + way * step
            thinner = r * (1 - 0.007 * step)
            if thinner < least or not inside(after):
                alive = False
                break
            pieces.append((point, after, r, thinner))
            point, r = after, thinner
            walked += step
        if not alive:
            continue
        side = across(way, rng)
        share = rng.uniform(0.4, 0.75)
        # Murray's law: the cubes of the daughters' radii add up to the mother's.
        small, large = r * share ** (1 / 2.2), r * (1 - share**3) ** (1 / 3)
        small = min(small, large)
        angle = np.deg2rad(rng.uniform(30, 65))
        waiting.append((point, np.cos(angle) * way + np.sin(angle) * side, small, across(way, rng)))
        angle = np.deg2rad(rng.uniform(5, 22))
        waiting.append((point, np.cos(angle) * way - np.sin(angle) * side, large, across(way, rng)))
    return pieces


def cover(tubes: Tubes, shape, spacing, centre, *, scale: float = 1.0, shift=(0.0, 0.0, 0.0)) -> np.ndarray:
    """How much of every voxel lies in a tube.

    Parameters
    ----------
    tubes : Tubes
    shape : (z, y, x) voxels
    spacing : (z, y, x) mm
    centre : (z, y, x) voxels, where the tubes' coordinates have their origin
    scale : factor on the radii
    shift : (z, y, x) mm, moves the tubes

    Returns
    -------
    float32 (z, y, x), 0 to 1
    """
    out = np.zeros(shape, np.float32)
    if len(tubes.start):
        move = np.asarray(shift, float)
        _cover(
            out,
            tubes.start + move,
            tubes.end + move,
            tubes.radius * scale,
            np.asarray(spacing, float),
            np.asarray(centre, float),
        )
    return out


@compiled
def _cover(out, start, end, radius, spacing, centre):
    # The edge of a tube is as wide as a voxel; a tube thinner than a voxel fills the part of it that its area does.
    edge = (spacing[0] * spacing[1] * spacing[2]) ** (1 / 3)
    for n in range(len(start)):
        reach = max(radius[n, 0], radius[n, 1]) + edge
        low = np.empty(3, np.int64)
        high = np.empty(3, np.int64)
        for a in range(3):
            low[a] = max(0, int(np.floor((min(start[n, a], end[n, a]) - reach) / spacing[a] + centre[a])))
            high[a] = min(
                out.shape[a], int(np.ceil((max(start[n, a], end[n, a]) + reach) / spacing[a] + centre[a])) + 1
            )
        along = end[n] - start[n]
        length2 = (along * along).sum()
        for k in range(low[0], high[0]):
            pz = (k - centre[0]) * spacing[0] - start[n, 0]
            for j in range(low[1], high[1]):
                py = (j - centre[1]) * spacing[1] - start[n, 1]
                for i in range(low[2], high[2]):
                    px = (i - centre[2]) * spacing[2] - start[n, 2]
                    t = 0.0
                    if length2 > 0:
                        t = min(1.0, max(0.0, (pz * along[0] + py * along[1] + px * along[2]) / length2))
                    dz = pz - t * along[0]
                    dy = py - t * along[1]
                    dx = px - t * along[2]
                    r = radius[n, 0] + t * (radius[n, 1] - radius[n, 0])
                    most = min(1.0, np.pi * r * r / (edge * edge))
                    value = 0.5 + (r - np.sqrt(dz * dz + dy * dy + dx * dx)) / edge
                    value = min(value, most)
                    if value > out[k, j, i]:
                        out[k, j, i] = value
