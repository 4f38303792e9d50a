"""Benign or malignant, by what the readers rated: 1 (highly unlikely to be malignant) to 5 (highly suspicious)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from raymat.nodule import InputError, Nodule

RATING = "malignancy"
THRESHOLD = 3.0


def malignancy_ratings(nodule: Nodule) -> list[float]:
    """Each reader's rating of malignancy; empty where the nodule has none.

    LIDC-IDRI's are in ``metadata["ratings"]``, those of a case table in its column ``malignancy``, one number or one a
    reader separated by ``;``.

    Raises
    ------
    InputError
        A rating is no number.
    """
    ratings = nodule.metadata.get("ratings")
    source = ratings if isinstance(ratings, Mapping) else nodule.metadata
    given: Any = source.get(RATING)
    if given is None or given == "":
        return []
    parts = given.split(";") if isinstance(given, str) else given if isinstance(given, list | tuple) else [given]
    try:
        values = [float(part) for part in parts if str(part).strip()]
    except (TypeError, ValueError):
        raise InputError(f"{nodule.nodule_id}: the rating of malignancy {given!r} is no number") from None
    if not np.isfinite(values).all():
        raise InputError(f"{nodule.nodule_id}: the rating of malignancy {given!r} is no finite number")
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
