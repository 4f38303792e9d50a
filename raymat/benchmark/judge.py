"""How far an entry's matte of one nodule is off, and how far the baselines are (paper, section 6.2.2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from raymat import metrics
from raymat.arrays import UNKNOWN, AnyArray, Box
from raymat.benchmark.matte import read_matte
from raymat.evidence.reader_prediction import brier, calibration_bins
from raymat.measures.size import volume_mm3
from raymat.methods import CALIBRATED, MEANINGS, MEMBERSHIP, METHODS
from raymat.network.evaluation import (
    NOTHING,
    RAMP,
    READERS,
    TWINS,
    baselines_of,
    evaluation_box,
    references_of,
)
from raymat.nodule import InputError, Nodule, required
from raymat.volume import nodule_grid

BENCHMARK_VERSION = 1
BOX_MM = 32.0  # about the middle of the crop: the input of the network of preset `small`, as results are published
HALF = "half of the readers"
RELEASED = {MEMBERSHIP: "membership matte", CALIBRATED: "calibrated matte"}
BASELINES = (READERS, HALF, *RELEASED.values(), RAMP, NOTHING)
READERS_MASKS = "readers' masks"
ANSWERED, MISSING, UNUSABLE = "answered", "missing", "unusable"
SAME = 1 / 255  # as near as that to a released matte an entry's is this matte, also where it was stored in a byte
CLEARLY = 0.05  # of soft Dice
TURNS = {"mirrored along x": "x", "mirrored along y": "y", "with x and z exchanged": "xz"}


@dataclass(frozen=True)
class Entrant:
    """What an entry says of itself.

    Attributes
    ----------
    name : what tables call it
    kinds : of alpha on which it is judged
    solver : of ``raymat.methods.METHODS``, whose mattes they are; empty for any other method
    """

    name: str
    kinds: tuple[str, ...] = MEANINGS
    solver: str = ""

    def __post_init__(self) -> None:
        taken = self.name in (*BASELINES, *METHODS) and self.name != self.solver
        if taken or not self.name.strip():
            raise InputError(
                f"an entry cannot be called {self.name!r}, which a table calls something else; give a --name"
            )


@dataclass(frozen=True)
class Judged:
    """What came out of one nodule.

    Attributes
    ----------
    state : ``ANSWERED``, ``MISSING`` or ``UNUSABLE``
    note : why it is not answered, or what was done to its matte
    rows : of ``kind, truth, method, metric, value``; truth ``READERS_MASKS`` has no kind
    bins : method to ``raymat.evidence.reader_prediction.calibration_bins`` against all readers' masks
    turned : the turns of ``TURNS`` after which the matte would agree clearly better
    """

    state: str
    note: str
    rows: list[dict] = field(default_factory=list)
    bins: dict[str, list] = field(default_factory=dict)
    turned: list[str] = field(default_factory=list)


def judged_box(nodule: Nodule) -> Box:
    """Where mattes are compared: the middle 32 mm of the crop, wider where the lesion is."""
    window = [round(BOX_MM / step) for step in required(nodule.spacing, nodule, "spacing")]
    box = evaluation_box(nodule, window)
    return tuple(slice(side.start, side.stop) for side in box)


def judge(nodule: Nodule, path: str | Path | None, entrant: Entrant, problem: str = "") -> Judged:
    """Compare an entry's matte and the baselines with every reference of the nodule.

    A matte that is missing or cannot be used counts as alpha 0 everywhere: no lesion was found.

    Parameters
    ----------
    nodule : of a release, with its mattes
    path : the entry's matte; None where there is none
    problem : why the entry's files of this nodule cannot be used, where that is known before one is read

    Raises
    ------
    InputError
        The nodule lacks what a released one has.
    """
    box = judged_box(nodule)
    state, note, alpha = MISSING, "", None
    if problem:
        state, note = UNUSABLE, problem
    elif path is not None:
        try:
            alpha, note = read_matte(path, nodule_grid(nodule, required(nodule.image, nodule, "image")), box)
            _refuse_copy(path, alpha, nodule, box, entrant)
            state = ANSWERED
        except InputError as error:
            state, note, alpha = UNUSABLE, str(error), None
    mattes = _baselines(nodule, box)
    given = mattes[NOTHING] if alpha is None else alpha
    mattes = {entrant.name: given, **mattes}
    magnitudes = {name: metrics.gradient_magnitude(np.asarray(matte, np.float64)) for name, matte in mattes.items()}
    rows, turned = [], []
    for kind in entrant.kinds:
        if nodule.best(kind) is None:
            continue
        for truth, (target, made_by) in references_of(nodule, box, kind).items():
            left_out = {RELEASED[kind], *([entrant.name] if entrant.solver in made_by else [])} if made_by else set()
            of_truth = {name: matte for name, matte in mattes.items() if name not in left_out}
            start = {"kind": kind, "truth": truth}
            rows += [start | row for row in _errors(of_truth, magnitudes, target, nodule)]
            if state == ANSWERED:
                turned.append(_turns(given, target))
    scores, bins = _against_readers(nodule, box, mattes)
    return Judged(state, note, rows + scores, bins, sorted(set.intersection(*turned)) if turned else [])


def _baselines(nodule: Nodule, box: Box) -> dict[str, AnyArray]:
    """The baselines of Table 1; a release has of each kind its best solver's matte, by whichever solver that is."""
    found = baselines_of(nodule, box)
    mattes: dict[str, AnyArray] = {}
    if nodule.readers:
        mattes |= {READERS: found[READERS], HALF: (found[READERS] >= 0.5).astype(float)}
    for kind, name in RELEASED.items():
        if (best := nodule.best(kind)) is not None:
            mattes[name] = best.alpha[box]
    return mattes | {RAMP: found[RAMP], NOTHING: found[NOTHING]}


