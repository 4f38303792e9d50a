"""What a step of the classifiers costs on a CPU, by memory format.

    python -m benchmarks.classifiers [--preset small] [--steps 6]

Forward, loss, backward and AdamW on random volumes of the preset's crop and batch, one thread; CPU time a volume.
"""

from __future__ import annotations

import argparse
import time

import torch
from torch.nn import functional

from raymat.classification.networks import PAPER_NETWORKS, SMALL_NETWORKS, make_network
from raymat.classification.recipe import PRESETS, Recipe

FORMATS = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last_3d}


def seconds_per_volume(name: str, recipe: Recipe, layout: torch.memory_format, steps: int) -> float:
    """CPU time of a step, by the volumes in it; the first step is not counted."""
    torch.manual_seed(0)
    model = make_network(name, recipe.width, recipe.stem).to(memory_format=layout)
    optimizer = torch.optim.AdamW(model.parameters(), recipe.learning_rate)
    volumes = torch.rand(recipe.batch, 1, *(recipe.crop.side,) * 3)
    labels = torch.arange(recipe.batch).float() % 2
    for step in range(steps + 1):
        if step == 1:
            start = time.process_time()
        functional.binary_cross_entropy_with_logits(model(volumes).squeeze(1), labels).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return (time.process_time() - start) / steps / recipe.batch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", choices=tuple(PRESETS), default="small")
    parser.add_argument("--steps", type=int, default=6)
    options = parser.parse_args()
    torch.set_num_threads(1)
    recipe = PRESETS[options.preset]
    print("| network | " + " | ".join(f"{name}, ms" for name in FORMATS) + " |\n| --- | --- | --- |")
    for network in PAPER_NETWORKS if options.preset == "paper" else SMALL_NETWORKS:
        found = [seconds_per_volume(network, recipe, layout, options.steps) for layout in FORMATS.values()]
        print(f"| {network} | " + " | ".join(f"{1000 * seconds:.1f}" for seconds in found) + " |", flush=True)


if __name__ == "__main__":
    main()
