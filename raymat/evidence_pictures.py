"""Figures of the evidence: the left-out reader foretold, and diagnoses by input (paper, figure 5)."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from raymat.evidence.readers_table import MEASURES, bins_of, drawn_curves, kind_of
from raymat.pictures import FAINT, INK

KIND_COLOURS = {"masks alone": "#8a8f98", "matte": "#c8553d", "both": "#3d6b8f"}


def foretelling(table: pd.DataFrame, rows: pd.DataFrame) -> Figure:
    """Brier score, AUROC and Dice of every method with intervals, and the calibration of the chief ones.

    Parameters
    ----------
    table : ``raymat.evidence.readers_table.summarise`` of ``rows``
    rows : ``raymat.evidence.foretelling.rows_of`` of all splits
    """
    figure = Figure(figsize=(13, 0.27 * len(table) + 1.6), facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 4, gridspec_kw={"width_ratios": [1, 1, 1, 1.25]})
    places = np.arange(len(table))[::-1]
    for letter, axes, name in zip("abc", panels, ("brier", "auroc", "dice_unknown"), strict=False):
        title, more = MEASURES[name]
        for place, (_, row) in zip(places, table.iterrows(), strict=True):
            colour = KIND_COLOURS[kind_of(row["method"])]
            axes.plot([row[f"{name}_low"], row[f"{name}_high"]], [place, place], color=colour, linewidth=2)
            axes.plot(row[name], place, "o", color=colour, markersize=4.5)
        axes.axvline(table[name].iloc[0], color=FAINT, linewidth=0.8, linestyle=":")
        axes.set_yticks(places, table["method"] if name == "brier" else [""] * len(table), fontsize=8.5)
        axes.set_title(f"({letter}) {title}, {'more' if more else 'less'} is better", fontsize=9.5, color=INK)
        axes.grid(axis="x", color="#eeeeee")
        axes.spines[["top", "right"]].set_visible(False)
    curves = panels[3]
    curves.plot([0, 1], [0, 1], color=FAINT, linewidth=1, linestyle=":")
    for method in drawn_curves(table["method"].to_list()):
        count, given, inside = bins_of(rows[rows["method"] == method])
        some = count > 0
        curves.plot(given[some] / count[some], inside[some] / count[some], marker="o", markersize=3.5, label=method)
    curves.set_xlabel("probability given", fontsize=9)
    curves.set_ylabel("share inside the fourth reader's mask", fontsize=9)
    curves.set_title("(d) calibration, all unknown voxels", fontsize=9.5, color=INK)
    curves.legend(fontsize=8, frameon=False)
    curves.spines[["top", "right"]].set_visible(False)
    for kind, colour in KIND_COLOURS.items():
        panels[0].plot([], [], "o", color=colour, label=kind)
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside lower left", ncols=3, fontsize=8.5, frameon=False
    )
    return figure
