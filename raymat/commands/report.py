"""``raymat report``: one HTML page about datasets, measurements and experiments."""

from __future__ import annotations

import argparse
from pathlib import Path

from raymat.errors import InputError

HELP = "write one self-contained HTML page about datasets, measurements and experiments"


def add_arguments(command: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The arguments of ``raymat report``."""
    command.add_argument(
        "runs", nargs="+", metavar="RUN", help="outputs of raymat build, release, readers, classify and evaluate"
    )
    command.add_argument("-o", "--out", required=True, metavar="HTML", help="for example report.html")
    command.set_defaults(run=run)
    return command


def run(options: argparse.Namespace) -> int:
    """``raymat report``."""
    from raymat.report.report import write_report

    out = Path(options.out)
    if out.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"-o {options.out}: name a file that ends in .html")
    for line in write_report(options.runs, out):
        print(line)
    print(f"report   {out}   figures {out.with_name(f'{out.stem}-figures')}/")
    return 0
