"""DeLong's test: do two scores of the same cases have the same area under the ROC curve?

DeLong ER, DeLong DM, Clarke-Pearson DL, Biometrics 44:837-845, 1988; the structural components by midranks as in Sun X,
Xu W, IEEE Signal Processing Letters 21:1389-1393, 2014.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import norm, rankdata


@dataclass(frozen=True)
class Comparison:
    """Areas of two scores, their difference (first less second), its standard error and two-sided p."""

    first: float
    second: float
    difference: float
    error: float
    p: float


def delong(labels: np.ndarray, first: np.ndarray, second: np.ndarray) -> Comparison:
    """Compare two scores of the same cases.

    Parameters
    ----------
    labels : 0 or 1 (n), two of each at least
    first, second : scores (n), higher for 1

    Raises
    ------
    ValueError
        Fewer than two cases of a class.
    """
    labels = np.asarray(labels).astype(bool)
    m, n = int(labels.sum()), int((~labels).sum())
    if m < 2 or n < 2:
        raise ValueError(f"DeLong's test needs two cases of each class at least, not {m} and {n}")
    areas: list[float] = []
    v10, v01 = [], []
    for scores in (np.asarray(first, float), np.asarray(second, float)):
        x, y = scores[labels], scores[~labels]
        among_all = rankdata(np.concatenate([x, y]))
        v10.append((among_all[:m] - rankdata(x)) / n)
        v01.append(1 - (among_all[m:] - rankdata(y)) / m)
        areas.append(float(v10[-1].mean()))
    s = np.cov(v10) / m + np.cov(v01) / n
    variance = float(s[0, 0] + s[1, 1] - 2 * s[0, 1])
    area, other = areas
    difference = area - other
    if variance <= 1e-15:
        # Scores that order all pairs alike: nothing tells them apart.
        return Comparison(area, other, difference, 0.0, 1.0 if abs(difference) < 1e-12 else 0.0)
    error = variance**0.5
    return Comparison(area, other, difference, error, float(2 * norm.sf(abs(difference) / error)))
