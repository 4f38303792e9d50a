"""Options of the commands that train 3DMM."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from raymat.commands.options import add_address, add_tracking, output_of, positive, stated
from raymat.errors import InputError
from raymat.methods import MEANINGS

if TYPE_CHECKING:
    from raymat.pipelines.train import TrainJob


def add_training(train: argparse.ArgumentParser) -> None:
    """The arguments that ``raymat train`` and ``raymat tune`` share."""
    train.add_argument("dataset", help="folder or URI of a built dataset; training uses its accepted nodules")
    train.add_argument("-o", "--out", required=True, help="folder or URI of the training")
    train.add_argument(
        "--preset",
        choices=("paper", "small", "light"),
        default="small",
        help="paper: the recipe of the paper, eight GPUs; small: for CPUs; light: a quarter of the weights of small "
        "(default: %(default)s)",
    )
    train.add_argument(
        "--kind", choices=MEANINGS, help="what the alpha that is learnt means (default: as in the dataset)"
    )
    train.add_argument(
        "--without-masks", action="store_true", help="ablation: the matting branch does not see the masks"
    )
    recipe = train.add_argument_group("recipe", "changes to the preset")
    recipe.add_argument("--epochs", type=positive, help="passes over the training nodules")
    recipe.add_argument("--batch", type=positive, help="volumes per step, over all workers")
    recipe.add_argument("--crop", type=positive, help="side of the input of the network, voxels")
    recipe.add_argument(
        "--spacing-mm", type=float, help="spacing of the input, a whole multiple of the dataset's spacing"
    )
    recipe.add_argument("--width", type=positive, help="features of the finest level")
    recipe.add_argument("--levels", type=positive, help="resolutions of the U-Net")
    recipe.add_argument("--learning-rate", type=float, help="base rate of ADAM")
    recipe.add_argument(
        "--average", type=float, metavar="DECAY", help="moving average of the weights, decay per step, such as 0.999"
    )
    recipe.add_argument("--seed", type=int, help="seed of weights, order and augmentation")
    recipe.add_argument(
        "--precision", choices=("float32", "bfloat16", "float16"), help="of the network; losses are in float32"
    )
    recipe.add_argument(
        "--channels-last", action=argparse.BooleanOptionalAction, default=None, help="memory format; faster on CPUs"
    )
    recipe.add_argument("--compile", action=argparse.BooleanOptionalAction, default=None, help="torch.compile")
    recipe.add_argument(
        "--deterministic",
        action="store_true",
        default=None,
        help="same result in every run on a GPU; operations without this guarantee are refused",
    )
    cluster = train.add_argument_group("cluster")
    add_address(cluster)
    cluster.add_argument("--workers", type=positive, help="processes that share each batch (default: paper 8, small 1)")
    cluster.add_argument(
        "--gpu",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="one GPU per worker (default: paper yes, small no)",
    )
    cluster.add_argument("--threads", type=positive, help="threads per worker on CPUs (default: the available CPUs)")
    add_tracking(train)


def training_job(options: argparse.Namespace, splits: tuple[int, ...]) -> TrainJob:
    """``raymat.pipelines.train.TrainJob`` from the command line."""
    from raymat.network.recipe import preset
    from raymat.pipelines.train import TrainJob

    paper = options.preset == "paper"
    recipe = preset(options.preset, auxiliary=not options.without_masks)
    names = ("epochs", "batch", "learning_rate", "seed", "precision", "channels_last", "deterministic", "average")
    return TrainJob(
        dataset=options.dataset,
        output=output_of(options),
        kind=options.kind,
        recipe=replace(
            recipe,
            model=replace(
                recipe.model, **stated(width=options.width, levels=options.levels, spacing_mm=options.spacing_mm)
            ),
            augmentation=replace(recipe.augmentation, **stated(crop=(options.crop,) * 3 if options.crop else None)),
            **stated(**{name: getattr(options, name) for name in names}, compiled=options.compile),
        ),
        splits=splits,
        workers=options.workers or (8 if paper else 1),
        gpu=paper if options.gpu is None else options.gpu,
        threads=options.threads,
        address=options.address,
    )


def read_loss_weights(path: str) -> dict[str, float]:
    """Alpha and beta from best.json of ``raymat tune``."""
    try:
        found = json.loads(Path(path).read_text())
        return {name: float(found[name]) for name in ("alpha_weight", "gradient_weight")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: contains no alpha_weight and gradient_weight ({error})") from error
