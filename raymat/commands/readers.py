"""``raymat readers``: how well mattes of three readers predict the fourth."""

from __future__ import annotations

import argparse

from raymat.commands.build_options import (
    add_methods,
    add_source,
    add_stages,
    build_parameters,
    open_source,
    pools,
)
from raymat.commands.options import add_tracking, output_of, positive
from raymat.errors import InputError
from raymat.sources.kinds import KINDS, asked_for

HELP = "leave one reader out: how well do mattes of three readers predict the fourth?"


def add_arguments(command: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The arguments of ``raymat readers`` and ``jobs/leave_one_reader_out.py``."""
    add_source(command)
    command.add_argument("-o", "--out", required=True, help="folder or URI of the measurements")
    command.add_argument(
        "--nodules", type=positive, metavar="N", help="measure N randomly drawn nodules (default: all)"
    )
    add_methods(command)
    command.add_argument("--retry-failed", action="store_true", help="try failed nodules again")
    add_stages(command)
    add_tracking(command)
    command.set_defaults(run=run)
    return command


def run(options: argparse.Namespace) -> int:
    """``raymat readers``: status 1 if a split failed."""
    from raymat.evidence.left_out import READERS
    from raymat.nodule import FAILED
    from raymat.pipelines.readers import ReadersJob, leave_one_reader_out

    if not asked_for(options):
        named = ", ".join(f"--{name} {kind.metavar}" for name, kind in KINDS.items())
        raise InputError(f"name a source of nodules with four readers, one of {named}")
    opened = open_source(options)
    _, outcomes = leave_one_reader_out(
        ReadersJob(
            source=opened.source,
            source_name=opened.title,
            output=output_of(options),
            parameters=build_parameters(options, READERS - 1),
            pools=pools(options),
            nodules=options.nodules,
            retry_failed=options.retry_failed,
            address=options.address,
        )
    )
    return 1 if outcomes[FAILED] else 0
