"""The picture of one nodule: image and readers, trimap, every matte with its score."""

from __future__ import annotations

import textwrap
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from raymat.measures.interval import evidence_of, volume_interval
from raymat.methods import ANY, CALIBRATED, MEANINGS, MEMBERSHIP, in_order, is_method
from raymat.nodule import ACCEPTED, EXCLUDED, FAILED, REJECTED, Matte, Nodule
from raymat.pictures.figure import FAINT, INK, blank, kind_headings
from raymat.pictures.view import (
    HALO,
    OUTSIDE,
    PLANES,
    READERS_COLOURS,
    bar_length,
    draw_contour,
    grey_of,
    overlay,
    shown_channels,
    view_of,
)

MARGIN_MM = 10.0
LABELS = (("R", "L", "A", "P"), ("R", "L", "S", "I"), ("A", "P", "S", "I"))  # left, right, top, bottom
OUTCOME_COLOURS = {ACCEPTED: "#1a7f37", REJECTED: "#b3261e", EXCLUDED: "#6b6b6b", FAILED: "#b3261e"}
FRAME, CHOSEN_TEXT = "#00c853", "#007a33"

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


def show_nodule(nodule: Nodule) -> Figure:
    """One nodule in three planes: image and readers, trimap, every matte with its score, both truths where known.

    Of several channels each has a column of its own, and all else is drawn over the first.

    The planes run through the centre of mass of the chosen matte (else of the best one, the readers or the trimap). The
    chosen matte is framed, and the best one of the other kind of alpha is named; a heading says the kind of each.

    Raises
    ------
    InputError
        The nodule has no image: there is nothing to show.
    """
    view = view_of(nodule, MARGIN_MM)
    shown = {name: (view.turn(image), window) for name, image, window in shown_channels(nodule)}
    first = next(iter(shown))
    columns = _columns_of(nodule)
    panel, left, head, foot = 1.62, 0.42, 1.6, 0.5
    width = max(left + len(columns) * panel + 0.12, 8.0)
    height = head + 3 * panel + foot
    figure = blank(width, height, constrained=False)
    _head(figure, nodule, width, height)
    kinds = {matte.method: matte.kind for matte in nodule.candidates}
    kind_headings(figure, [kinds.get(name, "") for name, _, _ in columns], left, panel, height - head + 0.42)
    for column, (name, below, array) in enumerate(columns):
        chosen = name == nodule.method
        for plane in range(3):
            bottom = height - head - (plane + 1) * panel
            box = (left + column * panel, bottom, panel - 0.06, panel - 0.06)
            axes = figure.add_axes((box[0] / width, box[1] / height, box[2] / width, box[3] / height))
            axes.set_label(f"{name} {PLANES[plane]}")
            over = None if array is None else view.cut(view.turn(array), plane)
            image, window = shown.get(name, shown[first])
            extent = view.extent(image.shape, plane)
            _picture(axes, name, grey_of(view.cut(image, plane), window), over, extent)
            for reader, mask in enumerate(nodule.readers if name == "readers" else ()):
                draw_contour(axes, view.cut(view.turn(mask), plane), extent, reader, 1.1)
            _dress(axes, view.side, chosen)
            if plane == 0:
                _title(axes, name, below, chosen)
            if column == 0:
                axes.set_ylabel(PLANES[plane], fontsize=11, color=INK, labelpad=5)
                if view.oriented:
                    _sides(axes, LABELS[plane])
                _scale_bar(axes, view.side)
    mattes = bool(nodule.candidates) or any(nodule.truth(kind) is not None for kind in MEANINGS)
    _key(figure, nodule, left, width, height, mattes)
    return figure


def _picture(
    axes: Axes, name: str, grey: np.ndarray, over: np.ndarray | None, extent: tuple[float, float, float, float]
) -> None:
    """A cut of the image, as RGB, under one of a matte, or the trimap's alone."""
    if over is not None and name == "trimap":
        axes.imshow(over, cmap="gray", vmin=0, vmax=255, extent=extent, interpolation="nearest")
        return
    axes.imshow(grey if over is None else overlay(grey, over), extent=extent, interpolation="bilinear")


def _columns_of(nodule: Nodule) -> list[tuple[str, str, np.ndarray | None]]:
    """The columns of ``show_nodule``: name, text below the name, and the array drawn over the image."""
    columns: list[tuple[str, str, np.ndarray | None]] = [(name, "", None) for name, _, _ in shown_channels(nodule)]
    if nodule.readers:
        columns.append(("readers", f"{len(nodule.readers)} masks", None))
    if nodule.trimap is not None:
        columns.append(("trimap", "", nodule.trimap))
    columns += [(method, _verdict_on(method, nodule), nodule.mattes[method]) for method in in_order(nodule.scores)]
    truths = ((f"true {kind}", nodule.truth(kind)) for kind in (MEMBERSHIP, CALIBRATED))
    columns += [(name, "", truth) for name, truth in truths if truth is not None]
    return columns


