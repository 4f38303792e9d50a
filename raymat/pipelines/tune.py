"""Which alpha and beta of Eq. 6 are best: a grid on Ray Tune, each trial a training on Ray Train.

OUT/tune/                   Ray Tune's state: an interrupted sweep is resumed from it
OUT/trials/alpha-1-beta-10/ the trial's MLflow run, checkpoints and result
OUT/best.json               the best pair, as `raymat train --loss-weights` takes it
OUT/heat_map.png            validation SAD over the grid
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.schedulers import ASHAScheduler

from raymat.engine.cluster import connected, quiet_ray
from raymat.engine.reports import reports
from raymat.experiment import FAILED, TUNE, Experiment, Say, experiment
from raymat.folder import Folder
from raymat.learning import Data
from raymat.methods import alpha_in_words
from raymat.nodule import InputError
from raymat.pipelines.feed import load_records
from raymat.pipelines.fit import RESULT, Settings, fit, threads_of
from raymat.pipelines.sweep import Sweep, Trial, TrialRuns, result_of, run_trials, trials_at_once
from raymat.pipelines.train import TrainJob
from raymat.sources import digest
from raymat.splits import REPETITIONS, Split
from raymat.words import counted, dotted

HEAT_MAP, BEST = "heat_map.png", "best.json"


@dataclass(frozen=True)
class TuneJob:
    """What to search.

    Attributes
    ----------
    training : dataset, output, recipe, workers of each trial and cluster; its first split is used, of whose patients
        only those that no split tests
    alphas, betas : weights of the grid
    early : stop trials that fall behind (ASHA); where False each runs to its end
    """

    training: TrainJob
    alphas: tuple[float, ...] = (1.0, 3.0, 10.0, 30.0)
    betas: tuple[float, ...] = (1.0, 3.0, 10.0, 30.0)
    early: bool = False

    @property
    def pairs(self) -> list[tuple[float, float]]:
        """Alpha and beta of each trial."""
        return [(alpha, beta) for alpha in self.alphas for beta in self.betas]

    @property
    def trials(self) -> list[Trial]:
        """A trial for each pair."""
        return [
            Trial(
                f"trials/{trial_name(alpha, beta)}",
                f"alpha {alpha:g}, beta {beta:g}",
                {"alpha_weight": alpha, "gradient_weight": beta},
            )
            for alpha, beta in self.pairs
        ]


def tune_loss_weights(job: TuneJob, say: Say = print) -> tuple[float, float]:
    """Train with every pair of weights, or resume where an earlier sweep was interrupted.

    Returns
    -------
    alpha, beta
        The pair of the smallest validation SAD.

    Raises
    ------
    InputError
        The dataset has too few patients, the output holds another sweep, the cluster cannot hold one trial, or no
        trial came to a result.
    """
    job.training.refuse_uneven()
    data = Data.open(job.training.dataset)
    training = job.training.learning(data)
    job = replace(job, training=training)
    number = training.splits[0]
    split = tuning_split(data, number, say)
    grid: dict[str, object] = {
        "split": number,
        "alphas": list(job.alphas),
        "betas": list(job.betas),
        "early": job.early,
    }
    grid |= {"choice_of_patients": digest(split.training, split.validation)}
    facts = training.facts(data, **grid)
    fixed = {name: value for name, value in facts.parameters.items() if name not in job.trials[0].parameters}
    with experiment(TUNE, training.output, replace(facts, parameters=fixed), say) as work:
        alpha = alpha_in_words(training.recipe.kind)
        work.describe(f"The weights of 3DMM's loss (Eq. 6): one training for each pair; it learns {alpha}.")
        work.input(training.dataset, data.digest, training.recipe.kind)
        with connected(training.address, holds_dataset=True):
            errors = _run(job, data, split, work, say)
        if errors:
            work.status = FAILED
        return _conclude(job, work, errors, say)


def tuning_split(data: Data, number: int, say: Say) -> Split:
    """A split's patients that no split tests; all of them, with a word, where too few are left.

    The weights that are chosen are used on every split, and must not have been chosen on patients whom one of them
    tests.
    """
    split = data.split(number)
    clean = split.outside_tests(data.split(other) for other in range(REPETITIONS))
    if clean is None:
        say(
            "WARNING: too few patients are in no split's test part. alpha and beta are chosen on patients whom other "
            f"splits test: judge them on the test part of split {number} alone"
        )
        return split
    left_out = len(split.training) + len(split.validation) - len(clean.training) - len(clean.validation)
    say(
        f"{len(clean.training)} patients to learn from, {len(clean.validation)} to choose by; {left_out} are left out, "
        "as a split tests them"
    )
    return clean


def _run(job: TuneJob, data: Data, split: Split, work: Experiment, say: Say) -> list[str]:
    """Run the trials that have no result yet; the errors of those that failed."""
    training = job.training
    threads = threads_of(training.workers, training.gpu, training.threads)
    parts = [data.of(split.training), data.of(split.validation)]
    records = load_records(data.nodules, [row for part in parts for row in part], training.recipe, say)
    at_once = trials_at_once(training.workers, training.workers if training.gpu else 0, len(job.pairs))
    say(f"{counted(len(job.pairs), 'trial')}, {at_once} at once")
    shared = dotted(training.facts(data).parameters)
    runs = TrialRuns(work, job.trials, shared, lambda line: say(f"  {line}"))
    with reports(runs) as reporter:
        settings = Settings(training.recipe, records[: len(parts[0])], records[len(parts[0]) :], threads, reporter)
        return run_trials(_sweep(job, settings, work.files, at_once), work.files)


def trial_name(alpha: float, beta: float) -> str:
    """The folder of a trial, by its weights of the losses."""
    return f"alpha-{alpha:g}-beta-{beta:g}"


def _sweep(job: TuneJob, settings: Settings, files: Folder, at_once: int) -> Sweep:
    """The grid as Ray Tune runs it."""
    space = {"alpha": tune.grid_search(list(job.alphas)), "beta": tune.grid_search(list(job.betas))}
    epochs = job.training.recipe.epochs
    asha = ASHAScheduler(max_t=epochs, grace_period=max(1, epochs // 8)) if job.early else None
    config = tune.TuneConfig(metric="sad", mode="min", scheduler=asha, max_concurrent_trials=at_once)
    # The trial itself only waits for its training; Tune takes no 0.
    return Sweep(partial(_trial, job=job, settings=settings, files=files), space, {"CPU": 0.01}, config)


def _trial(config: dict, job: TuneJob, settings: Settings, files: Folder) -> None:
    """One pair of weights: a training on Ray Train, reported to Ray Tune epoch by epoch."""
    quiet_ray()
    alpha, beta = config["alpha"], config["beta"]
    training, folder = job.training, f"trials/{trial_name(alpha, beta)}"
    before = result_of(files, folder)
    if before:
        tune.report(before)
        return
    reporter = settings.reporter.named(folder)
    reporter.begun()
    recipe = replace(training.recipe, alpha_weight=alpha, gradient_weight=beta)
    mine = replace(settings, recipe=recipe, reporter=reporter)
    final = fit(mine, training.workers, training.gpu, files, folder, [TuneReportCallback()])
    with final.as_directory() as local:
        result = (Path(local) / RESULT).read_bytes()
    files.write(f"{folder}/{RESULT}", result)
    # A training that had come to its end when the sweep was cut off reports nothing of its own any more.
    tune.report(json.loads(result))
    reporter.ended()


def _conclude(job: TuneJob, work: Experiment, errors: Sequence[str], say: Say) -> tuple[float, float]:
    """The heat map and the best pair."""
    # Imported here: a trial's process draws nothing.
    from raymat.pictures.network import heat_map

    sads = np.full((len(job.alphas), len(job.betas)), np.nan)
    for number, trial in enumerate(job.trials):
        result = result_of(work.files, trial.folder)
        if result:
            sads.flat[number] = result["sad"]
    for error in errors:
        say(f"a trial failed: {error}")
    out = job.training.output.path
    if not np.isfinite(sads).any():
        raise InputError(f"{out}: no trial came to a result; run the same command again")
    recipe = job.training.recipe
    title = f"validation SAD of {alpha_in_words(recipe.kind)}, {counted(recipe.epochs, 'epoch')}"
    figure = heat_map(sads, job.alphas, job.betas, title)
    work.figure(HEAT_MAP, figure)
    alpha, beta = job.pairs[int(np.nanargmin(sads))]
    best = {"alpha_weight": alpha, "gradient_weight": beta, "validation_sad": float(np.nanmin(sads))}
    work.text(BEST, json.dumps(best, indent=1))
    work.run.metrics({"best/alpha_weight": alpha, "best/gradient_weight": beta, "best/sad": best["validation_sad"]})
    work.conclude(f"Best: alpha {alpha:g}, beta {beta:g}, validation SAD {best['validation_sad']:.1f}.")
    say(f"best     alpha {alpha:g}, beta {beta:g}: validation SAD {best['validation_sad']:.1f}")
    say(f"weights  {work.files.path(BEST)}   (raymat train --loss-weights {out}/{BEST})")
    return alpha, beta
