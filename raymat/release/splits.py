"""Train, validation and test by patient, four times over."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable

SPLITS = 4
PARTS = ("train", "validation", "test")
SHARES = (0.7, 0.1, 0.2)


def split_patients(patients: Iterable[str], number: int) -> dict[str, str]:
    """Patient to "train", "validation" or "test", 7:1:2, in the ``number``-th of the re-splits.

    The order of the patients is that of a digest of their id and the split's number: it depends on no generator of
    random numbers and on no order of files. Of n patients round(0.7 n) train, and round(0.8 n) less those validate.
    """
    order = sorted(set(patients), key=lambda patient: hashlib.sha256(f"{number}:{patient}".encode()).digest())
    first = math.floor(SHARES[0] * len(order) + 0.5)
    second = math.floor((SHARES[0] + SHARES[1]) * len(order) + 0.5)
    return {patient: PARTS[(place >= first) + (place >= second)] for place, patient in enumerate(order)}
