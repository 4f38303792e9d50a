"""DeLong's test: do two scores of the same cases have the same area under the ROC curve?

DeLong ER, DeLong DM, Clarke-Pearson DL, Biometrics 44:837-845, 1988. Cases may have been scored in several test parts,
of which only pairs within a part count; the components of one case are then summed over its parts, as those of a
cluster are in Obuchowski NA, Biometrics 53:567-578, 1997.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import norm

from raymat.evidence.roc import counted_pairs, rightly_ordered


@dataclass(frozen=True)
class Comparison:
    """Areas of two scores, their difference (first less second), its standard error and two-sided p."""

    first: float
    second: float
    difference: float
    error: float
    p: float


def delong(
    labels: npt.ArrayLike,
    first: npt.ArrayLike,
    second: npt.ArrayLike,
    parts: npt.ArrayLike | None = None,
    cases: npt.ArrayLike | None = None,
) -> Comparison:
    """Compare two scores of the same cases.

    Parameters
    ----------
    labels : 0 or 1 (n)
    first, second : scores (n), higher for 1
    parts : the test part of each (n); pairs of two parts do not count
    cases : which case each is (n), where one stands in several parts

    Raises
    ------
    ValueError
        Fewer than two cases of a class, or no pair within a part.
    """
    positive = np.asarray(labels).astype(bool)
    which = np.arange(positive.size) if cases is None else np.asarray(cases)
    counted = counted_pairs(labels, parts=parts)
    m, n, total = np.unique(which[positive]).size, np.unique(which[~positive]).size, counted.sum()
    if m < 2 or n < 2 or not total:
        raise ValueError(f"DeLong's test needs two cases of each class at least and a pair of them, not {m} and {n}")
    areas: list[float] = []
    v10, v01 = [], []
    for scores in (first, second):
        right = rightly_ordered(labels, scores)
        areas.append(float((right * counted).sum() / total))
        apart = counted * (right - areas[-1])
        v10.append(_by_case(apart.sum(axis=1), which[positive]))
        v01.append(_by_case(apart.sum(axis=0), which[~positive]))
    # Of one part this is cov(V10) / m + cov(V01) / n, the components having a mean of 0.
    s = (np.inner(v10, v10) * m / (m - 1) + np.inner(v01, v01) * n / (n - 1)) / total**2
    variance = float(s[0, 0] + s[1, 1] - 2 * s[0, 1])
    area, other = areas
    difference = area - other
    if variance <= 1e-15:
        # Scores that order all pairs alike: there is no difference to test.
        return Comparison(area, other, difference, 0.0, 1.0 if abs(difference) < 1e-12 else 0.0)
    error = variance**0.5
    return Comparison(area, other, difference, error, float(2 * norm.sf(abs(difference) / error)))


def _by_case(values: np.ndarray, cases: np.ndarray) -> np.ndarray:
    return np.bincount(np.unique(cases, return_inverse=True)[1], values)
