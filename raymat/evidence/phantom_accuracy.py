"""How far each matte is from the true alpha of phantoms, against the mean of the readers' masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from raymat.arrays import UNKNOWN
from raymat.matting import METHODS
from raymat.nodule import Nodule, required
from raymat.words import markdown_table

MEAN_MASK, CHOSEN = "mean of the readers' masks", "the chosen matte"

Errors = dict[str, tuple[float, float]]


def errors_of(nodule: Nodule) -> Errors:
    """Mean absolute and mean squared error inside the unknown region of a phantom, by name of the matte."""
    unknown = required(nodule.trimap, nodule, "trimap") == UNKNOWN
    truth = required(nodule.true_alpha, nodule, "true alpha")[unknown]
    guesses: dict[str, np.ndarray] = {MEAN_MASK: np.mean(nodule.readers, axis=0)} | nodule.mattes
    if nodule.alpha is not None:
        guesses[CHOSEN] = nodule.alpha
    differences = {name: guess[unknown] - truth for name, guess in guesses.items()}
    return {name: (float(np.abs(d).mean()), float(np.square(d).mean())) for name, d in differences.items()}


def as_markdown(phantoms: Sequence[Mapping[str, tuple[float, float]]]) -> str:
    """A row a matte: median error, and on how many phantoms it is nearer to the truth than the mean mask."""
    head = ["matte", "mean abs. error: median (10th to 90th percentile)", "MSE x 1e3, median", "beats the mean mask"]
    lines = []
    for name in (MEAN_MASK, *METHODS, CHOSEN):
        pairs = [(errors[name], errors[MEAN_MASK]) for errors in phantoms if name in errors]
        if not pairs:
            continue
        mae = np.array([own[0] for own, _ in pairs])
        low, mid, high = np.percentile(mae, (10, 50, 90))
        mse = np.median([own[1] for own, _ in pairs]) * 1e3
        better = "" if name == MEAN_MASK else f"{100 * np.mean([own[0] < mean[0] for own, mean in pairs]):.0f} %"
        lines.append((name, f"{mid:.3f} ({low:.3f} to {high:.3f})", f"{mse:.1f}", better))
    return f"{len(phantoms)} phantoms, error inside the unknown region\n\n{markdown_table(head, lines)}"
