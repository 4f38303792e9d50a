"""``raymat benchmark``: judge anybody's mattes on the test nodules of a release."""

from __future__ import annotations

import argparse

from raymat.commands.options import add_address, add_tracking, numbers_of, output_of, positive
from raymat.methods import MEANINGS, METHODS

HELP = "judge anybody's mattes on the test nodules of a release"


def add_arguments(command: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The arguments of ``raymat benchmark`` and ``jobs/benchmark.py``."""
    command.add_argument("release", help="folder or URI of a release")
    command.add_argument(
        "--mattes",
        required=True,
        metavar="DIR",
        help="one volume per nodule, NODULE_ID.nii.gz or .nrrd; in folders split-0, split-1, ... where the method was "
        "trained for each split",
    )
    command.add_argument("-o", "--out", required=True, help="folder or URI of the tables")
    command.add_argument("--name", default="", help="what tables call the method (default: the name of DIR)")
    command.add_argument(
        "--kind", choices=MEANINGS, help="what alpha means in these mattes (default: judged on both kinds)"
    )
    command.add_argument("--automatic", action="store_true", help="the method needs no reader's mask and no trimap")
    command.add_argument(
        "--solver",
        choices=METHODS,
        default="",
        help="the mattes are those of this solver of raymat: nodules whose reference it made are left out",
    )
    command.add_argument(
        "--splits", type=numbers_of, metavar="N,N", help="splits to judge (default: all that the mattes are there for)"
    )
    command.add_argument("--workers", type=positive, default=1, help="number of processes (default: %(default)s)")
    add_address(command)
    add_tracking(command)
    command.set_defaults(run=run)
    return command


def run(options: argparse.Namespace) -> int:
    """``raymat benchmark``: status 1 if a matte is missing or cannot be used."""
    from raymat.benchmark.judge import MISSING, UNUSABLE
    from raymat.pipelines.benchmark import BenchmarkJob, benchmark

    names = ("release", "mattes", "name", "kind", "solver", "automatic", "splits", "workers", "address")
    counts = benchmark(BenchmarkJob(output=output_of(options), **{n: getattr(options, n) for n in names})).counts
    return 1 if counts[MISSING] or counts[UNUSABLE] else 0
