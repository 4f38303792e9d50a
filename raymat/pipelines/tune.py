"""Which alpha and beta of Eq. 6 are best: a grid on Ray Tune, each trial a training on Ray Train.

OUT/tune/                   Ray Tune's state: an interrupted sweep goes on from it
OUT/trials/alpha-1-beta-10/ the trial's MLflow run, checkpoints and result
OUT/best.json               the best pair, as `raymat train --loss-weights` takes it
OUT/heat_map.png            validation SAD over the grid
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.schedulers import ASHAScheduler
from ray.util.queue import Queue

from raymat.engine.cluster import connected, quiet_ray
from raymat.lock import held
from raymat.nodule import InputError
from raymat.pipelines.feed import load_records
from raymat.pipelines.sweep import (
    Sweep,
    Trial,
    note_of,
    result_of,
    run_of,
    run_trials,
    sweep_runs,
    trials_at_once,
)
from raymat.pipelines.train import RESULT, Data, Settings, TrainJob, fit, threads_of, told
from raymat.places import open_filesystem
from raymat.splits import Split
from raymat.store import Store
from raymat.tracking import TRAININGS, Run, flatten, how_to_look
from raymat.words import counted

HEAT_MAP, BEST, NOTE = "heat_map.png", "best.json", "sweep.json"


@dataclass(frozen=True)
class TuneJob:
    """What to search.

    Attributes
    ----------
    training : dataset, output, recipe, workers of each trial, MLflow store and cluster; its first re-split is used
    alphas, betas : weights of the grid
    early : stop trials that fall behind (ASHA), where False each runs to its end
    """

    training: TrainJob
    alphas: tuple[float, ...] = (1.0, 3.0, 10.0, 30.0)
    betas: tuple[float, ...] = (1.0, 3.0, 10.0, 30.0)
    early: bool = False


def tune_loss_weights(job: TuneJob, say: Callable[[str], None] = print) -> tuple[float, float]:
    """Train with every pair of weights, or go on where an earlier sweep was interrupted.

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
    training = job.training
    if training.recipe.batch % training.workers:
        raise InputError(f"a batch of {training.recipe.batch} cannot be shared by {training.workers} workers")
    data = Data.open(training.dataset)
    split = data.split(training.splits[0])
    place = Store(*open_filesystem(training.out))
    with held(place):
        return _tune(job, data, split, place, say)


def _tune(job: TuneJob, data: Data, split: Split, place: Store, say: Callable[[str], None]) -> tuple[float, float]:
    training = job.training
    pairs = [(alpha, beta) for alpha in job.alphas for beta in job.betas]
    note = _note(place, job, data)
    trials = _trials(pairs)
    parameters = flatten({"dataset": training.dataset, "workers": training.workers, **training.recipe.to_dict()})
    sweep = Sweep(training.tracking_uri, f"tune {training.out}", TRAININGS, parameters, data.digest)
    with sweep_runs(sweep, trials, place, NOTE, note) as (parent, end):
        with connected(training.address, holds_dataset=True):
            threads = threads_of(training)
            parts = [data.of(split.training), data.of(split.validation)]
            places = [place for part in parts for place in part]
            records = load_records(data.nodules, places, training.recipe.model, say)
            lines = Queue(actor_options={"num_cpus": 0})
            settings = Settings(
                training.recipe, records[: len(parts[0])], records[len(parts[0]) :], threads, lines, None, None
            )
            at_once = trials_at_once(training.workers, training.workers if training.gpu else 0, len(pairs))
            say(f"{counted(len(pairs), 'trial')}, {at_once} at once")
            with told(lines, lambda line: say(f"  {line}")):
                errors = _sweep(job, settings, place, at_once)
        end.status = "FAILED" if errors else "FINISHED"
        return _conclude(job, place, pairs, parent, errors, say)


def trial_name(alpha: float, beta: float) -> str:
    """The folder of a trial, by its weights of the losses."""
    return f"alpha-{alpha:g}-beta-{beta:g}"


def _note(place: Store, job: TuneJob, data: Data) -> dict:
    mine = {"data_digest": data.digest, "recipe": job.training.recipe.to_dict(), "split": job.training.splits[0]}
    mine |= {"alphas": list(job.alphas), "betas": list(job.betas), "early": job.early}
    return note_of(place, NOTE, mine, job.training.out)


