"""Boxes of MONAI's detection: the JSON that its bundle ``lung_nodule_ct_detection`` and its tutorial write.

The bundle writes a list, ``[{"box": [[...], ...], "label": [...], "label_scores": [...], "image": "ct.nii.gz"}]``, the
tutorial ``{"validation": [{..., "score": [...]}]}``, and so do the lists that a detector is trained on, without scores.
Boxes are in mm of the world, as centre and sides ("cccwhd") or two corners ("xyzxyz"), in LPS where the bundle runs as
it comes (``affine_lps_to_ras`` true), else in RAS.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from raymat.arrays import triple
from raymat.errors import InputError
from raymat.network.targets import CCCWHD, Place, Places, Reading, from_coordinates, likely_of

SCORES = ("label_scores", "score", "scores")
SIDES = 6


def places_of_boxes(path: str, reading: Reading) -> Places:
    """The places of a JSON file of boxes.

    Raises
    ------
    InputError
        It is damaged or no such file, or a box is none.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read as JSON ({error})") from error
    entries = list(_entries(content))
    if not entries:
        raise InputError(f'{path}: has no image with boxes ({{"image": ..., "box": [[...], ...]}})')
    places = [place for number, entry in enumerate(entries, start=1) for place in _places(path, number, entry, reading)]
    if not places:
        raise InputError(f"{path}: holds no boxes: the detector found nothing")
    return likely_of(path, places, reading)


def _entries(content: Any) -> Iterator[dict]:
    """What is said of each image: of a list, of all lists of a dictionary, or of one image alone."""
    if isinstance(content, dict):
        if "box" in content:
            yield content
            return
        content = [entry for part in content.values() if isinstance(part, list) for entry in part]
    yield from (entry for entry in content if isinstance(entry, dict) and "box" in entry)


def _places(path: str, number: int, entry: dict, reading: Reading) -> Iterator[Place]:
    image = entry.get("image", "")
    where = f"{path}: image {number}" + (f" ({image})" if image else "")
    boxes, scores = entry["box"], next((entry[name] for name in SCORES if name in entry), None)
    if not isinstance(image, str) or not isinstance(boxes, list):
        raise InputError(f'{where}: "image" must be a path, "box" a list of boxes')
    if scores is not None and (not isinstance(scores, list) or len(scores) != len(boxes)):
        raise InputError(f"{where}: has {len(boxes)} boxes and other than {len(boxes)} scores")
    for count, box in enumerate(boxes, start=1):
        named = f"{where}, box {count}"
        score = None if scores is None else _number(scores[count - 1])
        if score is not None and not 0 <= score <= 1:
            raise InputError(f"{named}: its score {scores[count - 1] if scores else ''} is no number from 0 to 1")
        centre, sides = _box(named, box, reading.boxes)
        yield Place(image, str(count), from_coordinates(centre, reading.coordinates), triple(sides[::-1]), score, named)


def _box(where: str, box: Any, mode: str) -> tuple[list[float], list[float]]:
    """Centre and sides of a box, both (x, y, z) mm."""
    values = [_number(value) for value in box] if isinstance(box, list) else []
    if len(values) != SIDES or not all(map(math.isfinite, values)):
        raise InputError(f"{where}: {box} is no box of six numbers, mm")
    first, last = values[:3], values[3:]
    if mode == CCCWHD:
        if min(last) <= 0:
            raise InputError(
                f"{where}: {box} has a side that is not above 0 mm; if these are two corners, say --boxes xyzxyz"
            )
        return first, last
    if any(high <= low for low, high in zip(first, last, strict=True)):
        raise InputError(
            f"{where}: {box} has a second corner that is not above the first; if these are a centre and sides, say "
            "--boxes cccwhd"
        )
    pairs = list(zip(first, last, strict=True))
    return [(low + high) / 2 for low, high in pairs], [high - low for low, high in pairs]


def _number(value: object) -> float:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan
