"""One training step, the learning rate, and checkpoints that hold all that a resume needs. torch alone."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import BinaryIO

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from raymat.network.losses import Losses, matting_losses
from raymat.network.model import MattingNetwork, Prediction
from raymat.network.recipe import Recipe
from raymat.network.samples import ALPHA, IMAGE, OVERLAP, SCANNED, UNION
from raymat.nodule import InputError

FORMAT = "raymat 3DMM"
FORMAT_VERSION = 1


def rate_factor(step: int, steps: int, warm_up: int) -> float:
    """Share of the base learning rate at a step: linear from 0 over the warm-up, then a cosine to 0 (paper, 6.2.1)."""
    if step < warm_up:
        return step / warm_up
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warm_up) / max(1, steps - warm_up))))


@dataclass
class State:
    """A training under way: what a checkpoint holds.

    Attributes
    ----------
    average : moving average of the weights, where the recipe asks for one
    epoch : epochs that are done
    """

    recipe: Recipe
    model: MattingNetwork
    optimizer: torch.optim.Adam
    scheduler: torch.optim.lr_scheduler.LambdaLR
    scaler: torch.amp.GradScaler
    average: AveragedModel | None = None
    epoch: int = 0

    @property
    def result(self) -> MattingNetwork:
        """The network that validates and predicts: the average where there is one."""
        # torch types the module that an average wraps as any module.
        return self.average.module if self.average else self.model  # type: ignore[return-value]


def begin(recipe: Recipe, steps_per_epoch: int, device: torch.device, initial: bytes | None = None) -> State:
    """A new training; the same seed gives the same weights.

    Parameters
    ----------
    recipe : Recipe
    steps_per_epoch : of all workers together
    device : where the network is
    initial : content of a weights file (``save_weights``) that the training begins with; drawn from the seed where None

    Raises
    ------
    InputError
        The initial weights are damaged or those of another network.
    """
    torch.manual_seed(recipe.seed)
    if recipe.deterministic:
        # Read by cuBLAS when it is first used.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    model = MattingNetwork(recipe.model)
    if initial is not None:
        _load_weights(model, read_checkpoint(io.BytesIO(initial)), "the initial weights")
    model = model.to(device)
    if recipe.channels_last:
        # torch documents memory_format; its annotations of Module.to leave it out.
        model = model.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    optimizer = torch.optim.Adam(model.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    steps, warm_up = recipe.epochs * steps_per_epoch, round(recipe.warm_up * steps_per_epoch)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_factor(step, steps, warm_up))
    # float16 gradients underflow unless the loss is scaled; bfloat16 has float32's range.
    scaler = torch.amp.GradScaler(device.type, enabled=recipe.precision == "float16")
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(recipe.average)) if recipe.average else None
    return State(recipe, model, optimizer, scheduler, scaler, average)


def has_arithmetic(precision: str) -> bool:
    """Whether this machine's CPU computes in that precision; where it does not, torch does it number by number."""
    supported = {
        "bfloat16": torch.ops.mkldnn._is_mkldnn_bf16_supported,
        "float16": torch.ops.mkldnn._is_mkldnn_fp16_supported,
    }
    return precision not in supported or supported[precision]()


def predict(network: Callable[[Tensor], Prediction], image: Tensor, precision: str) -> Prediction:
    """The network's output in that precision, one of ``raymat.network.recipe.PRECISIONS``."""
    dtype = getattr(torch, precision)
    with torch.autocast(image.device.type, dtype=dtype, enabled=dtype != torch.float32):
        return network(image)


def train_step(state: State, network: Callable[[Tensor], Prediction], volumes: Tensor) -> Losses:
    """One step of ADAM.

    Parameters
    ----------
    state : training
    network : ``state.model`` or what wraps it (DDP, compiled)
    volumes : float32 (batch, ``CHANNELS``, z, y, x)
    """
    if state.recipe.channels_last:
        volumes = volumes.contiguous(memory_format=torch.channels_last_3d)
    losses = losses_of(predict(network, volumes[:, IMAGE:ALPHA], state.recipe.precision), volumes, state.recipe)
    state.optimizer.zero_grad(set_to_none=True)
    state.scaler.scale(losses.total).backward()
    state.scaler.step(state.optimizer)
    state.scaler.update()
    state.scheduler.step()
    if state.average:
        state.average.update_parameters(state.model)
    return losses


def losses_of(prediction: Prediction, volumes: Tensor, recipe: Recipe) -> Losses:
    """Eq. 5 and 6 of a prediction against the volumes (batch, ``CHANNELS``, z, y, x) it was made of."""
    alpha, union, overlap, scanned = (_channel(volumes, channel) for channel in (ALPHA, UNION, OVERLAP, SCANNED))
    return matting_losses(prediction, alpha, union, overlap, scanned, recipe.alpha_weight, recipe.gradient_weight)


