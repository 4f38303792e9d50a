"""One score a matte, the best of the candidates, and a floor that rejects (paper, section 3, "Quality Control").

The combined score is the product of the terms, each to the power of its weight: a matte is as good as its faults allow,
and no number of good terms makes up for a hole. Its logarithm is a weighted sum, so that each term's share of a low
score can be read off. Where there are no readers their terms are absent and the other weights rise in proportion.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace

import numpy as np

from raymat.calibration import LUNG_WINDOW, HUWindow
from raymat.methods import ALPHA_KINDS, ANY, CALIBRATED, MEMBERSHIP, METHODS, is_calibrated, kind_among, kind_of
from raymat.nodule import ACCEPTED, REJECTED, InputError, Nodule, required
from raymat.quality import scores
from raymat.quality.scores import CONVERGED, CONVERGED_WEIGHT, FACTS, TERMS

WEIGHTS = {name: term.weight for name, term in TERMS.items()} | {CONVERGED: CONVERGED_WEIGHT}
WORDS = {name: term.words for name, term in TERMS.items()} | FACTS
LOW = 0.5  # a term below this is named in words


@dataclass(frozen=True)
class QualityParameters:
    """How terms become a score.

    Attributes
    ----------
    weights : term to the power it enters the score with, not negative; a term left out counts for nothing
    floor : score below which the best candidate is not good enough and the nodule is rejected
    pure_lesion : HU of solid lesion tissue, for lesions too small to show it; None where images are no CT
    kind : of the matte that is chosen, one of ``raymat.methods.ALPHA_KINDS``; None for calibrated where a candidate is,
        else membership
    window : (level, width) HU, the window of the calibrated mattes (Eq. 4)
    version : name of the scoring; part of what a built record depends on
    """

    weights: Mapping[str, float] = field(default_factory=lambda: dict(WEIGHTS))
    floor: float = 0.33
    pure_lesion: float | None = scores.SOFT_TISSUE
    kind: str | None = None
    window: tuple[float, float] = (LUNG_WINDOW.level, LUNG_WINDOW.width)
    version: str = "3"

    def __post_init__(self) -> None:
        unknown = sorted(set(self.weights) - set(WEIGHTS))
        if unknown:
            raise InputError(f"unknown quality terms {', '.join(unknown)}; there are {', '.join(WEIGHTS)}")
        if not all(weight >= 0 for weight in self.weights.values()) or not sum(self.weights.values()) > 0:
            raise InputError("quality weights must not be negative, and one must be above 0")
        if not 0 <= self.floor <= 1:
            raise InputError(f"the quality floor must lie between 0 and 1, not {self.floor}")
        if self.kind not in (None, *ALPHA_KINDS):
            raise InputError(f"unknown kind of alpha {self.kind!r}; there are {', '.join(ALPHA_KINDS)}")

    @property
    def identity(self) -> str:
        """All of it as text, for keys: the same whatever the order of the weights."""
        return repr(sorted((asdict(self) | {"weights": sorted(self.weights.items())}).items()))


@dataclass(frozen=True)
class MatteQuality:
    """A matte's terms, name to 0..1, and their combination, 0..1."""

    terms: dict[str, float]
    score: float


def score_mattes(  # noqa: PLR0913 - a nodule and its mattes, and the channels that few have
    image: np.ndarray,
    trimap: np.ndarray,
    readers: Sequence[np.ndarray],
    mattes: Mapping[str, np.ndarray],
    converged: Mapping[str, bool],
    spacing: Sequence[float],
    parameters: QualityParameters | None = None,
    channels: Sequence[np.ndarray] = (),
) -> dict[str, MatteQuality]:
    """Terms and score of every matte of one nodule.

    Parameters
    ----------
    image : float (z, y, x), HU
    trimap : uint8 (z, y, x), 0 background, 128 unknown, 255 foreground
    readers : masks (z, y, x), 1 inside; empty where the trimap was given
    mattes : method to alpha, float (z, y, x), 0 to 1; that of a name with a "+" is judged as a calibrated one
    converged : method to whether its solver converged; absent means yes
    spacing : (z, y, x) mm
    channels : float (z, y, x) each, the channels beside the image, which alpha may follow as well

    Returns
    -------
    dict in the order of ``mattes``. A matte with a NaN, or with nothing but 0, scores 0.

    Raises
    ------
    ValueError
        Shapes differ, or the trimap has nothing but background.
    """
    parameters = parameters or QualityParameters()
    window = HUWindow(*parameters.window)
    of_kind = scores.scenes(image, trimap, readers, spacing, parameters.pure_lesion, window, channels)
    result = {}
    for method, alpha in mattes.items():
        if alpha.shape != image.shape:
            raise ValueError(f"matte {method} has shape {alpha.shape}, the image {image.shape}")
        shared = of_kind[CALIBRATED if is_calibrated(method) else MEMBERSHIP]
        part = np.ascontiguousarray(alpha[shared.box], dtype=np.float32) / np.float32(shared.scale)
        if not np.isfinite(part).all():
            result[method] = MatteQuality({"finite": 0.0}, 0.0)
        elif not part.any():
            result[method] = MatteQuality({"lesion": 0.0}, 0.0)
        else:
            terms = {
                name: term(part, shared)
                for name, term in TERMS.items()
                if parameters.weights.get(name) and (readers or not term.readers)
            }
            if parameters.weights.get(CONVERGED):
                terms[CONVERGED] = float(converged.get(method, True))
            result[method] = MatteQuality(terms, combine(terms, parameters))
    return result


