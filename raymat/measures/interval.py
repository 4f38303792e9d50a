"""The estimate of the volume from matte and readers, and the interval that holds the true volume in 90 of 100 cases.

With V the sum of the membership matte and R the mean of the readers' volumes, the estimate is
``exp(shift) V (R / V)^weight``. The weight is below 0: trimap and prior pull the matte towards the readers, and the
estimate leans back. The interval is ``estimate / f`` to ``estimate f`` with ``f = exp(quantile * scale)``: how
uncertain a nodule is (``scale``) is predicted from what can be seen of it, and ``quantile`` is the conformal one, that
of the errors over their scales among the nodules that the model was fitted on, small and large ones apart. Each of
those errors is of a model that was fitted without the nodule's patient. See docs/explanation/measures.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from raymat.arrays import UNKNOWN
from raymat.measures.size import volume_mm3

COVERAGE = 0.9
DENSE_HU = -200.0
SMALL_MM3 = 113.0  # of an estimate; the ball of 6 mm
LEAST_READERS = 3  # from which the readers count
FOLDS = 10
RIDGE = 10.0  # on the coefficients of the scale: hundreds of nodules tell little of four of them
HUBER = 1.345  # of a robust standard deviation, from which an error counts less than its square
FEATURES = ("one", "log border share", "log volume", "log dense share", "log readers' spread")
LEAST_SHARE, LEAST_SPREAD = 0.01, 0.05


@dataclass(frozen=True)
class Evidence:
    """What estimate and interval are made from, all in mm3.

    Attributes
    ----------
    volume : sum of the membership matte
    border : the sum of m (1 - m): how much of it lies in voxels that are lesion in part
    dense : what lies in the unknown region, marked by no reader, and is denser than -200 HU: wall, vessels
    readers : volume of each reader's mask
    """

    volume: float
    border: float
    dense: float
    readers: tuple[float, ...] = ()

    @property
    def readers_over_matte(self) -> float:
        """The logarithm of the mean of the readers' volumes over that of the matte; 0 without readers."""
        return math.log(sum(self.readers) / len(self.readers) / self.volume) if self.readers else 0.0

    @property
    def features(self) -> tuple[float, ...]:
        """``FEATURES``, by which the scale of the error is predicted."""
        spread = float(np.std(np.log(np.maximum(self.readers, 1e-6)), ddof=1)) if len(self.readers) > 1 else 0.0
        return (
            1.0,
            math.log(self.border / self.volume + LEAST_SHARE),
            math.log(self.volume / 100.0),
            math.log(self.dense / self.volume + LEAST_SHARE),
            math.log(spread + LEAST_SPREAD),
        )


def evidence_of(
    membership: np.ndarray,
    image: np.ndarray,
    trimap: np.ndarray,
    readers: Sequence[np.ndarray],
    spacing: Sequence[float],
) -> Evidence:
    """The evidence of arrays (z, y, x): membership 0 to 1, image in HU, trimap, readers' masks; spacing in mm."""
    beyond = (trimap == UNKNOWN) & (image > DENSE_HU)
    for mask in readers:
        beyond &= mask == 0
    return Evidence(
        volume_mm3(membership, spacing),
        volume_mm3(membership * (1.0 - membership), spacing),
        volume_mm3(beyond, spacing),
        tuple(volume_mm3(mask != 0, spacing) for mask in readers),
    )


@dataclass(frozen=True)
class VolumeInterval:
    """An estimate of the volume, and the ends of its 90 % interval; mm3."""

    estimate: float
    low: float
    high: float

    @property
    def width(self) -> float:
        """The interval's width over the estimate."""
        return (self.high - self.low) / self.estimate


@dataclass(frozen=True)
class VolumeModel:
    """Estimate and interval of a volume.

    Attributes
    ----------
    shift, weight : of the estimate
    scale : one coefficient per feature; their sum is the logarithm of the scale of the error
    quantiles : of the absolute errors of log volume over their scales, of small nodules and of all others
    """

    shift: float
    weight: float
    scale: tuple[float, ...]
    quantiles: tuple[float, float]

    def estimate(self, evidence: Evidence) -> float:
        """The volume, mm3."""
        return evidence.volume * math.exp(self.shift + self.weight * evidence.readers_over_matte)

    def scale_of(self, evidence: Evidence) -> float:
        """The predicted scale of the error of log volume."""
        return math.exp(sum(a * b for a, b in zip(self.scale, evidence.features, strict=True)))

    def interval(self, evidence: Evidence) -> VolumeInterval:
        """Estimate and interval."""
        estimate = self.estimate(evidence)
        quantile = self.quantiles[0 if estimate < SMALL_MM3 else 1]
        factor = math.exp(quantile * self.scale_of(evidence))
        return VolumeInterval(estimate, estimate / factor, estimate * factor)


