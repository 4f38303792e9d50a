"""From a nodule of the dataset to the network's volumes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from raymat.arrays import BACKGROUND, FOREGROUND
from raymat.blocks import block_means, factor_of
from raymat.methods import ANY, in_order
from raymat.network.augmentation import Placement, centre, cut, draw, generator, reach
from raymat.network.model import ModelConfig, normalised
from raymat.network.recipe import Recipe
from raymat.nodule import InputError, Matte, Nodule, required

# The channels of a volume: those of the image, of which there is one mostly, then the others, counted from the end.
# All but the masks are interpolated.
CHANNELS = IMAGE, ALPHA, UNION, OVERLAP, SCANNED = 0, -4, -3, -2, -1
MASKS = 3


def masks_of(nodule: Nodule) -> tuple[np.ndarray, np.ndarray]:
    """Union and overlap of the readers' masks, bool (z, y, x).

    A case that came with a trimap and no readers has its non-background and its foreground instead.
    """
    if nodule.readers:
        inside = np.stack(nodule.readers) != 0
        return inside.any(axis=0), inside.all(axis=0)
    trimap = required(nodule.trimap, nodule, "trimap")
    return trimap != BACKGROUND, trimap == FOREGROUND


def target_of(nodule: Nodule, kind: str) -> Matte:
    """The matte that a network of that kind of alpha learns from and is tested against: the chosen one of the kind.

    Raises
    ------
    InputError
        No matte of the nodule was chosen, none is of that kind, or the best one holds no numbers.
    """
    if not nodule.method:
        raise InputError(f"{nodule.nodule_id}: no matte was chosen; the network learns from accepted nodules")
    best = nodule.best(kind)
    if best is None:
        raise InputError(
            f"{nodule.nodule_id}: has no matte of the kind {kind}, only {', '.join(in_order(nodule.mattes))}; train on "
            "another --kind, or build the dataset with methods of this one"
        )
    if not np.isfinite(best.alpha).all():
        raise InputError(f"{nodule.nodule_id}: its best matte of the kind {kind}, {best.method}, is not finite")
    return best


def images_of(nodule: Nodule, config: ModelConfig) -> np.ndarray:
    """What the network takes in of a nodule, on the nodule's own grid and in its own units.

    Returns
    -------
    float32 (z, y, x), or (channels, z, y, x) for a network of several channels, in the order of ``config.channels``

    Raises
    ------
    InputError
        The nodule does not have the channels that the network takes.
    """
    if not config.channels:
        return np.ascontiguousarray(nodule.image, np.float32)
    images = {channel.name: channel.image for channel in nodule.all_channels}
    names = [name for name, _, _ in config.channels]
    if not set(names) <= set(images):
        raise InputError(
            f"{nodule.nodule_id}: has the channels {', '.join(images)}, the network takes {', '.join(names)}; build it "
            "with these (--channels), or take another network"
        )
    return np.stack([images[name] for name in names]).astype(np.float32, copy=False)


def record_of(nodule: Nodule, recipe: Recipe) -> dict[str, np.ndarray]:
    """What the training needs of a nodule, in 6 bytes per voxel.

    ``image`` (0 to 1) and ``alpha`` are float16, a step of 0.7 HU and 0.0005, ``union`` and ``overlap`` uint8; all
    (z, y, x) on the network's grid, alpha of the recipe's kind: of a phantom the true one, else the chosen matte. A
    voxel coarser than the dataset's is the mean of those in it, and a mask has it where it has half of them. The image
    of a network of several channels has an axis more, its first.

    Raises
    ------
    InputError
        The nodule has no chosen matte of that kind, or the network's grid is no whole multiple of its own.
    """
    config, chosen, true = recipe.model, target_of(nodule, recipe.kind).alpha, nodule.truth(recipe.kind)
    alpha = chosen if true is None or recipe.kind == ANY else true
    factor = factor_of(nodule, config.spacing_mm)
    image = images_of(nodule, config)
    image = np.stack([block_means(one, factor) for one in image]) if config.channels else block_means(image, factor)
    union, overlap = (block_means(mask, factor) >= 0.5 for mask in masks_of(nodule))
    return {
        "image": normalised(torch.from_numpy(image), config).numpy().astype(np.float16),
        "alpha": block_means(alpha, factor).astype(np.float16),
        "union": union.astype(np.uint8),
        "overlap": overlap.astype(np.uint8),
    }


def volume_of(record: Mapping[str, np.ndarray], box: tuple[slice, ...] = ()) -> Tensor:
    """A record, or a box of it, as one volume: float32 (``CHANNELS``, z, y, x)."""
    image = record["image"]
    images = image if image.ndim > record["alpha"].ndim else [image]
    arrays = [*(one[box] for one in images), *(record[name][box] for name in ("alpha", "union", "overlap"))]
    volume = np.ones((len(arrays) + 1, *arrays[0].shape), np.float32)
    for channel, array in zip(volume, arrays, strict=False):  # the last stays 1
        channel[...] = array
    return torch.from_numpy(volume)


def _cut(record: Mapping[str, np.ndarray], placement: Placement, size: Sequence[int]) -> Tensor:
    # Only what the crop is made of is brought to float32: a record has some twenty times the voxels.
    box = reach(placement, size, record["alpha"].shape)
    return cut(volume_of(record, box), -MASKS, placement.within(box), size)


def epoch_order(count: int, batch: int, seed: int, epoch: int) -> list[int]:
    """The nodules of an epoch, shuffled for each epoch; its beginning follows its end until the last batch is full."""
    order = torch.randperm(count, generator=generator("order", seed, epoch)).tolist()
    return [order[place % count] for place in range(steps_per_epoch(count, batch) * batch)]


def steps_per_epoch(count: int, batch: int) -> int:
    """Batches of an epoch of ``count`` nodules."""
    return -(-count // batch)


def training_volume(record: Mapping[str, np.ndarray], recipe: Recipe, epoch: int, place: int) -> np.ndarray:
    """The augmented crop at that place of an epoch; float32 (``CHANNELS``, *crop)."""
    seed = generator("sample", recipe.seed, epoch, place)
    placement = draw(record["alpha"].shape, recipe.augmentation, seed)
    return _cut(record, placement, recipe.augmentation.crop).numpy()


def validation_volume(record: Mapping[str, np.ndarray], size: Sequence[int]) -> Tensor:
    """The middle of a record; float32 (``CHANNELS``, *size)."""
    return _cut(record, centre(record["alpha"].shape, size), size)
