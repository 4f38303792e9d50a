"""What each step of a recipe is worth at equal computing time, over the repeated splits.

    python -m benchmarks.recipes DATASET [--also PHANTOMS ...] [--seconds 240] [--splits 0,1,2,3]
    python -m benchmarks.recipes --compute

Each variant of the network is trained for the same CPU seconds of one thread on the training part of each split, with
as many epochs as fit into them, and judged on the split's test part, which chooses nothing: the mean SAD x 1e-2 in the
middle of each nodule on the network's grid, brought to voxels of 0.5 mm. The columns are the means over the splits, and
the difference to the variant before with the standard error of the differences by split. Phantoms are learnt from by
the true alpha, and judged against it: those of the patients that a split tests on.

``--compute`` counts weights, multiply-adds and CPU seconds of one input of the network, for several widths.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from raymat import metrics
from raymat.learning import Data
from raymat.network.model import MattingNetwork
from raymat.network.recipe import Recipe, preset
from raymat.network.samples import (
    ALPHA,
    IMAGE,
    epoch_order,
    record_of,
    steps_per_epoch,
    training_volume,
    validation_volume,
)
from raymat.network.training import State, begin, predict, train_step
from raymat.splits import Split

Record = dict[str, np.ndarray]
WIDTHS = (4, 8, 12, 16, 24)
TIMED = 3  # steps


@dataclass(frozen=True)
class Variant:
    """A recipe by name, and whether it learns from the further datasets too, or from them first."""

    name: str
    recipe: Recipe
    also: bool = False
    first: float = 0.0


def variants(kind: str) -> list[Variant]:
    """One step after the other; precision is that of CPUs with AVX-512."""
    small = replace(preset("small"), precision="bfloat16", kind=kind)
    narrow = replace(preset("light"), precision="bfloat16", kind=kind)
    light = replace(narrow, average=0.995)
    return [
        Variant("small: width 16", small),
        Variant("width 8", narrow),
        Variant("and the average of the weights", light),
        Variant("and phantoms", light, also=True),
        Variant("and phantoms first, for a third of the time", light, also=True, first=1 / 3),
    ]


def records_of(path: str, recipe: Recipe) -> list[tuple[str, Record]]:
    """The patient and the record of each nodule of a dataset."""
    data = Data.open(path)
    return [(patient, record_of(data.nodules[i], recipe)) for i, patient in enumerate(data.patients)]


def seconds_per_volume(recipe: Recipe, records: list[Record]) -> float:
    """CPU seconds of a training volume, its augmentation with it."""
    state = begin(recipe, 10, torch.device("cpu"))
    _step(state, records[: recipe.batch], range(recipe.batch), 0)
    start = time.process_time()
    for epoch in range(TIMED):
        _step(state, records[: recipe.batch], range(recipe.batch), epoch)
    return (time.process_time() - start) / TIMED / recipe.batch


def _step(state: State, records: list[Record], places: range, epoch: int) -> None:
    volumes = [
        training_volume(record, state.recipe, epoch, place) for record, place in zip(records, places, strict=True)
    ]
    train_step(state, state.model, torch.from_numpy(np.stack(volumes)))


def trained(variant: Variant, real: list[Record], also: list[Record], seconds: float) -> State:
    """The network of a variant after so many CPU seconds."""
    recipe = variant.recipe
    volumes = seconds / seconds_per_volume(recipe, real)
    both = real + also if variant.also else real
    parts = [(also, variant.first), (both, 1 - variant.first)] if variant.first else [(both, 1.0)]
    # Both parts count as one training, with one fall of the rate.
    epochs = [max(1, round(share * volumes / len(records))) for records, share in parts]
    steps = sum(n * steps_per_epoch(len(records), recipe.batch) for n, (records, _) in zip(epochs, parts, strict=True))
    state = begin(replace(recipe, epochs=1, warm_up=50 / steps), steps, torch.device("cpu"))
    for (records, _), count in zip(parts, epochs, strict=True):
        for epoch in range(count):
            order = epoch_order(len(records), recipe.batch, recipe.seed, epoch)
            for first in range(0, len(order), recipe.batch):
                places = range(first, first + recipe.batch)
                _step(state, [records[order[place]] for place in places], places, epoch)
    return state


@torch.no_grad()
def sad_of(state: State, records: list[Record]) -> float:
    """Mean SAD x 1e-2 in the middle of each record, in voxels of 0.5 mm."""
    state.result.eval()
    found = []
    for record in records:
        volume = validation_volume(record, state.recipe.augmentation.crop)
        image = volume[None, IMAGE : IMAGE + 1].contiguous(memory_format=torch.channels_last_3d)
        alpha = predict(state.result, image, state.recipe.precision).alpha[0, 0].float().numpy()
        found.append(metrics.sad(alpha, volume[ALPHA].numpy()))
    finer = (state.recipe.model.spacing_mm / 0.5) ** 3
    return metrics.REPORT_SCALE["sad"] * finer * float(np.mean(found))


def compare(options: argparse.Namespace) -> None:
    """Print a line for every variant and split as it ends, then the table."""
    kind = Data.open(options.dataset).kind
    all_variants = variants(kind)
    real = records_of(options.dataset, all_variants[0].recipe)
    also = [record for path in options.also for record in records_of(path, all_variants[0].recipe)]
    split_of = Data.open(options.dataset)
    table: dict[str, list[list[float]]] = {}
    for variant in all_variants if also else all_variants[:3]:
        for number in options.splits:
            split = split_of.split(number)
            state = trained(variant, _of(real, split.training), _outside(also, split), options.seconds)
            judged = [_of(real, split.test), _of(also, split.test)]
            table.setdefault(variant.name, []).append([sad_of(state, part) for part in judged if part])
            print(f"{variant.name}, split {number}: {table[variant.name][-1]}", flush=True)
    print(
        "\n| step | SAD, real | less than before | SAD, phantoms | less than before |\n| --- | --- | --- | --- | --- |"
    )
    before = None
    for name, rows in table.items():
        values = np.array(rows)
        cells = [name]
        for column in range(values.shape[1]):
            cells.append(f"{values[:, column].mean():.2f}")
            gain = before[:, column] - values[:, column] if before is not None else None
            error = gain.std(ddof=1) / len(gain) ** 0.5 if gain is not None and len(gain) > 1 else np.nan
            cells.append("" if gain is None else f"{gain.mean():+.2f} (± {error:.2f})")
        before = values
        print("| " + " | ".join(cells) + " |")


def _of(records: list[tuple[str, Record]], patients: tuple[str, ...]) -> list[Record]:
    chosen = set(patients)
    return [record for patient, record in records if patient in chosen]


def _outside(records: list[tuple[str, Record]], split: Split) -> list[Record]:
    held = {*split.validation, *split.test}
    return [record for patient, record in records if patient not in held]


def compute() -> None:
    """Weights, multiply-adds and time of one input, by width."""
    small = preset("small")
    image = torch.rand(1, 1, *small.augmentation.crop)
    print("| width | weights | megabytes in half precision | 1e9 multiply-adds | CPU seconds, one thread |")
    print("| --- | --- | --- | --- | --- |")
    for width in WIDTHS:
        model = MattingNetwork(replace(small.model, width=width)).to(memory_format=torch.channels_last_3d).eval()
        count = sum(parameter.numel() for parameter in model.parameters())
        # Two volumes: a single one is doubled on CPUs.
        pair = torch.cat([image, image]).contiguous(memory_format=torch.channels_last_3d)
        with torch.no_grad():
            with FlopCounterMode(display=False) as counter:
                model(pair)
            start = time.process_time()
            for _ in range(TIMED):
                model(pair)
        seconds = (time.process_time() - start) / TIMED / len(pair)
        operations = counter.get_total_flops() / 2 / len(pair) / 1e9
        print(f"| {width} | {count:,} | {2 * count / 1e6:.1f} | {operations:.2f} | {seconds:.3f} |", flush=True)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", nargs="?")
    parser.add_argument("--also", nargs="+", default=[])
    parser.add_argument("--seconds", type=float, default=240.0)
    parser.add_argument("--splits", type=lambda text: tuple(map(int, text.split(","))), default=(0, 1, 2, 3))
    parser.add_argument("--compute", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.compute:
        compute()
    if options.dataset:
        compare(options)


if __name__ == "__main__":
    main()
