"""The change of a lesion between two scans, and whether it is more than two scans of the same lesion differ by.

Both volumes are estimates of ``raymat.measures.interval``. Their errors are alike in both scans in part (the same wall,
the same blurred margin), so the change is more certain than either volume: its interval comes from lesions that were
scanned twice and did not change. See docs/results/measures.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from raymat.errors import InputError
from raymat.measures.dictionary import NUMBER, TEXT, TEXTS, Measure
from raymat.measures.interval import SMALL_MM3

# Within-nodule standard deviation of the logarithm of the estimate, below SMALL_MM3 and above, of 72 lesions that were
# scanned twice: `python benchmarks/measure.py retest`, docs/results/measures.md.
DEVIATIONS = (0.0666, 0.0379)
QUANTILE_90, QUANTILE_95 = 1.6449, 1.9600
LARGER, SMALLER, WITHIN = "larger", "smaller", "within retest variation"
NAN = math.nan

CHANGES: dict[str, Measure] = {
    "nodule_id": Measure("", "id of the nodule in the first scan", TEXT),
    "second_id": Measure("", "id of the nodule in the second scan", TEXT),
    "first_volume_mm3": Measure("mm3", "estimate of the volume in the first scan"),
    "second_volume_mm3": Measure("mm3", "estimate of the volume in the second scan"),
    "change": Measure("%", "change of the volume, in percent of the first"),
    "change_low": Measure("%", "lower end of its 90 % interval"),
    "change_high": Measure("%", "upper end of that interval"),
    "verdict": Measure(
        "", "whether the change lies outside of what 95 of 100 pairs of scans differ by without a change", TEXT
    ),
    "days": Measure("d", "days between the scans"),
    "doubling_time_days": Measure("d", "time in which the volume doubles; of a volume that grew"),
    "doubling_time_low_days": Measure("d", "lower end of its 90 % interval"),
    "doubling_time_high_days": Measure("d", "upper end of that interval; empty where growth is not certain"),
    "mean_diameter_change_mm": Measure("mm", "change of the mean axial diameter"),
    "tissue_mass_change": Measure("%", "change of the mass of the tissue"),
    "notes": Measure("", "what a user should know of this pair", TEXTS),
}
assert all(column.type in (NUMBER, TEXT, TEXTS) for column in CHANGES.values())


@dataclass(frozen=True)
class Change:
    """A change of log volume.

    Attributes
    ----------
    log_ratio : the logarithm of the second over the first volume
    deviation : the standard deviation of that where nothing changed
    """

    log_ratio: float
    deviation: float

    @property
    def percent(self) -> tuple[float, float, float]:
        """The change and the ends of its 90 % interval, in percent of the first volume."""
        off = QUANTILE_90 * self.deviation
        change, low, high = (100.0 * math.expm1(self.log_ratio + step) for step in (0.0, -off, off))
        return change, low, high

    @property
    def verdict(self) -> str:
        """Whether two scans of a lesion that did not change differ by as much."""
        if abs(self.log_ratio) <= QUANTILE_95 * self.deviation:
            return WITHIN
        return LARGER if self.log_ratio > 0 else SMALLER

    def doubling_days(self, days: float) -> tuple[float, float, float]:
        """The doubling time and the ends of its 90 % interval; NaN where a volume did not grow by that end."""
        off = QUANTILE_90 * self.deviation
        time, low, high = (
            days * math.log(2.0) / ratio if ratio > 0 else NAN
            for ratio in (self.log_ratio, self.log_ratio + off, self.log_ratio - off)
        )
        return time, low, high


def change_of(first_mm3: float, second_mm3: float) -> Change:
    """The change between two estimates of a volume, mm3."""
    deviation = math.hypot(*(DEVIATIONS[0 if volume < SMALL_MM3 else 1] for volume in (first_mm3, second_mm3)))
    return Change(math.log(second_mm3 / first_mm3), deviation)


def change_row(
    first: Mapping[str, object], second: Mapping[str, object], days: float | None = None
) -> dict[str, object]:
    """The row of ``CHANGES`` of two rows of measures of one lesion.

    Parameters
    ----------
    first, second : of ``raymat.measure``, or of a table of measures
    days : between the scans, above 0; None where it is not known: no doubling time then
    """
    notes: list[str] = []
    row: dict[str, object] = {"nodule_id": first["nodule_id"], "second_id": second["nodule_id"], "notes": notes}
    row |= {name: NAN for name, column in CHANGES.items() if column.type == NUMBER}
    row["verdict"], row["days"] = None, NAN if days is None else float(days)
    before, after = (_number(one, "volume_estimate_mm3") for one in (first, second))
    row["first_volume_mm3"], row["second_volume_mm3"] = before, after
    row["mean_diameter_change_mm"] = _number(second, "mean_diameter_mm") - _number(first, "mean_diameter_mm")
    masses = [_number(one, "tissue_mass_mg") for one in (first, second)]
    row["tissue_mass_change"] = 100.0 * (masses[1] / masses[0] - 1.0) if masses[0] else NAN
    absent = [scan for scan, volume in (("first", before), ("second", after)) if math.isnan(volume)]
    if absent:
        notes.append(f"no estimate of the volume in the {' and the '.join(absent)} scan")
        return row
    change = change_of(before, after)
    row["change"], row["change_low"], row["change_high"] = change.percent
    row["verdict"] = change.verdict
    if days is not None:
        times = change.doubling_days(days)
        row["doubling_time_days"], row["doubling_time_low_days"], row["doubling_time_high_days"] = times
        if math.isnan(times[0]):
            notes.append("the volume did not grow: no doubling time")
        elif math.isnan(times[2]):
            notes.append("the interval of the change holds no change: the doubling time has no upper end")
    return row


def _number(row: Mapping[str, object], name: str) -> float:
    value = row.get(name)
    return float(value) if isinstance(value, int | float) else NAN


def pairs_of(
    first: Iterable[Mapping[str, object]], second: Iterable[Mapping[str, object]]
) -> list[tuple[Mapping[str, object], Mapping[str, object]]]:
    """Rows of one nodule id, in the order of the first.

    Raises
    ------
    InputError
        No id is in both.
    """
    by_id = {row["nodule_id"]: row for row in second}
    pairs = [(row, by_id[row["nodule_id"]]) for row in first if row["nodule_id"] in by_id]
    if not pairs:
        raise InputError("no nodule id is in both: name one of each with --nodules FIRST SECOND")
    return pairs
