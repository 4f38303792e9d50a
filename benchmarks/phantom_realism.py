"""Phantoms beside real nodules: a figure, and the distributions of HU, noise and edge width of both.

    python benchmarks/phantom_realism.py [--phantoms 60] [--seed 0] [--out docs/images/phantoms.png]

The real nodules are the crops of ``lidc-voi`` with four readers, under the folder named by RAYMAT_TEST_DATA or under
``../shared/data``. Everything is measured on the scanner's own grid, on axial slices, alike for both.
"""

from __future__ import annotations

import argparse
import csv
import os
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from scipy import ndimage

from raymat.sources.phantom import choose, phantom_of
from raymat.volume import read_volume

WINDOW_LEVEL, WINDOW_WIDTH = -600, 1500
IN_PLANE = np.ones((1, 3, 3), bool)
COLUMNS = 9
REAL, DRAWN = "tab:blue", "tab:orange"


@dataclass
class Seen:
    """An image with its readers: ``image`` HU and ``readers`` (reader, z, y, x), ``spacing`` (z, y, x) mm."""

    name: str
    image: np.ndarray
    readers: np.ndarray
    spacing: tuple[float, float, float]
    texture: float
    margin: float

    @property
    def diameter(self) -> float:
        """Longest side in the slice of the box around all marks, mm."""
        return float(max(np.ptp(np.argwhere(self.readers.any((0, 1))), axis=0) + 1) * self.spacing[1])


def real_nodules(folder: Path, n: int, seed: int) -> list[Seen]:
    """n crops of lidc-voi with four readers, one per patient, in an order of the seed."""
    with open(folder / "cases.csv", newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if len(row["masks"].split(";")) == 4]
    found, patients = [], set()
    for k in np.random.default_rng(seed).permutation(len(rows)):
        row = rows[k]
        if row["patient_id"] in patients:
            continue
        patients.add(row["patient_id"])
        image, grid = read_volume(folder / row["image"])
        masks = np.stack([read_volume(folder / path)[0] > 0 for path in row["masks"].split(";")])
        if (np.diag(grid.direction) < 0).any():
            image, masks = image[:, ::-1, ::-1], masks[..., ::-1, ::-1]

        def mean(name, row=row):
            return float(np.mean([int(v) for v in row[name].split(";")]))

        found.append(Seen(row["case_id"], np.float32(image), masks, grid.spacing, mean("texture"), mean("margin")))
        if len(found) == n:
            break
    return found


def drawn_nodules(n: int, seed: int) -> list[Seen]:
    """n phantoms, cut to the size of the real crops: 30 mm, or 1.6 times the nodule where that is more."""
    found = []
    for case in choose(n, seed):
        phantom = phantom_of(case, seed)
        ratings = [annotation.ratings for annotation in case.annotations]
        seen = Seen(
            case.nodule_id,
            np.float32(phantom.image),
            case.readers > 0,
            case.spacing,
            float(np.mean([r["texture"] for r in ratings])),
            float(np.mean([r["margin"] for r in ratings])),
        )
        where = np.argwhere(seen.readers.any((0, 1)))
        middle = (where.min(0) + where.max(0) + 1) // 2
        half = int(max(30.0, 1.6 * seen.diameter) / seen.spacing[1] / 2) + 2
        low = np.maximum(middle - half, 0)
        cut = (..., slice(low[0], middle[0] + half), slice(low[1], middle[1] + half))
        seen.image, seen.readers = seen.image[cut], seen.readers[cut]
        found.append(seen)
    return found


def inside_and_around(seen: Seen) -> tuple[np.ndarray, np.ndarray]:
    """HU within the readers' union, and of what lies 2 px or more outside it."""
    union = seen.readers.any(0)
    around = ~ndimage.binary_dilation(union, IN_PLANE, iterations=2)
    return seen.image[union], seen.image[around]


def noise(seen: Seen) -> float:
    """Noise in parenchyma, HU: 1.48 x the median absolute high-pass (Gaussian of 1.5 px) away from all structures."""
    smooth = ndimage.gaussian_filter(seen.image, [0, 1.5, 1.5])
    union = ndimage.binary_dilation(seen.readers.any(0), IN_PLANE, iterations=4)
    lung = (smooth > -1000) & (smooth < -700) & ~union
    lung = ndimage.binary_erosion(lung, IN_PLANE, iterations=2)
    if lung.sum() < 150:
        return np.nan
    residual = (seen.image - smooth)[lung]
    return float(1.4826 * np.median(np.abs(residual - np.median(residual))))