def fitted(evidence: Sequence[Evidence], truth: Sequence[float], patients: Sequence[str]) -> VolumeModel:
    """The model fitted to volumes that are known, mm3.

    Estimate and scale are fitted to all nodules. The errors behind the quantile are of models that were fitted without
    the fold of the nodule's patient.

    Parameters
    ----------
    evidence, truth, patients : of each nodule; the patients are dealt to ten folds
    """
    log_truth = np.log(truth)
    order = {patient: place % FOLDS for place, patient in enumerate(sorted(set(patients)))}
    fold = np.array([order[patient] for patient in patients])
    ratio = np.empty(len(evidence))
    for left_out in range(min(FOLDS, len(order))):
        inside, outside = np.flatnonzero(fold != left_out), np.flatnonzero(fold == left_out)
        model = _fit(evidence, log_truth, inside, fold)
        for place in outside.tolist():
            error = abs(math.log(model.estimate(evidence[place])) - log_truth[place])
            ratio[place] = error / model.scale_of(evidence[place])
    model = _fit(evidence, log_truth, np.arange(len(evidence)), fold)
    small = np.array([model.estimate(one) < SMALL_MM3 for one in evidence])
    return replace(model, quantiles=(_conformal(ratio[small]), _conformal(ratio[~small])))


def _conformal(ratio: np.ndarray) -> float:
    """Of n values the ceil((n + 1) 0.9)-th, so that one more is not larger in 90 of 100 cases; NaN of none."""
    rank = min(math.ceil((len(ratio) + 1) * COVERAGE), len(ratio))
    return float(np.sort(ratio)[rank - 1]) if rank else math.nan


def _fit(evidence: Sequence[Evidence], log_truth: np.ndarray, places: np.ndarray, fold: np.ndarray) -> VolumeModel:
    """Shift, weight and scale by the nodules at these places; the errors behind the scale are out of fold, too."""
    x = np.array([evidence[place].readers_over_matte for place in places])
    y = np.array([log_truth[place] - math.log(evidence[place].volume) for place in places])
    error = np.empty(len(places))
    for left_out in np.unique(fold[places]):
        out = fold[places] == left_out
        shift, weight = _robust_line(x[~out], y[~out])
        error[out] = y[out] - shift - weight * x[out]
    shift, weight = _robust_line(x, y)
    features = np.array([evidence[place].features for place in places])
    mean, deviation = features[:, 1:].mean(0), np.maximum(features[:, 1:].std(0), 1e-9)
    standard = (features[:, 1:] - mean) / deviation
    logs = np.log(np.abs(error) + LEAST_SHARE)
    ridge = RIDGE * np.eye(standard.shape[1])
    slopes = np.linalg.solve(standard.T @ standard + ridge, standard.T @ (logs - logs.mean())) / deviation
    constant = float(logs.mean() - slopes @ mean)
    return VolumeModel(shift, weight, (constant, *slopes.tolist()), (1.0, 1.0))


def _robust_line(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Constant and slope of y on x by Huber's weights; a slope of 0 where x is the same everywhere."""
    weights = np.ones(len(x))
    shift, slope = float(np.median(y)), 0.0
    for _ in range(30):
        mean_x, mean_y = np.average(x, weights=weights), np.average(y, weights=weights)
        spread = float((weights * (x - mean_x) ** 2).sum())
        slope = float((weights * (x - mean_x) * (y - mean_y)).sum() / spread) if spread > 1e-12 else 0.0
        shift = float(mean_y - slope * mean_x)
        error = np.abs(y - shift - slope * x)
        weights = 1.0 / np.maximum(1.0, error / max(HUBER * 1.4826 * float(np.median(error)), 1e-9))
    return shift, slope


def without_readers(evidence: Evidence) -> Evidence:
    """The evidence as it is where nobody drew a mask."""
    return Evidence(evidence.volume, evidence.border, evidence.dense)


# Fitted by `python benchmarks/measure.py fit` to the phantoms of one half of the patients: docs/results/measures.md.
READERS_MODEL = VolumeModel(-0.0087, -0.2449, (-1.4067, 1.0052, 0.0311, 0.0774, -0.0524), (3.5521, 2.4513))
MATTE_MODEL = VolumeModel(-0.0031, 0.0, (-1.4978, 0.9757, 0.0755, 0.0156, 0.0), (2.8412, 2.2075))


def volume_interval(evidence: Evidence) -> VolumeInterval:
    """Estimate and 90 % interval of a nodule's volume; from three readers on they count, too."""
    if len(evidence.readers) >= LEAST_READERS:
        return READERS_MODEL.interval(evidence)
    return MATTE_MODEL.interval(without_readers(evidence))
