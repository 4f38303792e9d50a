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
    train(replace(job, recipe=replace(job.recipe, **weights)))
    return 0
