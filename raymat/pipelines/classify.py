"""Which input separates benign from malignant best: inputs x networks x seeds on Ray Tune (paper, section 6.1).

OUT/classify.json                     dataset, recipe, commands, the MLflow run of the sweep
OUT/samples/*.parquet                 every nodule's crops, one column per input: made once, read by every trial
OUT/nodules.parquet                   rating, label and size of the nodules, and their part of each repeated split
OUT/trials/NETWORK-INPUT-.../         a trial's MLflow run, predictions and, once it is finished, its result
OUT/predictions.parquet, trials.csv, table.csv, kinds.csv, comparisons.csv, table.md, figure5.png, figure5.pdf
                                      of all finished trials
"""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Any

import pandas as pd
import pyarrow as pa
import ray
import torch
from ray import tune
from sklearn.metrics import roc_auc_score

from raymat.classification.networks import NETWORKS, SMALL_NETWORKS, TITLES, refuse_small_crop
from raymat.classification.recipe import Recipe
from raymat.classification.samples import (
    FACTS,
    HELD,
    SAMPLE,
    balance,
    column_of,
    labelled,
    read_crops,
    refuse_missing,
    sample_of,
)
from raymat.classification.training import Samples, SplitSamples, train_classifier
from raymat.engine.cluster import connected, grows, quiet_ray
from raymat.engine.job import Job, new_session, part_of
from raymat.engine.reports import Reporter, reports
from raymat.engine.stages import Pool, Stage, Work
from raymat.engine.stream import gather
from raymat.engine.tries import Marks
from raymat.evidence import diagnoses
from raymat.evidence.files import BY_KIND, COMPARISONS, FIGURE, NODULES, PREDICTIONS, TABLE, TRIALS
from raymat.evidence.inputs import CHOSEN, INPUTS, chosen_in_words, inputs_of
from raymat.evidence.platt import calibrated
from raymat.experiment import CLASSIFY, Experiment, Facts, Output, as_csv, experiment
from raymat.experiment import FAILED as WITH_FAILURES
from raymat.folder import Folder
from raymat.guard import guarded
from raymat.learning import Data
from raymat.methods import ANY
from raymat.nodule import ACCEPTED, FAILED, InputError, Nodule
from raymat.pipelines.fit import RESULT
from raymat.pipelines.nodules import SHARED, read_nodule, work_rows
from raymat.pipelines.sweep import Sweep, Trial, TrialRuns, run_trials, trials_at_once
from raymat.sources import digest
from raymat.splits import PARTS, REPETITIONS
from raymat.version import __version__
from raymat.words import counted, dotted, in_words, plain_name

NODULES_PER_PART = 16
TEST, VALIDATION, TRAINING = "test", "validation", "training"


@dataclass(frozen=True)
class ClassifyJob:
    """What to classify, with what, where and how.

    Attributes
    ----------
    dataset : folder or URI of a built dataset or a release
    output : where the experiment is written and logged
    recipe : crop, label and training
    inputs, networks, seeds, splits : the trials, every one with every other; where no inputs are named all that differ
        in the dataset (``raymat.evidence.inputs.inputs_of``), and where ``splits`` is None each seed has a repeated
        split of its own, so that as many trials test on more nodules
    cpus, gpus : of each trial
    address : the Ray cluster; None for the one this job runs on, else a local one
    """

    dataset: str
    output: Output
    recipe: Recipe
    inputs: tuple[str, ...] = ()
    networks: tuple[str, ...] = SMALL_NETWORKS
    seeds: tuple[int, ...] = (0, 1, 2, 3)
    splits: tuple[int, ...] | None = (0,)
    cpus: float = 1.0
    gpus: float = 0.0
    address: str | None = None

    @property
    def draws(self) -> list[tuple[int, int]]:
        """Seed and split of the trials of one network and input."""
        if self.splits is None:
            return [(seed, seed % REPETITIONS) for seed in self.seeds]
        return list(product(self.seeds, self.splits))

    @property
    def settings(self) -> list[Setting]:
        """The trials: a whole comparison first, then that of the next seed."""
        return [Setting(n, i, *draw) for draw, n, i in product(self.draws, self.networks, self.inputs)]


