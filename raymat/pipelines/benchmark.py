"""Anybody's mattes on the test nodules of a release, on Ray Data: tables, a figure and an MLflow run.

What an output holds: ``raymat.benchmark.result``.
"""

from __future__ import annotations

import json
import shlex
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from matplotlib.figure import Figure

from raymat.benchmark.entry import Mattes, expected_file, find_mattes, learnt_in_words, refuse_training_on_tests
from raymat.benchmark.judge import MISSING, UNUSABLE, Entrant, Judged, judge
from raymat.benchmark.result import (
    ERRORS,
    EXTRA,
    MATTE_COLUMNS,
    MATTES,
    NOT_STATED,
    SUMMARY,
    TABLE,
    Facts,
    Result,
)
from raymat.benchmark.tables import COLUMNS, mean_and_spread
from raymat.engine.here import outcomes_of, workplace
from raymat.engine.job import Job, new_session, part_of
from raymat.engine.sharing import shared
from raymat.engine.stages import Pool, Stage, Work
from raymat.engine.tries import Marks
from raymat.experiment import BENCHMARK, Experiment, Output, experiment
from raymat.experiment import Facts as Inputs
from raymat.folder import Folder
from raymat.guard import guarded
from raymat.learning import Data
from raymat.loading import Nodules
from raymat.methods import MEANINGS, kind_of
from raymat.network.evaluation import RAMP
from raymat.network.evaluation import TITLES as SHOWN
from raymat.nodule import ACCEPTED, FAILED, InputError, Nodule
from raymat.pictures.network import error_bars
from raymat.pipelines.nodules import SHARED, read_nodule, work_rows
from raymat.places import open_filesystem
from raymat.release.record import Release, is_release
from raymat.version import __version__
from raymat.words import counted, plain_name, utf8

NAMED = 20  # mattes with a problem that are printed
ENTRANT = "entrant"  # what the workers share beside the nodules
JUDGED = pa.schema([(name, pa.string()) for name in ("key", "nodule_id", "outcome", "reason", "judged")])


@dataclass(frozen=True)
class BenchmarkJob:
    """What to judge.

    Attributes
    ----------
    release : folder or URI of a release
    mattes : folder of the entry, see ``raymat.benchmark.entry``
    output : where tables are written and logged
    name : of the entry; that of its folder where empty
    kind : "calibrated" or "membership"; None for an entry that does not say, which is judged on both
    solver : of raymat, whose mattes they are; empty for any other method
    automatic : whether the method needs no mask and no trimap
    splits : to judge; None for all that the entry has
    workers : processes that judge
    address : the Ray cluster; None for the one this job runs on, else a local one
    """

    release: str
    mattes: str
    output: Output
    name: str = ""
    kind: str | None = None
    solver: str = ""
    automatic: bool = False
    splits: tuple[int, ...] | None = None
    workers: int = 1
    address: str | None = None


def benchmark(job: BenchmarkJob, say: Callable[[str], None] = print) -> Result:
    """Judge an entry and write its tables.

    Raises
    ------
    InputError
        There is no release, it has no matte of the entry's kind or no test nodules, the entry holds no matte of the
        release or says that it learnt from test patients.
    """
    if not is_release(*open_filesystem(job.release)):
        raise InputError(f"{job.release}: no release here; a benchmark needs one that does not change (raymat release)")
    release, data = Release.open(job.release), Data.open(job.release)
    entrant = entrant_of(job, release)
    mattes = find_mattes(job.mattes, data.nodules.ids, job.splits)
    tests = {split: data.split(split).test for split in mattes}
    empty = [split for split, patients in tests.items() if not patients]
    if empty:
        raise InputError(f"{job.release}: split {empty[0]} tests no patient; release a larger dataset")
    refuse_training_on_tests(mattes, tests, dict(zip(data.nodules.ids, data.patients, strict=True)))
    stated = job.kind or (kind_of(job.solver) if job.solver else NOT_STATED)
    facts = Facts(
        entrant.name,
        stated,
        job.solver,
        job.automatic,
        learnt_in_words(mattes),
        str(release.place.note().get("version", "")),
        release.digest,
        tuple(sorted(mattes)),
        job.mattes,
        __version__,
        shlex.join(job.output.command),
    )
    positions = {split: data.of(patients) for split, patients in tests.items()}
    say(f"{counted(len(mattes), 'split')}, {counted(sum(map(len, positions.values())), 'test nodule')}")
    inputs = Inputs(asdict(facts), {"of": [facts.digest, str(job.mattes), facts.name]})
    with experiment(BENCHMARK, job.output, inputs, say) as output:
        output.describe(f"Mattes of {facts.name} on the test nodules of a release.")
        output.input(job.release, facts.digest, facts.kind)
        work = work_of(data, mattes, positions)
        judged = {
            (row["mattes"], row["position"]): one
            for row, one in zip(work, _judge_all(job, data, entrant, work, output.files, say), strict=True)
        }
        result = result_of(facts, data, mattes, positions, judged)
        _write(output, result, say)
    return result


