"""What sweeps on Ray Tune share: trials with folders in the output, their MLflow runs, and Tune itself."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import ray
from ray import tune

from raymat.engine.cluster import grows
from raymat.engine.reports import ENDED, Report
from raymat.experiment import Experiment, Say
from raymat.folder import Folder
from raymat.pipelines.fit import RESULT
from raymat.pipelines.train import log


@dataclass(frozen=True)
class Trial:
    """A trial's folder in the output, its run's name, and the parameters that set it apart from the others."""

    folder: str
    name: str
    parameters: Mapping[str, object]


class TrialRuns:
    """The driver's side of a sweep: a run for each trial that has begun, filled from what the trials report.

    Parameters
    ----------
    work : the sweep's output and run
    trials : all of them
    shared : parameters of all trials, logged with each
    say : called with each line that a trial reports
    """

    def __init__(self, work: Experiment, trials: Sequence[Trial], shared: Mapping[str, object], say: Say) -> None:
        self.work, self.shared, self.say = work, shared, say
        self.trials = {trial.folder: trial for trial in trials}
        for folder in self.trials:
            if work.files.exists(f"{folder}/{RESULT}"):
                work.end_if_open(folder)

    def __call__(self, report: Report) -> None:
        """Take one report."""
        if report.line:
            self.say(report.line)
        trial = self.trials[report.sender]
        log(report, self.work.child(trial.folder, trial.name, {**self.shared, **trial.parameters}))
        if report.state == ENDED:
            self.work.end_child(trial.folder)


def result_of(files: Folder, folder: str) -> dict | None:
    """What a trial came to; None for one that is not finished."""
    name = f"{folder}/{RESULT}"
    return files.read_json(name) if files.exists(name) else None


def trials_at_once(cpus: float, gpus: float = 0.0, most: int = 1) -> int:
    """For how many trials of the given CPUs and GPUs the cluster has room; ``most`` where the cluster grows."""
    if grows():
        return most
    resources = ray.cluster_resources()
    room = [resources.get(name, 0.0) // need for name, need in (("CPU", cpus), ("GPU", gpus)) if need]
    return max(1, int(min(room, default=most)))


@dataclass(frozen=True)
class Sweep:
    """A sweep as Ray Tune runs it.

    Attributes
    ----------
    trainable : one trial
    space, config : Ray Tune's
    resources : of one trial
    name : of Tune's state in the output: a sweep that was interrupted is resumed under the same name
    max_failures : how often a trial whose worker died is started again
    """

    trainable: Callable[[dict], None]
    space: dict
    resources: Mapping[str, float]
    config: tune.TuneConfig
    name: str = "tune"
    max_failures: int = 0


def run_trials(sweep: Sweep, files: Folder) -> list[str]:
    """Run the sweep, or resume it; the errors of failed trials."""
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    # Tune would take Ctrl-C for an end like any other, and its table of a quiet run advertises a folder that goes.
    os.environ.update(TUNE_DISABLE_SIGINT_HANDLER="1", RAY_AIR_NEW_OUTPUT="0")
    trainable = tune.with_resources(sweep.trainable, dict(sweep.resources))
    path, filesystem = files.path(sweep.name), files.filesystem
    if tune.Tuner.can_restore(path, storage_filesystem=filesystem):
        tuner = tune.Tuner.restore(
            path, trainable, restart_errored=True, param_space=sweep.space, storage_filesystem=filesystem
        )
    else:
        tuner = tune.Tuner(
            trainable,
            param_space=sweep.space,
            tune_config=sweep.config,
            run_config=tune.RunConfig(
                name=sweep.name,
                storage_path=files.root,
                storage_filesystem=filesystem,
                failure_config=tune.FailureConfig(max_failures=sweep.max_failures),
                verbose=0,
            ),
        )
    return [str(error).strip().splitlines()[-1] for error in tuner.fit().errors]