@dataclass(frozen=True)
class Setting:
    """One trial of the sweep."""

    network: str
    input: str
    seed: int
    split: int

    @property
    def folder(self) -> str:
        return f"trials/{self.network}-{plain_name(self.input)}-seed-{self.seed}-split-{self.split}"

    @property
    def trial(self) -> Trial:
        name = f"{TITLES[self.network]}, {self.input}, seed {self.seed}, split {self.split}"
        return Trial(self.folder, name, dict(vars(self)))


def classify(job: ClassifyJob, say: Callable[[str], None] = print) -> tuple[pd.DataFrame, list[str]]:
    """Train and test every trial that is not finished yet; table and figure of all that are.

    Returns
    -------
    table, errors
        ``raymat.evidence.diagnoses.summarise``, and what went wrong in trials that failed.

    Raises
    ------
    InputError
        No ratings, one class only, too few patients, a matte or reader that an input needs is missing, the output holds
        another experiment, or the cluster or MLflow store cannot be used.
    """
    for given, known, what in ((job.inputs, INPUTS, "input"), (job.networks, NETWORKS, "network")):
        unknown = [name for name in given if name not in known]
        if unknown:
            raise InputError(f"no {what} {', '.join(unknown)}; there are {', '.join(known)}")
    if min(job.cpus, job.gpus) < 0 or not max(job.cpus, job.gpus) > 0:
        raise InputError(f"a trial of {job.cpus:g} CPUs and {job.gpus:g} GPUs: give it some of one or the other")
    for network in job.networks:
        refuse_small_crop(network, job.recipe.width, job.recipe.stem, job.recipe.crop.side)
    data = Data.open(job.dataset)
    job = replace(job, inputs=job.inputs or inputs_of(data.kind, len(data.channels()) or 1))
    parts = {split: data.split(split).parts for split in sorted({split for _, split in job.draws})}
    shared = {"dataset": job.dataset, **job.recipe.to_dict(), "raymat": __version__}
    facts = Facts(shared, {"data_digest": data.digest, "recipe": job.recipe.to_dict()})
    with experiment(CLASSIFY, job.output, facts, say) as work:
        work.describe("Benign or malignant, from each kind of input.")
        work.input(job.dataset, data.digest, data.kind)
        settings = job.settings
        todo = [one for one in settings if not work.files.exists(f"{one.folder}/{RESULT}")]
        errors = []
        if todo:
            say(f"{counted(len(settings), 'trial')}, {len(settings) - len(todo)} finished already")
            with connected(job.address):
                _write_nodules(job, data, parts, work, say)
                typed = [*work.note.get("commands", []), shlex.join(job.output.command)]
                commands = list(dict.fromkeys(typed))
                work.write_note(dataset=job.dataset, kind=data.kind, raymat=__version__, commands=commands)
                errors = _sweep(job, todo, work, say)
        # The trials' own seconds, so that an interruption loses none and counts none twice.
        work.write_note(seconds=sum(result["seconds"] for result in _results(work.files)))
        for error in errors:
            say(f"a trial failed: {error}")
        if errors:
            work.status = WITH_FAILURES
        return conclude(job, work, say), errors


def _write_nodules(
    job: ClassifyJob, data: Data, parts: dict[int, dict[str, str]], work: Experiment, say: Callable[[str], None]
) -> None:
    """Cut the crops, and write the table of nodules that every trial reads."""
    nodules = labelled(prepare_samples(work.files, data, job.recipe, say), job.recipe, parts, job.dataset)
    refuse_missing(nodules, job.inputs)
    say(balance(nodules, parts))
    # Of earlier splits too, whose trials stay.
    every = parts | {split: data.split(split).parts for split in _finished_splits(work.files) - set(parts)}
    work.files.write_table(NODULES, pa.Table.from_pandas(_with_parts(nodules, every), preserve_index=False))


# Samples -------------------------------------------------------------------------------------------------------------


