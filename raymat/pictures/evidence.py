"""Figures of the evidence: predictions of the left-out reader, and diagnoses by input (paper, figure 5)."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from raymat.evidence.inputs import CHOSEN, IMAGE, KIND_OF, MEAN
from raymat.evidence.inputs import KIND_COLOURS as INPUT_COLOURS
from raymat.evidence.reader_prediction import calibration_bins
from raymat.evidence.readers_table import MEASURES, bins_of, drawn_curves, kind_of
from raymat.pictures.figure import FAINT, INK, blank

KIND_COLOURS = {"masks alone": "#8a8f98", "matte": "#c8553d", "both": "#3d6b8f"}


def reader_predictions(table: pd.DataFrame, rows: pd.DataFrame) -> Figure:
    """Brier score, AUROC and Dice of every method with intervals, and the calibration of the chief ones.

    Parameters
    ----------
    table : ``raymat.evidence.readers_table.summarise`` of ``rows``
    rows : ``raymat.evidence.reader_prediction.rows_of`` of all splits
    """
    figure = blank(13, 0.27 * len(table) + 1.6)
    panels = figure.subplots(1, 4, gridspec_kw={"width_ratios": [1, 1, 1, 1.25]})
    heights = np.arange(len(table))[::-1]
    for letter, axes, name in zip("abc", panels, ("brier", "auroc", "dice_unknown"), strict=False):
        title, more = MEASURES[name]
        for height, (_, row) in zip(heights, table.iterrows(), strict=True):
            colour = KIND_COLOURS[kind_of(row["method"])]
            axes.plot([row[f"{name}_low"], row[f"{name}_high"]], [height, height], color=colour, linewidth=2)
            axes.plot(row[name], height, "o", color=colour, markersize=4.5)
        axes.axvline(table[name].iloc[0], color=FAINT, linewidth=0.8, linestyle=":")
        axes.set_yticks(heights, table["method"] if name == "brier" else [""] * len(table), fontsize=8.5)
        axes.set_title(f"({letter}) {title}, {'more' if more else 'less'} is better", fontsize=9.5, color=INK)
        axes.grid(axis="x", color="#eeeeee")
        axes.spines[["top", "right"]].set_visible(False)
    curves = panels[3]
    curves.plot([0, 1], [0, 1], color=FAINT, linewidth=1, linestyle=":")
    for method in drawn_curves(table["method"].to_list()):
        count, probability, inside = bins_of(rows[rows["method"] == method])
        some = count > 0
        curves.plot(
            probability[some] / count[some], inside[some] / count[some], marker="o", markersize=3.5, label=method
        )
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


def diagnoses_by_input(table: pd.DataFrame, trials: pd.DataFrame, size: pd.DataFrame) -> Figure:
    """The AUROC of every input, one panel per network (paper, figure 5); that of size alone as a line.

    Parameters
    ----------
    table, trials : ``raymat.evidence.diagnoses.summarise`` and ``trials_table``
    size : ``summarise`` of the size-only regression
    """
    networks = list(table["network"].unique())
    figure = blank(4.6 * len(networks) + 0.4, 4.2)
    panels = figure.subplots(1, len(networks), sharey=True, squeeze=False)[0]
    lowest = min(trials["auroc"].min(), float(size["mean"].iloc[0]))
    for letter, axes, network in zip("abcdefgh", panels, networks, strict=False):
        part = table[table["network"] == network].reset_index(drop=True)
        for position, row in part.iterrows():
            colour = INPUT_COLOURS[KIND_OF[row["input"]]]
            aurocs = trials[(trials["network"] == network) & (trials["input"] == row["input"])]["auroc"].to_numpy()
            axes.bar(position, row["mean"], color=colour, width=0.74, alpha=0.75, label=KIND_OF[row["input"]])
            shifts = np.linspace(-0.2, 0.2, len(aurocs)) if len(aurocs) > 1 else [0.0]
            axes.plot(position + np.asarray(shifts), aurocs, "o", color=INK, markersize=2.6)
            if np.isfinite(row["spread"]):
                axes.errorbar(position, row["mean"], row["spread"], color=INK, linewidth=1, capsize=2.5)
        line = float(size["mean"].iloc[0])
        axes.axhline(line, color="#3d6b8f", linewidth=1.2, linestyle="--", label="size alone")
        axes.set_xticks(range(len(part)), part["input"], rotation=60, ha="right", fontsize=8.5)
        axes.set_title(f"({letter}) {network}", fontsize=10, color=INK)
        axes.set_ylim(max(0.0, np.floor(20 * (lowest - 0.03)) / 20), 1.0)
        axes.grid(axis="y", color="#eeeeee")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("AUROC on the test nodules", fontsize=9)
    handles, labels = panels[0].get_legend_handles_labels()
    shown = dict(zip(labels, handles, strict=True))
    figure.legend(
        shown.values(), shown.keys(), loc="outside lower center", ncols=len(shown), fontsize=8.5, frameon=False
    )
    return figure


def calibration_of_inputs(nodules: pd.DataFrame) -> Figure:
    """Of the nodules that were given a probability, the share that is rated malignant; one panel per network.

    Parameters
    ----------
    nodules : ``raymat.evidence.diagnoses.mean_probabilities``
    """
    networks = list(nodules["network"].unique())
    figure = blank(3.6 * len(networks) + 0.4, 3.6)
    panels = figure.subplots(1, len(networks), sharey=True, squeeze=False)[0]
    for axes, network in zip(panels, networks, strict=True):
        axes.plot([0, 1], [0, 1], color=FAINT, linewidth=1, linestyle=":")
        part = nodules[nodules["network"] == network]
        for name in part["input"].unique():
            rows = part[part["input"] == name]
            count, probability, malignant = calibration_bins(
                rows["calibrated"].to_numpy(float), rows["label"].to_numpy() == 1
            )
            some = count > 0
            strong = name in (IMAGE, MEAN, CHOSEN)
            axes.plot(
                probability[some] / count[some],
                malignant[some] / count[some],
                color=INPUT_COLOURS[KIND_OF[name]],
                linewidth=1.8 if strong else 0.6,
                alpha=1.0 if strong else 0.4,
                marker="o" if strong else None,
                markersize=3,
                label=name if strong else None,
            )
        axes.set_title(network, fontsize=9.5, color=INK)
        axes.set_xlabel("probability given", fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
        if axes.get_legend_handles_labels()[1]:
            axes.legend(fontsize=8, frameon=False)
    panels[0].set_ylabel("share rated malignant", fontsize=9)
    return figure
