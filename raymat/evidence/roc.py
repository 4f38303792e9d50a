"""Areas under the ROC curve of nodules, whole and among nodules of like size, with intervals over patients."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from raymat.evidence.bootstrap import Estimate, draws, interval

SIZE_RATIO = 1.2


def auroc_by_patient(
    labels: npt.ArrayLike,
    scores: npt.ArrayLike,
    patients: npt.ArrayLike,
    diameters: npt.ArrayLike | None = None,
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
    names, place = np.unique(np.asarray(patients), return_inverse=True)
    found = areas(labels, scores, with_all_once(draws(names.size, seed=seed))[:, place], diameters, ratio)
    return Estimate(float(found[0]), *interval(found[1:]))


def with_all_once(times: np.ndarray) -> np.ndarray:
    """Resamples (resamples, patients), before them the sample itself: every patient once."""
    return np.concatenate([np.ones((1, times.shape[1]), times.dtype), times])


def areas(
    labels: npt.ArrayLike,
    scores: npt.ArrayLike,
    times: np.ndarray,
    diameters: npt.ArrayLike | None = None,
    ratio: float = SIZE_RATIO,
) -> np.ndarray:
    """``auroc_by_patient`` in each of several resamples, so that scores can be compared in the same ones.

    Parameters
    ----------
    times : how often each nodule counts in each resample (resamples, n)

    Returns
    -------
    float (resamples)
        NaN in a resample without a pair.
    """
    malignant, values = np.asarray(labels).astype(bool), np.asarray(scores, float)
    ones, zeros = np.flatnonzero(malignant), np.flatnonzero(~malignant)
    difference = values[ones][:, None] - values[zeros][None, :]
    right = (difference > 0) + 0.5 * (difference == 0)
    counted = np.ones(right.shape)
    if diameters is not None:
        logs = np.log(np.asarray(diameters, float))
        counted = (np.abs(logs[ones][:, None] - logs[zeros][None, :]) <= np.log(ratio) + 1e-12).astype(float)
    of_ones, of_zeros = times[:, ones].astype(float), times[:, zeros].astype(float)
    with np.errstate(invalid="ignore", divide="ignore"):
        return ((of_ones @ (right * counted)) * of_zeros).sum(axis=1) / ((of_ones @ counted) * of_zeros).sum(axis=1)


def matched_pairs(labels: npt.ArrayLike, diameters: npt.ArrayLike, ratio: float = SIZE_RATIO) -> int:
    """How many pairs of a malignant and a benign nodule have like diameters."""
    malignant, logs = np.asarray(labels).astype(bool), np.log(np.asarray(diameters, float))
    return int((np.abs(logs[malignant][:, None] - logs[~malignant][None, :]) <= np.log(ratio) + 1e-12).sum())
