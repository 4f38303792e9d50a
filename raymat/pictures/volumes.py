"""Figures of the errors of volumes: Bland and Altman on phantoms, and changes between two scans of one lesion."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from raymat.evidence.volumes import ESTIMATE, MATTE, MEAN, SINGLE, Volumes, log_changes, repeatability
from raymat.pictures.figure import FAINT, INK, blank

SHOWN = (ESTIMATE, MATTE, MEAN, SINGLE)
DOT, LINE = "#33658a", "#c4000f"
WIDEST = 100.0  # percent; what lies beyond is drawn at the edge


def bland_altman(phantoms: Sequence[Volumes]) -> Figure:
    """Error in percent against the true volume for four ways to measure it, with bias and limits of agreement."""
    figure = blank(12, 3.4)
    for axes, name in zip(figure.subplots(1, len(SHOWN), sharey=True), SHOWN, strict=True):
        known = [(one.truth, volume) for one in phantoms if one.truth for volume in one.volumes.get(name, ())]
        truth, volume = np.array(known).T
        error = 100 * (volume / truth - 1)
        _dots(axes, truth, error, name)
        mean, deviation = error.mean(), error.std(ddof=1)
        for height, style in ((mean, "-"), (mean - 1.96 * deviation, "--"), (mean + 1.96 * deviation, "--")):
            axes.axhline(np.clip(height, -WIDEST, WIDEST), color=LINE, linewidth=1, linestyle=style)
        axes.set_xlabel("true volume, mm3", fontsize=9, color=FAINT)
    figure.axes[0].set_ylabel("error of the volume, %", fontsize=9, color=FAINT)
    return figure


def repeatability_figure(pairs: Sequence[tuple[Volumes, Volumes]]) -> Figure:
    """Change in percent between two scans of lesions that did not change, and the repeatability coefficient."""
    figure = blank(12, 3.4)
    for axes, name in zip(figure.subplots(1, len(SHOWN), sharey=True), SHOWN, strict=True):
        truth, change = [], []
        for pair in pairs:
            found = 100 * (np.exp(log_changes([pair], name)) - 1)
            truth += [pair[0].truth or np.nan] * len(found)
            change += found.tolist()
        _dots(axes, np.array(truth), np.array(change), name)
        found_all = repeatability(pairs, name)
        if found_all:
            for sign in (-1, 1):
                height = float(np.clip(sign * found_all.coefficient, -WIDEST, WIDEST))
                axes.axhline(height, color=LINE, linewidth=1, linestyle="--")
        axes.set_xlabel("true volume, mm3", fontsize=9, color=FAINT)
    figure.axes[0].set_ylabel("change between two scans, %", fontsize=9, color=FAINT)
    return figure


def _dots(axes: Axes, x: np.ndarray, y: np.ndarray, title: str) -> None:
    axes.axhline(0, color=FAINT, linewidth=0.6)
    axes.scatter(x, np.clip(y, -WIDEST, WIDEST), s=10, color=DOT, alpha=0.6, linewidths=0)
    axes.set_xscale("log")
    axes.set_ylim(-WIDEST * 1.03, WIDEST * 1.03)
    axes.set_title(title, fontsize=10, loc="left", color=INK)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
