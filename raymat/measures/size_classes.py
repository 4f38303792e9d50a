"""Classes of size of two guidelines. They describe a size; they are no advice.

- Fleischner Society 2017: H. MacMahon et al., Guidelines for Management of Incidental Pulmonary Nodules Detected on CT
  Images, Radiology 2017;284:228-243. The mean of the longest diameter and its perpendicular is rounded to whole mm.
- Lung-RADS v2022, American College of Radiology. The mean diameter has one decimal; the volumes are those of balls of
  6, 8, 15 and 30 mm.
"""

from __future__ import annotations

import math
from bisect import bisect_right

LUNG_RADS_MM = (6.0, 8.0, 15.0, 30.0)
LUNG_RADS_MM3 = (113.0, 268.0, 1767.0, 14137.0)


def fleischner_by_diameter(mean_mm: float) -> str | None:
    """The class "<6 mm", "6-8 mm" or ">8 mm"; None for NaN."""
    if math.isnan(mean_mm):
        return None
    rounded = math.floor(mean_mm + 0.5)
    return "<6 mm" if rounded < 6 else "6-8 mm" if rounded <= 8 else ">8 mm"


def fleischner_by_volume(mm3: float) -> str | None:
    """The class "<100 mm3", "100-250 mm3" or ">250 mm3"; None for NaN."""
    if math.isnan(mm3):
        return None
    return "<100 mm3" if mm3 < 100 else "100-250 mm3" if mm3 <= 250 else ">250 mm3"


def lung_rads_by_diameter(mean_mm: float) -> str | None:
    """Between which thresholds a mean diameter lies: "<6 mm", ">=6 to <8 mm", ... ">=30 mm"; None for NaN."""
    return _between(round(mean_mm, 1), LUNG_RADS_MM, "mm")


def lung_rads_by_volume(mm3: float) -> str | None:
    """Between which thresholds a volume lies: "<113 mm3", ">=113 to <268 mm3", ... ">=14137 mm3"; None for NaN."""
    return _between(mm3, LUNG_RADS_MM3, "mm3")


def _between(value: float, thresholds: tuple[float, ...], unit: str) -> str | None:
    if math.isnan(value):
        return None
    place = bisect_right(thresholds, value)
    if place == 0:
        return f"<{thresholds[0]:g} {unit}"
    if place == len(thresholds):
        return f">={thresholds[-1]:g} {unit}"
    return f">={thresholds[place - 1]:g} to <{thresholds[place]:g} {unit}"
