"""What the sweeps share: trials on Ray Tune, each with a folder and an MLflow run of its own under that of the sweep.

A trial is finished when its folder holds ``RESULT``; no command repeats it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import ray
from ray import tune

from raymat.nodule import InputError
from raymat.pipelines.cluster import grows
from raymat.pipelines.train import RESULT
from raymat.store import Store
from raymat.tracking import Run

RUN = "run.json"


def note_of(place: Store, name: str, mine: dict, out: str) -> dict:
    """The sweep's note as it stands in the output, else ``mine``; raises InputError where it is of another sweep."""
    if not place.exists(name):
        return mine
    found = json.loads(place.read(name))
    for key, value in mine.items():
        if found.get(key) != value:
            raise InputError(
                f"{out}: holds a sweep with another {key.replace('_', ' ')}; name a new -o, or repeat the command "
                "that began it"
            )
    return found


@dataclass(frozen=True)
class Trial:
    """A trial's folder in the output, its run's name, and the parameters that set it apart."""

    folder: str
    name: str
    parameters: Mapping[str, object]


def begin_runs(
    uri: str, name: str, parameters: dict, trials: list[Trial], place: Store, note: dict, experiment: str, digest: str
) -> Run:
    """The sweep's run and, under it, one a trial: made here, one after the other, for SQLite takes one writer."""
    shared = dict(parameters)
    for trial in trials:
        for varied in trial.parameters:
            shared.pop(varied, None)
    parent = Run(uri, name, shared, experiment, continues=note.get("run"))
    parent.tag("data_digest", digest)
    note["run"] = parent.id
    for trial in trials:
        if place.exists(f"{trial.folder}/{RUN}"):
            continue
        run = Run(uri, trial.name, shared | dict(trial.parameters), experiment, parent.id)
        run.status("SCHEDULED")
        place.write(f"{trial.folder}/{RUN}", json.dumps({"run": run.id}).encode())
    return parent


def run_of(uri: str, place: Store, folder: str) -> Run:
    """The run of a trial, to log to it from where it works."""
    return Run.join(uri, json.loads(place.read(f"{folder}/{RUN}"))["run"])


def result_of(place: Store, folder: str) -> dict | None:
    """What a trial came to; None for one that is not finished."""
    return json.loads(place.read(f"{folder}/{RESULT}")) if place.exists(f"{folder}/{RESULT}") else None


def trials_at_once(cpus: float, gpus: float = 0.0, most: int = 1) -> int:
    """As many trials of so many CPUs and GPUs each as the cluster has room for; ``most`` where it grows to them."""
    if grows():
        return most
    resources = ray.cluster_resources()
    room = [resources.get(name, 0.0) // need for name, need in (("CPU", cpus), ("GPU", gpus)) if need]
    return max(1, int(min(room)))


def run_trials(
    place: Store,
    trainable: Callable[[dict], None],
    space: dict,
    resources: Mapping[str, float],
    config: tune.TuneConfig,
    name: str = "tune",
    max_failures: int = 0,
) -> list[str]:
    """Run Ray Tune over the space, or go on where it was interrupted under that name; the errors of failed trials.

    Parameters
    ----------
    place : the output, in which Tune keeps its state
    trainable : one trial
    space, config : Ray Tune's
    resources : of one trial
    max_failures : times that a trial whose worker died is begun again
    """
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    trainable = tune.with_resources(trainable, dict(resources))
    path = place.path(name)
    if tune.Tuner.can_restore(path, storage_filesystem=place.filesystem):
        tuner = tune.Tuner.restore(
            path, trainable, restart_errored=True, param_space=space, storage_filesystem=place.filesystem
        )
    else:
        tuner = tune.Tuner(
            trainable,
            param_space=space,
            tune_config=config,
            run_config=tune.RunConfig(
                name=name,
                storage_path=place.root,
                storage_filesystem=place.filesystem,
                failure_config=tune.FailureConfig(max_failures=max_failures),
                verbose=0,
            ),
        )
    return [str(error).strip().splitlines()[-1] for error in tuner.fit().errors]


def end_unfinished(uri: str, place: Store, trials: list[Trial], status: str) -> None:
    """End the runs of trials that came to no result."""
    for trial in trials:
        if not place.exists(f"{trial.folder}/{RESULT}"):
            run_of(uri, place, trial.folder).end(status)
