"""Prediction: windows of the network's own input, an ensemble of networks, mirror images on request. torch alone."""

from __future__ import annotations

import itertools
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from raymat.blocks import block_means
from raymat.network.augmentation import crop
from raymat.network.model import MattingNetwork, normalised
from raymat.network.recipe import Recipe
from raymat.network.training import load_model, predict
from raymat.nodule import InputError

# Neighbouring windows share a quarter of their side at least; in it the one blends into the other.
SHARED = 0.25
BATCH = 2


@dataclass(frozen=True)
class Predicted:
    """What an ensemble says of a volume, all float32 (z, y, x).

    Attributes
    ----------
    alpha : mean of the mattes, 0 to 1
    union, overlap : mean probability of each mask
    spread : standard deviation of the mattes, voxel by voxel; 0 everywhere for a single network without mirror images
    """

    alpha: np.ndarray
    union: np.ndarray
    overlap: np.ndarray
    spread: np.ndarray


class Ensemble:
    """Networks of one recipe that predict together, such as those of the four repeated splits.

    Parameters
    ----------
    paths : weights (``raymat.network.training.save_weights``)
    device : where they run

    Raises
    ------
    InputError
        A file is missing or damaged, or the networks take different inputs or predict different kinds of alpha.
    """

    def __init__(self, paths: Sequence[str], device: str | torch.device = "cpu") -> None:
        self.device = torch.device(device)
        self.models: list[MattingNetwork] = []
        recipes: dict[str, Recipe] = {}
        for path in paths:
            model, recipes[path] = load_model(path, self.device)
            self.models.append(model)
        self.recipe = shared_recipe(recipes)
        # What was trained on a GPU in half precision is used on any laptop.
        self.precision = self.recipe.precision if self.device.type == "cuda" else "float32"

    @classmethod
    def of_bytes(cls, weights: Sequence[bytes], device: str | torch.device = "cpu") -> Ensemble:
        """The networks of weights that were read elsewhere."""
        with tempfile.TemporaryDirectory() as folder:
            paths = [Path(folder) / f"{number}.pt" for number in range(len(weights))]
            for path, data in zip(paths, weights, strict=True):
                path.write_bytes(data)
            return cls([str(path) for path in paths], device)

    @property
    def window(self) -> tuple[int, int, int]:
        """Sides of the network's input, voxels (z, y, x)."""
        return self.recipe.augmentation.crop

    @torch.no_grad()
    def predict(self, image: np.ndarray, flips: bool = False) -> Predicted:
        """Masks and matte of an image.

        Parameters
        ----------
        image : (z, y, x), HU, on a grid of ``recipe.model.spacing_mm``, of any size; (channels, z, y, x) for networks
            of several channels (``recipe.model.channels``)
        flips : also predict the seven mirror images, and take the mean

        Raises
        ------
        InputError
            The image is not 3D, has other channels than the networks take, or holds values that are not finite.
        """
        config = self.recipe.model
        if config.channels and (image.ndim != 4 or len(image) != len(config.channels)):
            names = ", ".join(name for name, _, _ in config.channels)
            raise InputError(f"these networks take {len(config.channels)} channels ({names}), not shape {image.shape}")
        if image.ndim != (4 if config.channels else 3) or not image.size:
            raise InputError(f"an image to predict has three sides, not shape {image.shape}")
        if not np.isfinite(image).all():
            raise InputError(f"the image holds {np.count_nonzero(~np.isfinite(image))} voxels that are NaN or infinite")
        volume = torch.from_numpy(np.ascontiguousarray(image, np.float32)).to(self.device)
        volume = normalised(volume, config)
        volume = volume if config.channels else volume[None]
        mirrors = [axes for n in range(4) for axes in itertools.combinations((1, 2, 3), n)] if flips else [()]
        votes = [self._windows(model, volume.flip(axes)).flip(axes) for model in self.models for axes in mirrors]
        mean = torch.stack(votes).mean(0)
        spread = torch.stack([vote[2] for vote in votes]).std(0, correction=0)
        union, overlap, alpha = (part.cpu().numpy() for part in mean)
        return Predicted(alpha, union, overlap, spread.cpu().numpy())

    def predict_finer(self, image: np.ndarray, factor: int, flips: bool = False) -> Predicted:
        """Masks and matte of an image on a grid ``factor`` times finer than the network's, interpolated to that grid.

        Parameters
        ----------
        image : (z, y, x), HU, of any size, or (channels, z, y, x) as for ``predict``
        factor : a whole number; 1 is ``predict``
        flips : as for ``predict``
        """
        if factor == 1:
            return self.predict(image, flips)
        sides = image.shape[-3:]
        rest = [(0, -size % factor) for size in sides]
        images = [
            block_means(np.pad(one, rest, mode="edge"), factor) for one in (image if image.ndim == 4 else [image])
        ]
        found = self.predict(np.stack(images) if image.ndim == 4 else images[0], flips)
        inside = tuple(slice(size) for size in sides)

        def finer(part: np.ndarray) -> np.ndarray:
            grown = functional.interpolate(
                torch.from_numpy(part)[None, None], scale_factor=factor, mode="trilinear", align_corners=False
            )
            return grown[0, 0].numpy()[inside]

        return Predicted(finer(found.alpha), finer(found.union), finer(found.overlap), finer(found.spread))

    def _windows(self, model: MattingNetwork, volume: Tensor) -> Tensor:
        """Union, overlap and alpha (3, z, y, x) of a volume (channels, z, y, x), window by window."""
        shape = volume.shape[1:]
        starts = [window_starts(size, side) for size, side in zip(shape, self.window, strict=True)]
        weight = _tent(self.window).to(self.device)
        # Windows of an image smaller than they are reach beyond it; the sum has room for them.
        low = [min(0, axis[0]) for axis in starts]
        room = [
            max(n, axis[-1] + side) - first
            for n, axis, side, first in zip(shape, starts, self.window, low, strict=True)
        ]
        total = torch.zeros(3, *room, device=self.device)
        weights = torch.zeros(room, device=self.device)
        places = list(itertools.product(*starts))
        for first in range(0, len(places), BATCH):
            some = places[first : first + BATCH]
            batch = torch.stack([crop(volume, list(place), self.window) for place in some])
            if self.recipe.channels_last:
                batch = batch.contiguous(memory_format=torch.channels_last_3d)
            union, overlap, alpha = predict(model, batch, self.precision)
            found = torch.cat([union.float().sigmoid(), overlap.float().sigmoid(), alpha.float()], dim=1)
            for place, part in zip(some, found, strict=True):
                box = tuple(slice(p - f, p - f + s) for p, f, s in zip(place, low, self.window, strict=True))
                total[(slice(None), *box)] += part * weight
                weights[box] += weight
        inside = tuple(slice(-first, -first + n) for first, n in zip(low, shape, strict=True))
        return total[(slice(None), *inside)] / weights[inside]


