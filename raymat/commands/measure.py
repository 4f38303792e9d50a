"""``raymat measure``: volume, diameters, mass and shape of every nodule."""

from __future__ import annotations

import argparse

from raymat.commands.options import add_address, add_tracking, output_of, positive
from raymat.errors import InputError

HELP = "measure nodules: volume, diameters, mass, density, shape"


def add_arguments(command: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The arguments of ``raymat measure`` and ``jobs/measure.py``."""
    command.add_argument("dataset", help="a built dataset, a release or predictions")
    command.add_argument(
        "-o",
        "--out",
        metavar="FILE",
        help="table to write, .csv or .parquet (default: measures.parquet in the folder of the dataset)",
    )
    command.add_argument("--workers", type=positive, default=1, help="number of processes (default: %(default)s)")
    add_address(command)
    add_tracking(command)
    command.set_defaults(run=run)
    return command


def run(options: argparse.Namespace) -> int:
    """``raymat measure``."""
    from dataclasses import replace

    from raymat.measures.table import STORED
    from raymat.pipelines.measure import MeasureJob, measure_all
    from raymat.places import open_filesystem
    from raymat.release.record import is_release

    if options.out is None:
        if is_release(*open_filesystem(options.dataset)):
            raise InputError(f"{options.dataset}: a release does not change; name a file for the table with -o")
        options.out = f"{options.dataset.rstrip('/')}/{STORED}"
    # The run of a submitted job lies beside the table, in its folder.
    folder = output_of(argparse.Namespace(**{**vars(options), "out": options.out.rpartition("/")[0] or "."}))
    job = MeasureJob(options.dataset, replace(folder, path=options.out), options.workers, options.address)
    _, failed = measure_all(job)
    return 1 if failed else 0
