"""``raymat release``: freeze the accepted nodules."""

from __future__ import annotations

import argparse

HELP = "freeze the accepted nodules under a version"


def add_arguments(command: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The arguments of ``raymat release``."""
    command.add_argument("dataset", help="folder or URI of a built dataset")
    command.add_argument("-o", "--out", required=True, help="folder or URI of the release, new or empty")
    command.add_argument("--version", required=True, help="for example 1.0")
    command.add_argument("--reviewed-only", action="store_true", help="leave out nodules without a reviewer's decision")
    command.add_argument(
        "--drop-stale", action="store_true", help="ignore decisions on mattes that were computed again since"
    )
    command.add_argument("--licence", help="licence of the source (default: that of LIDC-IDRI, if it is the source)")
    command.add_argument("--citation", help="citation of the source (default: that of LIDC-IDRI, if it is the source)")
    command.set_defaults(run=run)
    return command


def run(options: argparse.Namespace) -> int:
    """``raymat release``."""
    from raymat.release.freeze import ReleaseRequest, release

    names = ("dataset", "out", "version", "reviewed_only", "drop_stale", "licence", "citation")
    digest = release(ReleaseRequest(**{name: getattr(options, name) for name in names}))
    print(f"release {options.version}   {options.out}")
    print(f"datasheet     {options.out.rstrip('/')}/datasheet.md")
    print(f"digest        {digest}   (raymat verify {options.out} --digest DIGEST)")
    return 0
