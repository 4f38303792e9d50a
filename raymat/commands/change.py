"""``raymat change``: how lesions changed between two scans."""

from __future__ import annotations

import argparse
from collections.abc import Mapping

from raymat.errors import InputError

HELP = "compare the volumes of lesions in two scans: change with interval, doubling time"


def add_arguments(command: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The arguments of ``raymat change``."""
    command.add_argument("first", help="measures of the first scan (.csv, .parquet of raymat measure), or its dataset")
    command.add_argument("second", help="those of the second scan")
    command.add_argument(
        "--nodules",
        nargs=2,
        metavar=("FIRST", "SECOND"),
        help="ids of one lesion in the first and the second scan (default: all ids that are in both)",
    )
    command.add_argument("--days", type=float, help="days between the scans, for doubling times")
    command.add_argument("-o", "--out", metavar="FILE", help="table to write, .csv or .parquet")
    command.set_defaults(run=run)
    return command


def run(options: argparse.Namespace) -> int:
    """``raymat change``."""
    from raymat.measures.change import CHANGES, change_row, pairs_of
    from raymat.measures.table import TableFile, as_table
    from raymat.version import __version__

    if options.days is not None and not options.days > 0:
        raise InputError(f"--days {options.days:g}: give the days from the first scan to the second, above 0")
    out = TableFile.at(options.out) if options.out else None
    wanted = options.nodules or (None, None)
    first, second = (
        rows_of(place, nodule) for place, nodule in zip((options.first, options.second), wanted, strict=True)
    )
    pairs = list(zip(first, second, strict=True)) if options.nodules else pairs_of(first, second)
    rows = [change_row(*pair, options.days) for pair in pairs]
    for row in rows:
        print(line_of(row))
    if out:
        about = {"raymat": __version__, "first": options.first, "second": options.second}
        for name in out.write(as_table(rows, about, CHANGES)):
            print(out.folder.path(name))
    return 0


def rows_of(place: str, nodule: str | None) -> list[Mapping[str, object]]:
    """Rows of measures: of a table, or measured now; one of them where a nodule is named.

    Raises
    ------
    InputError
        There is no such table, dataset or nodule, or the nodule cannot be measured.
    """
    from raymat.loading import load, window_of
    from raymat.measures.nodule import measure
    from raymat.measures.table import ENDINGS, read_table

    if place.endswith(ENDINGS):
        rows = read_table(place).to_pylist()
        found = [row for row in rows if nodule in (None, row["nodule_id"])]
        if nodule and not found:
            raise InputError(f"{place}: has no nodule {nodule}")
        return found
    nodules = load(place)
    if nodule and nodule not in nodules.ids:
        raise InputError(f"{place}: no accepted nodule {nodule} (`raymat inspect` lists the nodules)")
    window = window_of(place)
    return [measure(nodules[nodule], window)] if nodule else [measure(one, window) for one in nodules]


def line_of(row: Mapping[str, object]) -> str:
    """A change as one line of text."""
    name = row["nodule_id"] if row["nodule_id"] == row["second_id"] else f"{row['nodule_id']}, {row['second_id']}"
    if row["verdict"] is None:
        return f"{name:<23} {row['notes']}"
    volumes = "{first_volume_mm3:.0f} to {second_volume_mm3:.0f} mm3".format_map(row)
    change = "{change:+.0f} % ({change_low:+.0f} to {change_high:+.0f})".format_map(row)
    line = f"{name:<23} {volumes}, {change}, {row['verdict']}"
    if row["doubling_time_days"] == row["doubling_time_days"]:  # not NaN
        upper = row["doubling_time_high_days"]
        times = "{doubling_time_days:.0f} days ({doubling_time_low_days:.0f} to ".format_map(row)
        line += f", doubles in {times}{f'{upper:.0f}' if upper == upper else 'no upper end'})"
    return line
