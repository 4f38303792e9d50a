"""What feeds a training: records of the dataset in Ray's object store, and a stream of augmented batches from them.

The records (a few MB a nodule) are read once, by tasks. Each training worker then streams its own share of every global
batch through Ray Data: a block is one batch, made by one task from the records in shared memory while the step before
it runs. Which sample a batch holds and how it is augmented follows from the seed, the epoch and the place alone, so
that neither the number of workers nor an interruption changes what the network sees.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pyarrow as pa
import ray
import torch
from ray.data import Datasource, ExecutionResources, ReadTask
from ray.data.block import BlockAccessor, BlockMetadata

from raymat.engine.cluster import data_settings
from raymat.engine.ray_private import Pause
from raymat.loading import Nodules
from raymat.network.recipe import Recipe
from raymat.network.samples import MASKS, epoch_order, record_of, steps_per_epoch, training_volume
from raymat.nodule import InputError

# Ray Train hears of a report when it next asks its workers, every 2 s by default; a second report waits until then.
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")

# On CPUs making a batch takes a small part of the time of the step that it feeds. A GPU takes a step in the time in
# which one CPU makes a crop or two of the paper's size: there more of them work for each worker.
FEED_CPUS = 0.05
FEED_TASKS = {"cpu": 2, "cuda": 8}
# Batches of a worker that may lie ready in the object store, and of those on its device.
READY = 16
AHEAD = 2


def load_records(nodules: Nodules, places: Sequence[int], recipe: Recipe, say: Callable[[str], None]) -> list:
    """References to ``raymat.network.samples.record_of`` of the nodules at those places.

    Raises
    ------
    InputError
        A nodule cannot be read or is none that the network can learn from.
    """
    task = ray.remote(num_returns=2)(_record)
    source = ray.put(nodules)
    records, errors = zip(*(task.remote(source, place, recipe) for place in places), strict=True)
    say(f"reading {len(records)} nodules")
    # The records stay where they were made; what comes here is a word where one is at fault.
    for error in ray.get(list(errors)):
        if error:
            raise InputError(error)
    return list(records)


def _record(nodules: Nodules, place: int, recipe: Recipe) -> tuple[dict[str, np.ndarray] | None, str]:
    try:
        return record_of(nodules[place], recipe), ""
    except InputError as error:
        return None, str(error)


class Batches(Datasource):
    """A worker's share of every batch from ``first_step`` to the end of the training, one block per batch."""

    def __init__(self, records: Sequence, recipe: Recipe, rank: int, workers: int, first_step: int) -> None:
        super().__init__()
        self.records, self.recipe, self.rank, self.workers = list(records), recipe, rank, workers
        self.first_step = first_step

    def estimate_inmemory_data_size(self) -> int | None:
        """Not known to Ray: the batches are made as they are read."""
        return None

    def get_read_tasks(self, parallelism: int, per_task_row_limit: int | None = None, data_context=None) -> list:
        """One task for each batch that is still to come, in the order of the training."""
        recipe, count = self.recipe, len(self.records)
        steps = steps_per_epoch(count, recipe.batch)
        share = recipe.batch // self.workers
        size = batch_bytes(recipe, self.workers)
        tasks = []
        for epoch in range(self.first_step // steps, recipe.epochs):
            order = epoch_order(count, recipe.batch, recipe.seed, epoch)
            for step in range(steps):
                if epoch * steps + step < self.first_step:
                    continue
                begin = step * recipe.batch + self.rank * share
                places = range(begin, begin + share)
                metadata = BlockMetadata(num_rows=share, size_bytes=size, input_files=None, exec_stats=None)
                tasks.append(ReadTask(_batch(recipe, epoch, {p: self.records[order[p]] for p in places}), metadata))
        return tasks


def batch_bytes(recipe: Recipe, workers: int) -> int:
    """Bytes of a worker's share of a batch on its way: those of the image and alpha in float32, masks of a byte."""
    smooth = len(recipe.model.ranges) + 1
    return int(np.prod(recipe.augmentation.crop)) * recipe.batch // workers * (4 * smooth + MASKS)


class OnCpus(Pause):
    """A training on CPUs: as many batches as there are tasks can be begun in a turn, eight per second at most."""

    seconds = 0.25


class BesideGpu(Pause):
    """A training on a GPU, whose steps take less."""

    seconds = 0.02


def _batch(recipe: Recipe, epoch: int, records: dict) -> Callable[[], Iterator[pa.Table]]:
    def read() -> Iterator[pa.Table]:
        torch.set_num_threads(1)
        volumes = np.stack(
            [training_volume(ray.get(record), recipe, epoch, place) for place, record in records.items()]
        )
        # Masks as bytes: a batch takes half the way through shared memory.
        smooth, masks = volumes[:, :-MASKS], volumes[:, -MASKS:].astype(np.uint8)
        yield BlockAccessor.batch_to_block({"smooth": smooth, "masks": masks})

    return read


def stream(
    records: Sequence, recipe: Recipe, rank: int, workers: int, first_step: int, device: torch.device
) -> Iterator[torch.Tensor]:
    """The worker's share of each batch, float32 (batch / workers, channels, z, y, x), on its device ahead of use."""
    source = Batches(records, recipe, rank, workers, first_step)
    steps = recipe.epochs * steps_per_epoch(len(records), recipe.batch) - first_step
    if steps <= 0:
        return
    with data_settings() as context:
        context.execution_options.preserve_order = True
        context.execution_options.resource_limits = ExecutionResources(
            object_store_memory=READY * batch_bytes(recipe, workers)
        )
        context.custom_execution_callback_classes = [BesideGpu if device.type == "cuda" else OnCpus]
        context.target_max_block_size = None  # a batch is never cut
        batches = ray.data.read_datasource(
            source, num_cpus=FEED_CPUS, concurrency=FEED_TASKS[device.type], override_num_blocks=steps
        )
    for batch in batches.iter_torch_batches(batch_size=None, prefetch_batches=AHEAD, device=device):
        yield torch.cat([batch["smooth"].float(), batch["masks"].float()], dim=1)
