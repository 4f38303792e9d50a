"""Networks that are trained in seconds, or not at all."""

from __future__ import annotations

from dataclasses import replace

import torch

from raymat.network.augmentation import Augmentation
from raymat.network.model import ModelConfig
from raymat.network.recipe import Recipe
from raymat.network.training import begin, save_weights


def small_recipe(crop: tuple[int, int, int] = (8, 8, 8), **changes) -> Recipe:
    """One epoch of a network of two levels, one nodule per step."""
    how = {"augmentation": Augmentation(crop), "epochs": 1, "batch": 1} | changes
    return Recipe(ModelConfig(width=4, levels=2, blocks=1), **how)


def learning_recipe(side: int = 16, **changes) -> Recipe:
    """A recipe that learns from few small nodules; `raymat train` has it with ``options_of``."""
    how = {"augmentation": Augmentation((side,) * 3, centred=0.9, off_centre=0.2), "batch": 2, "learning_rate": 1e-2}
    return small_recipe(**how | changes)


def options_of(recipe: Recipe) -> list[str]:
    """The options of `raymat train` and `raymat tune` for a learning recipe, with one worker of one thread."""
    values = {
        "--width": recipe.model.width,
        "--levels": recipe.model.levels,
        "--spacing-mm": recipe.model.spacing_mm,
        "--crop": recipe.augmentation.crop[0],
        "--epochs": recipe.epochs,
        "--batch": recipe.batch,
        "--learning-rate": recipe.learning_rate,
        "--workers": 1,
        "--threads": 1,
    }
    return ["--no-channels-last", *(str(word) for pair in values.items() for word in pair)]


def write_weights(folder, seed: int = 0, recipe: Recipe | None = None) -> str:
    """The file of an untrained network's weights."""
    path = folder / f"{seed}.pt"
    save_weights(begin(replace(recipe or small_recipe(), seed=seed), 1, torch.device("cpu")), path)
    return str(path)
