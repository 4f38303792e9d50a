"""One training of 3DMM on Ray Train, from records to weights; it survives the death of a worker and of its driver.

FOLDER/ray/   Ray Train's checkpoints: a training in the same folder resumes from the last one
"""

from __future__ import annotations

import contextlib
import json
import logging
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import ray
import ray.train
import torch
import torch.distributed
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig
from ray.train.v2.api.config import LoggingConfig

from raymat import metrics
from raymat.engine.cluster import quiet_ray, refuse_too_many
from raymat.engine.ray_train_private import SNAPSHOT, Trainer, silence_train
from raymat.engine.reports import Reporter
from raymat.engine.system_metrics import watching
from raymat.folder import Folder
from raymat.network.model import Prediction
from raymat.network.recipe import Recipe
from raymat.network.samples import ALPHA, IMAGE, OVERLAP, UNION, steps_per_epoch, validation_volume
from raymat.network.training import (
    State,
    begin,
    has_arithmetic,
    predict,
    read_checkpoint_of,
    restore,
    save,
    save_weights,
    train_step,
)
from raymat.nodule import InputError
from raymat.pipelines.feed import FEED_CPUS, FEED_TASKS, stream
from raymat.words import in_words

STATE, WEIGHTS, RESULT = "state.pt", "weights.pt", "result.json"
MAX_FAILURES = 3
PICTURES = 10  # epochs of a run that leave a picture


@dataclass(frozen=True)
class Settings:
    """What each worker is given.

    Attributes
    ----------
    recipe : all that decides the weights
    training, validation : references to records, see ``raymat.pipelines.feed.load_records``
    threads : of each worker on CPUs
    reporter : of the training; the worker of rank 0 uses it
    patients : whom the weights will have seen, to learn from or to validate; those of the initial weights too
    initial : content of the weights file that the training begins with
    """

    recipe: Recipe
    training: list
    validation: list
    threads: int
    reporter: Reporter
    patients: tuple[str, ...] = ()
    initial: bytes | None = None


