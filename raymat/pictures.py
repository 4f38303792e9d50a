"""Pictures of nodules and their mattes, as a radiologist reads them.

The patient's right is on the left of axial and coronal views, anterior is up in axial and left in sagittal ones, and
the head is up: arrays are turned by the nodule's direction before they are drawn. Nothing here touches pyplot, so that
figures may be made on any thread and need no screen.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from scipy import ndimage

from raymat.arrays import triple
from raymat.matting import METHODS
from raymat.nodule import ACCEPTED, EXCLUDED, FAILED, REJECTED, InputError, Nodule, required

LEVEL, WIDTH = -600.0, 1500.0  # lung window, HU
MARGIN_MM = 10.0
SHEET_MARGIN_MM = 6.0
PLANES = ("axial", "coronal", "sagittal")
LABELS = (("R", "L", "A", "P"), ("R", "L", "S", "I"), ("A", "P", "S", "I"))  # left, right, top, bottom

READERS_COLOURS = ("#00d5ff", "#ffd400", "#ff5cf4", "#5dff5d", "#ff9340", "#b79bff")
OUTCOME_COLOURS = {ACCEPTED: "#1a7f37", REJECTED: "#b3261e", EXCLUDED: "#6b6b6b", FAILED: "#b3261e"}
FRAME, CHOSEN_TEXT = "#00c853", "#007a33"
INK, FAINT = "#1b1b1b", "#666666"
OUTSIDE = 0.13  # grey of what lies beyond the crop

# Redder means more lesion (paper, figure 1).
ALPHA_COLOURS = LinearSegmentedColormap.from_list("alpha", ["#fff3a0", "#ffc93c", "#ff8a1f", "#f4411e", "#c4000f"])
OPACITY = 0.8
FULL_FROM = 0.3  # alpha from which the overlay has its full opacity; it fades out below

HALO = [withStroke(linewidth=1.8, foreground="#000000c0")]  # keeps white writing legible on bright tissue

SHEET_PANEL_PX = 104


@dataclass(frozen=True)
class View:
    """A nodule's arrays turned to the patient's axes (z to the head, y to the back, x to the left) and where to cut.

    Attributes
    ----------
    spacing : (z, y, x) mm, turned
    centre : (z, y, x) voxel index of the three planes
    middle : (z, y, x) voxel index, fractional, of the middle of the field of view
    side : side of the field of view, mm
    oriented : whether the direction is known, so that sides can be named
    """

    order: tuple[int, int, int]
    flips: tuple[bool, bool, bool]
    spacing: tuple[float, float, float]
    centre: tuple[int, int, int]
    middle: tuple[float, float, float]
    side: float
    oriented: bool

    def turn(self, array: np.ndarray) -> np.ndarray:
        """The array (z, y, x) on the patient's axes; a view."""
        array = array.transpose(self.order)
        return array[tuple(slice(None, None, -1) if flip else slice(None) for flip in self.flips)]

    def cut(self, array: np.ndarray, plane: int) -> np.ndarray:
        """The slice of a turned array through the centre, its first row at the top of the picture."""
        image = np.take(array, self.centre[plane], axis=plane)
        return image[::-1] if plane else image

    def extent(self, shape: tuple[int, ...], plane: int) -> tuple[float, float, float, float]:
        """left, right, bottom, top of a cut in mm from the middle of the field of view, up positive."""
        rows, columns = (axis for axis in range(3) if axis != plane)
        edges = {}
        for axis in (rows, columns):
            low = (-0.5 - self.middle[axis]) * self.spacing[axis]
            edges[axis] = low, low + shape[axis] * self.spacing[axis]
        low, high = edges[rows]
        # y grows to the back, which axial views show downwards; z grows to the head, upwards.
        bottom, top = (-high, -low) if plane == 0 else (low, high)
        return (*edges[columns], bottom, top)


