"""Holm's correction for many comparisons (Scandinavian Journal of Statistics 6:65-70, 1979)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def holm(p: npt.ArrayLike) -> np.ndarray:
    """Adjusted p values, in the order given: reject those below the level, and no more than one in 20 families errs."""
    values = np.asarray(p, float)
    order = np.argsort(values, kind="stable")
    raised = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1))
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(raised, 1.0)
    return adjusted
