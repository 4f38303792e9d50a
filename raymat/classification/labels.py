"""Benign or malignant, by what the readers rated: 1 (highly unlikely to be malignant) to 5 (highly suspicious)."""

from __future__ import annotations

import numpy as np

from raymat.nodule import InputError, Nodule

RATING = "malignancy"
THRESHOLD = 3.0


def malignancy_ratings(nodule: Nodule) -> list[float]:
    """Each reader's rating of malignancy (``Nodule.ratings``); empty where the nodule has none.

    Raises
    ------
    InputError
        A rating is no number.
    """
    values = []
    for given in nodule.ratings.get(RATING, []):
        try:
            values.append(float(given))  # type: ignore[arg-type]
        except (TypeError, ValueError):
            raise InputError(f"{nodule.nodule_id}: the rating of malignancy {given!r} is no number") from None
    if not np.isfinite(values).all():
        raise InputError(f"{nodule.nodule_id}: a rating of malignancy is no finite number: {values}")
    return values


def label_of(rating: float, threshold: float = THRESHOLD, margin: float = 0.0) -> int | None:
    """1 (malignant) where the readers' mean rating is above the threshold, 0 (benign) below it, None where it is not.

    Parameters
    ----------
    rating : the mean over the readers; NaN where there is none
    threshold : 3, the middle of the scale, means "indeterminate" and is left out
    margin : means no further than this from the threshold are left out as well
    """
    if not np.isfinite(rating) or abs(rating - threshold) <= margin + 1e-9:
        return None
    return int(rating > threshold)
