"""The table of ``raymat readers``: every prediction of the left-out reader, with intervals by patient."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from raymat.evidence.bootstrap import mean_by_patient
from raymat.evidence.reader_prediction import (
    AND_DISTANCE,
    AND_MEAN,
    BASELINES,
    CHOSEN,
    CHOSEN_CALIBRATED,
    MEAN,
    calibration_error,
    ordered,
)
from raymat.words import markdown_table

# Title, and whether more is better.
MEASURES = {
    "brier": ("Brier score", False),
    "auroc": ("AUROC", True),
    "dice_unknown": ("Dice at 0.5", True),
    "dice": ("Dice at 0.5, whole crop", True),
}
BIN_COLUMNS = ("bin_count", "bin_given", "bin_inside")


def summarise(rows: pd.DataFrame) -> pd.DataFrame:
    """One row per method: each measure's mean over all splits and its difference to the mean mask, with intervals.

    Parameters
    ----------
    rows : ``raymat.evidence.reader_prediction.rows_of`` of all splits

    Returns
    -------
    pd.DataFrame
        ``method``; for each of ``MEASURES`` the columns ``NAME, NAME_low, NAME_high`` and, against the mean of the
        three masks on the same splits, ``NAME_gain, NAME_gain_low, NAME_gain_high`` (above 0 is better);
        ``calibration_error``. Intervals are 95 %, over patients.
    """
    rows = rows.set_index(["nodule_id", "left_out"])
    by_method = {str(method): part.sort_index() for method, part in rows.groupby("method")}
    reference = by_method[MEAN]
    table = []
    for method in ordered(by_method):
        part = by_method[method]
        line: dict[str, object] = {"method": method}
        for name, (_, more_is_better) in MEASURES.items():
            patients = part["patient_id"].to_list()
            gain = (part[name] - reference[name]).to_numpy(float) * (1 if more_is_better else -1)
            for key, values in ((name, part[name].to_numpy(float)), (f"{name}_gain", gain)):
                mean = mean_by_patient(values, patients)
                line |= {key: mean.value, f"{key}_low": mean.low, f"{key}_high": mean.high}
        line["calibration_error"] = calibration_error(bins_of(part))
        table.append(line)
    return pd.DataFrame(table)


def bins_of(rows: pd.DataFrame) -> np.ndarray:
    """The calibration bins of all rows together, (3, 10)."""
    return np.array([np.sum(np.stack(rows[name].to_list()), axis=0) for name in BIN_COLUMNS])


def kind_of(method: str) -> str:
    """What a method uses: masks, matte, or both."""
    if method in BASELINES:
        return "masks alone"
    return "both" if method.endswith((AND_MEAN, AND_DISTANCE)) else "matte"


def as_markdown(table: pd.DataFrame) -> str:
    """The table as Markdown; in bold the best of each column."""
    head, lines = ("method", "by", *(title for title, _ in MEASURES.values()), "calibration error"), []
    best = {name: table[name].idxmax() if more else table[name].idxmin() for name, (_, more) in MEASURES.items()}
    for index, row in table.iterrows():
        cells = [row["method"], kind_of(row["method"])]
        for name in MEASURES:
            value = f"{row[name]:.3f}"
            value = f"**{value}**" if best[name] == index else value
            cells.append(f"{value} ({row[f'{name}_low']:.3f} to {row[f'{name}_high']:.3f})")
        lines.append([*cells, f"{row['calibration_error']:.3f}"])
    return markdown_table(head, lines)


def gains_as_markdown(table: pd.DataFrame) -> str:
    """How much better than the mean of the three masks each method is, on the same splits."""
    head, lines = ("better than the mean of the three masks by", "Brier score", "AUROC", "Dice at 0.5"), []
    for _, row in table[table["method"] != MEAN].iterrows():
        cells = [
            f"{row[f'{name}_gain']:+.3f} ({row[f'{name}_gain_low']:+.3f} to {row[f'{name}_gain_high']:+.3f})"
            for name in ("brier", "auroc", "dice_unknown")
        ]
        lines.append([row["method"], *cells])
    return markdown_table(head, lines)


def counts_in_words(rows: pd.DataFrame) -> str:
    """How much was measured."""
    splits = rows.drop_duplicates(["nodule_id", "left_out"])
    return (
        f"{len(splits)} splits of {splits['nodule_id'].nunique()} nodules of "
        f"{splits['patient_id'].nunique()} patients, {splits['voxels'].sum() / 1e6:.1f} million unknown voxels"
    )


def drawn_curves(methods: Sequence[str]) -> list[str]:
    """The methods whose calibration is drawn: the baselines, the chosen mattes, and the first of these with both."""
    wanted = [*BASELINES, CHOSEN, CHOSEN_CALIBRATED, f"{CHOSEN}{AND_MEAN}", f"{CHOSEN}{AND_DISTANCE}"]
    return [method for method in wanted if method in methods]
