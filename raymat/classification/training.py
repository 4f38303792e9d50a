"""The training of one classifier: a seeded loop that keeps the epoch of the best AUROC on the validation nodules.

The rarer class weighs as much as the other: positives are weighted by negatives over positives of the training
nodules. What the network then gives is taken back to the training nodules' own share of malignant ones, so that its
probabilities can be calibrated. The test nodules are seen once, by the weights that were kept.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.nn import functional

from raymat.classification.networks import make_network
from raymat.classification.recipe import Recipe
from raymat.network.augmentation import Augmentation, augment, centre_crop, generator


@dataclass(frozen=True)
class Samples:
    """Nodules of one part with one input: ``crops`` float16 (n, z, y, x), ``labels`` 0 or 1 (n)."""

    crops: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True)
class SplitSamples:
    """What a training sees: all but the labels of the test nodules, whose crops are float16 (n, z, y, x)."""

    training: Samples
    validation: Samples
    test_crops: np.ndarray


@dataclass(frozen=True)
class Trained:
    """What a training came to.

    Attributes
    ----------
    history : of each epoch the ``loss`` and the ``validation_auroc``
    best_epoch : from 1, whose weights were kept
    validation, test : each nodule's probability of being malignant
    """

    history: list[dict[str, float]]
    best_epoch: int
    validation: np.ndarray
    test: np.ndarray


def train_classifier(
    network: str,
    seed: int,
    split: SplitSamples,
    recipe: Recipe,
    device: torch.device,
    on_epoch: Callable[[int, dict[str, float]], None] | None = None,
) -> Trained:
    """Train one network on one input.

    Parameters
    ----------
    network : one of ``raymat.classification.networks.NETWORKS``
    seed : of the weights, the order and the augmentation; equal seeds see equal augmentation whatever the input
    split : both classes in training and validation
    on_epoch : called with each epoch's number, from 1, and its entry of the history
    """
    torch.manual_seed(seed)
    # A CPU convolves channels last a quarter faster (`python -m benchmarks.classifiers`).
    layout = torch.channels_last_3d if device.type == "cpu" else torch.contiguous_format
    # torch documents memory_format; its annotations of Module.to leave it out.
    model = make_network(network, recipe.width, recipe.stem).to(device, memory_format=layout)  # type: ignore[call-overload]
    training, validation = split.training, split.validation
    positives = int(training.labels.sum())
    weight = (len(training.labels) - positives) / positives
    optimizer = torch.optim.AdamW(model.parameters(), recipe.learning_rate, weight_decay=recipe.weight_decay)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, recipe.epochs)
    history: list[dict[str, float]] = []
    best, best_epoch, kept = -1.0, 0, None
    for epoch in range(recipe.epochs):
        loss = _epoch(model, optimizer, training, weight, recipe, seed, epoch)
        scheduler.step()
        probabilities = predict(model, validation.crops, recipe, device)
        entry = {"loss": loss, "validation_auroc": float(roc_auc_score(validation.labels, probabilities))}
        history.append(entry)
        if on_epoch:
            on_epoch(epoch + 1, entry)
        if entry["validation_auroc"] > best:
            best, best_epoch, kept = entry["validation_auroc"], epoch + 1, copy.deepcopy(model.state_dict())
        elif epoch + 1 - best_epoch >= recipe.patience:
            break
    model.load_state_dict(kept)
    shift = math.log(weight)
    validated, tested = (
        1 / (1 + np.exp(-(predict(model, crops, recipe, device) - shift)))
        for crops in (validation.crops, split.test_crops)
    )
    return Trained(history, best_epoch, validated, tested)


def _epoch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    training: Samples,
    weight: float,
    recipe: Recipe,
    seed: int,
    epoch: int,
) -> float:
    """One pass over the training nodules, each augmented again; the mean loss."""
    model.train()
    device, crops = next(model.parameters()).device, training.crops
    labels = torch.from_numpy(training.labels.astype(np.float32)).to(device)
    order = torch.randperm(len(crops), generator=generator("classifier order", seed, epoch)).tolist()
    losses: list[Tensor] = []
    for start in range(0, len(order), recipe.batch):
        places = order[start : start + recipe.batch]
        if len(places) < 2 and losses:
            continue  # nothing to normalise one nodule by; another epoch deals it elsewhere
        volumes = [augmented(crops[place], recipe, seed, epoch, place, device) for place in places]
        given = model(torch.stack(volumes)).squeeze(1)
        loss = functional.binary_cross_entropy_with_logits(given, labels[places], pos_weight=labels.new_tensor(weight))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return float(torch.stack(losses).mean())


def augmented(
    crop: np.ndarray, recipe: Recipe, seed: int, epoch: int, place: int, device: str | torch.device = "cpu"
) -> Tensor:
    """A stored crop (z, y, x) shifted, mirrored and turned into the network's input; float32 (1, side, side, side).

    The turn is computed on the network's device: on a CPU it takes longer than a GPU takes to learn from it.
    """
    parameters = Augmentation((recipe.crop.side,) * 3, centred=1.0, flips=True, rotation=recipe.rotation)
    volume = torch.from_numpy(crop).to(device).float()[None]
    return augment(volume, 1, parameters, generator("classifier sample", seed, epoch, place))


@torch.no_grad()
def predict(model: nn.Module, crops: np.ndarray, recipe: Recipe, device: torch.device) -> np.ndarray:
    """The logit of each nodule, from the middle of its crop; float64 (n)."""
    model.eval()
    size = (recipe.crop.side,) * 3
    found = []
    for start in range(0, len(crops), recipe.batch):
        volumes = torch.from_numpy(crops[start : start + recipe.batch].astype(np.float32))
        found.append(model(centre_crop(volumes, size)[:, None].to(device)).squeeze(1).double().cpu().numpy())
    return np.concatenate(found) if found else np.zeros(0)