def show_nodule(nodule: Nodule) -> Figure:
    """One nodule in three planes: image and readers, trimap, every matte with its score, the true alpha where known.

    The planes run through the centre of mass of the chosen matte (else of the best one, the readers or the trimap). The
    chosen matte is framed.

    Raises
    ------
    InputError
        The nodule has no image: there is nothing to show.
    """
    view = view_of(nodule, MARGIN_MM)
    image = view.turn(required(nodule.image, nodule, "image"))
    columns = _columns_of(nodule)
    panel, left, head, foot = 1.62, 0.42, 1.42, 0.5
    width = max(left + len(columns) * panel + 0.12, 8.0)
    height = head + 3 * panel + foot
    figure = Figure(figsize=(width, height), facecolor="white")
    FigureCanvasAgg(figure)
    _head(figure, nodule, width, height)
    for column, (name, below, array) in enumerate(columns):
        chosen = name == nodule.method
        turned = None if array is None else view.turn(array)
        for plane in range(3):
            bottom = height - head - (plane + 1) * panel
            box = (left + column * panel, bottom, panel - 0.06, panel - 0.06)
            axes = figure.add_axes((box[0] / width, box[1] / height, box[2] / width, box[3] / height))
            axes.set_label(f"{name} {PLANES[plane]}")
            extent = view.extent(image.shape, plane)
            if turned is not None and name == "trimap":
                picture = view.cut(turned, plane)
                axes.imshow(picture, cmap="gray", vmin=0, vmax=255, extent=extent, interpolation="nearest")
            else:
                picture = _grey(view.cut(image, plane))
                if turned is not None:
                    picture = _overlay(picture, view.cut(turned, plane))
                axes.imshow(picture, extent=extent, interpolation="bilinear")
            if name == "readers":
                for reader, mask in enumerate(nodule.readers):
                    _contour(axes, view.cut(view.turn(mask), plane), extent, reader, 1.1)
            _dress(axes, view.side, chosen)
            if plane == 0:
                _title(axes, name, below, chosen)
            if column == 0:
                axes.set_ylabel(PLANES[plane], fontsize=11, color=INK, labelpad=5)
                if view.oriented:
                    _sides(axes, LABELS[plane])
                _scale_bar(axes, view.side)
    mattes = bool(nodule.candidates) or nodule.true_alpha is not None
    _key(figure, nodule, left, width, height, mattes)
    return figure


def _columns_of(nodule: Nodule) -> list[tuple[str, str, np.ndarray | None]]:
    """The columns of ``show_nodule``: name, text below the name, and the array drawn over the image."""
    columns: list[tuple[str, str, np.ndarray | None]] = [("image", "", None)]
    if nodule.readers:
        columns.append(("readers", f"{len(nodule.readers)} masks", None))
    if nodule.trimap is not None:
        columns.append(("trimap", "", nodule.trimap))
    columns += [(matte.method, _score(matte.score), matte.alpha) for matte in _ordered(nodule)]
    if nodule.true_alpha is not None:
        columns.append(("true", "alpha", nodule.true_alpha))
    return columns


def _title(axes: Axes, name: str, below: str, chosen: bool) -> None:
    """A column's name and, below it, its score; green where it is chosen."""
    at: dict[str, Any] = {"xycoords": "axes fraction", "textcoords": "offset points", "ha": "center", "va": "bottom"}
    mark = name.upper() if name in METHODS else name.replace("3dmm", "3DMM")
    axes.annotate(mark, (0.5, 1.0), (0, 17), fontsize=11, color=CHOSEN_TEXT if chosen else INK, weight="bold", **at)
    words = f"{below}  chosen" if chosen else below
    axes.annotate(words, (0.5, 1.0), (0, 5), fontsize=9, color=CHOSEN_TEXT if chosen else FAINT, **at)


