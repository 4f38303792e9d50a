"""A nodule as the page shows it: its arrays turned to the patient's axes, small enough to be there at once.

The message is 4 bytes (little endian) with the length of a JSON header, the header padded with spaces to a multiple of
8, then the arrays it names, each beginning at a multiple of 8 bytes. The image is uint16, ``value * slope + intercept``
in the image's unit; masks and mattes (alpha in steps of 1/255) are uint8 and cut to the box that holds them all.
Mattes of the dataset's kind, which alone can be chosen, stand before the others. Of several channels the header lists
all, the image first, each with the window that it is shown in at first.
"""

from __future__ import annotations

import contextlib
import json
import math
from typing import Any

import numpy as np

from raymat.calibration import LUNG_WINDOW
from raymat.measures.nodule import measure
from raymat.methods import ANY, MEANINGS, METHODS
from raymat.nodule import InputError, Nodule, matte_box, required
from raymat.pictures.view import view_of, window_of_channel
from raymat.quality import explain
from raymat.review.decisions import mattes_of
from raymat.store import outcome_row

MARGIN_MM = 8.0
ALIGNED = 8


def payload(nodule: Nodule) -> bytes:
    """The message for one nodule with mattes.

    Raises
    ------
    InputError
        It has no image.
    """
    view = view_of(nodule, MARGIN_MM)
    image, slope, low = _in_steps(view.turn(required(nodule.image, nodule, "image")))
    others = [_in_steps(view.turn(channel.image)) for channel in nodule.channels]
    shown = required(nodule.trimap, nodule, "trimap") != 0
    for mask in nodule.readers:
        shown = shown | (mask != 0)
    box = matte_box(view.turn(shown))
    order = {method: place for place, method in enumerate(METHODS)}
    # Those that can be chosen come first: their places are the keys that choose them.
    by_place = sorted(nodule.candidates, key=lambda matte: order.get(matte.method, len(order)))
    candidates = sorted(by_place, key=lambda matte: nodule.kind not in (matte.kind, ANY))
    best = {kind: nodule.best(kind) for kind in MEANINGS}
    arrays = [image]
    arrays += [view.turn(mask)[box].astype(np.uint8) for mask in nodule.readers]
    arrays += [_steps(view.turn(matte.alpha)[box]) for matte in candidates]
    arrays += [values for values, _, _ in others]
    offsets, total = [], 0
    for array in arrays:
        offsets.append(total)
        total += -(-array.nbytes // ALIGNED) * ALIGNED
    header: dict[str, Any] = {
        "nodule_id": nodule.nodule_id,
        "patient_id": nodule.patient_id,
        "source": nodule.source,
        "mattes_id": mattes_of(outcome_row(nodule)),
        "outcome": nodule.outcome,
        "reason": nodule.reason,
        "method": nodule.method,
        "kind": nodule.kind,
        "best": {kind: matte.method for kind, matte in best.items() if matte},
        "notes": nodule.notes,
        "measures": _measures(nodule),
        "ratings": nodule.ratings,
        "spacing": view.spacing,
        "shape": image.shape,
        "slope": slope,
        "intercept": low,
        "centre": view.centre,
        "middle": view.middle,
        "side": view.side,
        "oriented": view.oriented,
        "box": [[part.start, part.stop] for part in box],
        "image": offsets[0],
        "readers": offsets[1 : 1 + len(nodule.readers)],
        "mattes": [
            {
                "method": matte.method,
                "kind": matte.kind,
                "score": matte.score if math.isfinite(matte.score) else None,
                "terms": matte.scores,
                "words": explain(matte.scores),
                "converged": matte.solve.converged,
                "offset": offset,
            }
            for matte, offset in zip(candidates, offsets[1 + len(nodule.readers) :], strict=False)
        ],
    }
    if others:
        places = [offsets[0], *offsets[-len(others) :]]
        header["channels"] = [
            {
                "name": channel.name,
                "window": [window.level, window.width],
                "hu": window == LUNG_WINDOW,
                "image": place,
                "slope": step,
                "intercept": least,
            }
            for channel, window, place, (_, step, least) in zip(
                nodule.all_channels,
                map(window_of_channel, nodule.all_channels),
                places,
                [(image, slope, low), *others],
                strict=True,
            )
        ]
    text = json.dumps(header).encode()
    text += b" " * (-(4 + len(text)) % ALIGNED)
    parts = [len(text).to_bytes(4, "little"), text]
    for array in arrays:
        parts += [array.tobytes(), bytes(-array.nbytes % ALIGNED)]
    return b"".join(parts)


def _measures(nodule: Nodule) -> list[str]:
    """What the page says of the nodule's size, line by line; nothing without a chosen membership matte."""
    try:
        row = measure(nodule)
    except InputError:
        return []
    known = {name: value for name, value in row.items() if isinstance(value, float) and math.isfinite(value)}
    lines = (
        "volume {volume_mm3:.0f} mm³",
        "90 % interval {volume_low_mm3:.0f} to {volume_high_mm3:.0f} mm³",
        "axial {longest_diameter_mm:.1f} x {perpendicular_diameter_mm:.1f} mm",
        "solid share {solid_share:.2f}",
        "border {border_width_mm:.1f} mm wide",
    )
    found = []
    for line in lines:
        with contextlib.suppress(KeyError):
            found.append(line.format_map(known))
    return found


def _in_steps(image: np.ndarray) -> tuple[np.ndarray, float, float]:
    """An image as uint16, and the slope and intercept that give its values back."""
    image = np.nan_to_num(image)
    low, high = float(image.min()), float(image.max())
    slope = (high - low) / 65535 or 1.0
    return np.rint((image - low) / slope).astype("<u2"), slope, low


def _steps(alpha: np.ndarray) -> np.ndarray:
    return np.rint(np.clip(np.nan_to_num(alpha), 0, 1) * 255).astype(np.uint8)
