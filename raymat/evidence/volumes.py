"""How near volumes are to the truth on phantoms, how they repeat, and how they agree with readers.

Errors are of log volume where they are compared between sizes: a factor of 1.1 too large and 1.1 too small are as far
from the truth. Tables show them in percent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from raymat.evidence.phantom_accuracy import GROUPS, groups_of
from raymat.measures.interval import Evidence, VolumeInterval, evidence_of, volume_interval
from raymat.measures.nodule import membership_of
from raymat.measures.size import volume_mm3
from raymat.methods import METHODS
from raymat.nodule import Nodule, required
from raymat.words import markdown_table

ESTIMATE, MATTE = "estimate", "chosen membership matte"
SINGLE, MEAN, UNION = "single reader", "mean of the readers", "union"
HALF, MAJORITY, INTERSECTION = "half of the readers", "majority", "intersection"
RULES = (SINGLE, MEAN, UNION, HALF, MAJORITY, INTERSECTION)
NAMES = (ESTIMATE, MATTE, *METHODS, *RULES)
ALL = "all"
# QIBA Profile Small Lung Nodule Volume Assessment: repeatability of volume in percent is from 1.96 sqrt(2) wCV.
REPEATABILITY = 1.96 * math.sqrt(2.0)


@dataclass(frozen=True)
class Volumes:
    """The volumes of one nodule, mm3.

    Attributes
    ----------
    volumes : one of ``NAMES`` to its volumes, one; of single readers one per reader
    evidence, interval : for estimate and interval
    truth : of a phantom; None for any other nodule
    groups : ``raymat.evidence.phantom_accuracy.GROUPS`` of a phantom
    """

    nodule_id: str
    patient_id: str
    volumes: Mapping[str, tuple[float, ...]]
    evidence: Evidence
    interval: VolumeInterval
    truth: float | None = None
    groups: frozenset[str] = field(default_factory=frozenset)


def volumes_of(nodule: Nodule) -> Volumes:
    """The volumes of a nodule with an image, a trimap, readers and a membership matte.

    Raises
    ------
    InputError
        One of them is missing.
    """
    spacing, trimap = required(nodule.spacing, nodule, "spacing"), required(nodule.trimap, nodule, "trimap")
    matte = membership_of(nodule)
    evidence = evidence_of(matte.alpha, required(nodule.image, nodule, "image"), trimap, nodule.readers, spacing)
    interval = volume_interval(evidence)
    found: dict[str, tuple[float, ...]] = {ESTIMATE: (interval.estimate,), MATTE: (evidence.volume,)}
    found |= {name: (volume_mm3(alpha, spacing),) for name, alpha in nodule.mattes.items()}
    if nodule.readers:
        votes = np.sum([mask != 0 for mask in nodule.readers], axis=0)
        count = len(nodule.readers)
        least = {UNION: 1, HALF: (count + 1) // 2, MAJORITY: count // 2 + 1, INTERSECTION: count}
        found |= {SINGLE: evidence.readers, MEAN: (float(np.mean(evidence.readers)),)}
        found |= {rule: (volume_mm3(votes >= number, spacing),) for rule, number in least.items()}
    truth = nodule.true_membership
    return Volumes(
        nodule.nodule_id,
        nodule.patient_id,
        found,
        evidence,
        interval,
        None if truth is None else volume_mm3(truth, spacing),
        frozenset() if truth is None else frozenset(groups_of(nodule)),
    )


# Accuracy -------------------------------------------------------------------------------------------------------------


def errors_of(phantoms: Iterable[Volumes], name: str) -> np.ndarray:
    """The relative errors of a method or mask rule over phantoms, one per volume; -1 for a volume of 0."""
    pairs = ((volume, one.truth) for one in phantoms for volume in one.volumes.get(name, ()))
    return np.array([volume / truth - 1.0 for volume, truth in pairs if truth])


def in_group(phantoms: Iterable[Volumes], group: str) -> list[Volumes]:
    """The phantoms of a group; all of them for ``ALL``."""
    return [one for one in phantoms if group == ALL or group in one.groups]


def accuracy_table(phantoms: Sequence[Volumes]) -> str:
    """One row per method and mask rule: bias, median and 90th percentile of the error, limits of Bland and Altman."""
    head = ("volume", "bias, median", "abs. error, median", "90th percentile", "limits of agreement")
    lines = []
    for name in NAMES:
        error = 100 * errors_of(phantoms, name)
        if len(error):
            mean, deviation = error.mean(), error.std(ddof=1)
            limits = f"{mean - 1.96 * deviation:+.0f} to {mean + 1.96 * deviation:+.0f} %"
            size = np.abs(error)
            cells = (f"{np.median(error):+.1f} %", f"{np.median(size):.1f} %", f"{np.percentile(size, 90):.1f} %")
            lines.append((name, *cells, limits))
    return markdown_table(head, lines)


def _by_group(nodules: Sequence[Volumes], names: Sequence[str], cell: Callable[[list[Volumes], str], str]) -> str:
    """One row per name, one column per group that has nodules, with their number."""
    groups = {group: in_group(nodules, group) for group in (ALL, *GROUPS)}
    groups = {group: members for group, members in groups.items() if members}
    head = ["volume", *(f"{group} ({len(members)})" for group, members in groups.items())]
    return markdown_table(head, [(name, *(cell(members, name) for members in groups.values())) for name in names])


def accuracy_by_group(phantoms: Sequence[Volumes], names: Sequence[str] = (ESTIMATE, MATTE, *METHODS, *RULES)) -> str:
    """One row per method and mask rule, one column per group: median bias and median absolute error in percent."""

    def cell(members: list[Volumes], name: str) -> str:
        error = 100 * errors_of(members, name)
        return f"{np.median(error):+.0f}, {np.median(np.abs(error)):.1f}" if len(error) else ""

    return _by_group(phantoms, names, cell)


def coverage_table(phantoms: Sequence[Volumes]) -> str:
    """How often interval and readers' range hold the true volume, and how wide they are, for each group."""
    lines = []
    for group in (ALL, *GROUPS):
        members = [one for one in in_group(phantoms, group) if one.truth and one.evidence.readers]
        if not members:
            continue
        ranges = [(min(one.evidence.readers), max(one.evidence.readers)) for one in members]
        held = [one.interval.low <= one.truth <= one.interval.high for one in members if one.truth]
        in_range = [low <= one.truth <= high for one, (low, high) in zip(members, ranges, strict=True) if one.truth]
        widths = [one.interval.width for one in members]
        wide = [(high - low) / one.interval.estimate for one, (low, high) in zip(members, ranges, strict=True)]
        cells = [f"{100 * np.mean(part):.0f} %" for part in (held, in_range)]
        cells += [f"{100 * np.median(part):.0f} % ({100 * np.mean(part):.0f} %)" for part in (widths, wide)]
        lines.append((group, len(members), cells[0], cells[2], cells[1], cells[3]))
    head = ("group", "phantoms", "interval holds the truth", "its width, median (mean)", "readers' range holds it")
    return markdown_table((*head, "its width, median (mean)"), lines)


