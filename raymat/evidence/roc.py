"""Areas under the ROC curve of nodules, whole and among nodules of like size, with intervals over patients."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from raymat.evidence.bootstrap import Estimate, draws, interval

SIZE_RATIO = 1.2


def auroc_by_patient(
    labels: np.ndarray,
    scores: np.ndarray,
    patients: Sequence[str],
    diameters: np.ndarray | None = None,
    ratio: float = SIZE_RATIO,
    seed: int = 0,
) -> Estimate:
    """The share of pairs of a malignant and a benign nodule that the scores order rightly, ties one half.

    Parameters
    ----------
    labels, scores : of the nodules (n)
    patients : of each nodule; patients are resampled, not nodules
    diameters : mm (n); where given only pairs count whose diameters differ by no more than ``ratio``, so that size
        itself can order none of them well
    ratio : of the larger to the smaller

    Returns
    -------
    Estimate
        NaN where there is no pair.
    """
    labels, scores = np.asarray(labels).astype(bool), np.asarray(scores, float)
    ones, zeros = np.flatnonzero(labels), np.flatnonzero(~labels)
    difference = scores[ones][:, None] - scores[zeros][None, :]
    right = (difference > 0) + 0.5 * (difference == 0)
    counted = np.ones(right.shape)
    if diameters is not None:
        logs = np.log(np.asarray(diameters, float))
        counted = (np.abs(logs[ones][:, None] - logs[zeros][None, :]) <= np.log(ratio) + 1e-12).astype(float)
    right = right * counted
    names, place = np.unique(np.asarray(patients), return_inverse=True)
    times = draws(names.size, seed=seed).astype(float)
    of_ones, of_zeros = times[:, place[ones]], times[:, place[zeros]]
    with np.errstate(invalid="ignore", divide="ignore"):
        resampled = ((of_ones @ right) * of_zeros).sum(axis=1) / ((of_ones @ counted) * of_zeros).sum(axis=1)
        value = float(right.sum() / counted.sum()) if counted.sum() else float("nan")
    return Estimate(value, *interval(resampled))


def matched_pairs(labels: np.ndarray, diameters: np.ndarray, ratio: float = SIZE_RATIO) -> int:
    """How many pairs of a malignant and a benign nodule have like diameters."""
    labels, logs = np.asarray(labels).astype(bool), np.log(np.asarray(diameters, float))
    return int((np.abs(logs[labels][:, None] - logs[~labels][None, :]) <= np.log(ratio) + 1e-12).sum())
