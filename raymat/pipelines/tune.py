"""Which alpha and beta of Eq. 6 are best: a grid on Ray Tune, each trial a training on Ray Train.

OUT/tune/                   Ray Tune's state: an interrupted sweep goes on from it
OUT/trials/alpha-1-beta-10/ the trial's MLflow run, checkpoints and result
OUT/best.json               the best pair, as `raymat train --loss-weights` takes it
OUT/heat_map.png            validation SAD over the grid
"""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import ray
from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.schedulers import ASHAScheduler
from ray.util.queue import Queue

from raymat import pictures
from raymat.lock import held
from raymat.network_pictures import heat_map
from raymat.nodule import InputError
from raymat.pipelines.cluster import connected, quiet_ray
from raymat.pipelines.dataset import flatten
from raymat.pipelines.feed import load_records
from raymat.pipelines.train import RESULT, Data, Settings, TrainJob, fit, threads_of, told
from raymat.splits import Split
from raymat.steps import counted
from raymat.store import Store, open_filesystem
from raymat.tracking import TRAININGS, Run, how_to_look

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
    with held(place, secrets.token_hex(8)):
        return _tune(job, data, split, place, say)


def _tune(job: TuneJob, data: Data, split: Split, place: Store, say: Callable[[str], None]) -> tuple[float, float]:
    training = job.training
    pairs = [(alpha, beta) for alpha in job.alphas for beta in job.betas]
    note = _note(place, job, data)
    parent = _runs(job, place, note, pairs, data) if training.tracking_uri else None
    place.write(NOTE, json.dumps(note, indent=1).encode())
    status = "FAILED"
    try:
        with connected(training.address):
            threads = threads_of(training)
            parts = [data.of(split.training), data.of(split.validation)]
            places = [place for part in parts for place in part]
            records = load_records(data.nodules, places, training.recipe.model, say)
            lines = Queue(actor_options={"num_cpus": 0})
            settings = Settings(
                training.recipe, records[: len(parts[0])], records[len(parts[0]) :], threads, lines, None, None
            )
            at_once = _at_once(training)
            say(f"{counted(len(pairs), 'trial')}, {at_once} at once")
            with told(lines, lambda line: say(f"  {line}")):
                errors = _sweep(job, settings, place, at_once)
            lines.shutdown()
        best = _conclude(job, place, pairs, parent, errors, say)
        status = "FINISHED"
        return best
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        if parent:
            parent.end(status)


def trial_name(alpha: float, beta: float) -> str:
    return f"alpha-{alpha:g}-beta-{beta:g}"


def _note(place: Store, job: TuneJob, data: Data) -> dict:
    mine = {"data_digest": data.digest, "recipe": job.training.recipe.to_dict(), "split": job.training.splits[0]}
    mine |= {"alphas": list(job.alphas), "betas": list(job.betas), "early": job.early}
    if not place.exists(NOTE):
        return mine
    found = json.loads(place.read(NOTE))
    for name, value in mine.items():
        if found.get(name) != value:
            raise InputError(
                f"{job.training.out}: holds a sweep with another {name.replace('_', ' ')}; name a new -o, or repeat "
                "the command that began it"
            )
    return found


def _runs(job: TuneJob, place: Store, note: dict, pairs: Sequence[tuple[float, float]], data: Data) -> Run:
    """The sweep's run and, under it, one a trial: made here, one after the other, for SQLite takes one writer."""
    training = job.training
    parameters = flatten({"dataset": training.dataset, "workers": training.workers, **training.recipe.to_dict()})
    for varied in ("alpha_weight", "gradient_weight"):
        del parameters[varied]
    parent = Run(training.tracking_uri, f"tune {training.out}", parameters, TRAININGS, continues=note.get("run"))
    parent.tag("data_digest", data.digest)
    note["run"] = parent.id
    for alpha, beta in pairs:
        path = f"trials/{trial_name(alpha, beta)}/run.json"
        if place.exists(path):
            continue
        weights = {"alpha_weight": alpha, "gradient_weight": beta}
        name = f"alpha {alpha:g}, beta {beta:g}"
        run = Run(training.tracking_uri, name, parameters | weights, TRAININGS, parent.id)
        run.status("SCHEDULED")
        place.write(path, json.dumps({"run": run.id}).encode())
    return parent


def _at_once(training: TrainJob) -> int:
    """As many trials as the cluster has CPUs (or GPUs) for."""
    resources = ray.cluster_resources()
    return max(1, int(resources.get("GPU" if training.gpu else "CPU", 0.0) // training.workers))


def _sweep(job: TuneJob, settings: Settings, place: Store, at_once: int) -> list[str]:
    """Run Ray Tune over the grid; the errors of trials that failed."""
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    # The trial itself only waits for its training; Tune takes no 0.
    trainable = tune.with_resources(partial(_trial, job=job, settings=settings), {"CPU": 0.01})
    space = {"alpha": tune.grid_search(list(job.alphas)), "beta": tune.grid_search(list(job.betas))}
    epochs = job.training.recipe.epochs
    asha = ASHAScheduler(max_t=epochs, grace_period=max(1, epochs // 8)) if job.early else None
    path = place.path("tune")
    if tune.Tuner.can_restore(path, storage_filesystem=place.filesystem):
        tuner = tune.Tuner.restore(
            path, trainable, restart_errored=True, param_space=space, storage_filesystem=place.filesystem
        )
    else:
        tuner = tune.Tuner(
            trainable,
            param_space=space,
            tune_config=tune.TuneConfig(metric="sad", mode="min", scheduler=asha, max_concurrent_trials=at_once),
            run_config=tune.RunConfig(
                name="tune", storage_path=place.root, storage_filesystem=place.filesystem, verbose=0
            ),
        )
    return [str(error).strip().splitlines()[-1] for error in tuner.fit().errors]


def _trial(config: dict, job: TuneJob, settings: Settings) -> None:
    """One pair of weights: a training on Ray Train, reported to Ray Tune epoch by epoch."""
    quiet_ray()
    alpha, beta = config["alpha"], config["beta"]
    training, folder = job.training, f"trials/{trial_name(alpha, beta)}"
    place = Store(*open_filesystem(training.out))
    if place.exists(f"{folder}/{RESULT}"):
        tune.report(json.loads(place.read(f"{folder}/{RESULT}")))
        return
    recipe = replace(training.recipe, alpha_weight=alpha, gradient_weight=beta)
    run = None
    if training.tracking_uri:
        run = Run.join(training.tracking_uri, json.loads(place.read(f"{folder}/run.json"))["run"])
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
    sads = np.full((len(job.alphas), len(job.betas)), np.nan)
    for number, (alpha, beta) in enumerate(pairs):
        folder = f"trials/{trial_name(alpha, beta)}"
        if place.exists(f"{folder}/{RESULT}"):
            sads.flat[number] = json.loads(place.read(f"{folder}/{RESULT}"))["sad"]
        elif parent:
            identifier = json.loads(place.read(f"{folder}/run.json"))["run"]
            Run.join(job.training.tracking_uri, identifier).end("FAILED" if errors else "KILLED")
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
        say(f"MLflow   {how_to_look(job.training.tracking_uri, parent.page)}")
    return alpha, beta
