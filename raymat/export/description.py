"""What an exported file says of the matte in it."""

from __future__ import annotations

import math

from raymat.methods import ANY, alpha_in_words
from raymat.nodule import InputError, Matte, Nodule


def chosen_matte(nodule: Nodule) -> Matte:
    """The chosen matte of a nodule.

    Raises
    ------
    InputError
        There is none.
    """
    matte = nodule.best(ANY) if nodule.method else None
    if matte is None or matte.method != nodule.method:
        raise InputError(f"{nodule.nodule_id}: it has no chosen matte to export")
    return matte


def description(matte: Matte) -> str:
    """Kind, method and score: "calibrated alpha, knn+, score 0.83"."""
    score = "" if math.isnan(matte.score) else f", score {matte.score:.2f}"
    return f"{alpha_in_words(matte.kind)}, {matte.method}{score}"