# Repeatability --------------------------------------------------------------------------------------------------------


def pairs_of(first: Iterable[Volumes], second: Iterable[Volumes]) -> list[tuple[Volumes, Volumes]]:
    """The nodules of one id in both, in the order of the first."""
    by_id = {one.nodule_id: one for one in second}
    return [(one, by_id[one.nodule_id]) for one in first if one.nodule_id in by_id]


def log_changes(pairs: Sequence[tuple[Volumes, Volumes]], name: str) -> np.ndarray:
    """The logarithm of the second volume over the first, of pairs that have both; of single readers each with each."""
    found = []
    for first, second in pairs:
        for before in first.volumes.get(name, ()):
            found += [math.log(after / before) for after in second.volumes.get(name, ()) if before > 0 and after > 0]
    return np.array(found)


@dataclass(frozen=True)
class Repeatability:
    """How a volume repeats where nothing changed.

    Attributes
    ----------
    deviation : within-nodule standard deviation of log volume, from the root mean square over pairs
    count : of changes
    outer : the middle 95 % of the relative changes
    """

    deviation: float
    count: int
    outer: tuple[float, float]

    @property
    def coefficient(self) -> float:
        """The repeatability coefficient in percent of the volume, 196 sqrt(2) times the coefficient of variation."""
        return 100.0 * REPEATABILITY * math.sqrt(math.exp(self.deviation**2) - 1.0)

    @property
    def least_growth(self) -> float:
        """The growth in percent from which a change is larger than 95 of 100 where nothing changed."""
        return 100.0 * (math.exp(REPEATABILITY * self.deviation) - 1.0)


