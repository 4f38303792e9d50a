"""Contact sheets: many nodules on one picture."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from raymat.calibration import HUWindow
from raymat.errors import InputError
from raymat.methods import in_order
from raymat.nodule import Nodule
from raymat.pictures.figure import FAINT, INK, blank
from raymat.pictures.nodule import FRAME, OUTCOME_COLOURS, chosen_of, in_capitals, score_of, size_of
from raymat.pictures.view import HALO, View, bar_length, draw_contour, panel, shown_channels, view_of

MARGIN_MM = 6.0
PANEL_PX = 104
PANEL_IN, TEXT_IN, GAP_IN = 0.78, 1.55, 0.35
WIDEST_IN = 21.0
LONGEST_HEAD = 9  # letters over a column
ALONE = 4  # nodules up to which they stand in one column
IMAGE, READERS, CHOSEN = "image", "readers", "chosen"


def contact_sheet(nodules: Iterable[Nodule], title: str | None = None, outlines: str = READERS) -> Figure:
    """Many nodules on one sheet, each in three rows (axial, coronal, sagittal): image, readers' contours, mattes.

    There is one column per method that any of the nodules has a matte of. The chosen matte is framed and shown again,
    last, beside readers' contours; the nodule's text names the kind of its alpha. Up to four nodules stand in one
    column, more of them in as many as fit. Only small pictures of each nodule are kept, so the iterable may be long and
    lazy.

    Parameters
    ----------
    outlines : what the contours are called, where they are not readers'

    Raises
    ------
    InputError
        There are no nodules.
    """
    tiles = [_Tile.of(nodule) for nodule in nodules]
    if not tiles:
        raise InputError("there are no nodules to draw a contact sheet of")
    channels = dict.fromkeys(name for tile in tiles for name in tile.channels)
    methods = in_order({method for tile in tiles for method in tile.scores})
    # Of a network's few mattes the chosen one need not be shown twice.
    names = [*(channels or [IMAGE]), READERS, *methods, *([CHOSEN] if outlines == READERS else [])]
    labels = {READERS: outlines}
    head = 0.75 if title else 0.4
    block = TEXT_IN + len(names) * PANEL_IN
    abreast = 1 if len(tiles) <= ALONE else max(1, int((WIDEST_IN + GAP_IN) // (block + GAP_IN)))
    rows = -(-len(tiles) // abreast)
    abreast = -(-len(tiles) // rows)
    high = 3 * PANEL_IN + 0.14
    width, height = abreast * block + (abreast - 1) * GAP_IN + 0.3, head + rows * high + 0.1
    figure = blank(width, height, constrained=False)
    if title:
        figure.text(0.15 / width, 1 - 0.12 / height, title, fontsize=15, weight="bold", va="top", color=INK)
    for side in range(abreast):
        for column, name in enumerate(names):
            x = 0.15 + side * (block + GAP_IN) + TEXT_IN + (column + 0.5) * PANEL_IN
            label, y = in_capitals(labels.get(name, name)), height - head + 0.07
            size = 10 if len(label) <= LONGEST_HEAD else 7.5
            label = label if len(label) <= LONGEST_HEAD else label.replace("-", "-\n")
            figure.text(x / width, y / height, label, ha="center", va="bottom", fontsize=size, weight="bold", color=INK)
    for number, tile in enumerate(tiles):
        # Down the first column, then the second: neighbours in the dataset stay neighbours.
        side, row = divmod(number, rows)
        x = 0.15 + side * (block + GAP_IN)
        top = height - head - row * high
        _tile_text(figure, tile, x, top, width, height)
        left, bottom = (x + TEXT_IN) / width, (top - 3 * PANEL_IN) / height
        axes = figure.add_axes((left, bottom, len(names) * PANEL_IN / width, 3 * PANEL_IN / height))
        axes.set_label(f"nodule {tile.nodule_id}")
        axes.axis("off")
        axes.set_xlim(0, len(names))
        axes.set_ylim(3, 0)
        axes.set_aspect("auto")
        _draw_tile(axes, tile, names)
    return figure


def _draw_tile(axes: Axes, tile: _Tile, names: Sequence[str]) -> None:
    """A nodule's pictures on axes of one panel per name by 3."""
    if not tile.panels:
        axes.add_patch(Rectangle((0, 0.02), len(names), 2.96, facecolor="#f1f1f1", edgecolor="none"))
        axes.text(0.2, 1.5, "no picture", color=FAINT, fontsize=9, va="center")
        return
    empty = np.full_like(tile.panels[READERS], 255)
    mosaic = np.concatenate([tile.panels.get(name, empty) for name in names], axis=1)
    axes.imshow(mosaic, extent=(0, len(names), 3, 0), interpolation="nearest", aspect="auto")
    for reader, mask, extent in tile.contours:
        draw_contour(axes, mask, extent, reader, 0.8)
    if tile.method in names:
        corner = names.index(tile.method) + 0.015, 0.015
        axes.add_patch(Rectangle(corner, 0.97, 2.97, fill=False, edgecolor=FRAME, linewidth=1.8))
    elif names[-1] == CHOSEN:
        axes.text(len(names) - 0.5, 0.5, "none", color=FAINT, fontsize=8, ha="center", va="center")
    white: dict[str, Any] = {"color": "white", "path_effects": HALO}
    for method, score in tile.scores.items():
        axes.text(names.index(method) + 0.06, 0.06, score, fontsize=7.5, va="top", weight="bold", **white)
    bar = [0.1, 0.1 + tile.bar_mm / tile.side], [2.9, 2.9]
    axes.plot(*bar, linewidth=1.6, solid_capstyle="butt", **white)
    axes.text(0.1, 2.84, f"{tile.bar_mm} mm", fontsize=6.5, va="bottom", **white)


