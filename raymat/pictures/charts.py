"""Charts of a dataset or release: how often each method was chosen, sizes, scanners, ratings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from raymat.methods import METHODS
from raymat.pictures.figure import FAINT, INK, blank

BAR, RATINGS_BAR = "#c4000f", "#33658a"


def method_histogram(counts: Mapping[str, int]) -> Figure:
    """How often each method was chosen: one bar per method of ``METHODS``, its count beside it."""
    figure = blank(6, 3.2)
    axes = figure.add_subplot()
    values = [counts.get(method, 0) for method in METHODS]
    bars = axes.barh([method.upper() for method in METHODS], values, color=BAR, height=0.7)
    axes.bar_label(bars, padding=4, fontsize=10, color=INK)
    axes.invert_yaxis()
    axes.set_title(f"chosen method, {sum(values)} nodules", fontsize=11, loc="left", color=INK)
    axes.tick_params(left=False, bottom=False, labelbottom=False, labelsize=10)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return figure


def release_histograms(index: Sequence[Mapping], rated: Mapping[str, Mapping[int, int]]) -> Figure:
    """Diameters and the scanners' spacings of a release (rows of its index), and how often each rating was given."""
    figure = blank(12, 5 if rated else 2.6)
    rows = figure.subfigures(2 if rated else 1, 1, squeeze=False)[:, 0]
    spacing = np.array([row["scanner_spacing"] for row in index if row["scanner_spacing"]]).reshape(-1, 3)
    measured = (
        ("diameter, mm", [row["diameter_mm"] for row in index]),
        ("scanner's slice spacing, mm", spacing[:, 0]),
        ("scanner's pixel spacing, mm", spacing[:, 2]),
    )
    for axes, (name, values) in zip(rows[0].subplots(1, len(measured)), measured, strict=True):
        axes.hist(values, bins=20, color=BAR)
        axes.set_ylabel("nodules", fontsize=8, color=FAINT)
        _plain_axes(axes, name)
    if rated:
        for axes, (name, counts) in zip(rows[1].subplots(1, len(rated), squeeze=False)[0], rated.items(), strict=True):
            axes.bar(list(counts), list(counts.values()), color=RATINGS_BAR, width=0.8)
            axes.set_xticks(sorted(counts))
            _plain_axes(axes, name)
        rows[1].axes[0].set_ylabel("ratings", fontsize=8, color=FAINT)
    return figure


def _plain_axes(axes: Axes, title: str) -> None:
    axes.set_title(title, fontsize=10, loc="left", color=INK)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
