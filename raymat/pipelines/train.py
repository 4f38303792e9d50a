"""3DMM on Ray Train: one training a re-split, each of which survives the death of a worker and of its driver.

OUT/training.json          dataset, recipe and the MLflow run that all re-splits stand under
OUT/split-0/split.json     patients of each part
OUT/split-0/run.json       its MLflow run
OUT/split-0/ray/           Ray Train's checkpoints: with the same name it goes on where it stopped
OUT/split-0/weights.pt     weights and recipe, when it is done
"""

from __future__ import annotations

import contextlib
import json
import logging
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import ray
import ray.train
import torch
import torch.distributed
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.constants import CHECKPOINT_MANAGER_SNAPSHOT_FILENAME as SNAPSHOT
from ray.train.v2._internal.execution import context as train_context
from ray.train.v2.api.config import LoggingConfig
from ray.util.queue import Queue

from raymat import metrics
from raymat.engine.cluster import connected, quiet_ray, refuse_too_many
from raymat.loading import Nodules, load
from raymat.lock import held
from raymat.network.model import Prediction
from raymat.network.recipe import Recipe
from raymat.network.samples import ALPHA, IMAGE, OVERLAP, UNION, steps_an_epoch, validation_volume
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
from raymat.nodule import ACCEPTED, InputError
from raymat.pipelines.feed import FEED_CPUS, FEED_TASKS, load_records, stream
from raymat.places import open_filesystem
from raymat.release.record import DIGESTS, Release, is_release
from raymat.sources import digest
from raymat.splits import REPETITIONS, Split, split_patients
from raymat.store import Store
from raymat.tracking import TRAININGS, Run, ending, flatten, how_to_look
from raymat.words import counted, in_words

STATE, WEIGHTS, RESULT = "state.pt", "weights.pt", "result.json"
MAX_FAILURES = 3
ABORT_S = 30.0
PICTURES = 10  # epochs of a run that leave a picture


@dataclass(frozen=True)
class TrainJob:
    """What to train, on what, where and how.

    Attributes
    ----------
    dataset : folder or URI of a built dataset or a release
    out : folder or URI of the trainings
    recipe : all that decides the weights
    splits : which of the re-splits
    workers : processes that share each batch, one GPU each where ``gpu``
    threads : of each worker on CPUs; as many as there are CPUs for it where None
    tracking_uri : the MLflow store; None for no run
    address : the Ray cluster; None for the one this job runs on, else a local one
    """

    dataset: str
    out: str
    recipe: Recipe
    splits: tuple[int, ...] = tuple(range(REPETITIONS))
    workers: int = 1
    gpu: bool = False
    threads: int | None = None
    tracking_uri: str | None = None
    address: str | None = None


@dataclass(frozen=True)
class Data:
    """The accepted nodules that a network learns from.

    Attributes
    ----------
    path : of the dataset or release
    nodules : read by their position when they are asked for
    patients : the patient of each
    recorded : the re-splits that a release was published with, patient to part; None for a dataset
    digest : of all of them
    """

    path: str
    nodules: Nodules
    patients: list[str]
    recorded: list[dict[str, str]] | None
    digest: str

    @classmethod
    def open(cls, path: str) -> Data:
        """Raises InputError where there is neither a dataset nor a release."""
        nodules = load(path)
        if is_release(*open_filesystem(path)):
            rows = Release.open(path).index
            recorded = [{row["patient_id"]: row[f"split_{n}"] for row in rows} for n in range(REPETITIONS)]
            keys = [row[f"{name}_digest"] for row in rows for name in DIGESTS]
        else:
            rows = Store.open(path).outcomes(["patient_id", "key", "outcome"]).to_pylist()
            rows = [row for row in rows if row["outcome"] == ACCEPTED]
            recorded, keys = None, [row["key"] for row in rows]
        return cls(path, nodules, [row["patient_id"] for row in rows], recorded, digest(*sorted(keys)))

    def split(self, repetition: int) -> Split:
        """A release's own re-split, else the one that is drawn; raises InputError where a part is empty."""
        try:
            drawn = split_patients(self.patients, repetition)
        except InputError as error:
            raise InputError(f"{self.path}: {error}") from None
        return Split.of_parts(self.recorded[repetition]) if self.recorded else drawn

    def of(self, patients: Collection[str]) -> list[int]:
        """Positions of those patients' nodules."""
        chosen = set(patients)
        return [place for place, patient in enumerate(self.patients) if patient in chosen]