def _trials(pairs: Sequence[tuple[float, float]]) -> list[Trial]:
    return [
        Trial(
            f"trials/{trial_name(alpha, beta)}",
            f"alpha {alpha:g}, beta {beta:g}",
            {"alpha_weight": alpha, "gradient_weight": beta},
        )
        for alpha, beta in pairs
    ]


def _sweep(job: TuneJob, settings: Settings, place: Store, at_once: int) -> list[str]:
    """Run Ray Tune over the grid; the errors of trials that failed."""
    space = {"alpha": tune.grid_search(list(job.alphas)), "beta": tune.grid_search(list(job.betas))}
    epochs = job.training.recipe.epochs
    asha = ASHAScheduler(max_t=epochs, grace_period=max(1, epochs // 8)) if job.early else None
    config = tune.TuneConfig(metric="sad", mode="min", scheduler=asha, max_concurrent_trials=at_once)
    # The trial itself only waits for its training; Tune takes no 0.
    trial = partial(_trial, job=job, settings=settings, place=place)
    return run_trials(place, trial, space, {"CPU": 0.01}, config)


def _trial(config: dict, job: TuneJob, settings: Settings, place: Store) -> None:
    """One pair of weights: a training on Ray Train, reported to Ray Tune epoch by epoch.

    Ray Tune runs it in a directory of its own, where a relative output would be another place.
    """
    quiet_ray()
    alpha, beta = config["alpha"], config["beta"]
    training, folder = job.training, f"trials/{trial_name(alpha, beta)}"
    before = result_of(place, folder)
    if before:
        tune.report(before)
        return
    recipe = replace(training.recipe, alpha_weight=alpha, gradient_weight=beta)
    run = None
    if training.tracking_uri:
        run = run_of(training.tracking_uri, place, folder)
        run.status("RUNNING")
    mine = replace(settings, recipe=recipe, tracking_uri=training.tracking_uri, run=run.id if run else None)
    final = fit(mine, training.workers, training.gpu, place, folder, [TuneReportCallback()])
    with final.as_directory() as local:
        result = (Path(local) / RESULT).read_bytes()
    place.write(f"{folder}/{RESULT}", result)
    # A training that had come to its end when the sweep was cut off reports nothing of its own any more.
    tune.report(json.loads(result))
    if run:
        run.end()


def _conclude(
    job: TuneJob,
    place: Store,
    pairs: Sequence[tuple[float, float]],
    parent: Run | None,
    errors: Sequence[str],
    say: Callable[[str], None],
) -> tuple[float, float]:
    """The heat map, the best pair, and the runs of trials that were stopped early or failed."""
    # Imported here: a trial's process draws nothing.
    from raymat import pictures
    from raymat.network_pictures import heat_map

    sads = np.full((len(job.alphas), len(job.betas)), np.nan)
    for number, (alpha, beta) in enumerate(pairs):
        result = result_of(place, f"trials/{trial_name(alpha, beta)}")
        if result:
            sads.flat[number] = result["sad"]
    for error in errors:
        say(f"a trial failed: {error}")
    if not np.isfinite(sads).any():
        raise InputError(f"{job.training.out}: no trial came to a result; run the same command again")
    figure = heat_map(sads, job.alphas, job.betas, f"validation SAD, {counted(job.training.recipe.epochs, 'epoch')}")
    place.write(HEAT_MAP, pictures.png_bytes(figure))
    alpha, beta = pairs[int(np.nanargmin(sads))]
    best = {"alpha_weight": alpha, "gradient_weight": beta, "validation_sad": float(np.nanmin(sads))}
    place.write(BEST, json.dumps(best, indent=1).encode())
    say(f"best     alpha {alpha:g}, beta {beta:g}: validation SAD {best['validation_sad']:.1f}")
    say(f"weights  {place.path(BEST)}   (raymat train --loss-weights {job.training.out}/{BEST})")
    if parent:
        parent.figure(HEAT_MAP, figure)
        parent.text(BEST, json.dumps(best, indent=1))
        parent.metrics({"best/alpha_weight": alpha, "best/gradient_weight": beta, "best/sad": best["validation_sad"]})
        say(f"MLflow   {how_to_look(parent.uri, parent.page)}")
    return alpha, beta