def entrant_of(job: BenchmarkJob, release: Release) -> Entrant:
    """The entry's name, and the kinds of alpha that it is judged on.

    Raises
    ------
    InputError
        The release has no matte of its kind, or the kind is not that of the solver.
    """
    if job.solver and job.kind not in (None, kind_of(job.solver)):
        raise InputError(f"--kind {job.kind}: mattes of {job.solver} are of the kind {kind_of(job.solver)}")
    methods = {row[column] for row in release.index for column in ("method", "other_method") if row[column]}
    there = [kind for kind in MEANINGS if kind in {kind_of(method) for method in methods}]
    kind = job.kind or (kind_of(job.solver) if job.solver else None)
    kinds = [one for one in there if kind in (None, one)]
    if not kinds:
        raise InputError(f"{job.release}: has no {kind} mattes to judge by, only {' and '.join(there)}")
    return Entrant(job.name or Path(job.mattes).absolute().name, tuple(kinds), job.solver)


@dataclass(frozen=True)
class Judging:
    """The steps of a benchmark, as the engine runs them; the nodules are shared with every worker."""

    session: str

    @property
    def work(self) -> Work:
        return Work(self.read, (Stage("judge", self.judge, cpus=0.9),), self.rows)

    def read(self, row: dict) -> Nodule:
        """A test nodule, which knows the entry's file."""
        nodule = read_nodule(self.session, row)
        return replace(nodule, metadata={"file": row["file"], "problem": row["problem"]})

    def judge(self, nodule: Nodule) -> Nodule:
        """The nodule without arrays, with its errors."""

        def work(nodule: Nodule) -> Nodule:
            about: dict[str, Any] = nodule.metadata
            judged = judge(nodule, about["file"] or None, shared(self.session, ENTRANT), about["problem"])
            return nodule.without_arrays(outcome=ACCEPTED, metadata={"judged": json.dumps(asdict(judged))})

        return guarded("judge", nodule, work)

    def rows(self, nodules: list[Nodule]) -> pa.Table:
        """What comes back of the nodules; nothing is stored of them."""
        names = ("key", "nodule_id", "outcome", "reason")
        return pa.Table.from_pylist(
            [
                {name: getattr(nodule, name) for name in names} | {"judged": nodule.metadata.get("judged")}
                for nodule in nodules
            ],
            schema=JUDGED,
        )


def work_of(data: Data, mattes: Mapping[int, Mattes], positions: Mapping[int, Sequence[int]]) -> list[dict]:
    """One row per file to judge; a nodule that several splits test is one where they share a folder."""
    rows = []
    for number, one in enumerate({one.folder: one for one in mattes.values()}.values()):
        wanted = {position for split, of in positions.items() if mattes[split].folder == one.folder for position in of}
        for row in work_rows(data, sorted(wanted), folder=number):
            file, problem = one.files.get(row["nodule_id"], ""), one.problems.get(row["nodule_id"], "")
            rows.append({**row, "mattes": str(one.folder), "file": str(file), "problem": problem})
    return rows


def _judge_all(
    job: BenchmarkJob, data: Data, entrant: Entrant, work: list[dict], files: Folder, say: Callable[[str], None]
) -> list[Judged]:
    """What came out of each row of the work."""
    session = new_session()
    judging = Judging(session)
    pool = Pool(judging.work.stages, min(job.workers, len(work)))
    values = {SHARED: data.nodules, ENTRANT: entrant}
    what = Job(judging.work, [part_of(work)], [pool], Marks(files), session, shared=values)
    with workplace(job.workers, job.address):
        rows = {row["key"]: row for row in outcomes_of(what, say).to_pylist()}
    return [_judged(rows[row["key"]], data.nodules, entrant) for row in work]


