"""``raymat tune``: search the weights of the loss of 3DMM."""

from __future__ import annotations

import argparse

from raymat.commands.training_options import add_training, training_job

HELP = "search the weights of the loss of 3DMM"
GRID = (1.0, 3.0, 10.0, 30.0)


def add_arguments(command: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The arguments of ``raymat tune`` and ``jobs/tune_loss_weights.py``."""
    add_training(command)
    command.add_argument("--alphas", type=weights_list, default=GRID, metavar="1,3,10,30", help="values of alpha")
    command.add_argument("--betas", type=weights_list, default=GRID, metavar="1,3,10,30", help="values of beta")
    command.add_argument("--split", type=int, default=0, help="the split for validation (default: %(default)s)")
    command.add_argument("--early", action="store_true", help="stop trials that fall behind (ASHA)")
    command.set_defaults(run=run)
    return command


def weights_list(text: str) -> tuple[float, ...]:
    """Weights of the loss separated by commas, for argparse."""
    values = tuple(float(part) for part in text.split(","))
    if min(values) < 0 or len(set(values)) < len(values):
        raise argparse.ArgumentTypeError(f"{text}: give different numbers, none below 0, separated by commas")
    return values


def run(options: argparse.Namespace) -> int:
    """``raymat tune``."""
    from raymat.pipelines.tune import TuneJob, tune_loss_weights

    job = training_job(options, (options.split,))
    tune_loss_weights(TuneJob(job, options.alphas, options.betas, options.early))
    return 0
