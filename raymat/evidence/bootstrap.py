"""Confidence intervals by resampling patients: nodules and readers of one patient are no independent witnesses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

RESAMPLES = 2_000
LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A value and its confidence interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


def draws(patients: int, resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """How often each patient is drawn in each resample, with replacement; int (resamples, patients)."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(patients, np.full(patients, 1 / patients), size=resamples)


def interval(values: np.ndarray, level: float = LEVEL) -> tuple[float, float]:
    """The percentile interval of resampled values, those that are not a number left out."""
    values = values[np.isfinite(values)]
    if not values.size:
        return float("nan"), float("nan")
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def mean_by_patient(values: npt.ArrayLike, patients: npt.ArrayLike, seed: int = 0) -> Estimate:
    """The mean over all values, NaN left out, and its interval over patients."""
    numbers = np.asarray(values, float)
    names, patient = np.unique(np.asarray(patients), return_inverse=True)
    sound = np.isfinite(numbers)
    sums = np.bincount(patient[sound], numbers[sound], names.size)
    counts = np.bincount(patient[sound], minlength=names.size)
    times = draws(names.size, seed=seed)
    with np.errstate(invalid="ignore", divide="ignore"):
        means = (times @ sums) / (times @ counts)
    value = float(numbers[sound].mean()) if sound.any() else float("nan")
    return Estimate(value, *interval(means))


def mean_of_splits(values: npt.ArrayLike, splits: npt.ArrayLike, patients: npt.ArrayLike, seed: int = 0) -> Estimate:
    """The mean over repeated splits of each one's mean, and its interval over patients.

    A patient who is drawn is drawn in every split that tests the patient: splits of the same patients are no
    independent witnesses either.
    """
    numbers, split = np.asarray(values, float), np.asarray(splits)
    names, patient = np.unique(np.asarray(patients), return_inverse=True)
    times = draws(names.size, seed=seed)
    means, resampled = [], []
    for one in np.unique(split):
        part = split == one
        sums, counts = (
            np.bincount(patient[part], numbers[part], names.size),
            np.bincount(patient[part], None, names.size),
        )
        means.append(numbers[part].mean())
        with np.errstate(invalid="ignore", divide="ignore"):
            resampled.append((times @ sums) / (times @ counts))
    return Estimate(float(np.mean(means)), *interval(np.mean(resampled, axis=0)))


def by_patient(
    statistic: Callable[[np.ndarray], float], patients: Sequence[str], resamples: int = RESAMPLES, seed: int = 0
) -> Estimate:
    """Any statistic of rows and its interval over patients.

    Parameters
    ----------
    statistic : of an array of row numbers, in which a row may stand several times; NaN where it is not defined
    patients : the patient of each row
    """
    names, patient = np.unique(np.asarray(patients), return_inverse=True)
    rows = [np.flatnonzero(patient == number) for number in range(names.size)]
    values = [
        statistic(np.concatenate([np.tile(rows[n], times) for n, times in enumerate(drawn) if times]))
        for drawn in draws(names.size, resamples, seed)
    ]
    return Estimate(float(statistic(np.arange(patient.size))), *interval(np.array(values)))
