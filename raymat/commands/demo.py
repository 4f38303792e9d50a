"""``raymat demo``: build a small dataset from phantoms."""

from __future__ import annotations

import argparse

from raymat.commands import build
from raymat.commands.build_options import add_phantoms
from raymat.commands.options import add_tracking

HELP = "build a small dataset from phantoms; needs no data"


def add_arguments(command: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The arguments of ``raymat demo``."""
    command.add_argument("-o", "--out", default="raymat-demo", help="folder of the dataset (default: %(default)s)")
    add_phantoms(command)
    add_tracking(command)
    command.set_defaults(run=run)
    return command


def run(options: argparse.Namespace) -> int:
    """``raymat demo``."""
    from raymat.store import Store

    arguments = ["--phantoms", str(options.n), "--seed", str(options.seed), "-o", options.out]
    if options.tracking_uri:
        arguments += ["--tracking-uri", options.tracking_uri]
    if options.no_tracking:
        arguments += ["--no-tracking"]
    print(f"building {options.n} phantoms, drawn from the contours of real readers, into {options.out}")
    status = build.run(build.add_arguments(argparse.ArgumentParser()).parse_args(arguments))
    first = Store.open(options.out).outcomes(["nodule_id"])["nodule_id"][0].as_py()
    print(f"one nodule     raymat show {options.out} {first} -o nodule.png")
    print(f"review         raymat review {options.out}")
    print(f'in Python      for nodule in raymat.load("{options.out}"): nodule.image, nodule.mattes, nodule.method')
    return status
