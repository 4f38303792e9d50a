"""``raymat figure``: figures for papers."""

from __future__ import annotations

import argparse

from raymat.errors import InputError

HELP = "draw a figure for a paper: masks and a matte, or all methods"


def add_arguments(command: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The arguments of ``raymat figure``."""
    command.add_argument("dataset", help="folder or URI of a built dataset")
    command.add_argument("nodules", nargs="+", metavar="nodule", help="nodule ids; one id for --of masks")
    command.add_argument("--of", choices=("masks", "methods"), required=True, dest="subject")
    command.add_argument("-o", "--out", required=True, metavar="PNG")
    command.set_defaults(run=run)
    return command


def run(options: argparse.Namespace) -> int:
    """``raymat figure``."""
    from raymat.loading import load
    from raymat.nodule import ACCEPTED, REJECTED
    from raymat.pictures.figure import save
    from raymat.pictures.paper import masks_and_matte, methods_side_by_side

    nodules = load(options.dataset, outcomes=(ACCEPTED, REJECTED))
    for name in options.nodules:
        if name not in nodules:
            raise InputError(f"{options.dataset}: no nodule {name} with mattes (see `raymat inspect`)")
    if options.subject == "masks":
        if len(options.nodules) > 1:
            raise InputError("--of masks draws one nodule; name one")
        figure = masks_and_matte(nodules[options.nodules[0]])
    else:
        figure = methods_side_by_side(nodules[name] for name in options.nodules)
    save(figure, options.out)
    print(options.out)
    return 0
