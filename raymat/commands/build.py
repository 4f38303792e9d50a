"""``raymat build``: a dataset of alpha mattes."""

from __future__ import annotations

import argparse

from raymat.commands.build_options import (
    add_kind,
    add_methods,
    add_source,
    add_stages,
    build_parameters,
    open_source,
    pools,
)
from raymat.commands.options import add_tracking, output_of, positive, stated

HELP = "build a dataset of alpha mattes"


def add_arguments(command: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The arguments of ``raymat build`` and ``jobs/build_dataset.py``."""
    add_source(command)
    command.add_argument("-o", "--out", help="folder or URI of the dataset (default: raymat-lidc, -cases or -phantoms)")
    command.add_argument(
        "--min-readers", type=positive, default=4, help="exclude nodules with fewer readers (default: %(default)s)"
    )
    add_methods(command)
    add_kind(command)
    command.add_argument("--floor", type=float, help="quality score below which a nodule is rejected (default: 0.33)")
    command.add_argument("--retry-failed", action="store_true", help="try failed nodules again")
    command.add_argument(
        "--nodule-timeout",
        type=positive,
        metavar="S",
        help="seconds that one stage may take on one nodule before its worker is ended (default: 600); three tries",
    )
    add_stages(command)
    add_tracking(command)
    command.set_defaults(run=run)
    return command


def run(options: argparse.Namespace) -> int:
    """``raymat build``."""
    from raymat.pipelines.build_job import Job, build_dataset, exit_status
    from raymat.places import is_uri, refuse_credentials

    if options.out and is_uri(options.out):
        refuse_credentials(options.out)
    opened = open_source(options)
    job = Job(
        source=opened.source,
        source_name=opened.title,
        output=output_of(options, opened.out),
        parameters=build_parameters(options, options.min_readers, options.floor),
        pools=pools(options),
        retry_failed=options.retry_failed,
        **stated(nodule_timeout_s=options.nodule_timeout),
        address=options.address,
    )
    return exit_status(build_dataset(job))
