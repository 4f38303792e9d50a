"""``raymat verify``: check the digests of a release."""

from __future__ import annotations

import argparse

from raymat.words import counted

HELP = "check the digests of a release"


def add_arguments(command: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The arguments of ``raymat verify``."""
    command.add_argument("release", help="folder or URI of a release")
    command.add_argument("--digest", help="the published digest of the release")
    command.set_defaults(run=run)
    return command


def run(options: argparse.Namespace) -> int:
    """``raymat verify``: status 0 for an unchanged release, 1 if something was changed."""
    from raymat.release.verify import verify

    found = verify(options.release, options.digest)
    for problem in found.problems:
        print(problem)
    state = f"{counted(len(found.problems), 'problem')}" if found.problems else "as it was released"
    print(f"{options.release}: {found.files} files, {counted(found.nodules, 'nodule')}: {state}")
    print(f"digest {found.digest}")
    return 1 if found.problems else 0
