"""Intensity statistics of IBSI (Zwanenburg et al., The Image Biomarker Standardisation Initiative, Radiology 2020).

IBSI counts a voxel whole or not at all. Here every voxel has a weight; with weights of 0 and 1 the values are those of
IBSI. A percentile is the smallest value that at least so much of the weight does not exceed. Left out are IBSI's
coefficient of variation and quartile coefficient of dispersion: they divide by a mean or a sum of HU, whose zero is
water.
"""

from __future__ import annotations

import numpy as np

from raymat.arrays import Float64Array

INSIDE = 0.5  # weight from which a voxel counts for minimum and maximum


def weighted_percentiles(values: np.ndarray, weights: np.ndarray, percents: tuple[float, ...]) -> list[float]:
    """Percentiles of values that have weights, both of one shape; weights not below 0 and not all 0."""
    order = np.argsort(values, axis=None)
    summed = np.cumsum(np.asarray(weights, dtype=np.float64).ravel()[order])
    # A share of the sum may be less than the partial sum that equals it by a rounding error.
    wanted = np.array(percents) / 100.0 * summed[-1] * (1 - 1e-12)
    return [float(value) for value in values.ravel()[order[np.searchsorted(summed, wanted)]]]


def intensity_statistics(values: np.ndarray, weights: np.ndarray) -> dict[str, float]:
    """The statistics by IBSI's names.

    Parameters
    ----------
    values : of any shape
    weights : of the same shape, 0 to 1; not all 0

    Returns
    -------
    dict
        minimum, maximum and range are of voxels with a weight of at least 0.5, NaN where there is none.
    """
    counted = weights > 0
    x: Float64Array = np.asarray(values[counted], dtype=np.float64)
    w: Float64Array = np.asarray(weights[counted], dtype=np.float64)
    w /= w.sum()
    mean = float(w @ x)
    off = x - mean
    square = off * off
    # Of values that are all equal IBSI sets skewness and kurtosis to 0; their mean is off by a rounding error.
    variance = float(w @ square) if np.ptp(x) > 0 else 0.0
    skewness = float(w @ (square * off)) / variance**1.5 if variance > 0 else 0.0
    kurtosis = float(w @ (square * square)) / variance**2 - 3.0 if variance > 0 else 0.0
    p10, p25, median, p75, p90 = weighted_percentiles(x, w, (10.0, 25.0, 50.0, 75.0, 90.0))
    inside = np.asarray(values)[weights >= INSIDE]
    low, high = (float(inside.min()), float(inside.max())) if inside.size else (np.nan, np.nan)
    middle = (x >= p10) & (x <= p90)
    w_middle = w[middle] / w[middle].sum()
    energy = float(np.asarray(weights, dtype=np.float64).sum()) * float(w @ (x * x))
    return {
        "mean": mean,
        "variance": variance,
        "skewness": skewness,
        "excess_kurtosis": kurtosis,
        "median": median,
        "minimum": low,
        "p10": p10,
        "p25": p25,
        "p75": p75,
        "p90": p90,
        "maximum": high,
        "interquartile_range": p75 - p25,
        "range": high - low,
        "mean_absolute_deviation": float(w @ np.abs(off)),
        "robust_mean_absolute_deviation": float(w_middle @ np.abs(x[middle] - w_middle @ x[middle])),
        "median_absolute_deviation": float(w @ np.abs(x - median)),
        "energy": energy,
        "root_mean_square": float(np.sqrt(w @ (x * x))),
    }
