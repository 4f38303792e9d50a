"""``raymat show``: a picture of one nodule."""

from __future__ import annotations

import argparse

HELP = "draw one nodule with its mattes"


def add_arguments(command: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The arguments of ``raymat show``."""
    command.add_argument("dataset", help="folder or URI of a dataset")
    command.add_argument("nodule", help="nodule id; raymat inspect lists the ids")
    command.add_argument("-o", "--out", required=True, metavar="PNG")
    command.set_defaults(run=run)
    return command


def run(options: argparse.Namespace) -> int:
    """``raymat show``."""
    from raymat.pictures.figure import save
    from raymat.pictures.nodule import show_nodule
    from raymat.store import Store

    save(show_nodule(Store.open(options.dataset).find(options.nodule)), options.out)
    print(options.out)
    return 0
