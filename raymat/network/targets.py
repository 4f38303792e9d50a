"""Where to predict: centres in scans, from tables."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from raymat.errors import InputError

CENTRES = ("coordX", "coordY", "coordZ")


@dataclass(frozen=True)
class Target:
    """A place in a scan.

    Attributes
    ----------
    target_id, patient_id : str
    image : path of a volume, or of a DICOM tree where ``series`` is given
    series : SeriesInstanceUID, or ""
    centre : (z, y, x) mm, patient coordinates (LPS)
    """

    target_id: str
    patient_id: str
    image: str
    series: str
    centre: tuple[float, float, float]


def targets_of_table(path: str) -> list[Target]:
    """Targets of a CSV table with the columns ``case_id, image, coordX, coordY, coordZ`` (and ``patient_id``).

    Images are paths relative to the table; coordinates are mm in the patient (LPS), as in LUNA16.
    """
    folder = Path(path).absolute().parent
    rows = _rows(path, ("case_id", "image", *CENTRES))
    return [
        Target(row["case_id"], row.get("patient_id") or row["case_id"], str(folder / row["image"]), "", centre)
        for row, centre in rows
    ]


def targets_of_centres(tree: str, path: str) -> list[Target]:
    """Targets of a DICOM tree and a table of centres as LUNA16 has it: ``seriesuid, coordX, coordY, coordZ``."""
    seen: Counter[str] = Counter()
    targets = []
    for row, centre in _rows(path, ("seriesuid", *CENTRES)):
        seen[row["seriesuid"]] += 1
        name = f"{row['seriesuid']}-{seen[row['seriesuid']]}"
        targets.append(Target(name, row["seriesuid"], tree, row["seriesuid"], centre))
    return targets


def _rows(path: str, needed: Sequence[str]) -> Iterator[tuple[dict, tuple[float, float, float]]]:
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            table = csv.DictReader(file)
            missing = [name for name in needed if name not in (table.fieldnames or ())]
            if missing:
                raise InputError(f"{path}: no column {', '.join(missing)}; it needs {', '.join(needed)}")
            # Spreadsheets leave empty rows at the end.
            rows = [row for row in table if any(str(row[name] or "").strip() for name in table.fieldnames or ())]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read as CSV ({error})") from error
    if not rows:
        raise InputError(f"{path}: has no rows: nothing to predict")
    for number, row in enumerate(rows, start=2):
        try:
            x, y, z = (float(row[name]) for name in CENTRES)
        except (TypeError, ValueError):
            x = y = z = float("nan")
        if not np.isfinite((x, y, z)).all():
            raise InputError(f"{path}: line {number}: {', '.join(CENTRES)} must be three numbers, mm")
        if not all(row[name] for name in needed):
            raise InputError(f"{path}: line {number}: {', '.join(needed)} must all be given")
        yield row, (z, y, x)