def prepare_samples(files: Folder, data: Data, recipe: Recipe, say: Callable[[str], None]) -> pd.DataFrame:
    """Cut every nodule's crops, those that an earlier command of this version cut left as they are.

    Returns
    -------
    pd.DataFrame
        ``nodule_id, patient_id, rating, volume_mm3, diameter_mm`` of every nodule.

    Raises
    ------
    InputError
        A nodule cannot be read or cut.
    """
    parts = {name: files.read_table(name, ["nodule_id", HELD]) for name in files.listing("samples", ".parquet")}
    # An earlier version cut fewer inputs, and did not name them.
    files.delete_many([name for name, part in parts.items() if HELD not in part.column_names])
    whole = [part for part in parts.values() if HELD in part.column_names]
    cut = {nodule_id for part in whole for nodule_id in part["nodule_id"].to_pylist()}
    todo = work_rows(data, [row for row, name in enumerate(data.nodules.ids) if name not in cut])
    if todo:
        say(f"cutting the crops of {counted(len(todo), 'nodule')}")
        here = int(ray.cluster_resources().get("CPU", 1))
        session = new_session()
        work = Cutting(files, recipe, session).work
        pool = Pool(work.stages, min(len(todo), max(1, here)), len(todo) if grows() else None)
        job = Job(work, [part_of(todo)], [pool], Marks(files), session, shared={SHARED: data.nodules})
        failed = [row for row in gather(job, say).to_pylist() if row["outcome"] == FAILED]
        if failed:
            first = min(failed, key=lambda row: row["key"])
            more = f" (and {counted(len(failed) - 1, 'other nodule')})" if len(failed) > 1 else ""
            raise InputError(f"{first['reason']}{more}")
    facts = pa.concat_tables([files.read_table(name, FACTS) for name in files.listing("samples", ".parquet")])
    # In the dataset's order, whatever worker cut them.
    return facts.to_pandas().drop_duplicates("nodule_id").set_index("nodule_id").loc[data.nodules.ids].reset_index()


@dataclass(frozen=True)
class Cutting:
    """The steps that cut a nodule's crops, as the engine runs them; the nodules are shared with every worker."""

    files: Folder
    recipe: Recipe
    session: str

    @property
    def work(self) -> Work:
        return Work(self.read, (Stage("cut", self.cut, cpus=0.9),), self.commit, group=NODULES_PER_PART)

    def read(self, row: dict) -> Nodule:
        return read_nodule(self.session, row)

    def cut(self, nodule: Nodule) -> Nodule:
        def work(nodule: Nodule) -> Nodule:
            return nodule.without_arrays(outcome=ACCEPTED, metadata={"sample": sample_of(nodule, self.recipe)})

        return guarded("cut", nodule, work)

    def commit(self, nodules: list[Nodule]) -> pa.Table:
        """Write the samples as one part."""
        rows: list[Any] = [nodule.metadata["sample"] for nodule in nodules if nodule.outcome != FAILED]
        if rows:
            name = digest(*(row["nodule_id"] for row in rows))
            self.files.write_table(f"samples/{name}.parquet", pa.Table.from_pylist(rows, schema=SAMPLE))
        facts = [{"key": one.key, "outcome": one.outcome, "reason": one.reason} for one in nodules]
        return pa.Table.from_pylist(facts, schema=pa.schema([(name, pa.string()) for name in facts[0]]))


def _results(files: Folder) -> list[dict]:
    """Of every finished trial."""
    return [json.loads(files.read(name)) for name in files.listing("trials", f"/{RESULT}")]


def _finished_splits(files: Folder) -> set[int]:
    return {result["split"] for result in _results(files)}


def _with_parts(nodules: pd.DataFrame, parts: dict[int, dict[str, str]]) -> pd.DataFrame:
    return nodules.drop(columns=HELD).assign(
        **{f"split_{split}": nodules["patient_id"].map(of) for split, of in parts.items()}
    )


# Trials --------------------------------------------------------------------------------------------------------------


