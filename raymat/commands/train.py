"""``raymat train``: train 3DMM."""

from __future__ import annotations

import argparse
from dataclasses import replace

from raymat.commands.options import numbers_of, stated
from raymat.commands.training_options import add_training, read_loss_weights, training_job

HELP = "train 3DMM on a dataset"


def add_arguments(command: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The arguments of ``raymat train`` and ``jobs/train_3dmm.py``."""
    add_training(command)
    command.add_argument(
        "--splits",
        type=numbers_of,
        default=(0, 1, 2, 3),
        metavar="0,1,2,3",
        help="repeated splits by patient (default: all four)",
    )
    data = command.add_argument_group("data")
    data.add_argument(
        "--also",
        nargs="+",
        default=[],
        metavar="DATASET",
        help="more datasets to learn from, such as phantoms; patients whom a split validates or tests on are left out",
    )
    data.add_argument(
        "--splits-of",
        metavar="DATASET",
        help="hold out the patients whom the splits of this dataset hold out, for weights that --initial takes",
    )
    data.add_argument(
        "--initial",
        metavar="WEIGHTS",
        help="begin with these weights: a weights.pt, the output of raymat train with the same splits, or shipped",
    )
    weights = command.add_argument_group("weights of the loss", "default: 10 and 10")
    weights.add_argument("--loss-weights", metavar="JSON", help="best.json of raymat tune")
    weights.add_argument("--alpha-weight", type=float, help="weight alpha of Eq. 6")
    weights.add_argument("--gradient-weight", type=float, help="weight beta of Eq. 6")
    command.set_defaults(run=run)
    return command


def run(options: argparse.Namespace) -> int:
    """``raymat train``."""
    from raymat.pipelines.train import train

    job = training_job(options, options.splits)
    weights = stated(alpha_weight=options.alpha_weight, gradient_weight=options.gradient_weight)
    if options.loss_weights:
        weights = read_loss_weights(options.loss_weights) | weights
    recipe = replace(job.recipe, **weights)
    more = tuple(options.also)
    train(replace(job, recipe=recipe, also=more, splits_of=options.splits_of, initial=options.initial))
    return 0
