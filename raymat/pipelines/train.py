"""3DMM on every split: one training each, see ``raymat.pipelines.fit``.

OUT/training.json          dataset, recipe and the MLflow run that all splits belong to
OUT/split-0/split.json     patients of each part
OUT/split-0/run.json       its MLflow run
OUT/split-0/ray/           Ray Train's checkpoints: an interrupted training resumes from the last one
OUT/split-0/weights.pt     weights and recipe, when the training is finished
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import ray

from raymat import metrics
from raymat.engine.cluster import connected
from raymat.engine.reports import Report, reports
from raymat.experiment import TRAIN, Experiment, Facts, Output, Say, experiment
from raymat.learning import Data
from raymat.methods import alpha_in_words
from raymat.network.recipe import Recipe
from raymat.network.shipped import SHIPPED, shipped_weights
from raymat.network.training import read_checkpoint
from raymat.nodule import InputError
from raymat.pipelines.feed import load_records
from raymat.pipelines.fit import RESULT, WEIGHTS, Settings, fit, threads_of
from raymat.sources import digest
from raymat.splits import REPETITIONS, Split
from raymat.tracking import Run
from raymat.words import counted, plus_minus


@dataclass(frozen=True)
class TrainJob:
    """What to train, on what, where and how.

    Attributes
    ----------
    dataset : folder or URI of a built dataset or a release; its splits are those of the training
    output : where the trainings are written and logged
    recipe : all that decides the weights but ``kind``
    kind : what alpha means in the mattes that are learnt, "membership" or "calibrated"; that of the dataset where None
    splits : which of the repeated splits
    workers : processes that share each batch, one GPU each where ``gpu``
    threads : of each worker on CPUs; as many as there are CPUs for it where None
    address : the Ray cluster; None for the one this job runs on, else a local one
    also : more datasets to learn from, such as phantoms: their nodules of patients that a split neither validates nor
        tests on
    splits_of : another dataset whose splits are taken: whom those test and validate, these do, everybody else is learnt
        from. For weights that another training begins with
    initial : what each split begins with: a weights file, "shipped", or the output of another training, whose weights
        of the same split; none of it may have seen patients whom the split tests on
    """

    dataset: str
    output: Output
    recipe: Recipe
    kind: str | None = None
    splits: tuple[int, ...] = tuple(range(REPETITIONS))
    workers: int = 1
    gpu: bool = False
    threads: int | None = None
    address: str | None = None
    also: tuple[str, ...] = ()
    splits_of: str | None = None
    initial: str | None = None

    def learning(self, data: Data) -> TrainJob:
        """The job with a recipe of the kind of alpha that is learnt from that data, and of its channels."""
        channels = data.channels()
        model = replace(self.recipe.model, channels=channels) if channels else self.recipe.model
        return replace(self, recipe=replace(self.recipe, kind=self.kind or data.kind, model=model))

    def facts(self, data: Data, **identity: object) -> Facts:
        """What the output is made from; the order of the nodules, too, as batches are drawn in it."""
        recipe = self.recipe.to_dict()
        parameters = {"dataset": self.dataset, "workers": self.workers, "kind": self.recipe.kind, **recipe}
        named = {"also": " ".join(self.also), "splits_of": self.splits_of, "initial": self.initial}
        parameters |= {name: value for name, value in named.items() if value}
        return Facts(
            parameters, {"data_digest": data.digest, "order_of_nodules": data.order, "recipe": recipe, **identity}
        )

    def refuse_uneven(self) -> None:
        """Raise InputError where the workers cannot share a batch evenly."""
        if self.recipe.batch % self.workers:
            raise InputError(
                f"a batch of {self.recipe.batch} cannot be shared by {self.workers} workers: take a batch that is a "
                "multiple of them"
            )


def train(job: TrainJob, say: Say = print) -> dict[int, dict[str, float]]:
    """Train the network on each split, or resume where an earlier command was interrupted.

    Returns
    -------
    dict
        For each split the validation metrics of its last epoch.

    Raises
    ------
    InputError
        The dataset has too few patients, the output holds another training, the cluster cannot hold the workers, a
        checkpoint is damaged, or the MLflow store cannot be used.
    """
    job.refuse_uneven()
    data, also = Data.open(job.dataset), [Data.open(path) for path in job.also]
    job = job.learning(data)
    given = Data.open(job.splits_of) if job.splits_of else data
    splits = {number: given.split(number).of(data.patients) for number in job.splits}
    initial = {number: _initial(job, number, split) for number, split in splits.items()} if job.initial else {}
    # Without any of them: as outputs of earlier versions, which do not name them.
    identity = {
        "also": digest(*(more.order for more in also)) if also else "",
        "splits_of": given.digest if job.splits_of else "",
        "initial": digest(*(begin.weights.hex() for begin in initial.values())) if initial else "",
    }
    with experiment(TRAIN, job.output, job.facts(data, **identity), say) as work:
        work.describe(f"3DMM, trained on each split of the patients; it learns {alpha_in_words(job.recipe.kind)}.")
        work.input(job.dataset, data.digest, job.recipe.kind)
        work.write_note(dataset=job.dataset)
        todo = {n: split for n, split in splits.items() if not work.files.exists(f"split-{n}/{WEIGHTS}")}
        for number in [n for n in splits if n not in todo]:
            say(f"split {number}: finished already")
            work.end_if_open(f"split-{number}")
        if todo:
            with connected(job.address, holds_dataset=True):
                _train_splits(job, [data, *also], todo, initial, work, say)
        results = {n: work.files.read_json(f"split-{n}/{RESULT}") for n in splits}
        say(_summary(results))
        # Of one split there is no deviation, and not every store takes a NaN.
        work.run.metrics({name: value for name, value in _spread(results).items() if np.isfinite(value)})
        work.conclude(_summary(results).splitlines()[-1])
        return results


@dataclass(frozen=True)
class Initial:
    """What a training begins with: a weights file's content, and the patients whom it has seen."""

    weights: bytes
    patients: tuple[str, ...]


