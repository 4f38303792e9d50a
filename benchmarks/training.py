"""What a training costs: its options against each other, and Ray Train against a bare loop.

    python -m benchmarks.training [--preset small] [--threads 1] [--steps 4] [--gpu]
    python -m benchmarks.training --dataset DATASET [--steps 30] [--rounds 2] [--threads N] [--gpu] [--channels-last]

One step is forward, losses, backward and ADAM on random volumes of the preset's crop and batch (``--batch`` for
another). ``--compile`` adds ``torch.compile``, which takes a minute to compile first. On CPUs CPU time per volume is
shown; with ``--gpu`` seconds per step, volumes per second and the most memory that the GPU has held.

With a dataset, the training of its first split on Ray Train is compared with a bare torch loop over the very same
batches, which lie in memory ready made; bare and Ray in turn, each in a process of its own, on all CPUs or as many
threads. The steps of a first epoch warm both up; Ray's steps include what they wait for the feed, whose share is shown.
Then memory, and voxels per second of a prediction.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from raymat.experiment import Output
from raymat.network.inference import Ensemble
from raymat.network.recipe import PRECISIONS, Recipe, preset
from raymat.network.samples import CHANNELS, epoch_order, record_of, steps_per_epoch, training_volume
from raymat.network.training import begin, save_weights, train_step

WARM_UP = 2  # steps


def one_step(recipe: Recipe, steps: int, device: torch.device) -> tuple[float, float]:
    """Seconds of a step, CPU time on CPUs, and the most GiB that a GPU held."""
    state = begin(recipe, steps + WARM_UP, device)
    network = torch.compile(state.model) if recipe.compiled else state.model
    volumes = torch.rand(recipe.batch, len(CHANNELS), *recipe.augmentation.crop, device=device)
    for _ in range(WARM_UP):
        train_step(state, network, volumes)
    if device.type == "cpu":
        start = time.process_time()
        for _ in range(steps):
            train_step(state, network, volumes)
        return (time.process_time() - start) / steps, math.nan
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    start = time.monotonic()
    for _ in range(steps):
        train_step(state, network, volumes)
    torch.cuda.synchronize()
    return (time.monotonic() - start) / steps, torch.cuda.max_memory_allocated() / 2**30


def options_table(
    recipe: Recipe, precisions: tuple[str, ...], steps: int, device: torch.device, compiled: bool
) -> None:
    """Each precision and memory format, as it is and compiled."""
    columns = ["seconds per step", "volumes per second", "GiB"] if device.type == "cuda" else ["CPU seconds per volume"]
    print("| precision | memory format | " + " | ".join(columns) + " |\n" + "| --- " * (2 + len(columns)) + "|")
    for precision in precisions:
        for last in (False, True):
            for through_compiler in (False, True) if compiled else (False,):
                how = replace(recipe, precision=precision, channels_last=last, compiled=through_compiler)
                seconds, gib = one_step(how, steps, device)
                cells = [f"{seconds:.3f}", f"{recipe.batch / seconds:.1f}", f"{gib:.1f}"]
                if device.type == "cpu":
                    cells = [f"{seconds / recipe.batch:.2f}"]
                layout = ("channels last" if last else "contiguous") + (", compiled" if through_compiler else "")
                print(f"| {precision} | {layout} | " + " | ".join(cells) + " |", flush=True)
                if device.type == "cuda":
                    torch.cuda.empty_cache()


def of_steps(recipe: Recipe, nodules: int, steps: int) -> Recipe:
    """The recipe with one epoch to warm up and as many as have this number of steps."""
    return replace(recipe, epochs=1 + math.ceil(steps / steps_per_epoch(nodules, recipe.batch)))


def peak_mib() -> float:
    """Most memory this process has held (Linux)."""
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024


def bare(dataset: str, recipe: Recipe, steps: int, gpu: bool, threads: int | None) -> dict[str, float]:
    """Seconds per step of a loop over batches that lie ready."""
    from raymat.pipelines.train import Data

    device = torch.device("cuda" if gpu else "cpu")
    if not gpu:
        torch.set_num_threads(threads or os.cpu_count() or 1)
    data = Data.open(dataset)
    records = [record_of(data.nodules[place], recipe) for place in data.of(data.split(0).training)]
    recipe = of_steps(recipe, len(records), steps)
    state = begin(recipe, steps_per_epoch(len(records), recipe.batch), device)
    state.model.train()
    seconds = []
    for epoch in range(recipe.epochs):
        order = epoch_order(len(records), recipe.batch, recipe.seed, epoch)
        volumes = [training_volume(records[nodule], recipe, epoch, place) for place, nodule in enumerate(order)]
        batches = torch.from_numpy(np.stack(volumes)).split(recipe.batch)
        start = time.monotonic()
        losses = [train_step(state, state.model, batch.to(device)).total.detach() for batch in batches]
        torch.stack(losses).tolist()  # waits for the GPU
        seconds.append((time.monotonic() - start) / len(batches))
    return {"step": statistics.mean(seconds[1:]), "waiting": 0.0, "peak": peak_mib()}


def on_ray(dataset: str, recipe: Recipe, steps: int, gpu: bool, threads: int | None) -> dict[str, float]:
    """The same on Ray Train, fed by Ray Data."""
    from raymat.pipelines.train import Data, TrainJob, train

    data = Data.open(dataset)
    recipe = of_steps(recipe, len(data.of(data.split(0).training)), steps)
    with tempfile.TemporaryDirectory() as folder:
        job = TrainJob(dataset, Output(folder), recipe, splits=(0,), gpu=gpu, threads=threads)
        (result,) = train(job, say=lambda line: print(line, file=sys.stderr)).values()
    return {"step": result["seconds_per_step"], "waiting": result["waiting_share"], "peak": math.nan}


WAYS = {"bare": bare, "Ray Train": on_ray}


def compare(options: argparse.Namespace, recipe: Recipe) -> None:
    """Both ways in turn, and what a prediction takes."""
    found: dict[str, list[dict]] = {way: [] for way in WAYS}
    print("| round | way | seconds per step | waiting for data | peak MiB |\n| --- | --- | --- | --- | --- |")
    for number in range(1, options.rounds + 1):
        for way in WAYS:
            again = [sys.executable, "-m", "benchmarks.training", *sys.argv[1:], "--way", way]
            done = subprocess.run(again, capture_output=True, text=True, check=False)
            if done.returncode:
                sys.exit(done.stdout + done.stderr)
            row = json.loads(done.stdout.split("measured ")[1])
            found[way].append(row)
            cells = f"{row['step']:.3f} | {100 * row['waiting']:.1f} % | {row['peak']:.0f}"
            print(f"| {number} | {way} | {cells} |", flush=True)
    loop, ray = (statistics.median(row["step"] for row in found[way]) for way in WAYS)
    print(f"\nRay Train {ray:.3f} s per step, bare loop {loop:.3f}: {100 * (ray / loop - 1):+.1f} %")
    device = torch.device("cuda" if options.gpu else "cpu")
    if not options.gpu:
        torch.set_num_threads(os.cpu_count() or 1)
    with tempfile.TemporaryDirectory() as folder:
        save_weights(begin(recipe, 1, device), Path(folder) / "weights.pt")
        network = Ensemble([str(Path(folder) / "weights.pt")], device)
        image = np.full([2 * side for side in recipe.augmentation.crop], -700.0, np.float32)
        network.predict(image)
        start = time.monotonic()
        network.predict(image)
        print(f"Prediction: {image.size / (time.monotonic() - start) / 1e6:.2f} million voxels per second")


def main() -> None:
    command = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    command.add_argument("--preset", choices=("paper", "small", "light"), default="small")
    command.add_argument("--batch", type=int, help="volumes per step, if not the preset's")
    command.add_argument("--precision", choices=PRECISIONS, help="this one alone")
    command.add_argument("--threads", type=int, help="default: 1; with --dataset all CPUs")
    command.add_argument("--steps", type=int, default=4)
    command.add_argument("--compile", action="store_true")
    command.add_argument("--gpu", action="store_true")
    command.add_argument("--channels-last", action="store_true", help="with --dataset")
    command.add_argument("--dataset", help="compare Ray Train with a bare loop on its nodules")
    command.add_argument("--rounds", type=int, default=2)
    command.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    options = command.parse_args()
    recipe = preset(options.preset)
    if options.channels_last:
        recipe = replace(recipe, channels_last=True)
    recipe = replace(recipe, batch=options.batch or recipe.batch, precision=options.precision or recipe.precision)
    if options.way:
        way = WAYS[options.way]
        print("measured " + json.dumps(way(options.dataset, recipe, options.steps, options.gpu, options.threads)))
    elif options.dataset:
        compare(options, recipe)
    else:
        torch.set_num_threads(options.threads or 1)
        precisions = (options.precision,) if options.precision else ("float32", "bfloat16")
        device = torch.device("cuda" if options.gpu else "cpu")
        options_table(recipe, precisions, options.steps, device, options.compile)


if __name__ == "__main__":
    main()
