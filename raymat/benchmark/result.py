"""What the benchmark of one entry says, as a page for people and as values for a leaderboard.

OUT/table.md       who entered what, the tables, and every matte with a problem
OUT/errors.csv     every error: ``raymat.benchmark.tables.COLUMNS``, unscaled
OUT/mattes.csv     what became of each file: answered, resampled, missing, unusable, extra
OUT/summary.json   facts, counts and means
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from raymat.benchmark.entry import LEARNT_FROM
from raymat.benchmark.judge import ANSWERED, BENCHMARK_VERSION, BOX_MM, MISSING, TURNS, UNUSABLE
from raymat.benchmark.tables import (
    Reference,
    as_markdown,
    calibration_errors,
    errors_against,
    mean_and_spread,
    references,
    scaled,
)
from raymat.network.evaluation import is_automatic
from raymat.words import bounded, markdown_table

TABLE, ERRORS, MATTES, SUMMARY = "table.md", "errors.csv", "mattes.csv", "summary.json"
EXTRA = "extra"
MATTE_COLUMNS = ("split", "nodule_id", "patient_id", "file", "state", "note")
NOT_STATED = "not stated"
LISTED = 20  # mattes with a problem that a page names
OFTEN, FEWEST = 0.8, 5  # of the mattes, and how many at least, that would agree better after a turn


@dataclass(frozen=True)
class Facts:
    """What was judged, as it is stored.

    Attributes
    ----------
    name : of the entry
    kind : of its alpha, as the entry says; ``NOT_STATED``
    solver : of raymat, whose mattes they are; empty for any other method
    automatic : whether it needs no mask and no trimap, as the entry says
    learnt_from : ``raymat.benchmark.entry.learnt_in_words``
    release, digest : version and digest of the release
    splits : that were judged
    mattes : the folder
    raymat, command : the version, and the command as it was typed
    """

    name: str
    kind: str
    solver: str
    automatic: bool
    learnt_from: str
    release: str
    digest: str
    splits: tuple[int, ...]
    mattes: str
    raymat: str
    command: str


@dataclass(frozen=True)
class Result:
    """The benchmark of one entry.

    Attributes
    ----------
    facts : Facts
    rows : ``raymat.benchmark.tables.COLUMNS``, unscaled
    bins : method to the calibration bins of each split and nodule
    mattes : rows of ``MATTE_COLUMNS``; an extra file has no split and no nodule
    turned : turns of ``raymat.benchmark.judge.TURNS`` to how many mattes would agree better after it
    """

    facts: Facts
    rows: pd.DataFrame
    bins: Mapping[str, Sequence[np.ndarray]]
    mattes: Sequence[Mapping[str, Any]]
    turned: Mapping[str, int]

    @property
    def counts(self) -> dict[str, int]:
        """How many files came to which state; a nodule of several splits counts in each of them."""
        found = Counter(row["state"] for row in self.mattes)
        return {state: found[state] for state in (ANSWERED, MISSING, UNUSABLE, EXTRA)}

    @cached_property
    def tables(self) -> dict[Reference, dict[str, pd.DataFrame]]:
        """Each reference's ``raymat.benchmark.tables.errors_against``."""
        rows = scaled(self.rows)
        return {reference: errors_against(rows, reference) for reference in references(rows)}

    def is_automatic(self, method: str) -> bool:
        """Whether a method of the tables needs no mask and no trimap."""
        return self.facts.automatic if method == self.facts.name else is_automatic(method)

    @property
    def warning(self) -> str:
        """What is wrong with most of the mattes, it seems; empty where nothing is."""
        answered = self.counts[ANSWERED]
        often = [turn for turn in TURNS if self.turned.get(turn, 0) >= max(FEWEST, OFTEN * answered)]
        if not often:
            return ""
        return (
            f"most mattes agree better with the release {' and '.join(often)}: does each array have the order of its "
            "header? nodule.image is (z, y, x), an array of nibabel (x, y, z)"
        )

    def summary(self) -> dict[str, Any]:
        """The values of ``summary.json``."""
        name, means = self.facts.name, {}
        for reference, errors in self.tables.items():
            if name in errors:
                found = mean_and_spread(errors[name])
                key = f"{reference.kind} {reference.truth}".strip()
                means[key] = {metric: value for metric, (value, _) in found.items()}
        return {
            "benchmark": BENCHMARK_VERSION,
            **vars(self.facts),
            "splits": list(self.facts.splits),
            "counts": self.counts,
            "means": means,
            "calibration": calibration_errors(self.bins),
        }

    def page(self) -> str:
        """The text of ``table.md``."""
        facts, counts = self.facts, self.counts
        tests = counts[ANSWERED] + counts[MISSING] + counts[UNUSABLE]
        alone = self.rows.drop_duplicates("nodule_id")
        about = [
            ("release", f"{facts.release}, digest `{facts.digest}`"),
            ("splits", f"{in_words(facts.splits)}: {tests} test nodules, {len(alone)} of them different"),
            ("patients", alone["patient_id"].nunique()),
            ("kind of alpha", facts.kind),
            ("fully automatic", yes(facts.automatic)),
            ("learnt from", learnt(facts.learnt_from)),
            ("mattes", ", ".join(f"{number} {state}" for state, number in counts.items())),
            ("raymat", f"{facts.raymat}, benchmark {BENCHMARK_VERSION}"),
            ("command", f"`{facts.command}`"),
        ]
        if facts.solver:
            about.insert(4, ("solver of raymat", f"{facts.solver}; nodules whose reference it made are left out"))
        parts = [
            f"# Benchmark of {facts.name}",
            markdown_table(("", ""), about),
            f"A missing or unusable matte counts as alpha 0 everywhere. Errors are counted in the middle {BOX_MM:g} mm "
            "of each crop, wider where the lesion is. The solver that made a reference is not compared with it.",
        ]
        if self.warning:
            parts.append(f"**Warning**: {self.warning}")
        calibration = calibration_errors(self.bins)
        for reference, errors in self.tables.items():
            table = as_markdown(errors, reference, calibration, facts.name, self.is_automatic)
            parts += [f"## {reference.title}", table]
        parts += self._listed()
        return "\n\n".join(parts) + "\n"

    def problems(self) -> list[str]:
        """One line for each matte that is missing, unusable or extra; one of several splits once."""
        lines = {}
        for row in self.mattes:
            if row["state"] != ANSWERED:
                lines[row["file"] or row["nodule_id"], row["state"]] = f"{row['state']}  {row['note']}"
        return list(lines.values())

    def _listed(self) -> list[str]:
        problems = [bounded(line) for line in self.problems()]
        if not problems:
            return []
        more = [f"... and {len(problems) - LISTED} more in `{MATTES}`"] if len(problems) > LISTED else []
        cells = [line.split("  ", 1) for line in problems[:LISTED]]
        return ["## Mattes with a problem", markdown_table(("state", "what to do"), cells), *more]


def in_words(splits: Sequence[int]) -> str:
    """The numbers of splits: "0, 1, 2, 3"."""
    return ", ".join(map(str, splits))


def yes(value: bool) -> str:
    """A switch in a table."""
    return "yes" if value else "no"


def learnt(words: str) -> str:
    """What an entry learnt from, and that nobody can check it."""
    if words == NOT_STATED:
        return f"{words} (no {LEARNT_FROM}); trusted"
    return f"{words}, none of them tested, as the entry says; trusted"