def _verdict_on(method: str, nodule: Nodule) -> str:
    """A matte's score, and whether it is the chosen one or, beside that, the best of the other kind."""
    others = [nodule.best(kind) for kind in MEANINGS if nodule.method and nodule.kind != ANY]
    beside = any(matte is not None and matte.method == method for matte in others)
    word = "chosen" if method == nodule.method else "best" if beside else ""
    return f"{score_of(nodule.scores[method])}  {word}".strip()


def _title(axes: Axes, name: str, below: str, chosen: bool) -> None:
    """A column's name and, below it, its score; green where it is chosen."""
    at: dict[str, Any] = {"xycoords": "axes fraction", "textcoords": "offset points", "ha": "center", "va": "bottom"}
    axes.annotate(
        in_capitals(name), (0.5, 1.0), (0, 17), fontsize=11, color=CHOSEN_TEXT if chosen else INK, weight="bold", **at
    )
    axes.annotate(below, (0.5, 1.0), (0, 5), fontsize=9, color=CHOSEN_TEXT if chosen else FAINT, **at)


def in_capitals(name: str) -> str:
    """The name of a column: methods and the network in capitals, all others as they are."""
    return name.upper() if is_method(name) else name.replace("3dmm", "3DMM")


def chosen_of(nodule: Nodule) -> str:
    """The chosen method and what alpha means in its matte, "CF+, calibrated"; empty where none was chosen."""
    chosen = nodule.best(ANY) if nodule.method else None
    return _named(chosen) if chosen else ""


def _named(matte: Matte) -> str:
    """A matte's method and what its alpha means, where that is known."""
    return in_capitals(matte.method) + (f", {matte.kind}" if matte.kind != ANY else "")


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


def _scale_bar(axes: Axes, side: float) -> None:
    length = bar_length(side)
    x, y = -0.46 * side, -0.455 * side
    axes.plot([x, x + length], [y, y], color="white", linewidth=2.2, solid_capstyle="butt", path_effects=HALO)
    axes.text(x, y + 0.02 * side, f"{length} mm", color="white", fontsize=7.5, va="bottom", path_effects=HALO)


def score_of(score: float) -> str:
    """A score with two decimals; nothing for NaN."""
    return f"{score:.2f}" if np.isfinite(score) else ""


def size_of(nodule: Nodule) -> str:
    """The nodule's size in words: the diameter of a sphere of its volume, and what the volume is of.

    Membership sums to the volume: the chosen matte of that kind, else the readers' mean mask. A calibrated matte sums
    to less, and so gives "at least". Where the volume has a 90 % interval, that follows.
    """
    if nodule.spacing is None:
        return ""
    membership, chosen = (nodule.best(kind) if nodule.method else None for kind in (MEMBERSHIP, ANY))
    if membership is None and chosen and chosen.kind != CALIBRATED:
        membership = chosen  # a network's
    least = ""
    if membership:
        voxels, of = float(membership.alpha.sum(dtype=np.float64)), _named(membership)
    elif nodule.readers:
        voxels, of = float(np.mean([np.count_nonzero(mask) for mask in nodule.readers])), "readers' mean"
    elif chosen:
        voxels, of = float(chosen.alpha.sum(dtype=np.float64)), _named(chosen)
        least = "at least "
    else:
        return ""
    diameter = (6.0 * voxels * float(np.prod(nodule.spacing)) / np.pi) ** (1.0 / 3.0)
    return f"{least}{diameter:.1f} mm ({of}){_interval_of(nodule, membership)}" if voxels else ""


def _interval_of(nodule: Nodule, membership: Matte | None) -> str:
    """The 90 % interval of the volume in words, where the nodule has one."""
    if membership is None or nodule.image is None or nodule.trimap is None or nodule.spacing is None:
        return ""
    if not is_method(membership.method):
        return ""
    found = volume_interval(evidence_of(membership.alpha, nodule.image, nodule.trimap, nodule.readers, nodule.spacing))
    return f", {found.low:.0f} to {found.high:.0f} mm3"


def _ratings(nodule: Nodule) -> str:
    """The readers' ratings, one number per reader."""
    ratings = nodule.ratings
    return "     ".join(f"{name} {' '.join(map(str, ratings[name]))}" for name in SHOWN_RATINGS if name in ratings)


def _head(figure: Figure, nodule: Nodule, width: float, height: float) -> None:
    """Nodule and patient, size, ratings and outcome."""
    x = 0.12 / width
    patient = f"patient {nodule.patient_id}" if nodule.patient_id else ""
    name = figure.text(x, 1 - 0.1 / height, nodule.nodule_id, fontsize=16, weight="bold", color=INK, va="top")
    facts = "     ".join(part for part in (patient, nodule.source, size_of(nodule)) if part)
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
        words += f": {chosen_of(nodule)}"
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
        bar.imshow(overlay(np.full((1, 256, 3), 0.1, np.float32), ramp), aspect="auto", extent=(0, 1, 0, 1))
        bar.axis("off")
        figure.text((width - 3.08) / width, (y + 0.065) / height, "alpha  0", fontsize=9, va="center", ha="right")
        figure.text((width - 1.02) / width, (y + 0.065) / height, "1", fontsize=9, va="center", ha="left")