def _initial(job: TrainJob, number: int, split: Split) -> Initial:
    """The initial weights of a split, which have seen nobody whom it tests on."""
    path = shipped_weights() if job.initial == SHIPPED else str(job.initial)
    if Path(path).is_dir():
        path = f"{path}/split-{number}/{WEIGHTS}"
    checkpoint = read_checkpoint(path)
    if "patients" not in checkpoint:
        raise InputError(f"{path}: does not say which patients it was learnt from (an earlier raymat); train it again")
    seen = set(checkpoint["patients"])
    if known := sorted(seen.intersection(split.test)):
        raise InputError(
            f"{path}: has seen {counted(len(known), 'patient')} whom split {number} of {job.dataset} tests on, "
            f"{known[0]} the first; train it with the same splits (raymat train --splits-of {job.dataset})"
        )
    return Initial(Path(path).read_bytes(), tuple(sorted(seen)))


def _train_splits(
    job: TrainJob,
    datasets: Sequence[Data],
    splits: dict[int, Split],
    initial: dict[int, Initial],
    work: Experiment,
    say: Say,
) -> None:
    """Train on each of the splits; the records of all of them are read once."""
    threads = threads_of(job.workers, job.gpu, job.threads)
    data, *also = datasets
    records = _records(data, {p for split in splits.values() for p in (*split.training, *split.validation)}, job, say)
    held = set.intersection(*({*split.validation, *split.test} for split in splits.values()))
    more = [(one, _records(one, set(one.patients) - held, job, say)) for one in also]
    for number, split in splits.items():
        folder = f"split-{number}"
        work.json(f"{folder}/split.json", asdict(split))
        run = work.child(folder, f"split {number}", {"split": number, **job.facts(data).parameters})
        for one in datasets:
            run.dataset(one.path, one.path, one.digest, job.recipe.kind)
        run.text("split.json", json.dumps(asdict(split), indent=1))
        training, validation = ([records[row] for row in data.of(part)] for part in (split.training, split.validation))
        held, patients = {*split.validation, *split.test}, {*split.training, *split.validation}
        for one, found in more:
            unseen = set(one.patients) - held
            training += [found[row] for row in one.of(unseen)]
            patients |= unseen
        begin = initial.get(number)
        patients |= set(begin.patients) if begin else set()
        say(
            f"split {number}: {len(training)} nodules to learn {alpha_in_words(job.recipe.kind)} from, "
            f"{len(validation)} to validate, {counted(job.workers, 'worker')}"
        )
        with reports(Follower(run, say, f"split {number}: ")) as reporter:
            weights = begin.weights if begin else None
            settings = Settings(job.recipe, training, validation, threads, reporter, tuple(sorted(patients)), weights)
            final = fit(settings, job.workers, job.gpu, work.files, folder)
        with final.as_directory() as local:
            work.files.write(f"{folder}/{RESULT}", (Path(local) / RESULT).read_bytes())
            # Last: a split is finished when its weights are there.
            work.files.write(f"{folder}/{WEIGHTS}", (Path(local) / WEIGHTS).read_bytes())
            run.model(
                str(Path(local) / WEIGHTS),
                job.recipe.augmentation.crop,
                job.recipe.kind,
                len(job.recipe.model.ranges),
            )
        work.end_child(folder)


def _records(data: Data, patients: set[str], job: TrainJob, say: Say) -> dict[int, ray.ObjectRef]:
    """References to the records of those patients' nodules by position."""
    rows = data.of(patients)
    return dict(zip(rows, load_records(data.nodules, rows, job.recipe, say), strict=True))


class Follower:
    """Logs what the workers of a training report, and says their lines."""

    def __init__(self, run: Run, say: Say, prefix: str) -> None:
        self.run, self.say, self.prefix = run, say, prefix

    def __call__(self, report: Report) -> None:
        """Take one report."""
        if report.line:
            self.say(f"{self.prefix}{report.line}")
        log(report, self.run)


def log(report: Report, run: Run) -> None:
    """Log a report's metrics, pictures and texts."""
    if report.metrics:
        run.series(report.metrics)
    for name, png in report.pictures.items():
        run.picture(name, png)
    for name, text in report.texts.items():
        run.text(name, text)


def _spread(results: dict[int, dict[str, float]]) -> dict[str, float]:
    spread: dict[str, float] = {}
    for name in next(iter(results.values())):
        values = [result[name] for result in results.values()]
        spread |= {f"validation/{name}_mean": float(np.mean(values)), f"validation/{name}_std": metrics.spread(values)}
    return spread


def _summary(results: dict[int, dict[str, float]]) -> str:
    spread = _spread(results)
    lines = [
        f"split {n}  validation SAD {result['sad']:.1f}, MSE x 1e3 {1e3 * result['mse']:.3f}"
        for n, result in results.items()
    ]
    mean = plus_minus(spread["validation/sad_mean"], spread["validation/sad_std"], ".1f")
    return "\n".join([*lines, f"mean     validation SAD {mean}"])