def _judged(row: Mapping[str, str], nodules: Nodules, entrant: Entrant) -> Judged:
    """A row of the workers; a matte that one could not judge, or died of, is unusable.

    Raises
    ------
    InputError
        The nodule is at fault.
    """
    if row["outcome"] != FAILED:
        return Judged(**json.loads(row["judged"]))
    problem = f"could not be judged ({row['reason']}); write the file again"
    return judge(nodules[row["nodule_id"]], None, entrant, problem)


def result_of(
    facts: Facts,
    data: Data,
    mattes: Mapping[int, Mattes],
    positions: Mapping[int, Sequence[int]],
    judged: Mapping[tuple[str, int], Judged],
) -> Result:
    """The result of all splits; ``judged`` is by folder and position of the nodule."""
    errors: list[dict] = []
    states: list[dict[str, Any]] = []
    bins, turned = defaultdict(list), Counter[str]()
    for split, places in sorted(positions.items()):
        folder, files = mattes[split].folder, mattes[split].files
        for position in places:
            one, nodule_id = judged[str(folder), position], data.nodules.ids[position]
            start = {"split": split, "nodule_id": nodule_id, "patient_id": data.patients[position]}
            errors += [start | row for row in one.rows]
            for method, counts in one.bins.items():
                bins[method].append(np.asarray(counts))
            turned.update(one.turned)
            note = one.note
            if one.state == MISSING:
                note = f"{nodule_id}: no matte in {folder}: write {expected_file(nodule_id)}"
            elif one.state == UNUSABLE:
                note = f"{nodule_id}: {note}"
            states.append({**start, "file": str(files.get(nodule_id, "")), "state": one.state, "note": note})
    extra = {file: why for one in mattes.values() for file, why in one.extra.items()}
    nowhere = {"split": None, "nodule_id": "", "patient_id": "", "state": EXTRA}
    states += [{**nowhere, "file": str(file), "note": f"{file}: {why}"} for file, why in extra.items()]
    return Result(facts, pd.DataFrame(errors, columns=list(COLUMNS)), bins, states, turned)


def _write(output: Experiment, result: Result, say: Callable[[str], None]) -> None:
    summary, page = result.summary(), result.page()
    output.text(TABLE, page)
    output.table(ERRORS, pa.Table.from_pandas(result.rows, preserve_index=False))
    columns = pa.schema([(name, pa.int32() if name == "split" else pa.string()) for name in MATTE_COLUMNS])
    states = [{**row, "file": utf8(row["file"]), "note": utf8(row["note"])} for row in result.mattes]
    output.table(MATTES, pa.Table.from_pylist(states, schema=columns))
    output.text(SUMMARY, json.dumps(summary, indent=1))
    for reference, errors in result.tables.items():
        if reference.kind:
            name = plain_name(f"{reference.kind} {reference.truth}")
            output.figure(f"errors-{name}.png", _bars(result, errors))
    output.run.metrics(
        {
            f"{plain_name(key)}/{metric}": value
            for key, found in summary["means"].items()
            for metric, value in found.items()
        }
    )
    output.run.metrics({f"mattes/{state}": number for state, number in result.counts.items()})
    output.conclude(page)
    output.write_note(command=result.facts.command, raymat=__version__)
    say(page.split("## Mattes with a problem")[0].rstrip())
    problems = result.problems()
    for line in problems[:NAMED]:
        say(line)
    if len(problems) > NAMED:
        say(f"... and {len(problems) - NAMED} more in {output.output.path}/{MATTES}")
    if result.warning:
        say(f"warning  {result.warning}")
    say(f"table    {output.output.path}/{TABLE}")


def _bars(result: Result, errors: Mapping[str, pd.DataFrame]) -> Figure:
    # The window alone is so far off that its bar would hide all others.
    table = {method: mean_and_spread(found) for method, found in errors.items() if method != RAMP}
    return error_bars(table, SHOWN, set(filter(result.is_automatic, table)))