def repeatability(pairs: Sequence[tuple[Volumes, Volumes]], name: str) -> Repeatability | None:
    """Of a method or mask rule over pairs of scans without growth; None for fewer than three."""
    change = log_changes(pairs, name)
    if len(change) < 3:
        return None
    low, high = np.percentile(change, (2.5, 97.5))
    deviation = float(np.sqrt(np.mean(change**2) / 2.0))
    return Repeatability(deviation, len(change), (math.exp(low) - 1.0, math.exp(high) - 1.0))


def repeatability_table(pairs: Sequence[tuple[Volumes, Volumes]]) -> str:
    """One row per method and mask rule: repeatability, and the least growth that can be told from none."""
    head = ("volume", "repeatability coefficient", "least growth", "middle 95 % of changes")
    lines = []
    for name in NAMES:
        found = repeatability(pairs, name)
        if found:
            low, high = found.outer
            spread = f"{100 * low:+.0f} to {100 * high:+.0f} %"
            lines.append((name, f"{found.coefficient:.0f} %", f"{found.least_growth:.0f} %", spread))
    return markdown_table(head, lines)


def repeatability_by_group(pairs: Sequence[tuple[Volumes, Volumes]]) -> str:
    """One row per method and mask rule, one column per group: the repeatability coefficient in percent."""
    second = {first.nodule_id: second for first, second in pairs}

    def cell(members: list[Volumes], name: str) -> str:
        found = repeatability([(one, second[one.nodule_id]) for one in members], name)
        return f"{found.coefficient:.0f}" if found else ""

    return _by_group([first for first, _ in pairs], NAMES, cell)


# Agreement ------------------------------------------------------------------------------------------------------------


def intraclass_correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """ICC(2,1): two-way random effects, absolute agreement, single measures (Shrout and Fleiss 1979)."""
    values = np.array([first, second], dtype=np.float64).T
    count, judges = values.shape
    whole = values.mean()
    between = judges * ((values.mean(1) - whole) ** 2).sum() / (count - 1)
    judge = count * ((values.mean(0) - whole) ** 2).sum() / (judges - 1)
    rest = values - values.mean(1, keepdims=True) - values.mean(0, keepdims=True) + whole
    error = (rest**2).sum() / ((count - 1) * (judges - 1))
    return float((between - error) / (between + (judges - 1) * error + judges * (judge - error) / count))


def agreement_table(nodules: Sequence[Volumes]) -> str:
    """One row per method and mask rule: its ICC with each reader's volume (log), and the median ratio to it.

    A single reader is compared with each other one.
    """
    lines = []
    for name in NAMES:
        own, other = [], []
        for one in nodules:
            for number, volume in enumerate(one.volumes.get(name, ())):
                for reader, read in enumerate(one.evidence.readers):
                    if volume > 0 and read > 0 and not (name == SINGLE and reader <= number):
                        own.append(math.log(volume))
                        other.append(math.log(read))
        if len(own) > 2:
            ratio = 100 * (math.exp(float(np.median(np.subtract(own, other)))) - 1)
            lines.append((name, f"{intraclass_correlation(own, other):.3f}", f"{ratio:+.0f} %"))
    return markdown_table(("volume", "ICC(2,1) with a reader, log volume", "difference, median"), lines)
