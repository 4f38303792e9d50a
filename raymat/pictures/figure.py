"""Empty figures, their colours of ink, and how they are written.

Nothing here touches pyplot, so that figures may be made on any thread and need no screen.
"""

from __future__ import annotations

import io
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from raymat.errors import InputError

INK, FAINT = "#1b1b1b", "#666666"


def blank(width: float, height: float, *, constrained: bool = True) -> Figure:
    """A white figure, width and height in inches, with or without matplotlib's constrained layout."""
    figure = Figure(figsize=(width, height), facecolor="white", layout="constrained" if constrained else None)
    FigureCanvasAgg(figure)
    return figure


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