@dataclass(frozen=True)
class _Tile:
    """The part of a nodule that a contact sheet keeps: small RGB panels by column, and text.

    Attributes
    ----------
    panels : name of a column to uint8 (3 planes * rows, columns, 3); none without an image
    channels : the columns that are the image's
    contours : reader, cut of the mask, and where that lies on the axes of the tile
    scores : method to what is written on its panel, of every matte
    chosen : the chosen method and the kind of its alpha
    side : side of the field of view, mm
    bar_mm : length of the scale bar
    """

    nodule_id: str
    patient_id: str
    outcome: str | None
    method: str | None
    chosen: str
    line: str
    reason: str
    panels: dict[str, np.ndarray] = field(default_factory=dict)
    channels: tuple[str, ...] = ()
    contours: list[tuple[int, np.ndarray, tuple[float, float, float, float]]] = field(default_factory=list)
    scores: dict[str, str] = field(default_factory=dict)
    side: float = 0.0
    bar_mm: int = 0

    @classmethod
    def of(cls, nodule: Nodule) -> _Tile:
        bare = cls(
            nodule.nodule_id,
            nodule.patient_id,
            nodule.outcome,
            nodule.method,
            chosen_of(nodule),
            size_of(nodule),
            nodule.reason or "",
        )
        if nodule.image is None:
            return bare
        view = view_of(nodule, MARGIN_MM)
        mattes = nodule.mattes | ({} if nodule.alpha is None else {CHOSEN: nodule.alpha})
        shown = shown_channels(nodule)
        panels = {name: _strip(view, image, None, window) for name, image, window in shown}
        panels[READERS] = panels[shown[0][0]]
        panels |= {name: _strip(view, nodule.image, alpha, shown[0][2]) for name, alpha in mattes.items()}
        contours = []
        for plane in range(3):
            # Millimetres from the middle to panels of the tile: the readers' column, row `plane`, rows counted down.
            extent = view.extent(view.turn(nodule.image).shape, plane)
            left, right, bottom, top = (value / view.side for value in extent)
            where = (len(shown) + 0.5 + left, len(shown) + 0.5 + right, plane + 0.5 - bottom, plane + 0.5 - top)
            for reader, mask in enumerate(nodule.readers):
                contours.append((reader, view.cut(view.turn(mask), plane).copy(), where))
        return replace(
            bare,
            panels=panels,
            channels=tuple(name for name, _, _ in shown),
            contours=contours,
            scores={matte.method: score_of(matte.score) for matte in nodule.candidates},
            side=view.side,
            bar_mm=bar_length(view.side),
        )


def _strip(view: View, image: np.ndarray, alpha: np.ndarray | None, window: HUWindow) -> np.ndarray:
    """The three planes below one another with white between, uint8 (3 * PANEL_PX, PANEL_PX, 3)."""
    cuts = (panel(view, image, plane, PANEL_PX - 2, alpha, window) for plane in range(3))
    planes = [np.round(cut * 255).astype(np.uint8) for cut in cuts]
    return np.concatenate([np.pad(one, ((1, 1), (1, 1), (0, 0)), constant_values=255) for one in planes])


def _tile_text(figure: Figure, tile: _Tile, x: float, top: float, width: float, height: float) -> None:
    """The text about a nodule, left of its pictures."""
    y = top - 0.05
    lines = [(line, 9.5, "bold", INK) for line in textwrap.wrap(tile.nodule_id, 19)]
    if tile.patient_id and tile.patient_id not in tile.nodule_id:
        lines += [(line, 8, "normal", FAINT) for line in textwrap.wrap(tile.patient_id, 24)]
    lines.append((tile.outcome or "not judged", 9, "bold", OUTCOME_COLOURS.get(tile.outcome or "", INK)))
    if tile.chosen:
        lines.append((tile.chosen, 8, "bold", INK))
    if tile.line:
        lines += [(line, 8, "normal", INK) for line in textwrap.wrap(tile.line, 22)]
    lines += [(line, 7.5, "normal", FAINT) for line in textwrap.wrap(tile.reason, 27)[:8]]
    for text, size, weight, colour in lines:
        figure.text(x / width, y / height, text, fontsize=size, weight=weight, color=colour, va="top")
        y -= size / 72 * 1.35