def contact_sheet(nodules: Iterable[Nodule], title: str | None = None) -> Figure:
    """Many nodules on one sheet, each in three rows (axial, coronal, sagittal): image, readers' contours, mattes.

    The chosen matte is framed and shown again, last. Nodules stand in one column up to four of them, else in two. Of
    every nodule only its small pictures are kept, so the iterable may be long and lazy.

    Raises
    ------
    InputError
        There are no nodules.
    """
    tiles = [_Tile.of(nodule) for nodule in nodules]
    if not tiles:
        raise InputError("there are no nodules to draw a contact sheet of")
    abreast = 1 if len(tiles) <= 4 else 2
    rows = -(-len(tiles) // abreast)
    names = ["image", "readers", *METHODS, "chosen"]
    panel = 0.78
    text, gap, head = 1.55, 0.35, 0.62 + (0.35 if title else 0.0)
    block = text + len(names) * panel
    high = 3 * panel + 0.14
    width, height = abreast * block + (abreast - 1) * gap + 0.3, head + rows * high + 0.1
    figure = Figure(figsize=(width, height), facecolor="white")
    FigureCanvasAgg(figure)
    if title:
        figure.text(0.15 / width, 1 - 0.12 / height, title, fontsize=15, weight="bold", va="top", color=INK)
    for side in range(abreast):
        for column, name in enumerate(names):
            x = 0.15 + side * (block + gap) + text + (column + 0.5) * panel
            label = name.upper() if name in METHODS else name
            y = height - head + 0.07
            figure.text(x / width, y / height, label, ha="center", va="bottom", fontsize=10, weight="bold", color=INK)
    for place, tile in enumerate(tiles):
        # Down the first column, then the second: neighbours in the dataset stay neighbours.
        side, row = divmod(place, rows)
        x = 0.15 + side * (block + gap)
        top = height - head - row * high
        _tile_text(figure, tile, x, top, text - 0.1, width, height)
        box = ((x + text) / width, (top - 3 * panel) / height, len(names) * panel / width, 3 * panel / height)
        axes = figure.add_axes(box)
        axes.set_label(f"nodule {tile.nodule_id}")
        axes.axis("off")
        axes.set_xlim(0, len(names))
        axes.set_ylim(3, 0)
        axes.set_aspect("auto")
        _draw_tile(axes, tile, len(names))
    return figure


def _draw_tile(axes: Axes, tile: _Tile, columns: int) -> None:
    """A nodule's pictures on axes of ``columns`` by 3 panels."""
    if tile.mosaic is None:
        axes.add_patch(Rectangle((0, 0.02), columns, 2.96, facecolor="#f1f1f1", edgecolor="none"))
        axes.text(0.2, 1.5, "no picture", color=FAINT, fontsize=9, va="center")
        return
    axes.imshow(tile.mosaic, extent=(0, columns, 3, 0), interpolation="nearest", aspect="auto")
    for reader, mask, extent in tile.contours:
        _contour(axes, mask, extent, reader, 0.8)
    for column in tile.framed:
        axes.add_patch(Rectangle((column + 0.015, 0.015), 0.97, 2.97, fill=False, edgecolor=FRAME, linewidth=1.8))
    for column, score in tile.scores.items():
        axes.text(
            column + 0.06,
            0.06,
            score,
            path_effects=HALO,
            color="white",
            fontsize=7.5,
            va="top",
            ha="left",
            weight="bold",
        )
    if not tile.framed:
        axes.text(columns - 0.5, 0.5, "none", color=FAINT, fontsize=8, ha="center", va="center")
    bar = [0.1, 0.1 + tile.bar_mm / tile.side], [2.9, 2.9]
    axes.plot(*bar, color="white", linewidth=1.6, solid_capstyle="butt", path_effects=HALO)
    axes.text(0.1, 2.84, f"{tile.bar_mm} mm", color="white", fontsize=6.5, va="bottom", path_effects=HALO)


def method_histogram(counts: Mapping[str, int]) -> Figure:
    """How often each method was chosen: one bar per method of ``METHODS``, its count beside it."""
    figure = Figure(figsize=(6, 3.2), facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    values = [counts.get(method, 0) for method in METHODS]
    bars = axes.barh([method.upper() for method in METHODS], values, color="#c4000f", height=0.7)
    axes.bar_label(bars, padding=4, fontsize=10, color=INK)
    axes.invert_yaxis()
    axes.set_title(f"chosen method, {sum(values)} nodules", fontsize=11, loc="left", color=INK)
    axes.tick_params(left=False, bottom=False, labelbottom=False, labelsize=10)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return figure


def release_histograms(index: Sequence[Mapping], rated: Mapping[str, Mapping[int, int]]) -> Figure:
    """Diameters and the scanners' spacings of a release (rows of its index), and how often each rating was given."""
    figure = Figure(figsize=(12, 5 if rated else 2.6), facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    rows = figure.subfigures(2 if rated else 1, 1, squeeze=False)[:, 0]
    spacing = np.array([row["scanner_spacing"] for row in index if row["scanner_spacing"]]).reshape(-1, 3)
    measured = (
        ("diameter, mm", [row["diameter_mm"] for row in index]),
        ("scanner's slice spacing, mm", spacing[:, 0]),
        ("scanner's pixel spacing, mm", spacing[:, 2]),
    )
    for axes, (name, values) in zip(rows[0].subplots(1, len(measured)), measured, strict=True):
        axes.hist(values, bins=20, color="#c4000f")
        axes.set_ylabel("nodules", fontsize=8, color=FAINT)
        _plain_axes(axes, name)
    if rated:
        for axes, (name, counts) in zip(rows[1].subplots(1, len(rated), squeeze=False)[0], rated.items(), strict=True):
            axes.bar(list(counts), list(counts.values()), color="#33658a", width=0.8)
            axes.set_xticks(sorted(counts))
            _plain_axes(axes, name)
        rows[1].axes[0].set_ylabel("ratings", fontsize=8, color=FAINT)
    return figure


def _plain_axes(axes: Axes, title: str) -> None:
    axes.set_title(title, fontsize=10, loc="left", color=INK)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def png_bytes(figure: Figure, dpi: int = 130) -> bytes:
    """The figure as PNG; equal figures give equal bytes (no date and no version is written)."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()


def pdf_bytes(figure: Figure) -> bytes:
    """The figure as PDF; equal figures give equal bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="pdf", metadata={"CreationDate": None, "Creator": None, "Producer": None})
    return buffer.getvalue()


def save(figure: Figure, path: str | Path) -> None:
    """Write the figure as PNG.

    Raises
    ------
    InputError
        The file cannot be written.
    """
    try:
        Path(path).write_bytes(png_bytes(figure))
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror or error}") from error


@dataclass(frozen=True)
class _Tile:
    """The part of a nodule that a contact sheet keeps: one small RGB mosaic, three panels high, and its text."""

    nodule_id: str
    patient_id: str
    outcome: str | None
    line: str
    reason: str
    mosaic: np.ndarray | None
    contours: list[tuple[int, np.ndarray, tuple[float, float, float, float]]]
    framed: list[int]
    scores: dict[int, str]
    side: float
    bar_mm: int

    @classmethod
    def of(cls, nodule: Nodule) -> _Tile:
        words: dict[str, Any] = {
            "nodule_id": nodule.nodule_id,
            "patient_id": nodule.patient_id,
            "outcome": nodule.outcome,
            "line": _size(nodule),
            "reason": nodule.reason or "",
        }
        if nodule.image is None:
            return cls(**words, mosaic=None, contours=[], framed=[], scores={}, side=0.0, bar_mm=0)
        view = view_of(nodule, SHEET_MARGIN_MM)
        image = view.turn(nodule.image)
        alphas = nodule.mattes
        chosen = nodule.alpha
        columns = [None, None, *(alphas.get(method) for method in METHODS), chosen]
        px = SHEET_PANEL_PX
        mosaic = np.full((3 * px, len(columns) * px, 3), 255, np.uint8)
        contours = []
        for plane in range(3):
            extent = view.extent(image.shape, plane)
            cut = view.cut(image, plane)
            grey = _resample(_grey(cut)[..., 0], extent, view.side, px - 2, OUTSIDE)
            for column, alpha in enumerate(columns):
                if column > 1 and alpha is None:
                    continue
                picture = np.repeat(grey[..., None], 3, axis=2)
                if alpha is not None:
                    a = _resample(view.cut(view.turn(alpha), plane), extent, view.side, px - 2, 0.0)
                    picture = _overlay(picture, a)
                rows = slice(plane * px + 1, (plane + 1) * px - 1)
                mosaic[rows, column * px + 1 : (column + 1) * px - 1] = np.round(picture * 255)
            # Millimetres from the middle to panels of the mosaic: column 1, row `plane`, rows counted down.
            left, right, bottom, top = (value / view.side for value in extent)
            where = (1.5 + left, 1.5 + right, plane + 0.5 - bottom, plane + 0.5 - top)
            for reader, mask in enumerate(nodule.readers):
                contours.append((reader, view.cut(view.turn(mask), plane).copy(), where))
        place = {method: 2 + column for column, method in enumerate(METHODS)}
        framed = [place[nodule.method]] if nodule.method in place else []
        scores = {place[matte.method]: _score(matte.score) for matte in nodule.candidates if matte.method in place}
        return cls(
            **words,
            mosaic=mosaic,
            contours=contours,
            framed=framed,
            scores=scores,
            side=view.side,
            bar_mm=_bar_mm(view.side),
        )


def view_of(nodule: Nodule, margin_mm: float) -> View:
    """How to turn, crop and cut the nodule's arrays."""
    if nodule.image is None or nodule.spacing is None:
        words = f" ({nodule.outcome}: {nodule.reason})" if nodule.outcome and nodule.reason else ""
        raise InputError(f"{nodule.nodule_id}: there is no image to show{words}")
    order, flips = _orientation(nodule.direction)
    turned = View(order, flips, triple(nodule.spacing[a] for a in order), (0, 0, 0), (0.0,) * 3, 0.0, False)
    weight = turned.turn(_centre_of(nodule))
    region = turned.turn(_region_of(nodule))
    hits = [np.flatnonzero(region.any(axis=tuple(b for b in range(3) if b != a))) for a in range(3)]
    low, high = np.array([h[0] for h in hits]), np.array([h[-1] for h in hits])
    extents = np.multiply(region.shape, turned.spacing)
    # No wider than the crop itself: a margin that was never scanned shows nothing.
    side = float(min(((high - low + 1) * turned.spacing).max() + 2 * margin_mm, extents.max()))
    centre = [float(c) for c in ndimage.center_of_mass(weight)]
    nearest = [min(max(round(c), 0), n - 1) for c, n in zip(centre, weight.shape, strict=True)]
    middle = triple(((low + high) / 2).tolist())
    return View(order, flips, turned.spacing, triple(nearest), middle, side, nodule.direction is not None)


def _orientation(direction: np.ndarray | None) -> tuple[tuple[int, int, int], tuple[bool, bool, bool]]:
    """Which index axis runs nearest to each patient axis (z, y, x), and which of them must be turned round."""
    if direction is None:
        return (0, 1, 2), (False, False, False)
    direction = np.asarray(direction, float).reshape(3, 3)
    left = np.abs(direction)
    order = [0, 0, 0]
    for _ in range(3):
        patient, index = np.unravel_index(np.argmax(left), left.shape)
        order[patient] = int(index)
        left[patient, :] = -1
        left[:, index] = -1
    return triple(order), triple(bool(direction[patient, index] < 0) for patient, index in enumerate(order))


def _best(nodule: Nodule) -> np.ndarray | None:
    """The chosen matte; else the candidate of the highest score that has any alpha."""
    if nodule.alpha is not None:
        return nodule.alpha
    scored = [m for m in nodule.candidates if np.isfinite(m.alpha).all() and m.alpha.any()]
    if not scored:
        return None
    return max(scored, key=lambda m: m.score if np.isfinite(m.score) else -1.0).alpha


def _centre_of(nodule: Nodule) -> np.ndarray:
    """What the planes run through the centre of."""
    alpha = _best(nodule)
    if alpha is not None and alpha.any():
        return alpha
    return _region_of(nodule)


def _region_of(nodule: Nodule) -> np.ndarray:
    """Bool array, the voxels that the field of view is drawn around."""
    if nodule.trimap is not None and nodule.trimap.any():
        return nodule.trimap > 0
    readers = [mask > 0 for mask in nodule.readers if mask.any()]
    return np.logical_or.reduce(readers) if readers else np.ones(required(nodule.image, nodule, "image").shape, bool)


def _ordered(nodule: Nodule) -> list:
    place = {method: n for n, method in enumerate(METHODS)}
    return sorted(nodule.candidates, key=lambda matte: place.get(matte.method, len(place)))


def _grey(hu: np.ndarray) -> np.ndarray:
    """RGB floats of HU in the lung window; what is no number is shown as air."""
    grey = np.clip((np.nan_to_num(hu, nan=-1e4) - (LEVEL - WIDTH / 2)) / WIDTH, 0.0, 1.0)
    return np.repeat(grey[..., None], 3, axis=2).astype(np.float32)


def _overlay(picture: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """The grey picture under the matte's colours."""
    alpha = np.clip(np.nan_to_num(alpha), 0.0, 1.0)
    opacity = (OPACITY * np.minimum(alpha / FULL_FROM, 1.0))[..., None]
    return (picture * (1.0 - opacity) + ALPHA_COLOURS(alpha)[..., :3] * opacity).astype(np.float32)


def _resample(image: np.ndarray, extent: tuple[float, ...], side: float, px: int, outside: float) -> np.ndarray:
    """A cut drawn onto px x px pixels of a square field of view, linearly; ``outside`` beyond the crop."""
    left, right, bottom, top = extent
    at = ((np.arange(px) + 0.5) / px - 0.5) * side
    rows = (top + at) / (top - bottom) * image.shape[0] - 0.5
    columns = (at - left) / (right - left) * image.shape[1] - 0.5
    grid = np.meshgrid(rows, columns, indexing="ij")
    return ndimage.map_coordinates(image.astype(np.float32), grid, order=1, mode="constant", cval=outside)


def panel(view: View, image: np.ndarray, plane: int, px: int, alpha: np.ndarray | None = None) -> np.ndarray:
    """One plane of an image under a matte's colours, RGB floats (px, px, 3); arrays (z, y, x), not yet turned."""
    image = view.turn(image)
    extent = view.extent(image.shape, plane)
    grey = _resample(_grey(view.cut(image, plane))[..., 0], extent, view.side, px, OUTSIDE)
    picture = np.repeat(grey[..., None], 3, axis=2)
    if alpha is None:
        return picture
    return _overlay(picture, _resample(view.cut(view.turn(alpha), plane), extent, view.side, px, 0.0))


def _contour(axes: Axes, mask: np.ndarray, extent: tuple[float, ...], reader: int, width: float) -> None:
    """The mask's outline, half-way between voxels."""
    if not mask.any():
        return
    left, right, bottom, top = extent
    dy, dx = (bottom - top) / mask.shape[0], (right - left) / mask.shape[1]
    # One voxel of background all round closes outlines at the edge of the crop.
    padded = np.pad(mask.astype(np.float32), 1)
    x = left + (np.arange(padded.shape[1]) - 0.5) * dx
    y = top + (np.arange(padded.shape[0]) - 0.5) * dy
    colour = READERS_COLOURS[reader % len(READERS_COLOURS)]
    axes.contour(x, y, padded, [0.5], colors=[colour], linewidths=width)


def _dress(axes: Axes, side: float, chosen: bool) -> None:
    """Field of view, no ticks, and the frame of the chosen one."""
    axes.set_xlim(-side / 2, side / 2)
    axes.set_ylim(-side / 2, side / 2)
    axes.set_aspect("equal")
    axes.set_facecolor(str(OUTSIDE))
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(chosen)
        spine.set_edgecolor(FRAME)
        spine.set_linewidth(3.0)


def _sides(axes: Axes, labels: tuple[str, str, str, str]) -> None:
    """The patient's sides at the edges of a panel."""
    for label, x, y in zip(labels, (0.05, 0.95, 0.5, 0.5), (0.5, 0.5, 0.95, 0.05), strict=True):
        axes.text(
            x,
            y,
            label,
            transform=axes.transAxes,
            ha="center",
            va="center",
            color="#f2f2f2",
            fontsize=8,
            weight="bold",
            path_effects=HALO,
        )


def _bar_mm(side: float) -> int:
    """A round length of about a quarter of the field of view, mm."""
    return next((length for length in (50, 20, 10, 5, 2) if length <= 0.4 * side), 1)


def _scale_bar(axes: Axes, side: float) -> None:
    length = _bar_mm(side)
    x, y = -0.46 * side, -0.455 * side
    axes.plot([x, x + length], [y, y], color="white", linewidth=2.2, solid_capstyle="butt", path_effects=HALO)
    axes.text(x, y + 0.02 * side, f"{length} mm", color="white", fontsize=7.5, va="bottom", path_effects=HALO)


def _score(score: float) -> str:
    return f"{score:.2f}" if np.isfinite(score) else ""


def _size(nodule: Nodule) -> str:
    """The nodule's size in words: that of a sphere of its volume, by the chosen matte, else the readers' mean mask."""
    if nodule.spacing is None:
        return ""
    voxel = float(np.prod(nodule.spacing))
    if nodule.alpha is not None:
        volume, of = float(nodule.alpha.sum(dtype=np.float64)) * voxel, "chosen matte"
    elif nodule.readers:
        volume, of = float(np.mean([np.count_nonzero(mask) for mask in nodule.readers])) * voxel, "readers' mean"
    else:
        return ""
    diameter = (6.0 * volume / np.pi) ** (1.0 / 3.0)
    return f"{diameter:.1f} mm ({of})" if volume else ""


SHOWN_RATINGS = (
    "malignancy",
    "texture",
    "margin",
    "spiculation",
    "lobulation",
    "sphericity",
    "calcification",
    "subtlety",
)


def _ratings(nodule: Nodule) -> str:
    """The readers' ratings, one number per reader."""
    given = nodule.ratings
    return "     ".join(f"{name} {' '.join(map(str, given[name]))}" for name in SHOWN_RATINGS if name in given)


def _head(figure: Figure, nodule: Nodule, width: float, height: float) -> None:
    """Nodule and patient, size, ratings and outcome."""
    x = 0.12 / width
    patient = f"patient {nodule.patient_id}" if nodule.patient_id else ""
    name = figure.text(x, 1 - 0.1 / height, nodule.nodule_id, fontsize=16, weight="bold", color=INK, va="top")
    facts = "     ".join(part for part in (patient, nodule.source, _size(nodule)) if part)
    right = name.get_window_extent().x1 / figure.dpi
    # A series' UID, which names a prediction, is four times as long as a nodule's name.
    most = 0.6 * width
    if right > most:
        name.set_fontsize(16 * most / right)
        right = most
        facts = textwrap.shorten(facts, int((width - right) * 10), placeholder=" ...")
    figure.text((right + 0.25) / width, 1 - 0.155 / height, facts, fontsize=11, color=INK, va="top")
    figure.text(x, 1 - 0.43 / height, _ratings(nodule), fontsize=9, color=FAINT, va="top")
    outcome = nodule.outcome or ""
    words = outcome
    if nodule.method:
        words += f": {nodule.method.upper()}"
    if nodule.reason:
        words += f" ({nodule.reason})"
    words = textwrap.shorten(words, int(width * 11), placeholder=" ...")
    colour = OUTCOME_COLOURS.get(outcome, INK)
    figure.text(x, 1 - 0.65 / height, words, fontsize=11, weight="bold", color=colour, va="top")


def _key(figure: Figure, nodule: Nodule, left: float, width: float, height: float, mattes: bool) -> None:
    """The legend of the colours."""
    x, y = left, 0.2
    if nodule.readers:
        for reader in range(len(nodule.readers)):
            colour = READERS_COLOURS[reader % len(READERS_COLOURS)]
            # On a dark ground, as in the picture: light colours vanish on white.
            figure.add_artist(
                Rectangle((x / width, y / height), 0.3 / width, 0.13 / height, facecolor="#333333", edgecolor="none")
            )
            line = ((x + 0.05) / width, (y + 0.05) / height)
            figure.add_artist(Rectangle(line, 0.2 / width, 0.03 / height, facecolor=colour, edgecolor="none"))
            figure.text((x + 0.36) / width, (y + 0.065) / height, f"reader {reader + 1}", fontsize=9, va="center")
            x += 1.08
    if mattes:
        bar = figure.add_axes(((width - 3.0) / width, (y - 0.0) / height, 1.9 / width, 0.13 / height))
        bar.set_label("key alpha")
        ramp = np.linspace(0, 1, 256, dtype=np.float32)[None, :]
        bar.imshow(_overlay(np.full((1, 256, 3), 0.1, np.float32), ramp), aspect="auto", extent=(0, 1, 0, 1))
        bar.axis("off")
        figure.text((width - 3.08) / width, (y + 0.065) / height, "alpha  0", fontsize=9, va="center", ha="right")
        figure.text((width - 1.02) / width, (y + 0.065) / height, "1 = all lesion", fontsize=9, va="center", ha="left")


def _tile_text(figure: Figure, tile: _Tile, x: float, top: float, wide: float, width: float, height: float) -> None:
    """The text about a nodule, left of its pictures."""
    y = top - 0.05
    lines = [(line, 9.5, "bold", INK) for line in textwrap.wrap(tile.nodule_id, 19)]
    if tile.patient_id and tile.patient_id not in tile.nodule_id:
        lines += [(line, 8, "normal", FAINT) for line in textwrap.wrap(tile.patient_id, 24)]
    lines.append((tile.outcome or "not judged", 9, "bold", OUTCOME_COLOURS.get(tile.outcome or "", INK)))
    if tile.line:
        lines += [(line, 8, "normal", INK) for line in textwrap.wrap(tile.line, 24)]
    lines += [(line, 7.5, "normal", FAINT) for line in textwrap.wrap(tile.reason, 27)[:8]]
    for text, size, weight, colour in lines:
        figure.text(x / width, y / height, text, fontsize=size, weight=weight, color=colour, va="top")
        y -= size / 72 * 1.35
