"""The commands of the evidence: readers, classify, report."""

from __future__ import annotations

import argparse
import sys

from raymat.commands.building import (
    add_grid,
    add_matting,
    add_methods,
    add_pools,
    add_prepare,
    add_source,
    build_parameters,
    open_source,
    pools,
)
from raymat.commands.options import add_tracking, positive, refuse_lost_output
from raymat.evidence.left_out import READERS
from raymat.nodule import FAILED, InputError


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Add them to the parser of ``raymat``."""
    add_readers_arguments(
        commands.add_parser("readers", help="leave one reader out: how well do mattes of three foretell the fourth?")
    )


def add_readers_arguments(readers: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The arguments of ``raymat readers`` and ``jobs/leave_one_reader_out.py``."""
    add_source(readers)
    readers.add_argument("-o", "--out", required=True, help="folder or URI of the measurements")
    readers.add_argument("--nodules", type=positive, metavar="N", help="so many nodules, drawn (default: all)")
    add_methods(readers)
    readers.add_argument("--retry-failed", action="store_true", help="try again what failed before")
    add_prepare(readers)
    add_grid(readers)
    add_matting(readers)
    add_pools(readers)
    add_tracking(readers)
    readers.set_defaults(run=run_readers, min_readers=READERS - 1, floor=None)
    return readers


def run_readers(options: argparse.Namespace) -> int:
    """``raymat readers``: status 1 where a split failed."""
    from raymat.pipelines.readers import ReadersJob, leave_one_reader_out
    from raymat.tracking import tracking_uri

    if not (options.cases or options.lidc or options.phantoms):
        raise InputError("name a source of nodules with four readers: --cases FILE, --lidc DIR or --phantoms N")
    refuse_lost_output(options.out)
    source, name, _ = open_source(options)
    _, outcomes = leave_one_reader_out(
        ReadersJob(
            source=source,
            source_name=name,
            out=options.out,
            parameters=build_parameters(options),
            pools=pools(options),
            nodules=options.nodules,
            retry_failed=options.retry_failed,
            command=("raymat", *sys.argv[1:]),
            tracking_uri=None if options.no_tracking else tracking_uri(options.out, options.tracking_uri),
            address=options.address,
        )
    )
    return 1 if outcomes[FAILED] else 0
