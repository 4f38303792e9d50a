"""What the options of a training cost: CPU seconds a volume of each, on one thread or as many as are asked for.

    python -m benchmarks.training [--preset small] [--threads 1] [--steps 4]

One step is forward, losses, backward and ADAM on random volumes of the preset's crop and batch. ``--compile`` adds
``torch.compile``, which takes a minute to compile first.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace

import torch

from raymat.network.recipe import Recipe, preset
from raymat.network.samples import CHANNELS
from raymat.network.training import begin, train_step


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


def main() -> None:
    command = argparse.ArgumentParser(description=__doc__)
    command.add_argument("--preset", choices=("paper", "small"), default="small")
    command.add_argument("--threads", type=int, default=1)
    command.add_argument("--steps", type=int, default=4)
    command.add_argument("--compile", action="store_true")
    options = command.parse_args()
    torch.set_num_threads(options.threads)
    recipe = preset(options.preset)
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
