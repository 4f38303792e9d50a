"""Tables of errors on the test nodules: means over splits, and the entry's paired differences to every baseline."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from raymat import metrics
from raymat.benchmark.judge import BASELINES, READERS_MASKS
from raymat.evidence.bootstrap import Estimate, mean_of_splits
from raymat.evidence.reader_prediction import calibration_error
from raymat.network.evaluation import TITLES as ERRORS
from raymat.network.evaluation import TRUE
from raymat.words import markdown_table, plus_minus

TITLES = {**ERRORS, "dice": "soft Dice", "volume": "volume error, %", "bias": "volume bias, %", "brier": "Brier score"}
OF_ALPHA = (*ERRORS, "dice", "volume", "bias")
COMPARED = (*ERRORS, "dice", "volume")
DIGITS = {"dice": 3, "brier": 3, "volume": 1, "bias": 1}
COLUMNS = ("split", "nodule_id", "patient_id", "kind", "truth", "method", "metric", "value")
CALIBRATION = "calibration"
PLACE = ["split", "nodule_id"]


@dataclass(frozen=True)
class Reference:
    """What mattes are compared with: a kind of alpha and a ground truth of it, or the readers' masks (no kind)."""

    kind: str
    truth: str

    @property
    def title(self) -> str:
        """A heading."""
        if not self.kind:
            return "Against the readers' masks"
        return (
            f"Against the true {self.kind} alpha" if self.truth == TRUE else f"Against the release's {self.kind} matte"
        )

    @property
    def columns(self) -> tuple[str, ...]:
        """The metrics of its table."""
        return OF_ALPHA if self.kind else ("brier",)


def references(rows: pd.DataFrame) -> list[Reference]:
    """Those that there are errors against, the readers' masks last."""
    found = rows[["kind", "truth"]].drop_duplicates().itertuples(index=False)
    return sorted((Reference(*one) for one in found), key=lambda one: (one.truth == READERS_MASKS, one.kind, one.truth))


def scaled(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of ``COLUMNS`` in the units of the tables; values of files are unscaled."""
    scale = rows["metric"].map(lambda name: metrics.REPORT_SCALE.get(name, 1.0))
    return rows.assign(value=rows["value"] * scale)


def errors_against(rows: pd.DataFrame, reference: Reference) -> dict[str, pd.DataFrame]:
    """Method to its errors against a reference: one row per split and nodule, one column per metric, and its patient.

    The entry comes first, then the baselines.
    """
    part = rows[(rows["kind"] == reference.kind) & (rows["truth"] == reference.truth)]

    def precedence(name: str) -> int:
        return BASELINES.index(name) if name in BASELINES else -1

    return {
        method: part[part["method"] == method]
        .pivot(index=[*PLACE, "patient_id"], columns="metric", values="value")
        .reset_index("patient_id")
        for method in sorted(part["method"].unique(), key=precedence)
    }


def mean_and_spread(errors: pd.DataFrame) -> dict[str, tuple[float, float]]:
    """Metric to the mean over splits of each one's mean, and ``raymat.metrics.spread`` of these; as in Table 1."""
    means = errors.drop(columns="patient_id").groupby("split").mean()
    return {str(name): (float(means[name].mean()), metrics.spread(means[name])) for name in means}


def less(first: pd.DataFrame, second: pd.DataFrame, names: Sequence[str]) -> tuple[int, dict[str, Estimate]]:
    """How much the first's errors exceed the second's on the nodules that both have, with intervals over patients."""
    both = first.index.intersection(second.index)
    one, other = first.loc[both], second.loc[both]
    splits, patients = one.index.get_level_values("split"), one["patient_id"]
    return len(both), {name: mean_of_splits(one[name] - other[name], splits, patients) for name in names}


def calibration_errors(bins: Mapping[str, Sequence[np.ndarray]]) -> dict[str, float]:
    """Method to the expected calibration error of all its voxels together."""
    return {method: calibration_error(np.sum(found, axis=0)) for method, found in bins.items() if len(found)}


def as_markdown(
    errors: Mapping[str, pd.DataFrame],
    reference: Reference,
    calibration: Mapping[str, float],
    entry: str,
    automatic: Callable[[str], bool],
) -> str:
    """The table of a reference, one row per method, and the entry's paired differences to each baseline.

    ``automatic`` says whether a method needs no mask and no trimap.
    """
    names = reference.columns
    more = () if reference.kind else ("calibration error",)
    lines = []
    for method, found in errors.items():
        numbers = mean_and_spread(found)
        cells = [cell(name, *numbers[name]) for name in names]
        cells += [f"{calibration[method]:.3f}" for _ in more]
        start = [f"**{entry}**" if method == entry else method, "yes" if automatic(method) else "no", len(found)]
        lines.append([*start, *cells])
    table = markdown_table(("method", "fully automatic", "nodules", *(TITLES[name] for name in names), *more), lines)
    compared = [name for name in names if name in (*COMPARED, "brier")]
    lines = []
    for method, found in errors.items():
        if method == entry or entry not in errors:
            continue
        count, differences = less(errors[entry], found, compared)
        if count:
            lines.append(
                [f"less {method}", count, *(difference_in_words(name, differences[name]) for name in compared)]
            )
    parts = [
        "Mean over the splits (± standard deviation over the splits, n - 1); `nodules` counts each split apart.",
        table,
    ]
    if lines:
        nearer = f"below 0 {entry} is nearer" + ("; of soft Dice above 0" if "dice" in compared else "")
        parts += [
            f"{entry} less each baseline on the same nodules, with 95 % intervals over patients ({nearer}):",
            markdown_table((entry, "nodules", *(TITLES[name] for name in compared)), lines),
        ]
    return "\n\n".join(parts)


def difference_in_words(name: str, estimate: Estimate) -> str:
    """A difference with its interval, in the digits of its metric: "-1.20 (-2.00 to -0.40)"."""
    form = f"+.{DIGITS.get(name, 2)}f"
    return f"{estimate.value:{form}} ({estimate.low:{form}} to {estimate.high:{form}})"


def cell(name: str, mean: float, spread: float) -> str:
    """A mean with its deviation, in the digits of its metric."""
    return plus_minus(mean, spread, f"{'+' if name == 'bias' else ''}.{DIGITS.get(name, 2)}f")
