"""The commands after the build: review, release, verify, compare, export."""

from __future__ import annotations

import argparse
from pathlib import Path

from raymat.errors import InputError
from raymat.words import counted

FORMATS = ("nifti", "nrrd", "dicom-seg")
NAMED = 20


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Add them to the parser of ``raymat``."""
    command = commands.add_parser("review", help="choose or reject mattes on a local web page")
    command.add_argument("dataset", help="folder or URI of a built dataset")
    command.add_argument("--host", default="127.0.0.1", help="address of the server (default: %(default)s)")
    command.add_argument("--port", type=int, default=8790, help="default: %(default)s; 0 for any free port")
    command.add_argument("--token", help="token of the page (default: a new token at every start)")
    command.set_defaults(run=run_review)

    command = commands.add_parser("release", help="freeze the accepted nodules under a version")
    command.add_argument("dataset", help="folder or URI of a built dataset")
    command.add_argument("-o", "--out", required=True, help="folder or URI of the release, new or empty")
    command.add_argument("--version", required=True, help="for example 1.0")
    command.add_argument("--reviewed-only", action="store_true", help="leave out nodules without a reviewer's decision")
    command.add_argument(
        "--drop-stale", action="store_true", help="ignore decisions on mattes that were computed again since"
    )
    command.add_argument("--licence", help="licence of the source (default: that of LIDC-IDRI, if it is the source)")
    command.add_argument("--citation", help="citation of the source (default: that of LIDC-IDRI, if it is the source)")
    command.set_defaults(run=run_release)

    command = commands.add_parser("verify", help="check the digests of a release")
    command.add_argument("release", help="folder or URI of a release")
    command.add_argument("--digest", help="the published digest of the release")
    command.set_defaults(run=run_verify)

    command = commands.add_parser("release-diff", help="nodules added, removed and changed between two releases")
    command.add_argument("before", help="the earlier release")
    command.add_argument("after", help="the later release")
    command.set_defaults(run=run_release_diff)

    command = commands.add_parser("figure", help="draw a figure for a paper: masks and a matte, or all methods")
    command.add_argument("dataset", help="folder or URI of a built dataset")
    command.add_argument("nodules", nargs="+", metavar="nodule", help="nodule ids; one id for --of masks")
    command.add_argument("--of", choices=("masks", "methods"), required=True, dest="subject")
    command.add_argument("-o", "--out", required=True, metavar="PNG")
    command.set_defaults(run=run_figure)

    command = commands.add_parser("export", help="write nodules as NIfTI, NRRD or DICOM Segmentation")
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
        "--lidc", "--dicom", dest="dicom", metavar="DIR", help="folder tree with the source series (dicom-seg)"
    )
    command.add_argument(
        "--level", type=float, metavar="ALPHA", help="write a binary segmentation of alpha >= ALPHA (dicom-seg)"
    )
    command.set_defaults(run=run_export)


def run_review(options: argparse.Namespace) -> int:
    """``raymat review``."""
    from raymat.review.server import serve

    return serve(options.dataset, options.host, options.port, options.token)


def run_release(options: argparse.Namespace) -> int:
    """``raymat release``."""
    from raymat.release.freeze import ReleaseRequest, release

    names = ("dataset", "out", "version", "reviewed_only", "drop_stale", "licence", "citation")
    digest = release(ReleaseRequest(**{name: getattr(options, name) for name in names}))
    print(f"release {options.version}   {options.out}")
    print(f"datasheet     {options.out.rstrip('/')}/datasheet.md")
    print(f"digest        {digest}   (raymat verify {options.out} --digest DIGEST)")
    return 0


def run_verify(options: argparse.Namespace) -> int:
    """``raymat verify``: status 0 for an unchanged release, 1 if something was changed."""
    from raymat.release.verify import verify

    found = verify(options.release, options.digest)
    for problem in found.problems:
        print(problem)
    state = f"{counted(len(found.problems), 'problem')}" if found.problems else "as it was released"
    print(f"{options.release}: {found.files} files, {counted(found.nodules, 'nodule')}: {state}")
    print(f"digest {found.digest}")
    return 1 if found.problems else 0


def run_release_diff(options: argparse.Namespace) -> int:
    """``raymat release-diff``."""
    from raymat.release.record import Release
    from raymat.release.verify import compare

    difference = compare(Release.open(options.before), Release.open(options.after))
    changed = [f"{nodule_id}: {what}" for nodule_id, what in difference.changed.items()]
    for name, lines in (("added", difference.added), ("removed", difference.removed), ("changed", changed)):
        print(f"{name:<10}{len(lines):>7}")
        for line in lines[:NAMED]:
            print(f"  {line}")
        if len(lines) > NAMED:
            print(f"  ... and {len(lines) - NAMED} more")
    print(f"{'the same':<10}{difference.same:>7}")
    return 0


def run_export(options: argparse.Namespace) -> int:
    """``raymat export``."""
    from raymat.export import export
    from raymat.loading import load

    if options.level is not None and options.format != "dicom-seg":
        raise InputError("--level makes a binary DICOM Segmentation: use it with --format dicom-seg")
    nodules = load(options.dataset)
    for name in options.nodule or []:
        if name not in nodules:
            raise InputError(f"{options.dataset}: no accepted nodule {name} (`raymat inspect` lists the nodules)")
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    for path in export(nodules, options.nodule or nodules.ids, out, options.format, options.dicom, options.level):
        print(path)
    return 0


def run_figure(options: argparse.Namespace) -> int:
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
