"""Several entries of one benchmark side by side, as a page."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from raymat.benchmark.judge import ANSWERED, BASELINES, BENCHMARK_VERSION, MISSING, UNUSABLE
from raymat.benchmark.result import ERRORS, NOT_STATED, SUMMARY, in_words, yes
from raymat.benchmark.tables import (
    COLUMNS,
    TITLES,
    Reference,
    cell,
    difference_in_words,
    errors_against,
    less,
    mean_and_spread,
    references,
    scaled,
)
from raymat.folder import Folder
from raymat.network.evaluation import is_automatic
from raymat.nodule import InputError
from raymat.words import bounded, markdown_table

NEEDED = ("benchmark", "name", "kind", "automatic", "learnt_from", "release", "digest", "splits", "counts", "raymat")


@dataclass(frozen=True)
class Table:
    """The output of one benchmark.

    Attributes
    ----------
    path : of the output
    summary : ``summary.json``
    rows : ``errors.csv``, in the units of tables
    """

    path: str
    summary: dict[str, Any]
    rows: pd.DataFrame

    @property
    def name(self) -> str:
        """Of the entry."""
        return str(self.summary["name"])

    @property
    def splits(self) -> tuple[int, ...]:
        """That were judged."""
        return tuple(self.summary["splits"])


def read_table(path: str) -> Table:
    """The output of ``raymat benchmark``.

    Raises
    ------
    InputError
        There is none, or it is damaged.
    """
    folder = Folder.at(path)
    for name in (SUMMARY, ERRORS):
        if not folder.exists(name):
            raise InputError(f"{path}: no output of raymat benchmark ({name} is missing)")
    summary = folder.read_json(SUMMARY)
    lacking = [name for name in NEEDED if name not in summary]
    if lacking:
        raise InputError(f"{folder.path(SUMMARY)}: damaged (no {lacking[0]}); run raymat benchmark again")
    try:
        types = {name: str for name in COLUMNS if name not in ("split", "value")}
        rows = pd.read_csv(io.BytesIO(folder.read(ERRORS)), dtype=types, keep_default_na=False)
        rows = scaled(rows[list(COLUMNS)].astype({"split": int, "value": float}))
    except (ValueError, KeyError) as error:
        raise InputError(f"{folder.path(ERRORS)}: damaged ({error}); run raymat benchmark again") from error
    return Table(path, summary, rows)


def leaderboard(tables: Sequence[Table]) -> str:
    """The page: one section per kind of alpha, reference and set of splits, the nearest entry first.

    Raises
    ------
    InputError
        The entries are of different releases or versions of the benchmark, or two have one name.
    """
    first = tables[0]
    for one in tables:
        if one.summary["benchmark"] != BENCHMARK_VERSION:
            raise InputError(
                f"{one.path}: of version {one.summary['benchmark']} of the benchmark, this raymat compares version "
                f"{BENCHMARK_VERSION}; run raymat benchmark again"
            )
        if one.summary["digest"] != first.summary["digest"]:
            raise InputError(
                f"{one.path}: of release {one.summary['release']} ({one.summary['digest'][:12]}), {first.path} of "
                f"{first.summary['release']} ({first.summary['digest'][:12]}); a leaderboard is of one release"
            )
    names = [one.name for one in tables]
    double = next((name for name in names if names.count(name) > 1), None)
    if double is not None:
        both = " and ".join(one.path for one in tables if one.name == double)
        raise InputError(f"{both}: both entries are called {double}; give one of them another --name")
    parts = [
        "# Leaderboard",
        f"Release {first.summary['release']}, digest `{first.summary['digest']}`. Made by `raymat leaderboard` from "
        "outputs of `raymat benchmark`. Entries are compared within one kind of alpha and the same splits. What a "
        "method needs and learnt from is what its authors say.",
    ]
    for splits in sorted({one.splits for one in tables}, key=lambda splits: (-len(splits), splits)):
        group = [one for one in tables if one.splits == splits]
        for reference in sorted({ref for one in group for ref in references(one.rows)}, key=_order):
            errors = [(one, errors_against(one.rows, reference)) for one in group]
            entered = [(one, found) for one, found in errors if one.name in found]
            if entered:
                parts += [f"## {reference.title}, splits {in_words(splits)}", *_section(entered, reference)]
    parts += ["## Entries", _entries(tables)]
    return "\n\n".join(parts) + "\n"


def _order(reference: Reference) -> tuple[bool, str, str]:
    return not reference.kind, reference.kind, reference.truth


def _section(tables: Sequence[tuple[Table, dict[str, pd.DataFrame]]], reference: Reference) -> list[str]:
    chief, (first, errors) = reference.columns[0], tables[0]
    entries = {one.name: found[one.name] for one, found in tables}
    baselines = {name: found for name, found in errors.items() if name in BASELINES}
    means = {name: mean_and_spread(found) for name, found in (entries | baselines).items()}
    leader = min(entries, key=lambda name: means[name][chief][0])
    said = {one.name: one.summary for one, _ in tables}
    lines, place = [], 0
    for name in sorted(means, key=lambda name: means[name][chief][0]):
        own = name in entries
        place += own
        found = entries[name] if own else baselines[name]
        count, apart = less(found, entries[leader], [chief])
        automatic = said[name]["automatic"] if own else is_automatic(name)
        cells = [place if own else "", bounded(name, 80) if own else f"*{name}*", yes(automatic), len(found)]
        cells += [cell(metric, *means[name][metric]) for metric in reference.columns]
        if not reference.kind:
            cells.append(f"{_calibration(said[name] if own else first.summary, name):.3f}")
        cells.append("" if name == leader or not count else difference_in_words(chief, apart[chief]))
        lines.append(cells)
    more = () if reference.kind else ("calibration error",)
    head = ("", "entry", "fully automatic", "nodules", *(TITLES[name] for name in reference.columns), *more)
    table = markdown_table((*head, f"{TITLES[chief]} less that of {leader}"), lines)
    return [
        f"Ordered by {TITLES[chief]}. Mean over the splits (± standard deviation over the splits, n - 1). The last "
        "column is of the nodules that both have, with a 95 % interval over patients. Baselines are in italics.",
        table,
    ]


def _calibration(summary: dict[str, Any], name: str) -> float:
    return float(summary.get("calibration", {}).get(name, float("nan")))


def _entries(tables: Sequence[Table]) -> str:
    lines = []
    for one in sorted(tables, key=lambda one: one.name.casefold()):
        said, counts = one.summary, one.summary["counts"]
        answered = counts.get(ANSWERED, 0)
        tests = answered + counts.get(MISSING, 0) + counts.get(UNUSABLE, 0)
        lines.append(
            [
                bounded(one.name, 80),
                said["kind"] if said["kind"] != NOT_STATED else f"{NOT_STATED}, judged on both",
                in_words(one.splits),
                f"{answered} of {tests}",
                said["learnt_from"],
                said["digest"][:12],
                said["raymat"],
                f"`{said.get('command', '')}`",
            ]
        )
    head = ("entry", "kind of alpha", "splits", "test nodules answered", "learnt from", "release", "raymat", "command")
    return markdown_table(head, lines)