def volume_error(alpha: AnyArray, target: AnyArray, spacing: Sequence[float]) -> float:
    """By how many percent the volume of a matte differs from that of its reference; below 0 it is too small.

    Raises
    ------
    InputError
        The reference is empty.
    """
    volume = volume_mm3(target, spacing)
    if volume <= 0:
        raise InputError("a reference of the release is empty; check the release with raymat verify")
    return 100 * (volume_mm3(alpha, spacing) / volume - 1)


def _errors(
    mattes: Mapping[str, AnyArray], magnitudes: Mapping[str, AnyArray], target: AnyArray, nodule: Nodule
) -> list[dict]:
    """Rows of ``method, metric, value``; the gradients of a matte are the same for every reference."""
    spacing = required(nodule.spacing, nodule, "spacing")
    own = metrics.gradient_magnitude(np.asarray(target, np.float64))
    rows = []
    for method, alpha in mattes.items():
        bias = volume_error(alpha, target, spacing)
        values = {
            "sad": metrics.sad(alpha, target),
            "mse": metrics.mse(alpha, target),
            "gradient": float(np.square(np.subtract(magnitudes[method], own)).sum()),
            "connectivity": metrics.connectivity(alpha, target),
            "dice": metrics.soft_dice(alpha, target),
            "volume": abs(bias),
            "bias": bias,
        }
        rows += [{"method": method, "metric": name, "value": value} for name, value in values.items()]
    return rows


def _against_readers(nodule: Nodule, box: Box, mattes: Mapping[str, AnyArray]) -> tuple[list[dict], dict[str, list]]:
    """Brier score and calibration inside the unknown region, each reader's mask as often as another's."""
    unknown = required(nodule.trimap, nodule, "trimap")[box] == UNKNOWN
    if not nodule.readers or not unknown.any():
        return [], {}
    masks = [mask[box][unknown] != 0 for mask in nodule.readers]
    rows, bins = [], {}
    for method, alpha in mattes.items():
        inside = np.asarray(alpha, float)[unknown]
        value = float(np.mean([brier(inside, mask) for mask in masks]))
        start = {"kind": "", "truth": READERS_MASKS, "method": method}
        rows.append(start | {"metric": "brier", "value": value})
        bins[method] = np.sum([calibration_bins(inside, mask) for mask in masks], axis=0).tolist()
    return rows, bins


def _refuse_copy(path: str | Path, alpha: AnyArray, nodule: Nodule, box: Box, entrant: Entrant) -> None:
    """Raise InputError where the matte is one that the release has itself: as reference it would judge itself."""
    for matte in nodule.candidates:
        own = entrant.solver in (matte.method, TWINS.get(matte.method)) and entrant.solver
        if not own and _apart(matte.alpha[box], alpha) <= SAME:
            raise InputError(
                f"{path}: is the release's own matte ({matte.method}), by which entries are judged; hand in what the "
                f"method gives, or enter mattes of raymat's solvers with --solver {matte.method}"
            )
    for kind in MEANINGS:
        true = nodule.truth(kind)
        if true is not None and _apart(true[box], alpha) <= SAME:
            raise InputError(
                f"{path}: is the phantom's true alpha, by which entries are judged; hand in what the method gives"
            )


def _apart(one: AnyArray, other: AnyArray) -> float:
    return float(np.abs(np.subtract(one, other, dtype=np.float64)).max())


def _turns(alpha: AnyArray, target: AnyArray) -> set[str]:
    as_it_is = metrics.soft_dice(alpha, target)
    variants = {"x": alpha[:, :, ::-1], "y": alpha[:, ::-1]}
    if alpha.shape[0] == alpha.shape[2]:
        variants["xz"] = alpha.transpose(2, 1, 0)
    better = {name for name, turned in variants.items() if metrics.soft_dice(turned, target) > as_it_is + CLEARLY}
    return {words for words, name in TURNS.items() if name in better}
