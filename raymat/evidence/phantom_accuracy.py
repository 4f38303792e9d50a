"""How far each matte is from the truth of its own kind on phantoms, against the mean of the readers' masks."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from raymat.arrays import UNKNOWN
from raymat.matting import METHODS
from raymat.methods import MEANINGS, MEMBERSHIP
from raymat.nodule import Nodule, required
from raymat.words import markdown_table

MEAN_MASK, CHOSEN = "mean of the readers' masks", "the chosen matte"
# What sets phantoms apart, by what was drawn of them (``Nodule.metadata``).
GROUND_GLASS, PART_SOLID, SOLID = TEXTURES = ("ground glass", "part-solid", "solid")
JUXTAPLEURAL, SMALL = "juxtapleural", "smaller than 6 mm"
GROUPS = (*TEXTURES, JUXTAPLEURAL, SMALL)
DENSE_HU = -200.0  # a lesion is solid above this density
SMALL_MM = 6.0
TOUCHING_MM = 0.5  # gap to the pleura

Errors = dict[str, tuple[float, float]]


def tuned_on(patient_id: str) -> bool:
    """Whether a patient belongs to the half that weights and constants may be tuned on."""
    return hashlib.sha256(patient_id.encode()).digest()[0] % 2 == 0


def errors_of(nodule: Nodule, kind: str) -> Errors:
    """Mean absolute and mean squared error inside the unknown region of a phantom, by name of the matte.

    Parameters
    ----------
    nodule : a phantom
    kind : "membership" or "calibrated": against which truth; the chosen matte is the best one of that kind

    Raises
    ------
    InputError
        The nodule has no trimap, or no truth of that kind.
    """
    unknown = required(nodule.trimap, nodule, "trimap") == UNKNOWN
    truth = required(nodule.truth(kind), nodule, f"true {kind} alpha")[unknown]
    guesses: dict[str, np.ndarray] = {MEAN_MASK: np.mean(nodule.readers, axis=0)} | nodule.mattes
    best = nodule.best(kind)
    if nodule.method and best:
        guesses[CHOSEN] = best.alpha
    differences = {name: guess[unknown] - truth for name, guess in guesses.items()}
    return {name: (float(np.abs(d).mean()), float(np.square(d).mean())) for name, d in differences.items()}


def groups_of(nodule: Nodule) -> set[str]:
    """To which of ``GROUPS`` a phantom belongs; its size is that of the true membership."""
    drawn = nodule.metadata["phantom"]
    assert isinstance(drawn, Mapping)  # as raymat.sources.phantom writes it
    dense = drawn["lesion_hu"] >= DENSE_HU
    groups = {PART_SOLID if drawn["core_part"] and not dense else SOLID if dense else GROUND_GLASS}
    if drawn["gap_mm"] is not None and drawn["gap_mm"] <= TOUCHING_MM:
        groups.add(JUXTAPLEURAL)
    truth = required(nodule.true_membership, nodule, "true membership")
    mm3 = float(truth.sum(dtype=np.float64)) * float(np.prod(required(nodule.spacing, nodule, "spacing")))
    if (6.0 / np.pi * mm3) ** (1.0 / 3.0) < SMALL_MM:
        groups.add(SMALL)
    return groups


def tables(nodules: Iterable[Nodule]) -> str:
    """Both tables, of each kind against its own truth, of nodules that are read one by one; those of no truth left out.

    A row a matte, as ``as_markdown`` has it, then the median error of each group of phantoms.
    """
    found: dict[str, list[tuple[set[str], Errors]]] = {kind: [] for kind in MEANINGS}
    for nodule in nodules:
        for kind, rows in found.items():
            if nodule.truth(kind) is not None:
                rows.append((groups_of(nodule), errors_of(nodule, kind)))
    parts = []
    for kind in sorted(found, key=lambda kind: kind != MEMBERSHIP):
        if found[kind]:
            title = f"Against the true {kind} alpha"
            errors = [of_one for _, of_one in found[kind]]
            parts += [
                f"{title}: {as_markdown(errors)}",
                f"{title}, mean abs. error (median), MSE x 1e3 (mean):\n\n{by_group(found[kind])}",
            ]
    return "\n\n".join(parts)


def as_markdown(phantoms: Sequence[Errors]) -> str:
    """A row a matte: median error, and on how many phantoms it is nearer to the truth than the mean mask."""
    head = [
        "matte",
        "mean abs. error: median (10th to 90th percentile)",
        "MSE x 1e3, median (mean)",
        "beats the mean mask",
    ]
    lines = []
    for name in _names(phantoms):
        pairs = [(errors[name], errors[MEAN_MASK]) for errors in phantoms if name in errors]
        mae = np.array([own[0] for own, _ in pairs])
        low, mid, high = np.percentile(mae, (10, 50, 90))
        mse = np.array([own[1] for own, _ in pairs]) * 1e3
        better = "" if name == MEAN_MASK else f"{100 * np.mean([own[0] < mean[0] for own, mean in pairs]):.0f} %"
        lines.append((name, f"{mid:.3f} ({low:.3f} to {high:.3f})", f"{np.median(mse):.1f} ({mse.mean():.1f})", better))
    return f"{len(phantoms)} phantoms, error inside the unknown region\n\n{markdown_table(head, lines)}"


def by_group(phantoms: Sequence[tuple[set[str], Errors]]) -> str:
    """A row a matte, a column a group with its number of phantoms: the mean absolute error's median, the MSE's mean."""
    groups = [group for group in GROUPS if any(group in of for of, _ in phantoms)]
    head = ["matte", *(f"{group} ({sum(group in of for of, _ in phantoms)})" for group in groups)]
    lines = []
    for name in _names([errors for _, errors in phantoms]):
        cells = [[errors[name] for of, errors in phantoms if group in of and name in errors] for group in groups]
        lines.append((name, *map(_in_short, cells)))
    return markdown_table(head, lines)


def _in_short(errors: Sequence[tuple[float, float]]) -> str:
    if not errors:
        return ""
    mae, mse = np.transpose(errors)
    return f"{np.median(mae):.3f}, {1e3 * mse.mean():.1f}"


def _names(phantoms: Iterable[Errors]) -> list[str]:
    present = set().union(*phantoms)
    return [name for name in (MEAN_MASK, *METHODS, CHOSEN) if name in present]
