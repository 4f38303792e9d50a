"""Figures for papers and talks, after figures 1 and 6 of the paper: masks and a matte, and all methods."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from matplotlib.figure import Figure

from raymat.errors import InputError
from raymat.methods import METHODS, kind_of
from raymat.nodule import Nodule, required
from raymat.pictures.figure import INK, blank, kind_headings
from raymat.pictures.nodule import chosen_of, in_capitals
from raymat.pictures.view import PLANES, View, panel, view_of

MARGIN_MM = 6.0
PANEL_IN, PANEL_PX = 1.25, 190

Column = tuple[str, np.ndarray | None]


def masks_and_matte(nodule: Nodule) -> Figure:
    """One nodule in three planes: image, each reader's mask, the chosen matte and its kind (figure 1).

    Raises
    ------
    InputError
        The nodule has no readers' masks, or no chosen matte.
    """
    if not nodule.readers or nodule.alpha is None:
        raise InputError(f"{nodule.nodule_id}: this figure needs readers' masks and a chosen matte")
    columns: list[Column] = [("image", None)]
    columns += [(f"reader {number}", mask.astype(np.float32)) for number, mask in enumerate(nodule.readers, start=1)]
    columns.append((chosen_of(nodule), nodule.alpha))
    view = view_of(nodule, MARGIN_MM)
    rows = [(PLANES[plane], _row(nodule, view, columns, plane)) for plane in range(3)]
    return _grid([name for name, _ in columns], rows)


def methods_side_by_side(nodules: Iterable[Nodule]) -> Figure:
    """One nodule per row, axial: image, the readers' mean mask, the mattes of all methods (figure 6).

    Raises
    ------
    InputError
        There are no nodules, or one has no mattes.
    """
    rows = []
    for nodule in nodules:
        missing = [method for method in METHODS if method not in nodule.mattes]
        if missing:
            raise InputError(
                f"{nodule.nodule_id}: this figure needs the mattes of all methods; there is no {missing[0]}"
            )
        mean = np.asarray(np.mean(nodule.readers, axis=0, dtype=np.float32)) if nodule.readers else None
        columns: list[Column] = [
            ("image", None),
            ("mean mask", mean),
            *((method, nodule.mattes[method]) for method in METHODS),
        ]
        rows.append((nodule.nodule_id, _row(nodule, view_of(nodule, MARGIN_MM), columns, 0)))
    if not rows:
        raise InputError("there are no nodules to draw")
    names = ["image", "mean mask", *METHODS]
    return _grid([in_capitals(name) for name in names], rows, [kind_of(name) for name in names])


def _row(nodule: Nodule, view: View, columns: Sequence[Column], plane: int) -> list[np.ndarray]:
    image = required(nodule.image, nodule, "image")
    return [panel(view, image, plane, PANEL_PX, alpha) for _, alpha in columns]


def _grid(names: Sequence[str], rows: Sequence[tuple[str, list[np.ndarray]]], kinds: Sequence[str] = ()) -> Figure:
    """Panels in rows and columns with letters, as in a paper, and headings where ``kinds`` has those of the columns."""
    left, letters = 0.32, 0.3
    head = letters + (0.25 if kinds else 0.0)
    width, height = left + len(names) * PANEL_IN, head + len(rows) * PANEL_IN
    figure = blank(width, height, constrained=False)
    for row, (title, panels) in enumerate(rows):
        bottom = height - head - (row + 1) * PANEL_IN
        middle = (bottom + PANEL_IN / 2) / height
        figure.text(0.16 / width, middle, title, rotation=90, ha="center", va="center", fontsize=8.5, color=INK)
        for column, picture in enumerate(panels):
            box = (left + column * PANEL_IN, bottom, PANEL_IN - 0.04, PANEL_IN - 0.04)
            axes = figure.add_axes((box[0] / width, box[1] / height, box[2] / width, box[3] / height))
            axes.imshow(picture, interpolation="nearest")
            axes.axis("off")
    for column, name in enumerate(names):
        x = left + (column + 0.5) * PANEL_IN
        text = f"({chr(ord('a') + column)}) {name}"
        y = 1 - (head - letters + 0.1) / height
        figure.text(x / width, y, text, ha="center", va="top", fontsize=9, color=INK)
    kind_headings(figure, kinds, left, PANEL_IN, height - head + letters - 0.03)
    return figure
