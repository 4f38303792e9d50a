"""How the measures of nodules are distributed."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from matplotlib.figure import Figure

from raymat.pictures.figure import FAINT, INK, blank

BAR = "#c4000f"
# Column, title, and whether the axis is logarithmic.
SHOWN = (
    ("volume_mm3", "volume, mm3", True),
    ("mean_diameter_mm", "mean axial diameter, mm", False),
    ("tissue_mass_mg", "mass of the tissue, mg", True),
    ("solid_share", "solid share of the volume", False),
    ("sphericity", "sphericity", False),
    ("border_width_mm", "width of the border, mm", False),
)


def distributions(table: pa.Table) -> Figure:
    """Histograms of six measures of a table of ``raymat.measures.table``; a measure that no nodule has stays empty."""
    figure = blank(11, 5.2)
    for axes, (name, title, logarithmic) in zip(figure.subplots(2, 3).ravel(), SHOWN, strict=True):
        values = table[name].drop_null().to_numpy()
        values = values[values > 0] if logarithmic else values
        if len(values):
            bins: int | np.ndarray = 24
            if logarithmic:
                bins = np.geomspace(values.min(), values.max() * 1.001, 25)
                axes.set_xscale("log")
            axes.hist(values, bins=bins, color=BAR)
        axes.set_title(title, fontsize=10, loc="left", color=INK)
        axes.set_ylabel("nodules", fontsize=8, color=FAINT)
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    return figure