def edge_width(seen: Seen) -> float:
    """10-90 % width across the boundary in the slice, mm: median over rays that go from the nodule into lung."""
    image, readers = seen.image, seen.readers
    k = int(np.argmax(readers.all(0).sum((1, 2))))
    common = readers.all(0)[k]
    if common.sum() < 12:
        return np.nan
    centre = np.argwhere(common).mean(0)
    pixel = seen.spacing[1]
    reach = np.arange(0, 0.5 * seen.diameter + 7.0, 0.1)
    union_edge = []
    for angle in np.arange(0, 2 * np.pi, np.pi / 18):
        way = np.array([np.sin(angle), np.cos(angle)])
        points = centre[:, None] + way[:, None] * reach / pixel
        line = ndimage.map_coordinates(image[k], points, order=1, mode="constant", cval=np.nan)
        marked = ndimage.map_coordinates(readers.mean(0)[k], points, order=1)
        if not (marked > 0.5).any():
            continue
        edge = int(np.flatnonzero(marked > 0.5)[-1])
        outer = line[edge + 25 : edge + 45]
        inner = line[max(0, edge - 40) : max(1, edge - 15)]
        if len(outer) < 20 or not np.isfinite(outer).all() or outer.max() > -600:
            continue
        low, high = np.median(outer), np.percentile(inner, 75)
        if high - low < 120:
            continue
        part = (line[max(0, edge - 40) : edge + 45] - low) / (high - low)
        below = np.flatnonzero(part < 0.5)
        below = below[below > np.argmax(part)]
        if not len(below):
            continue
        half = below[0]
        outward = np.flatnonzero(part[half:] < 0.1)
        inward = np.flatnonzero(part[: half + 1] > 0.9)
        if len(outward) and len(inward):
            union_edge.append((half + outward[0] - inward[-1]) * 0.1)
    return float(np.median(union_edge)) if len(union_edge) >= 5 else np.nan


def half_width(seen: Seen) -> float:
    """Half the side, mm, of the largest square about the nodule that the crop fills, up to 15 mm or 0.8 diameters."""
    where = np.argwhere(seen.readers.any((0, 1)))
    middle = (where.min(0) + where.max(0) + 1) / 2
    room = min(middle.min(), (np.array(seen.image.shape[1:]) - middle).min()) * seen.spacing[1]
    return float(min(room, max(30.0, 1.6 * seen.diameter) / 2))


def picture(axis, seen: Seen, half: float, colour: str) -> None:
    """The axial slice with the most agreement, ``2 half`` mm wide."""
    k = int(np.argmax(seen.readers.sum((0, 2, 3))))
    where = np.argwhere(seen.readers.any((0, 1)))
    middle = (where.min(0) + where.max(0)) / 2 * seen.spacing[1]
    height, width = seen.image.shape[1:]
    low, high = WINDOW_LEVEL - WINDOW_WIDTH / 2, WINDOW_LEVEL + WINDOW_WIDTH / 2
    box = (-0.5 * seen.spacing[1], (width - 0.5) * seen.spacing[1], (height - 0.5) * seen.spacing[1], -0.5)
    axis.imshow(seen.image[k], cmap="gray", vmin=low, vmax=high, extent=box, interpolation="nearest")
    axis.set_xlim(middle[1] - half, middle[1] + half)
    axis.set_ylim(middle[0] + half, middle[0] - half)
    axis.set_facecolor("black")
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set_color(colour)
    axis.set_title(f"{seen.diameter:.0f} mm, texture {seen.texture:.1f}, margin {seen.margin:.1f}", fontsize=6.5, pad=2)