def shared_recipe(recipes: Mapping[str, Recipe]) -> Recipe:
    """The first of the recipes of an ensemble's networks, by path.

    Raises
    ------
    InputError
        There is none, or a network takes another input than the first or predicts another kind of alpha.
    """
    if not recipes:
        raise InputError("a prediction needs the weights of one network at least")
    (first, recipe), *others = recipes.items()
    for path, other in others:
        if _input_of(other) != _input_of(recipe):
            raise InputError(
                f"{path}: takes another input ({_input_of(other)}) than {first} ({_input_of(recipe)}); an ensemble "
                "shares crop, spacing and range of intensities"
            )
        if other.kind != recipe.kind:
            raise InputError(
                f"{path}: predicts alpha of the kind {other.kind}, {first} of the kind {recipe.kind}; an ensemble is "
                "of one kind"
            )
    return recipe


def _input_of(recipe: Recipe) -> str:
    low, high = recipe.model.intensity_range
    sides = " x ".join(map(str, recipe.augmentation.crop))
    channels = [f"{name} {low:g} to {high:g}" for name, low, high in recipe.model.channels]
    return f"{sides} voxels of {recipe.model.spacing_mm:g} mm, {', '.join(channels) or f'{low:g} to {high:g} HU'}"


def window_starts(size: int, side: int) -> list[int]:
    """First voxels of the windows along an axis: evenly spread, the axis in the middle of one that is larger."""
    if size <= side:
        return [-((side - size) // 2)]
    count = math.ceil((size - side) / (side * (1 - SHARED))) + 1
    return [round(place * (size - side) / (count - 1)) for place in range(count)]


def _tent(sides: Sequence[int]) -> Tensor:
    """A window's weight: 1 in its middle, falling to its faces, nowhere 0."""
    weight = torch.ones(())
    for side in sides:
        weight = weight[..., None] * (1 - (torch.arange(side) - (side - 1) / 2).abs() / (side / 2 + 0.5))
    return weight