def _sweep(job: ClassifyJob, todo: list[Setting], work: Experiment, say: Callable[[str], None]) -> list[str]:
    """Run the trials on Ray Tune; the errors of those that failed."""
    has = ray.cluster_resources()
    if not grows() and (has.get("CPU", 0.0) < job.cpus or has.get("GPU", 0.0) < job.gpus):
        raise InputError(
            f"a trial of {job.cpus:g} CPUs and {job.gpus:g} GPUs would never start: the cluster has "
            f"{has.get('CPU', 0):g} and {has.get('GPU', 0):g}. Lower --cpus or --gpus"
        )
    at_once = trials_at_once(job.cpus, job.gpus, len(todo))
    say(f"{counted(len(todo), 'trial')} to do, {at_once} at once")
    start, done = time.monotonic(), 0

    def count(line: str) -> None:
        nonlocal done
        done += 1
        elapsed = time.monotonic() - start
        left = in_words(elapsed / done * (len(todo) - done))
        say(f"{done}/{len(todo)}  {line}; {left} left")

    shared = dotted({"dataset": job.dataset, **job.recipe.to_dict(), "raymat": __version__})
    with reports(TrialRuns(work, [one.trial for one in job.settings], shared, count)) as reporter:
        trial = partial(
            _trial,
            job=replace(job, output=replace(job.output, command=())),
            settings={one.folder: one for one in todo},
            files=work.files,
            reporter=reporter,
        )
        sweep = Sweep(
            trial,
            {"trial": tune.grid_search([one.folder for one in todo])},
            {"CPU": job.cpus} | ({"GPU": job.gpus} if job.gpus else {}),
            # A process takes one trial after the other: to start one takes seconds.
            tune.TuneConfig(max_concurrent_trials=at_once, reuse_actors=True),
            # Another set of trials is another run of Tune: a trial's folder says whether it is finished, not Tune.
            f"tune/{digest(*(one.folder for one in todo))[:12]}",
            max_failures=2,
        )
        return run_trials(sweep, work.files)


def _trial(config: dict, job: ClassifyJob, settings: dict[str, Setting], files: Folder, reporter: Reporter) -> None:
    """One network on one input: trained, tested, its predictions and result in its folder."""
    quiet_ray()
    setting = settings[config["trial"]]
    folder = setting.folder
    reporter = reporter.named(folder)
    reporter.begun()
    torch.set_num_threads(max(1, int(job.cpus)))
    nodules = files.read_table(NODULES).to_pandas()
    part = nodules[f"split_{setting.split}"]
    of = {name: nodules[part == name] for name in PARTS}
    columns = ["nodule_id", column_of(setting.input)]
    crops = {
        name: read_crops(
            (files.read_table(part, columns) for part in files.listing("samples", ".parquet")),
            setting.input,
            setting.seed,
            job.recipe.crop.stored,
            found["nodule_id"],
        )
        for name, found in of.items()
    }
    samples = {name: Samples(crops[name], found["label"].to_numpy()) for name, found in of.items()}
    start = time.monotonic()
    trained = train_classifier(
        setting.network,
        setting.seed,
        SplitSamples(samples[TRAINING], samples[VALIDATION], crops[TEST]),
        job.recipe,
        torch.device("cuda" if job.gpus else "cpu"),
        lambda epoch, entry: reporter.metrics([(epoch, entry)]),
    )
    rows = pd.concat(
        [
            of[name].assign(part=name, probability=given)
            for name, given in ((VALIDATION, trained.validation), (TEST, trained.test))
        ]
    )
    columns = ["nodule_id", "patient_id", "part", "label", "probability", "volume_mm3", "diameter_mm"]
    predictions = pa.Table.from_pandas(rows[columns], preserve_index=False)
    files.write_table(f"{folder}/{PREDICTIONS}", predictions)
    result = {
        "auroc": float(roc_auc_score(of[TEST]["label"], trained.test)),
        "validation_auroc": trained.history[trained.best_epoch - 1]["validation_auroc"],
        "best_epoch": trained.best_epoch,
        "epochs": len(trained.history),
        "seconds": time.monotonic() - start,
    }
    logged = {f"test/{name}" if name == "auroc" else name: value for name, value in result.items()}
    reporter.metrics([(0, logged)])
    reporter.text("predictions.csv", as_csv(predictions))
    # Last: a trial is finished when its result is there.
    files.write(f"{folder}/{RESULT}", json.dumps({**vars(setting), **result}, indent=1).encode())
    reporter.ended(
        f"{TITLES[setting.network]}, {setting.input}, seed {setting.seed}: test AUROC {result['auroc']:.3f}, epoch "
        f"{result['best_epoch']} of {result['epochs']}, {in_words(result['seconds'])}"
    )
    tune.report(result)


# What came out -------------------------------------------------------------------------------------------------------