def alike(drawn: list[Seen], real: list[Seen], rows: int) -> tuple[list[Seen], list[Seen]]:
    """Pairs for the figure: sizes and textures spread, each phantom beside the real nodule most like it."""
    by_texture = sorted(drawn, key=lambda s: (s.texture, s.diameter))
    wanted = rows * COLUMNS
    places = np.unique(np.linspace(0, len(by_texture) - 1, min(wanted, len(by_texture))).astype(int))
    # Ground glass and part-solid nodules are rare; half of the figure goes to them, as far as there are any.
    soft = [s for s in by_texture if s.texture < 4.5][: wanted // 2]
    chosen = soft + [s for s in (by_texture[p] for p in places) if s not in soft][-(wanted - len(soft)) :]
    left, pairs = list(real), []
    for seen in chosen:

        def unlike(other, seen=seen):
            return abs(np.log(other.diameter / seen.diameter)) * 2 + abs(other.texture - seen.texture)

        best = min(left, key=unlike)
        left.remove(best)
        pairs.append(best)
    return chosen, pairs


def histogram(axis, values, colours, bins, title, labels) -> None:
    for value, colour, label in zip(values, colours, labels, strict=True):
        value = np.asarray(value, float)
        value = value[np.isfinite(value)]
        weight = np.full(len(value), 1 / len(value))
        axis.hist(np.clip(value, bins[0], bins[-1]), bins, weights=weight, color=colour, alpha=0.5, label=label)
    axis.set_title(title, fontsize=9)
    axis.set_yticks([])
    axis.tick_params(labelsize=8)


def figure(real: list[Seen], drawn: list[Seen], measured: dict, path: Path) -> None:
    """Pictures in pairs of rows (real above, phantoms below), the distributions at the foot."""
    rows = 3
    chosen, pairs = alike(drawn, real, rows)
    fig = plt.figure(figsize=(15, 14.5))
    top, foot = fig.subfigures(2, 1, height_ratios=[4.6, 1])
    axes = top.subplots(2 * rows, COLUMNS)
    top.subplots_adjust(left=0.02, right=0.995, top=0.975, bottom=0.005, wspace=0.04, hspace=0.12)
    for axis in axes.ravel():
        axis.set_axis_off()
    for n, (one, other) in enumerate(zip(chosen, pairs, strict=True)):
        row, column = divmod(n, COLUMNS)
        for axis, seen, colour in ((axes[2 * row, column], other, REAL), (axes[2 * row + 1, column], one, DRAWN)):
            axis.set_axis_on()
            picture(axis, seen, min(half_width(one), half_width(other)), colour)
    for row in range(2 * rows):
        kind, colour = ("real", REAL) if row % 2 == 0 else ("phantom", DRAWN)
        place = axes[row, 0].get_position()
        top.text(0.006, (place.y0 + place.y1) / 2, kind, rotation=90, va="center", fontsize=10, color=colour)
    panels = foot.subplots(1, 4)
    foot.subplots_adjust(left=0.02, right=0.99, top=0.86, bottom=0.14, wspace=0.08)
    labels, colours = ("real (lidc-voi)", "phantoms"), (REAL, DRAWN)
    specs = (
        ("inside", np.arange(-1000, 420, 30), "HU inside the readers' union"),
        ("around", np.arange(-1024, 420, 30), "HU around"),
        ("noise", np.arange(0, 90, 5), "noise in parenchyma, HU"),
        ("edge", np.arange(0, 7, 0.4), "edge width in the slice, 10-90 %, mm"),
    )
    for axis, (name, bins, title) in zip(panels, specs, strict=True):
        histogram(axis, (measured["real"][name], measured["phantoms"][name]), colours, bins, title, labels)
    panels[0].legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(path, dpi=80, metadata={"Software": None})


def measure(nodules: list[Seen]) -> dict:
    """Per nodule: noise and edge width; pooled, with equal weight for each nodule: HU inside and around."""
    rng = np.random.default_rng(0)
    inside, around = zip(*(inside_and_around(seen) for seen in nodules), strict=True)
    return {
        "inside": np.concatenate([rng.choice(values, 400) for values in inside]),
        "around": np.concatenate([rng.choice(values, 1500) for values in around]),
        "noise": [noise(seen) for seen in nodules],
        "edge": [edge_width(seen) for seen in nodules],
    }


def main() -> None:
    """Measure, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--phantoms", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "docs/images/phantoms.png")
    options = parser.parse_args()
    data = Path(os.environ.get("RAYMAT_TEST_DATA", Path(__file__).parents[2] / "shared/data")) / "lidc-voi"
    drawn = drawn_nodules(options.phantoms, options.seed)
    # The real ones have the phantoms' sizes, or the comparison would be of sizes.
    pool = real_nodules(data, 500, options.seed)
    real = []
    for seen in drawn:
        best = min(pool, key=lambda r: abs(np.log(r.diameter / seen.diameter)) + 0.5 * abs(r.texture - seen.texture))
        pool.remove(best)
        real.append(best)
    measured = {"real": measure(real), "phantoms": measure(drawn)}
    print(f"{len(real)} real nodules and {len(drawn)} phantoms: median (10 % to 90 %)")
    for name, unit in (("inside", "HU"), ("around", "HU"), ("noise", "HU"), ("edge", "mm")):
        texts = []
        for kind in ("real", "phantoms"):
            low, middle, high = np.nanpercentile(measured[kind][name], [10, 50, 90])
            texts.append(f"{kind} {middle:7.1f} ({low:.1f} to {high:.1f}) {unit}")
        print(f"{name:8s} " + "   ".join(texts))
    for kind, nodules in (("real", real), ("phantoms", drawn)):
        wall = np.mean([(inside_and_around(seen)[1] > -200).mean() > 0.08 for seen in nodules])
        print(f"chest wall or other large soft tissue in view, {kind}: {wall:.0%}")
    figure(real, drawn, measured, options.out)
    print(f"figure: {options.out}")


if __name__ == "__main__":
    main()