def _channel(volumes: Tensor, channel: int) -> Tensor:
    return volumes.narrow(1, channel % volumes.shape[1], 1)


def save(state: State, path: str | Path) -> None:
    """Write a checkpoint."""
    generators = {"torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        generators["cuda"] = torch.cuda.get_rng_state()
    torch.save(
        {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "recipe": state.recipe.to_dict(),
            "epoch": state.epoch,
            "model": state.model.state_dict(),
            **({"average": state.average.state_dict()} if state.average else {}),
            "optimizer": state.optimizer.state_dict(),
            "scheduler": {"last_epoch": state.scheduler.last_epoch},
            "scaler": state.scaler.state_dict(),
            "generators": generators,
        },
        path,
    )


def restore(state: State, path: str | Path) -> None:
    """Bring a new training to where the checkpoint left another.

    Raises
    ------
    InputError
        The file is no checkpoint, is damaged, or is of another recipe.
    """
    checkpoint = read_checkpoint_of(state.recipe, path)
    _load_weights(state.model, checkpoint, path)
    if state.average:
        state.average.load_state_dict(checkpoint["average"])
    state.optimizer.load_state_dict(checkpoint["optimizer"])
    for group in state.optimizer.param_groups:
        group["lr"] = state.recipe.learning_rate * state.scheduler.lr_lambdas[0](checkpoint["scheduler"]["last_epoch"])
    state.scheduler.last_epoch = checkpoint["scheduler"]["last_epoch"]
    state.scaler.load_state_dict(checkpoint["scaler"])
    torch.set_rng_state(checkpoint["generators"]["torch"].cpu())
    if "cuda" in checkpoint["generators"] and torch.cuda.is_available():
        torch.cuda.set_rng_state(checkpoint["generators"]["cuda"].cpu())
    state.epoch = checkpoint["epoch"]


def save_weights(state: State, path: str | Path, patients: Sequence[str] = ()) -> None:
    """Write what a prediction needs, weights and recipe, and the patients whom the training has seen."""
    content = {"format": FORMAT, "format_version": FORMAT_VERSION, "recipe": state.recipe.to_dict()}
    learnt = {"patients": list(patients)} if patients else {}
    torch.save({**content, "epoch": state.epoch, "model": state.result.state_dict(), **learnt}, path)


def load_model(path: str | Path, device: str | torch.device = "cpu") -> tuple[MattingNetwork, Recipe]:
    """The network of a checkpoint or weights file, ready to predict, and the recipe that it was trained with.

    Raises
    ------
    InputError
        The file is missing, is no checkpoint, is damaged, or its weights are not those of its config.
    """
    checkpoint = read_checkpoint(path)
    recipe = Recipe.from_dict(checkpoint["recipe"])
    model = MattingNetwork(recipe.model)
    _load_weights(model, checkpoint, path)
    return model.to(device).eval(), recipe


def read_checkpoint(path: str | Path | BinaryIO) -> dict:
    """A checkpoint's content, without running any code that it might hold.

    Raises
    ------
    InputError
        The file is missing, is no checkpoint, or is damaged.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, UnpicklingError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"{path}: no checkpoint of 3DMM, or a damaged one ({first}); copy or train it again"
        ) from error
    if (
        not isinstance(checkpoint, dict)
        or checkpoint.get("format") != FORMAT
        or checkpoint.get("format_version") != FORMAT_VERSION
    ):
        raise InputError(f"{path}: no checkpoint of 3DMM that this raymat knows (format {FORMAT} {FORMAT_VERSION})")
    return checkpoint


def read_checkpoint_of(recipe: Recipe, path: str | Path) -> dict:
    """A checkpoint's content, as ``read_checkpoint``; raises InputError also where it is of another recipe."""
    checkpoint, expected = read_checkpoint(path), recipe.to_dict()
    names = dict.fromkeys([*expected, *checkpoint["recipe"]])
    other = [name for name in names if checkpoint["recipe"].get(name) != expected.get(name)]
    if other:
        raise InputError(
            f"{path}: a checkpoint of another recipe ({', '.join(other)} differ); it cannot be resumed as this one"
        )
    return checkpoint


def _load_weights(model: MattingNetwork, checkpoint: dict, path: str | Path) -> None:
    try:
        model.load_state_dict(checkpoint["model"])
    except (RuntimeError, KeyError, TypeError) as error:
        raise InputError(f"{path}: its weights are not those of the network {model.config}") from error
