"""Pictures of what the network predicts (paper, figure 7), how far it is off, and how sure it is."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from raymat.methods import ANY
from raymat.pictures.figure import FAINT, INK, blank
from raymat.pictures.nodule import FRAME
from raymat.pictures.view import overlay

BAR, MARKED = "#ff8a1f", "#2f6db5"
COLUMNS = ("image", "union", "overlap", "alpha", "predicted union", "predicted overlap", "predicted alpha")


def show_predictions(
    rows: Sequence[Mapping[str, np.ndarray]], names: Sequence[str] | None = None, kind: str = ANY
) -> Figure:
    """Image, ground truth and prediction side by side, one row per nodule (paper, figure 7).

    Parameters
    ----------
    rows : each with the arrays of ``COLUMNS``, all (z, y, x) of one shape, 0 to 1; drawn is the axial slice that holds
        most of the true alpha
    names : written at the left of each row
    kind : of the alpha, written below its name
    """
    side = 1.5
    figure = blank(side * len(COLUMNS) + 0.4, side * len(rows) + 0.4)
    grid = figure.subplots(len(rows), len(COLUMNS), squeeze=False)
    for number, (row, line) in enumerate(zip(rows, grid, strict=True)):
        z = int(np.argmax(row["alpha"].sum(axis=(1, 2))))
        grey = np.repeat(np.clip(row["image"][z], 0, 1)[..., None], 3, axis=2)
        for name, axes in zip(COLUMNS, line, strict=True):
            axes.imshow(grey if name == "image" else overlay(grey, row[name][z]))
            axes.set_xticks([])
            axes.set_yticks([])
            if number == 0:
                of_kind = f"\n{kind}" if "alpha" in name and kind != ANY else ""
                axes.set_title(f"{name}{of_kind}", fontsize=9, color=INK)
        if names:
            line[0].set_ylabel(names[number], fontsize=8, color=INK)
    return figure


def reliability(curves: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> Figure:
    """Of the voxels that were given a probability, the share that is inside: a calibrated mask lies on the diagonal.

    Parameters
    ----------
    curves : name to (mean probability, share inside) of each bin
    """
    figure = blank(4.2, 4)
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color=FAINT, linewidth=1, linestyle=":")
    for name, (probability, inside) in curves.items():
        axes.plot(probability, inside, marker="o", markersize=4, label=name)
    axes.set_xlabel("predicted probability")
    axes.set_ylabel("share of voxels inside")
    axes.set_aspect("equal")
    axes.legend(frameon=False)
    return figure


def error_bars(
    table: Mapping[str, Mapping[str, tuple[float, float]]], titles: Mapping[str, str], marked: Collection[str] = ()
) -> Figure:
    """A table of errors as bars: one panel per metric of ``titles``, one bar per method, its deviation as a whisker.

    Parameters
    ----------
    table : method to metric to (mean, standard deviation)
    titles : metric to what is written above its panel
    marked : methods whose bars have another colour
    """
    colours = [MARKED if method in marked else BAR for method in table]
    figure = blank(3.2 * len(titles), 0.6 + 0.32 * len(table))
    for axes, (metric, title) in zip(
        figure.subplots(1, len(titles), sharey=True, squeeze=False)[0], titles.items(), strict=True
    ):
        means, deviations = zip(*(table[method][metric] for method in table), strict=True)
        axes.barh(list(table), means, xerr=deviations, color=colours, ecolor=INK, height=0.7)
        axes.set_title(title, fontsize=10, loc="left", color=INK)
        axes.tick_params(left=False, labelsize=9)
        for spine in ("top", "right", "left"):
            axes.spines[spine].set_visible(False)
    figure.axes[0].invert_yaxis()
    return figure


def heat_map(values: np.ndarray, rows: Sequence[float], columns: Sequence[float], title: str) -> Figure:
    """Validation SAD over alpha (rows) and beta (columns) of Eq. 6; the smallest framed, what is missing blank."""
    figure = blank(1.6 + 0.8 * len(columns), 1.4 + 0.6 * len(rows))
    axes = figure.add_subplot()
    image = axes.imshow(np.ma.masked_invalid(values), cmap="YlOrRd")
    axes.set_xticks(range(len(columns)), [f"{value:g}" for value in columns])
    axes.set_yticks(range(len(rows)), [f"{value:g}" for value in rows])
    axes.set_xlabel("beta, of the gradient's difference")
    axes.set_ylabel("alpha, of the difference")
    axes.set_title(title, fontsize=10, loc="left", color=INK)
    for row, column in np.argwhere(np.isfinite(values)):
        colour = image.cmap(image.norm(values[row, column]))
        ink = "white" if np.dot(colour[:3], (0.299, 0.587, 0.114)) < 0.4 else INK
        axes.text(column, row, f"{values[row, column]:.0f}", ha="center", va="center", fontsize=9, color=ink)
    if np.isfinite(values).any():
        row, column = np.unravel_index(np.nanargmin(values), values.shape)
        axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor=FRAME, linewidth=3))
    return figure