def combine(terms: Mapping[str, float], parameters: QualityParameters) -> float:
    """The product of the terms, each to the power of its weight.

    Weights of absent terms go to those present in proportion. ``converged`` is a fact of 0 or 1; one half stands for
    its 0, so that it lowers a score without deciding it: a solver that stopped early can still have a good matte.
    """
    weights = {name: parameters.weights.get(name, 0.0) for name in terms}
    present = sum(weights.values())
    if not present:
        return 0.0
    # Rounded once: the same whatever the order of the weights.
    raised = math.fsum(parameters.weights.values()) / present
    values = {name: 0.5 + 0.5 * value if name == CONVERGED else value for name, value in terms.items()}
    return float(np.prod([values[name] ** (weight * raised) for name, weight in weights.items()]))


def explain(terms: Mapping[str, float]) -> list[str]:
    """What is wrong with a matte, in words, worst first; empty where no term is low."""
    low = sorted((value, name) for name, value in terms.items() if value < LOW)
    return [WORDS[name] for _, name in low]


def choose(
    qualities: Mapping[str, MatteQuality], parameters: QualityParameters | None = None
) -> tuple[str | None, str | None]:
    """The best candidate of the kind asked for, or why there is none.

    Returns
    -------
    method : the method of the highest score, the first in the order of ``METHODS`` where scores are equal; None where
        even that one lies below the floor, or no candidate is of that kind
    reason : why the nodule is rejected; None where a method was chosen
    """
    parameters = parameters or QualityParameters()
    kind = parameters.kind or kind_among(qualities)
    qualities = {method: found for method, found in qualities.items() if kind in (kind_of(method), ANY)}
    if not qualities:
        return None, "no candidate matte" + ("" if kind == ANY else f" of the kind {kind}")
    order = {method: place for place, method in enumerate(METHODS)}
    best = min(qualities, key=lambda method: (-qualities[method].score, order.get(method, len(order)), method))
    quality = qualities[best]
    if quality.score >= parameters.floor and quality.score > 0:
        return best, None
    # Where no single term is low the product of several middling ones is: the lowest is the one to name.
    words = explain(quality.terms) or [WORDS[min(quality.terms, key=lambda name: quality.terms[name])]]
    reason = f"best score {quality.score:.2f} ({best}) is below the floor {parameters.floor:.2f}: {', '.join(words)}"
    return None, reason


def assess(nodule: Nodule, parameters: QualityParameters | None = None) -> Nodule:
    """The nodule with its candidates scored, one chosen, and its outcome.

    Returns
    -------
    A new ``Nodule``: ``accepted`` with a ``method``, or ``rejected`` with stage "quality" and a reason.

    Raises
    ------
    InputError
        The nodule has no image, trimap, spacing or candidates, or their shapes differ.
    """
    parameters = parameters or QualityParameters()
    image, trimap = required(nodule.image, nodule, "image"), required(nodule.trimap, nodule, "trimap")
    spacing = required(nodule.spacing, nodule, "spacing")
    if not nodule.candidates:
        raise InputError(f"{nodule.nodule_id}: there is no candidate matte to assess")
    try:
        qualities = score_mattes(
            image,
            trimap,
            nodule.readers,
            nodule.mattes,
            {matte.method: matte.solve.converged for matte in nodule.candidates},
            spacing,
            parameters,
            [channel.image for channel in nodule.channels],
        )
    except ValueError as error:
        raise InputError(f"{nodule.nodule_id}: {error}") from error
    candidates = [
        replace(matte, scores=dict(qualities[matte.method].terms), score=qualities[matte.method].score)
        for matte in nodule.candidates
    ]
    method, reason = choose(qualities, parameters)
    return replace(
        nodule,
        candidates=candidates,
        kind=parameters.kind or kind_among(nodule.mattes),
        method=method,
        outcome=ACCEPTED if method else REJECTED,
        stage=None if method else "quality",
        reason=reason,
    )
