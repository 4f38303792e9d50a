"""How far two reviewers agree beyond chance: Cohen's kappa."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from raymat.review.decisions import REJECT, Decision


@dataclass(frozen=True)
class Agreement:
    """Two reviewers on the nodules that both decided, choosing among mattes of the same kind.

    Attributes
    ----------
    reviewers : their names
    nodules : how many both decided
    kept : share on which both accept or both reject
    kept_kappa : Cohen's kappa of accepting or rejecting; None where it is not defined
    chosen : share on which both chose the same matte, or both reject
    chosen_kappa : its kappa
    """

    reviewers: tuple[str, str]
    nodules: int
    kept: float
    kept_kappa: float | None
    chosen: float
    chosen_kappa: float | None


def cohen_kappa(first: Sequence[Hashable], second: Sequence[Hashable]) -> float | None:
    """Cohen's kappa of two raters' labels of the same things (J. Cohen, Educ. Psychol. Meas. 20(1), 1960).

    None where there is nothing rated, or both raters know but one label.
    """
    if len({*first, *second}) < 2:
        return None
    # Imported here: a server that nobody has reviewed with yet starts without it.
    from sklearn.metrics import cohen_kappa_score

    return float(cohen_kappa_score(list(first), list(second)))


def agreement(current: Mapping[str, Mapping[str, Decision]]) -> list[Agreement]:
    """The agreement of every two reviewers who share a nodule.

    Parameters
    ----------
    current : nodule id to reviewer to the decision that stands (``Decisions.current``)
    """
    names = sorted({name for by_reviewer in current.values() for name in by_reviewer})
    found = []
    for one, other in combinations(names, 2):
        shared = [(d[one], d[other]) for d in current.values() if one in d and other in d]
        both = [(a.label, b.label) for a, b in shared if a.kind == b.kind or None in (a.kind, b.kind)]
        if not both:
            continue
        labels = [pair[0] for pair in both], [pair[1] for pair in both]
        kept = [label != REJECT for label in labels[0]], [label != REJECT for label in labels[1]]
        found.append(
            Agreement(
                (one, other),
                len(both),
                sum(a == b for a, b in zip(*kept, strict=True)) / len(both),
                cohen_kappa(*kept),
                sum(a == b for a, b in both) / len(both),
                cohen_kappa(*labels),
            )
        )
    return found
