"""Empty figures, their colours of ink, and how they are written.

Nothing here touches pyplot, so that figures may be made on any thread and need no screen.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from raymat.errors import InputError
from raymat.methods import CALIBRATED, MEMBERSHIP

INK, FAINT = "#1b1b1b", "#666666"
MEANING = {
    MEMBERSHIP: "share of the voxel that is lesion",
    CALIBRATED: "share of the voxel that is lesion, weighted by its density",
}
WIDE_IN = 4.5  # of a group of columns, for a heading with the meaning


def blank(width: float, height: float, *, constrained: bool = True) -> Figure:
    """A white figure, width and height in inches, with or without matplotlib's constrained layout."""
    figure = Figure(figsize=(width, height), facecolor="white", layout="constrained" if constrained else None)
    FigureCanvasAgg(figure)
    return figure


def kind_headings(figure: Figure, kinds: Sequence[str], left: float, panel: float, y: float) -> None:
    """The kind of alpha over neighbouring columns that show it, and what it means where there is room for that.

    Parameters
    ----------
    kinds : of each column; one of neither kind of alpha gets no heading
    left, panel, y : where the first column begins, the width of a column, the height of the line; inches
    """
    width, height = figure.get_size_inches()
    for kind, run in groupby(range(len(kinds)), key=lambda column: kinds[column]):
        columns = list(run)
        if kind not in MEANING:
            continue
        start, wide = left + columns[0] * panel, len(columns) * panel - 0.06
        line = (start / width, y / height), wide / width, 0.012 / height
        figure.add_artist(Rectangle(*line, facecolor=FAINT, edgecolor="none"))
        text = f"{kind}: {MEANING[kind]}" if wide > WIDE_IN else kind
        middle, above = (start + wide / 2) / width, (y + 0.035) / height
        figure.text(middle, above, text, fontsize=9.5, color=INK, ha="center", va="bottom")


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
