"""What a training costs: its options against each other, and Ray Train against a bare loop.

    python -m benchmarks.training [--preset small] [--threads 1] [--steps 4]
    python -m benchmarks.training --dataset DATASET [--steps 30] [--rounds 2]

One step is forward, losses, backward and ADAM on random volumes of the preset's crop and batch. ``--compile`` adds
``torch.compile``, which takes a minute to compile first.

With a dataset, the training of its first re-split on Ray Train is set beside a bare torch loop over the very same
batches, which lie in memory ready made; bare and Ray in turn, each in a process of its own, on all CPUs. The steps of a
first epoch warm both up; Ray's steps include what they wait for the feed, whose share is shown. Then memory, and voxels
a second of a prediction.
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

from raymat.network.inference import Ensemble
from raymat.network.recipe import Recipe, preset
from raymat.network.samples import CHANNELS, epoch_order, record_of, steps_an_epoch, training_volume
from raymat.network.training import begin, save_weights, train_step


def seconds_a_volume(recipe: Recipe, steps: int) -> float:
    """CPU time of a step, a volume."""
    state = begin(recipe, steps, torch.device("cpu"))
    network = torch.compile(state.model) if recipe.compiled else state.model
    volumes = torch.rand(recipe.batch, len(CHANNELS), *recipe.augmentation.crop)
    train_step(state, network, volumes)
    start = time.process_time()
    for _ in range(steps):
        train_step(state, network, volumes)
    return (time.process_time() - start) / steps / recipe.batch


def of_steps(recipe: Recipe, nodules: int, steps: int) -> Recipe:
    """The recipe with one epoch to warm up and as many as hold so many steps."""
    return replace(recipe, epochs=1 + math.ceil(steps / steps_an_epoch(nodules, recipe.batch)))


def peak_mib() -> float:
    """Most memory this process has held (Linux)."""
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024


def bare(dataset: str, recipe: Recipe, steps: int) -> dict[str, float]:
    """Seconds a step of a loop over batches that lie ready."""
    from raymat.pipelines.train import Data

    torch.set_num_threads(os.cpu_count() or 1)
    data = Data.open(dataset)
    records = [record_of(data.nodules[place], recipe.model) for place in data.of(data.split(0).training)]
    recipe = of_steps(recipe, len(records), steps)
    state = begin(recipe, steps_an_epoch(len(records), recipe.batch), torch.device("cpu"))
    state.model.train()
    seconds = []
    for epoch in range(recipe.epochs):
        order = epoch_order(len(records), recipe.batch, recipe.seed, epoch)
        volumes = [training_volume(records[nodule], recipe, epoch, place) for place, nodule in enumerate(order)]
        batches = torch.from_numpy(np.stack(volumes)).split(recipe.batch)
        start = time.monotonic()
        for batch in batches:
            train_step(state, state.model, batch)
        seconds.append((time.monotonic() - start) / len(batches))
    return {"step": statistics.mean(seconds[1:]), "waiting": 0.0, "peak": peak_mib()}


def on_ray(dataset: str, recipe: Recipe, steps: int) -> dict[str, float]:
    """The same on Ray Train, fed by Ray Data."""
    from raymat.pipelines.train import Data, TrainJob, train

    data = Data.open(dataset)
    recipe = of_steps(recipe, len(data.of(data.split(0).training)), steps)
    with tempfile.TemporaryDirectory() as folder:
        job = TrainJob(dataset, folder, recipe, splits=(0,))
        (result,) = train(job, say=lambda line: print(line, file=sys.stderr)).values()
    return {"step": result["seconds_a_step"], "waiting": result["waiting_share"], "peak": math.nan}


WAYS = {"bare": bare, "Ray Train": on_ray}


def compare(dataset: str, name: str, steps: int, rounds: int) -> None:
    """Both ways in turn, and what a prediction takes."""
    found: dict[str, list[dict]] = {way: [] for way in WAYS}
    print("| round | way | s a step | waiting for data | peak MiB |\n| --- | --- | --- | --- | --- |")
    for number in range(1, rounds + 1):
        for way in WAYS:
            again = [sys.executable, "-m", "benchmarks.training", "--dataset", dataset, "--preset", name]
            again += ["--steps", str(steps), "--way", way]
            done = subprocess.run(again, capture_output=True, text=True, check=False)
            if done.returncode:
                sys.exit(done.stdout + done.stderr)
            row = json.loads(done.stdout.split("measured ")[1])
            found[way].append(row)
            cells = f"{row['step']:.3f} | {100 * row['waiting']:.1f} % | {row['peak']:.0f}"
            print(f"| {number} | {way} | {cells} |", flush=True)
    loop, ray = (statistics.median(row["step"] for row in found[way]) for way in WAYS)
    print(f"\nRay Train {ray:.3f} s a step, bare loop {loop:.3f}: {100 * (ray / loop - 1):+.1f} %")
    recipe = preset(name)
    torch.set_num_threads(os.cpu_count() or 1)
    with tempfile.TemporaryDirectory() as folder:
        save_weights(begin(recipe, 1, torch.device("cpu")), Path(folder) / "weights.pt")
        network = Ensemble([str(Path(folder) / "weights.pt")])
        image = np.full([2 * side for side in recipe.augmentation.crop], -700.0, np.float32)
        network.predict(image)
        start = time.monotonic()
        network.predict(image)
        print(f"Prediction: {image.size / (time.monotonic() - start) / 1e6:.2f} million voxels a second")


def main() -> None:
    command = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    command.add_argument("--preset", choices=("paper", "small"), default="small")
    command.add_argument("--threads", type=int, default=1)
    command.add_argument("--steps", type=int, default=4)
    command.add_argument("--compile", action="store_true")
    command.add_argument("--dataset", help="compare Ray Train with a bare loop on its nodules")
    command.add_argument("--rounds", type=int, default=2)
    command.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    options = command.parse_args()
    recipe = preset(options.preset)
    if options.way:
        print("measured " + json.dumps(WAYS[options.way](options.dataset, recipe, options.steps)))
        return
    if options.dataset:
        compare(options.dataset, options.preset, options.steps, options.rounds)
        return
    torch.set_num_threads(options.threads)
    print("| precision | memory format | CPU s a volume |\n| --- | --- | --- |")
    for precision in ("float32", "bfloat16"):
        for last in (False, True):
            for compiled in (False, True) if options.compile else (False,):
                seconds = seconds_a_volume(
                    replace(recipe, precision=precision, channels_last=last, compiled=compiled), options.steps
                )
                layout = "channels last" if last else "contiguous"
                print(f"| {precision} | {layout}{', compiled' if compiled else ''} | {seconds:.2f} |", flush=True)


if __name__ == "__main__":
    main()
