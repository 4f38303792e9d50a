"""Areas under the ROC curve of nodules, whole and among size-matched nodules, with intervals over patients."""

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
    parts: npt.ArrayLike | None = None,
    seed: int = 0,
) -> Estimate:
    """The share of pairs of a malignant and a benign nodule that the scores order rightly, ties one half.

    Parameters
    ----------
    labels, scores : of the nodules (n)
    patients : of each nodule; patients are resampled, not nodules
    diameters, ratio, parts : which pairs count, as for ``counted_pairs``

    Returns
    -------
    Estimate
        NaN where there is no pair.
    """
    names, patient = np.unique(np.asarray(patients), return_inverse=True)
    times = with_all_once(draws(names.size, seed=seed))[:, patient]
    values = areas(labels, scores, times, diameters, ratio, parts)
    return Estimate(float(values[0]), *interval(values[1:]))


def with_all_once(times: np.ndarray) -> np.ndarray:
    """Resamples (resamples, patients), before them the sample itself: every patient once."""
    return np.concatenate([np.ones((1, times.shape[1]), times.dtype), times])


def areas(
    labels: npt.ArrayLike,
    scores: npt.ArrayLike,
    times: np.ndarray,
    diameters: npt.ArrayLike | None = None,
    ratio: float = SIZE_RATIO,
    parts: npt.ArrayLike | None = None,
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
    malignant = np.asarray(labels).astype(bool)
    right, counted = rightly_ordered(labels, scores), counted_pairs(labels, diameters, ratio, parts)
    of_ones, of_zeros = times[:, malignant].astype(float), times[:, ~malignant].astype(float)
    with np.errstate(invalid="ignore", divide="ignore"):
        return ((of_ones @ (right * counted)) * of_zeros).sum(axis=1) / ((of_ones @ counted) * of_zeros).sum(axis=1)


def rightly_ordered(labels: npt.ArrayLike, scores: npt.ArrayLike) -> np.ndarray:
    """1 for each pair in which the malignant nodule has the higher score, one half for equal ones, else 0.

    Returns
    -------
    float (malignant, benign)
    """
    malignant, values = np.asarray(labels).astype(bool), np.asarray(scores, float)
    difference = values[malignant][:, None] - values[~malignant][None, :]
    return (difference > 0) + 0.5 * (difference == 0)


def counted_pairs(
    labels: npt.ArrayLike,
    diameters: npt.ArrayLike | None = None,
    ratio: float = SIZE_RATIO,
    parts: npt.ArrayLike | None = None,
) -> np.ndarray:
    """1 for each pair of a malignant and a benign nodule that counts, else 0.

    Parameters
    ----------
    labels : of the nodules (n)
    diameters : mm (n); where given only pairs count whose diameters differ by no more than ``ratio``, so that size
        itself can order none of them well
    ratio : of the larger to the smaller
    parts : the test part of each (n); where given only pairs within one part count. Scores are ranks within a part,
        and parts have different shares of malignant nodules: across parts equal ranks are not equal findings, and such
        pairs would make every classifier look worse.

    Returns
    -------
    float (malignant, benign)
    """
    malignant = np.asarray(labels).astype(bool)
    counted = np.ones((np.count_nonzero(malignant), np.count_nonzero(~malignant)), bool)
    if diameters is not None:
        logs = np.log(np.asarray(diameters, float))
        counted &= np.abs(logs[malignant][:, None] - logs[~malignant][None, :]) <= np.log(ratio) + 1e-12
    if parts is not None:
        of = np.asarray(parts)
        counted &= of[malignant][:, None] == of[~malignant][None, :]
    return counted.astype(float)
