"""How well a matte of three readers predicts the mask of the fourth, inside the trimap's unknown region.

There the three disagree or are near their border; elsewhere every method says the same. A matte is compared with what
the three masks alone predict: their mean, and their mean distance, a ramp over the growth of the trimap that does not
see the image. A matte and the masks are combined by their plain average; nothing is fitted. A mask says what is lesion,
whatever its density: the chosen matte is here the best one of the kind membership, and the best calibrated one is
measured beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.ndimage import distance_transform_edt
from scipy.stats import rankdata

from raymat import metrics
from raymat.arrays import UNKNOWN, box_around
from raymat.matting import METHODS
from raymat.methods import CALIBRATED, MEMBERSHIP
from raymat.nodule import Matte, Nodule, NoduleExcluded, required

VERSION = "2"
BINS = 10
MEAN, DISTANCE = "mean of three", "distance of three"
CHOSEN, CHOSEN_CALIBRATED = "chosen", "chosen, calibrated"
KIND_OF_CHOSEN = {CHOSEN: MEMBERSHIP, CHOSEN_CALIBRATED: CALIBRATED}
AND_MEAN, AND_DISTANCE = " & mean", " & distance"
BASELINES = (MEAN, DISTANCE)
RAMP_MM = 2.0  # the trimap's growth into the background
MEASURED = "measured"


def brier(probability: np.ndarray, truth: np.ndarray) -> float:
    """Mean squared difference between probabilities and the truth (0 or 1); 0 is best (Brier, 1950)."""
    return float(np.mean((probability.astype(float) - truth) ** 2))


def auroc(probability: np.ndarray, truth: np.ndarray) -> float:
    """Area under the ROC curve by the rank sum, ties counted one half; NaN where all or none is true."""
    inside = np.count_nonzero(truth)
    outside = truth.size - inside
    if not inside or not outside:
        return float("nan")
    return float((rankdata(probability)[truth].sum() - inside * (inside + 1) / 2) / (inside * outside))


def calibration_bins(probability: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """For each tenth of probability its count, the sum of the probabilities and how many are true; (3, 10)."""
    tenth = np.minimum((probability * BINS).astype(int), BINS - 1)
    return np.array([np.bincount(tenth, weights, BINS) for weights in (None, probability, truth.astype(float))], float)


def distance_ramp(readers: Sequence[np.ndarray], spacing: Sequence[float]) -> np.ndarray:
    """The readers' mean signed distance from their borders as a ramp, 0 at 2 mm outside to 1 at 2 mm inside.

    Parameters
    ----------
    readers : masks (z, y, x), none of them empty
    spacing : (z, y, x) mm
    """
    # Further than the ramp from all that any reader drew it is 0: nothing there needs a distance.
    box = box_around(np.any(readers, axis=0), [int(RAMP_MM / step) + 1 for step in spacing])
    signed = [
        distance_transform_edt(mask[box], sampling=spacing) - distance_transform_edt(mask[box] == 0, sampling=spacing)
        for mask in readers
    ]
    ramp = np.zeros(readers[0].shape)
    ramp[box] = np.clip(0.5 + np.mean(signed, axis=0) / (2 * RAMP_MM), 0, 1)
    return ramp


def predictions(nodule: Nodule) -> dict[str, np.ndarray]:
    """What every method predicts: baselines, mattes, the chosen ones, and both combined; name to (z, y, x), 0 to 1."""
    spacing = required(nodule.spacing, nodule, "spacing")
    predicted: dict[str, np.ndarray] = {
        MEAN: np.mean(nodule.readers, axis=0),
        DISTANCE: distance_ramp(nodule.readers, spacing),
    }
    chosen = {name: best.alpha for name, best in chosen_of(nodule).items()}
    mattes: dict[str, np.ndarray] = {**nodule.mattes, **chosen}
    predicted |= mattes
    predicted |= {f"{name}{AND_MEAN}": (alpha + predicted[MEAN]) / 2 for name, alpha in mattes.items()}
    predicted |= {f"{name}{AND_DISTANCE}": (alpha + predicted[DISTANCE]) / 2 for name, alpha in chosen.items()}
    return predicted


def chosen_of(nodule: Nodule) -> dict[str, Matte]:
    """The best matte of each kind that the nodule has mattes of, by ``CHOSEN`` and ``CHOSEN_CALIBRATED``."""
    best = {name: nodule.best(kind) for name, kind in KIND_OF_CHOSEN.items()}
    return {name: matte for name, matte in best.items() if matte}


def measure(nodule: Nodule) -> Nodule:
    """The judged nodule of three readers without its arrays; ``metadata["measured"]`` has the scores of every method.

    ``true_membership`` is the mask of the reader who was left out. Each entry has ``brier``, ``auroc`` (None where the
    reader's mask is all or none of the unknown region), ``dice_unknown`` and ``dice`` (at one half, within the unknown
    region and over the whole crop) and ``bins`` (``calibration_bins``).

    Raises
    ------
    NoduleExcluded
        The left-out reader's mask vanishes on the working grid.
    """
    truth = required(nodule.true_membership, nodule, "true membership") >= 0.5
    if not truth.any():
        raise NoduleExcluded("the mask of the reader who was left out vanishes on the working grid")
    unknown = required(nodule.trimap, nodule, "trimap") == UNKNOWN
    scores = {}
    for name, predicted in predictions(nodule).items():
        here, there = predicted[unknown], truth[unknown]
        area = auroc(here, there)
        scores[name] = {
            "brier": brier(here, there),
            "auroc": None if np.isnan(area) else area,
            "dice_unknown": metrics.dice(here >= 0.5, there),
            "dice": metrics.dice(predicted >= 0.5, truth),
            "bins": calibration_bins(here, there).round(6).tolist(),
        }
    facts: dict[str, object] = {"voxels": int(unknown.sum()), "inside": int(truth[unknown].sum())}
    facts |= {"best": {name: matte.method for name, matte in chosen_of(nodule).items()}}
    return nodule.without_arrays(metadata={**nodule.metadata, MEASURED: scores, "unknown_region": facts})


def rows_of(nodule: Nodule) -> list[dict]:
    """One row per method, from the metadata that ``measure`` made."""
    metadata: dict[str, Any] = nodule.metadata
    facts = metadata["unknown_region"]
    best = facts["best"]
    start = {
        "nodule_id": metadata["nodule"],
        "patient_id": nodule.patient_id,
        "left_out": metadata["left_out"],
        "chosen": best.get(CHOSEN),
        "chosen_calibrated": best.get(CHOSEN_CALIBRATED),
        "voxels": facts["voxels"],
        "inside": facts["inside"],
    }
    rows = []
    for method, scores in metadata[MEASURED].items():
        count, probability, inside = scores["bins"]
        values = {name: scores[name] for name in ("brier", "auroc", "dice_unknown", "dice")}
        rows.append(
            start | {"method": method} | values | {"bin_count": count, "bin_given": probability, "bin_inside": inside}
        )
    return rows


def calibration_error(bins: np.ndarray) -> float:
    """Expected calibration error of summed ``calibration_bins``: mean distance of predicted and observed, by voxels."""
    count, probability, inside = bins
    return float(np.abs(probability - inside).sum() / count.sum())


def ordered(methods: Mapping[str, object] | Sequence[str]) -> list[str]:
    """Baselines, all methods, the chosen ones, then both combined."""
    mattes = [*METHODS, *KIND_OF_CHOSEN]
    order = [*BASELINES, *mattes, *(f"{name}{AND_MEAN}" for name in mattes)]
    order += [f"{name}{AND_DISTANCE}" for name in KIND_OF_CHOSEN]
    return [name for name in order if name in methods]