def threads_of(workers: int, gpu: bool, threads: int | None) -> int:
    """Threads of each worker: those asked for, else as many as the cluster has CPUs for it.

    Raises
    ------
    InputError
        The cluster cannot hold the workers.
    """
    refuse_too_many(workers, gpu)
    return threads or max(1, int(ray.cluster_resources()["CPU"] // workers))


def fit(
    settings: Settings, workers: int, gpu: bool, files: Folder, folder: str, callbacks: Sequence = ()
) -> Checkpoint:
    """Run Ray Train to the end, from its last checkpoint in that folder where there is one.

    Returns
    -------
    Checkpoint
        The last one: ``STATE``, ``WEIGHTS`` and ``RESULT``.

    Raises
    ------
    InputError
        A checkpoint is damaged or of another recipe.
    """
    _refuse_unusable_checkpoint(settings.recipe, files, folder)
    # A little less than a CPU each leaves the feeding tasks their share, without which no step would ever start.
    cpus = 1.0 - FEED_TASKS["cuda" if gpu else "cpu"] * FEED_CPUS
    trainer = Trainer(
        partial(train_worker, settings),
        torch_config=TorchConfig(backend="nccl" if gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=workers, use_gpu=gpu, resources_per_worker={"CPU": cpus} | ({"GPU": 1} if gpu else {})
        ),
        run_config=RunConfig(
            name="ray",
            storage_path=files.path(folder),
            storage_filesystem=files.filesystem,
            failure_config=FailureConfig(max_failures=MAX_FAILURES),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
            logging_config=LoggingConfig(log_level="ERROR"),  # type: ignore[call-arg]
            callbacks=list(callbacks),
        ),
    )
    try:
        checkpoint = trainer.fit().checkpoint
    except KeyboardInterrupt:
        trainer.abort()
        raise
    except ray.train.WorkerGroupError as error:
        for failure in error.worker_failures.values():
            cause = getattr(failure, "cause", None) or failure.__cause__ or failure
            if isinstance(cause, InputError):
                raise InputError(str(cause).splitlines()[0]) from None
        raise
    if checkpoint is None:
        raise RuntimeError("Ray Train ended without a checkpoint")
    return checkpoint


def _refuse_unusable_checkpoint(recipe: Recipe, files: Folder, folder: str) -> None:
    """Raise InputError where the last checkpoint is damaged or of another recipe: Ray would try it four times."""
    if files.exists(f"{folder}/ray/{SNAPSHOT}"):
        last = ray.train.Result.from_path(files.path(f"{folder}/ray"), files.filesystem).checkpoint
        if last:
            with last.as_directory() as local:
                read_checkpoint_of(recipe, Path(local) / STATE)


def train_worker(settings: Settings) -> None:
    """The loop of one worker: feed, step, validate, log, checkpoint; from the last checkpoint where there is one."""
    quiet_ray()
    silence_train()
    # A block is one batch here, and Ray Data would warn that there are more blocks than CPUs.
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    recipe = settings.recipe
    context = ray.train.get_context()
    rank, workers = context.get_world_rank(), context.get_world_size()
    device = ray.train.torch.get_device()
    if device.type == "cpu":
        torch.set_num_threads(settings.threads)
        if rank == 0 and not has_arithmetic(recipe.precision):
            settings.reporter.say(
                f"this CPU has no {recipe.precision} arithmetic (AVX-512): steps take many times as long as in float32"
            )
    steps = steps_per_epoch(len(settings.training), recipe.batch)
    state = begin(recipe, steps, device, settings.initial)
    checkpoint = ray.train.get_checkpoint()
    if checkpoint:
        with checkpoint.as_directory() as folder:
            restore(state, Path(folder) / STATE)
    network: Callable[[torch.Tensor], Prediction] = ray.train.torch.prepare_model(state.model)
    if recipe.compiled:
        network = torch.compile(network)
    reporter = settings.reporter
    feed = stream(settings.training, recipe, rank, workers, state.epoch * steps, device)
    with watching(reporter.metrics) if rank == 0 else contextlib.nullcontext():
        for epoch in range(state.epoch, recipe.epochs):
            start = time.monotonic()
            history, waited = _epoch(state, network, feed, steps)
            learnt = time.monotonic() - start
            state.epoch = epoch + 1
            found, shown = validate(state, settings.validation[rank::workers], device, recipe.batch // workers)
            found = _averaged(found, len(settings.validation[rank::workers]), device)
            found |= {"seconds_per_step": learnt / steps, "waiting_share": waited / learnt}
            if rank == 0:
                trained = float(np.mean([values["loss/total"] for values in history]))
                reporter.say(
                    f"epoch {state.epoch}/{recipe.epochs}, loss {trained:.4f}, validation SAD {found['sad']:.1f}, "
                    f"{in_words(time.monotonic() - start)}"
                )
            _report(state, found, rank, settings.patients)
            if rank == 0:
                reporter.metrics([(epoch * steps + step, values) for step, values in enumerate(history)])
                validated = {f"validation/{name}": value for name, value in found.items()}
                reporter.metrics([(state.epoch * steps, validated)])
                if shown and (state.epoch % max(1, recipe.epochs // PICTURES) == 0 or state.epoch == recipe.epochs):
                    reporter.picture(f"validation/epoch-{state.epoch:04d}.png", _picture(shown, recipe.kind))


def _picture(shown: dict[str, np.ndarray], kind: str) -> bytes:
    # Imported behind the first checkpoint: what draws takes a second.
    from raymat.pictures.figure import png_bytes
    from raymat.pictures.network import show_predictions

    return png_bytes(show_predictions([shown], kind=kind))


def _epoch(
    state: State, network: Callable[[torch.Tensor], Prediction], feed: Iterator[torch.Tensor], steps: int
) -> tuple[list[dict[str, float]], float]:
    """One pass over the training nodules: losses and learning rate of each step, and the seconds spent waiting."""
    state.model.train()
    history, waited = [], 0.0
    for _ in range(steps):
        before = time.monotonic()
        volumes = next(feed)
        waited += time.monotonic() - before
        rate = state.optimizer.param_groups[0]["lr"]
        losses = train_step(state, network, volumes)
        # On the device until the epoch ends: reading a number would make the step wait for the GPU.
        history.append({f"loss/{name}": value.detach() for name, value in losses._asdict().items()} | {"rate": rate})
    return [{name: float(value) for name, value in values.items()} for values in history], waited


@torch.no_grad()
def validate(
    state: State, records: Sequence, device: torch.device, batch: int
) -> tuple[dict[str, float], dict[str, np.ndarray] | None]:
    """Mean errors over the middle of each record, ``batch`` predicted at once; arrays of the first ones, to draw."""
    network = state.result.eval()
    sums = dict.fromkeys(("sad", "mse", "sad_of_masks", "dice_union", "dice_overlap"), 0.0)
    shown = None
    for first in range(0, len(records), batch):
        some = ray.get(list(records[first : first + batch]))
        volumes = torch.stack([validation_volume(record, state.recipe.augmentation.crop) for record in some])
        prediction = predict(network, volumes[:, IMAGE:ALPHA].to(device), state.recipe.precision)
        parts = (prediction.alpha, prediction.union.sigmoid(), prediction.overlap.sigmoid())
        found = torch.cat([part.float() for part in parts], dim=1).cpu().numpy()
        for truth, (alpha, union, overlap) in zip(volumes.numpy(), found, strict=True):
            sums["sad"] += metrics.sad(alpha, truth[ALPHA])
            sums["mse"] += metrics.mse(alpha, truth[ALPHA])
            sums["sad_of_masks"] += metrics.sad((union + overlap) / 2, truth[ALPHA])
            sums["dice_union"] += metrics.dice(union >= 0.5, truth[UNION] > 0)
            sums["dice_overlap"] += metrics.dice(overlap >= 0.5, truth[OVERLAP] > 0)
            if shown is None:
                shown = {"image": truth[IMAGE], "alpha": truth[ALPHA], "union": truth[UNION], "overlap": truth[OVERLAP]}
                shown |= {"predicted alpha": alpha, "predicted union": union, "predicted overlap": overlap}
    return {name: value / max(1, len(records)) for name, value in sums.items()}, shown


def _averaged(errors: dict[str, float], count: int, device: torch.device) -> dict[str, float]:
    """The mean over all workers' records."""
    if not torch.distributed.is_initialized():
        return errors
    sums = torch.tensor([*(value * count for value in errors.values()), count], device=device, dtype=torch.float32)
    torch.distributed.all_reduce(sums)
    *values, total = sums.tolist()
    return {name: value / total for name, value in zip(errors, values, strict=True)}


def _report(state: State, values: dict[str, float], rank: int, patients: Sequence[str]) -> None:
    """Hand the epoch's values and, from rank 0, its checkpoint to Ray Train."""
    if rank:
        ray.train.report(values)
        return
    with tempfile.TemporaryDirectory() as folder:
        save(state, Path(folder) / STATE)
        if state.epoch == state.recipe.epochs:
            save_weights(state, Path(folder) / WEIGHTS, patients)
        (Path(folder) / RESULT).write_text(json.dumps(values))
        ray.train.report(values, checkpoint=Checkpoint.from_directory(folder))
