"""``raymat evaluate``: compare 3DMM and the solvers."""

from __future__ import annotations

import argparse

from raymat.commands.options import add_address, add_tracking, output_of, positive

HELP = "compare 3DMM and the solvers on the test nodules"


def add_arguments(command: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The arguments of ``raymat evaluate`` and ``jobs/evaluate.py``."""
    command.add_argument(
        "dataset", help="the dataset that the networks were trained on, or one with patients whom they have not seen"
    )
    command.add_argument(
        "trainings",
        nargs="+",
        metavar="TRAINING",
        help="outputs of raymat train on one kind of alpha, with masks and without; or a weights.pt; "
        "or shipped, the weights that come with raymat",
    )
    command.add_argument("-o", "--out", required=True, help="folder or URI of the table and pictures")
    command.add_argument(
        "--refine",
        nargs="+",
        default=[],
        metavar="METHOD",
        help="also refine the mattes of the networks by these solvers, such as cf+ and if+, as raymat predict does",
    )
    command.add_argument("--workers", type=positive, default=1, help="number of processes (default: %(default)s)")
    add_address(command)
    add_tracking(command)
    command.set_defaults(run=run)
    return command


def run(options: argparse.Namespace) -> int:
    """``raymat evaluate``."""
    from raymat.pipelines.evaluate import EvaluateJob, evaluate

    trainings = tuple(options.trainings)
    job = EvaluateJob(
        options.dataset, trainings, output_of(options), options.workers, options.address, tuple(options.refine)
    )
    _, failed = evaluate(job)
    return 1 if failed else 0
