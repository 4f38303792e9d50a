"""``raymat export``: nodules as NIfTI, NRRD, DICOM Segmentation or DICOM report."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from raymat.errors import InputError
from raymat.methods import MEANINGS
from raymat.words import utf8

HELP = "write nodules as NIfTI, NRRD, DICOM Segmentation or DICOM report of their measures"
FORMATS = ("nifti", "nrrd", "dicom-seg", "dicom-sr")


def add_arguments(command: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The arguments of ``raymat export``."""
    command.add_argument("dataset", help="a built dataset or a release")
    command.add_argument("-o", "--out", required=True, metavar="DIR")
    command.add_argument("--format", choices=FORMATS, required=True)
    command.add_argument(
        "--nodule",
        action="append",
        metavar="ID",
        help="a nodule to export; repeat for more (default: all accepted nodules)",
    )
    command.add_argument(
        "--lidc",
        "--dicom",
        dest="dicom",
        metavar="DIR",
        help="folder tree with the source series (dicom-seg, dicom-sr)",
    )
    command.add_argument(
        "--level", type=float, metavar="ALPHA", help="write a binary segmentation of alpha >= ALPHA (dicom-seg)"
    )
    command.add_argument(
        "--together", action="store_true", help="one file per series, with a segment per nodule (dicom-seg)"
    )
    command.add_argument(
        "--kind",
        choices=("chosen", *MEANINGS),
        help="write the chosen matte, or the best one of a kind of alpha (default: chosen; membership with --level)",
    )
    command.set_defaults(run=run)
    return command


def run(options: argparse.Namespace) -> int:
    """``raymat export``."""
    from raymat.export import DICOM_SR, ExportRequest, export
    from raymat.loading import load, window_of

    request = ExportRequest(options.format, options.dicom, options.level, options.kind, together=options.together)
    if options.format == DICOM_SR:
        request = replace(request, window=window_of(options.dataset))
    nodules = load(options.dataset)
    for name in options.nodule or []:
        if name not in nodules:
            raise InputError(f"{options.dataset}: no accepted nodule {name} (`raymat inspect` lists the nodules)")
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    ids = options.nodule or nodules.ids
    failed: list[str] = []
    for done in export(nodules, ids, out, request):
        if done.path:
            print(done.path)
        else:
            failed.append(done.problem)
    if failed and len(failed) == len(ids):
        raise InputError(failed[0] + (f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""))
    for problem in failed:
        print(f"raymat: {utf8(problem)}", file=sys.stderr)
    return 1 if failed else 0
