"""What the sweeps share: trials on Ray Tune, each with a folder and an MLflow run of its own under that of the sweep.

A trial is finished when its folder holds ``RESULT``; no command repeats it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import ray
from ray import tune

from raymat.engine.cluster import grows
from raymat.nodule import InputError
from raymat.pipelines.train import RESULT
from raymat.store import Store
from raymat.tracking import Ending, Run, ending

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


@dataclass(frozen=True)
class Sweep:
    """What the runs of a sweep share.

    Attributes
    ----------
    uri : the MLflow store; None for no runs
    name, experiment : of the sweep's run, and where it is
    parameters : of all trials
    digest : of the dataset
    """

    uri: str | None
    name: str
    experiment: str
    parameters: dict
    digest: str


@contextlib.contextmanager
def sweep_runs(
    sweep: Sweep, trials: list[Trial], place: Store, note_file: str, note: dict
) -> Iterator[tuple[Run | None, Ending]]:
    """The sweep has its run and, under it, one per trial; ended in any case, as ``raymat.tracking.ending`` does.

    They are made here, one after the other, for SQLite takes one writer. Those of trials without a result end as the
    sweep does; as KILLED where it came to its end without them.

    Parameters
    ----------
    note : of the sweep, written here; it has the sweep's ``run``, where that was begun before, and gets it
    """
    uri, experiment = sweep.uri, sweep.experiment
    if not uri:
        place.write(note_file, json.dumps(note, indent=1).encode())
        yield None, Ending()
        return
    shared = dict(sweep.parameters)
    for varied in {key for trial in trials for key in trial.parameters}:
        shared.pop(varied, None)
    parent = Run(uri, sweep.name, shared, experiment, continues=note.get("run"))
    end = Ending()
    try:
        with ending(parent) as end:
            parent.tag("data_digest", sweep.digest)
            note["run"] = parent.id
            place.write(note_file, json.dumps(note, indent=1).encode())
            for trial in trials:
                # One that was killed between its result and the end of its run.
                if place.exists(f"{trial.folder}/{RESULT}") and place.exists(f"{trial.folder}/{RUN}"):
                    run_of(uri, place, trial.folder).end_if_open()
            for trial in _unfinished(trials, place):
                if place.exists(f"{trial.folder}/{RUN}"):
                    run_of(uri, place, trial.folder).status("SCHEDULED")
                    continue
                run = Run(uri, trial.name, shared | dict(trial.parameters), experiment, parent.id)
                place.write(f"{trial.folder}/{RUN}", json.dumps({"run": run.id}).encode())
                run.status("SCHEDULED")
            yield parent, end
    finally:
        status = "KILLED" if end.status == "FINISHED" else end.status
        for trial in _unfinished(trials, place):
            if place.exists(f"{trial.folder}/{RUN}"):
                run_of(uri, place, trial.folder).end(status)


def _unfinished(trials: list[Trial], place: Store) -> list[Trial]:
    return [trial for trial in trials if not place.exists(f"{trial.folder}/{RESULT}")]


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
    # Tune would take Ctrl-C for an end like any other, and its table of a quiet run advertises a folder that goes.
    os.environ.update(TUNE_DISABLE_SIGINT_HANDLER="1", RAY_AIR_NEW_OUTPUT="0")
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