def train(job: TrainJob, say: Callable[[str], None] = print) -> dict[int, dict[str, float]]:
    """Train the network on each re-split, or go on where an earlier command was interrupted.

    Returns
    -------
    dict
        For each re-split the validation metrics of its last epoch.

    Raises
    ------
    InputError
        The dataset has too few patients, the output holds another training, the cluster cannot hold the workers, a
        checkpoint is damaged, or the MLflow store cannot be used.
    """
    recipe = job.recipe
    if recipe.batch % job.workers:
        raise InputError(
            f"a batch of {recipe.batch} cannot be shared by {job.workers} workers: take a multiple of them"
        )
    data = Data.open(job.dataset)
    splits = {repetition: data.split(repetition) for repetition in job.splits}
    place = Store(*open_filesystem(job.out))
    with held(place):
        return _train(job, data, splits, place, say)


def _train(
    job: TrainJob, data: Data, splits: dict[int, Split], place: Store, say: Callable[[str], None]
) -> dict[int, dict[str, float]]:
    recipe = job.recipe
    begun = _begun(place, job, data)
    parameters = flatten({"dataset": job.dataset, "workers": job.workers, **recipe.to_dict()})
    run = None
    if job.tracking_uri:
        run = Run(job.tracking_uri, f"train {job.out}", parameters, TRAININGS, continues=begun.get("run"))
        begun["run"] = run.id
    place.write("training.json", json.dumps(begun, indent=1).encode())
    with ending(run):
        if run:
            run.tag("data_digest", data.digest)
        results = {}
        todo = [r for r in job.splits if not place.exists(f"split-{r}/{WEIGHTS}")]
        with connected(job.address, holds_dataset=True) if todo else contextlib.nullcontext():
            threads = threads_of(job) if todo else 1
            needed = {p for r in todo for part in (splits[r].training, splits[r].validation) for p in part}
            places = data.of(needed)
            records = dict(
                zip(places, load_records(data.nodules, places, recipe.model, say), strict=True) if todo else ()
            )
            for repetition, split in splits.items():
                if repetition in todo:
                    place.write(f"split-{repetition}/split.json", json.dumps(asdict(split), indent=1).encode())
                    child = _split_run(run, place, repetition, split, parameters, data.digest) if run else None
                    volumes = [[records[i] for i in data.of(part)] for part in (split.training, split.validation)]
                    _train_split(job, volumes, place, repetition, child, threads, say)
                else:
                    say(f"split {repetition}: done already")
                results[repetition] = json.loads(place.read(f"split-{repetition}/{RESULT}"))
        say(_summary(results))
        if run:
            run.metrics(_spread(results))
            say(f"MLflow   {how_to_look(run.uri, run.page)}")
        return results


def _begun(place: Store, job: TrainJob, data: Data) -> dict:
    """What the output's note says of this training; raises InputError where it is of another."""
    mine = {"dataset": job.dataset, "data_digest": data.digest, "recipe": job.recipe.to_dict()}
    if not place.exists("training.json"):
        return mine
    found = json.loads(place.read("training.json"))
    for name, value in mine.items():
        if name != "dataset" and found.get(name) != value:
            raise InputError(
                f"{job.out}: holds a training with another {name.replace('_', ' ')}; name a new -o, or repeat the "
                "command that began it"
            )
    return found