def finished_predictions(files: Folder) -> pd.DataFrame:
    """The test predictions of every finished trial, ``calibrated`` too, with its network, input, seed and split."""
    found = []
    for name in files.listing("trials", f"/{RESULT}"):
        setting = json.loads(files.read(name))
        rows = files.read_table(f"{name.removesuffix(RESULT)}{PREDICTIONS}").to_pandas()
        seen, test = (rows[rows["part"] == part].drop(columns="part") for part in (VALIDATION, TEST))
        right = calibrated(seen["probability"].to_numpy(), seen["label"].to_numpy(), test["probability"].to_numpy())
        found.append(test.assign(calibrated=right, **{key: setting[key] for key in diagnoses.TRIAL}))
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame()


def conclude(job: ClassifyJob, work: Experiment, say: Callable[[str], None]) -> pd.DataFrame:
    """Tables and figure of all finished trials, in the output and in MLflow."""
    # Imported here: a trial's process draws nothing.
    from raymat.pictures.evidence import calibration_of_inputs, diagnoses_by_input

    files, out = work.files, job.output.path
    predictions = finished_predictions(files)
    if predictions.empty:
        raise InputError(f"{out}: no trial came to a result; the reasons are above. Run the same command again")
    trials = diagnoses.trials_table(predictions)
    table = diagnoses.summarise(predictions, INPUTS)
    compared = diagnoses.comparisons(predictions)
    nodules = files.read_table(NODULES).to_pandas()
    splits = sorted(predictions["split"].unique())
    parts = {split: dict(zip(nodules["patient_id"], nodules[f"split_{split}"], strict=True)) for split in splits}
    size = diagnoses.summarise(diagnoses.size_predictions(nodules, parts), INPUTS)
    kinds = diagnoses.kinds(predictions)
    text = _text(work.note, predictions, table, size, compared, kinds)
    files.write_table(PREDICTIONS, pa.Table.from_pandas(predictions, preserve_index=False))
    csvs = {TRIALS: trials, TABLE: pd.concat([size, table]), BY_KIND: kinds, COMPARISONS: compared}
    for name, rows in csvs.items():
        work.text(name, rows.to_csv(index=False))
    work.text("table.md", text)
    work.figure(f"{FIGURE}.png", diagnoses_by_input(table, trials, size), pdf=True)
    work.figure("calibration.png", calibration_of_inputs(diagnoses.mean_probabilities(predictions)), pdf=True)
    for row in table.to_dict("records"):
        key = f"{row['network']}/{plain_name(row['input'])}"
        work.run.metrics({f"{key}/auroc_mean": row["mean"], f"{key}/auroc_averaged": row["auroc"]})
    work.run.metrics({"size_alone/auroc": float(size["auroc"].iloc[0])})
    work.conclude(text)
    say(text)
    say(f"table   {out}/table.md, {TABLE}, {BY_KIND}, {TRIALS}, {COMPARISONS}   figure {out}/{FIGURE}.png, .pdf")
    return table


def _text(
    note: dict,
    predictions: pd.DataFrame,
    table: pd.DataFrame,
    size: pd.DataFrame,
    compared: pd.DataFrame,
    kinds: pd.DataFrame,
) -> str:
    trials = predictions.drop_duplicates(diagnoses.TRIAL)
    nodules = predictions.drop_duplicates("nodule_id")
    head = (
        f"{counted(len(trials), 'trial')}, {counted(len(nodules), 'test nodule')} of "
        f"{counted(nodules['patient_id'].nunique(), 'patient')}, {int(nodules['label'].sum())} of them malignant; "
        f"{in_words(note['seconds'])} of training, trial by trial. Intervals are 95 %, over patients. Of several "
        "splits, pairs of nodules within one test part count."
    )
    parts = ["# Benign or malignant, by input", head, diagnoses.as_markdown(table, size)]
    by_kind = f"By kind of input, each the mean of its inputs; {chosen_in_words(note.get('kind', ANY))}:"
    parts += [by_kind, diagnoses.kinds_as_markdown(kinds)]
    if (compared["first"] == CHOSEN).any():
        parts += ["The chosen matte against the other inputs, by DeLong's test on the same test nodules:"]
        parts += [diagnoses.comparisons_as_markdown(compared)]
    return "\n\n".join(parts) + "\n"