def threads_of(job: TrainJob) -> int:
    """Threads of each worker; raises InputError where the cluster cannot hold the workers."""
    refuse_too_many(job.workers, job.gpu)
    return job.threads or max(1, int(ray.cluster_resources()["CPU"] // job.workers))


def _split_run(parent: Run, place: Store, repetition: int, split: Split, parameters: dict, data_digest: str) -> Run:
    """The run of one split under that of the training: a new one, or that of an interrupted command."""
    note = f"split-{repetition}/run.json"
    before = json.loads(place.read(note))["run"] if place.exists(note) else None
    name = f"split {repetition}"
    run = Run(parent.uri, name, parameters | {"split": repetition}, TRAININGS, parent.id, before)
    place.write(note, json.dumps({"run": run.id}).encode())
    run.tag("data_digest", data_digest)
    run.text("split.json", json.dumps(asdict(split), indent=1))
    return run


def _train_split(
    job: TrainJob,
    volumes: list[list],
    place: Store,
    repetition: int,
    run: Run | None,
    threads: int,
    say: Callable[[str], None],
) -> None:
    """Train on the records of ``volumes``, to learn from and to validate with, and keep result and weights."""
    folder = f"split-{repetition}"
    lines = Queue(actor_options={"num_cpus": 0})
    training, validation = volumes
    with ending(run):
        settings = Settings(
            job.recipe,
            training,
            validation,
            threads,
            lines,
            run.uri if run else None,
            run.id if run else None,
        )
        say(
            f"split {repetition}: {len(settings.training)} nodules to learn from, {len(settings.validation)} to "
            f"validate, {counted(job.workers, 'worker')}"
        )
        with told(lines, lambda line: say(f"split {repetition}: {line}")):
            final = fit(settings, job.workers, job.gpu, place, folder)
        with final.as_directory() as local:
            note = json.loads((Path(local) / RESULT).read_text())
            place.write(f"{folder}/{RESULT}", json.dumps(note, indent=1).encode())
            if run:
                run.model(str(Path(local) / WEIGHTS), job.recipe.augmentation.crop)
            # Last: a re-split is done when its weights are there.
            place.write(f"{folder}/{WEIGHTS}", (Path(local) / WEIGHTS).read_bytes())


class _Trainer(TorchTrainer):
    """Without Ray's watcher over placement groups and its process for datasets, and stopped by KeyboardInterrupt.

    The watcher looks for the cluster by itself, which ends in a traceback where a machine has two; a run's group ends
    with its driver all the same. The process for datasets takes two seconds to start, and the batches come from the
    workers' own. Ray's own handler of Ctrl-C ends the process without a word, as if all were done.
    """

    controller: ray.actor.ActorHandle | None = None

    def _create_default_callbacks(self) -> list:
        # ray.train is annotated as Train V1, and is V2 when it runs: so here and at the RunConfig.
        callbacks = super()._create_default_callbacks()  # type: ignore[misc]
        unused = PlacementGroupCleanerCallback, DatasetsCallback
        return [callback for callback in callbacks if not isinstance(callback, unused)]

    def _register_sigint_handler(self, controller: ray.actor.ActorHandle) -> None:
        self.controller = controller


def fit(settings: Settings, workers: int, gpu: bool, place: Store, folder: str, callbacks: Sequence = ()) -> Checkpoint:
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
    _refuse_unusable_checkpoint(settings.recipe, place, folder)
    # A little less than a CPU each leaves the feeding tasks their share, without which no step would ever start.
    cpus = 1.0 - FEED_TASKS["cuda" if gpu else "cpu"] * FEED_CPUS
    trainer = _Trainer(
        partial(train_worker, settings),
        torch_config=TorchConfig(backend="nccl" if gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=workers, use_gpu=gpu, resources_per_worker={"CPU": cpus} | ({"GPU": 1} if gpu else {})
        ),
        run_config=RunConfig(
            name="ray",
            storage_path=place.path(folder),
            storage_filesystem=place.filesystem,
            failure_config=FailureConfig(max_failures=MAX_FAILURES),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
            logging_config=LoggingConfig(log_level="ERROR"),  # type: ignore[call-arg]
            callbacks=list(callbacks),
        ),
    )
    try:
        checkpoint = trainer.fit().checkpoint
    except KeyboardInterrupt:
        if trainer.controller:
            with contextlib.suppress(ray.exceptions.RayError):
                ray.get(trainer.controller.abort.remote(), timeout=ABORT_S)
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


def _refuse_unusable_checkpoint(recipe: Recipe, place: Store, folder: str) -> None:
    """Raise InputError where the last checkpoint is damaged or of another recipe: Ray would try it four times."""
    if place.exists(f"{folder}/ray/{SNAPSHOT}"):
        last = ray.train.Result.from_path(place.path(f"{folder}/ray"), place.filesystem).checkpoint
        if last:
            with last.as_directory() as local:
                read_checkpoint_of(recipe, Path(local) / STATE)


@contextlib.contextmanager
def told(lines: Queue, say: Callable[[str], None]) -> Iterator[None]:
    """With a thread that says each line the workers put into a queue, which ends with it."""

    def follow() -> None:
        # Waits in the queue's own process: to ask again and again would take a share of the CPU from the steps. A queue
        # that is lost with its node is the end of it.
        with contextlib.suppress(ray.exceptions.RayError):
            while (line := lines.get()) is not None:
                say(line)

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        # Nor must a lost queue hide how the work itself ended.
        with contextlib.suppress(ray.exceptions.RayError):
            lines.put(None)
        thread.join()
        lines.shutdown()


@dataclass(frozen=True)
class Settings:
    """What each worker is given: references to records, where to log, and the recipe."""

    recipe: Recipe
    training: list
    validation: list
    threads: int
    lines: Queue
    tracking_uri: str | None
    run: str | None


def train_worker(settings: Settings) -> None:
    """The loop of one worker: feed, step, validate, log, checkpoint; from the last checkpoint where there is one."""
    quiet_ray()
    logging.getLogger("ray.train").setLevel(logging.WARNING)
    # Named after its file, this one is not below "ray.train"; it would print every report.
    train_context.logger.setLevel(logging.WARNING)
    # A block is a batch here: more of them than CPUs is what is meant.
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    recipe = settings.recipe
    context = ray.train.get_context()
    rank, workers = context.get_world_rank(), context.get_world_size()
    device = ray.train.torch.get_device()
    if device.type == "cpu":
        torch.set_num_threads(settings.threads)
        if rank == 0 and not has_arithmetic(recipe.precision):
            settings.lines.put(
                f"this CPU has no {recipe.precision} arithmetic (AVX-512): steps take many times as long as in float32"
            )
    steps = steps_an_epoch(len(settings.training), recipe.batch)
    state = begin(recipe, steps, device)
    checkpoint = ray.train.get_checkpoint()
    if checkpoint:
        with checkpoint.as_directory() as folder:
            restore(state, Path(folder) / STATE)
    network: Callable[[torch.Tensor], Prediction] = ray.train.torch.prepare_model(state.model)
    if recipe.compiled:
        network = torch.compile(network)
    run = None
    if rank == 0 and settings.tracking_uri and settings.run:
        run = Run.join(settings.tracking_uri, settings.run)
    feed = stream(settings.training, recipe, rank, workers, state.epoch * steps, device)
    system = run.system_metrics() if run else contextlib.nullcontext()
    with system:
        for epoch in range(state.epoch, recipe.epochs):
            start = time.monotonic()
            history, waited = _epoch(state, network, feed, steps)
            learnt = time.monotonic() - start
            state.epoch = epoch + 1
            found, shown = validate(state, settings.validation[rank::workers], device, recipe.batch // workers)
            found = _averaged(found, len(settings.validation[rank::workers]), device)
            found |= {"seconds_a_step": learnt / steps, "waiting_share": waited / learnt}
            if rank == 0:
                trained = float(np.mean([values["loss/total"] for values in history]))
                settings.lines.put(
                    f"epoch {state.epoch}/{recipe.epochs}, loss {trained:.4f}, validation SAD {found['sad']:.1f}, "
                    f"{in_words(time.monotonic() - start)}"
                )
            _report(state, found, rank)
            if run:
                run.series((epoch * steps + step, values) for step, values in enumerate(history))
                run.metrics({f"validation/{name}": value for name, value in found.items()}, state.epoch * steps)
                if shown and (state.epoch % max(1, recipe.epochs // PICTURES) == 0 or state.epoch == recipe.epochs):
                    # Imported behind the first checkpoint: what draws takes a second.
                    from raymat.network_pictures import show_predictions

                    run.figure(f"validation/epoch-{state.epoch:04d}.png", show_predictions([shown]))


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
    """Mean errors over the middle of each record, so many predicted at once; the arrays of the first to be drawn."""
    state.model.eval()
    sums = dict.fromkeys(("sad", "mse", "sad_of_masks", "dice_union", "dice_overlap"), 0.0)
    shown = None
    for first in range(0, len(records), batch):
        some = ray.get(list(records[first : first + batch]))
        volumes = torch.stack([validation_volume(record, state.recipe.augmentation.crop) for record in some])
        prediction = predict(state.model, volumes[:, IMAGE : IMAGE + 1].to(device), state.recipe.precision)
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


def _averaged(found: dict[str, float], count: int, device: torch.device) -> dict[str, float]:
    """The mean over all workers' records."""
    if not torch.distributed.is_initialized():
        return found
    sums = torch.tensor([*(value * count for value in found.values()), count], device=device, dtype=torch.float32)
    torch.distributed.all_reduce(sums)
    *values, total = sums.tolist()
    return {name: value / total for name, value in zip(found, values, strict=True)}


def _report(state: State, found: dict[str, float], rank: int) -> None:
    """Hand the epoch's metrics and, from rank 0, its checkpoint to Ray Train."""
    if rank:
        ray.train.report(found)
        return
    with tempfile.TemporaryDirectory() as folder:
        save(state, Path(folder) / STATE)
        if state.epoch == state.recipe.epochs:
            save_weights(state, Path(folder) / WEIGHTS)
        (Path(folder) / RESULT).write_text(json.dumps(found))
        ray.train.report(found, checkpoint=Checkpoint.from_directory(folder))


def _spread(results: dict[int, dict[str, float]]) -> dict[str, float]:
    spread: dict[str, float] = {}
    for name in next(iter(results.values())):
        values = [result[name] for result in results.values()]
        spread |= {f"validation/{name}_mean": float(np.mean(values)), f"validation/{name}_std": float(np.std(values))}
    return spread


def _summary(results: dict[int, dict[str, float]]) -> str:
    spread = _spread(results)
    lines = [
        f"split {r}  validation SAD {found['sad']:.1f}, MSE x 1e3 {1e3 * found['mse']:.3f}"
        for r, found in results.items()
    ]
    mean, std = spread["validation/sad_mean"], spread["validation/sad_std"]
    return "\n".join([*lines, f"mean     validation SAD {mean:.1f} (± {std:.1f})"])
