"""``raymat release-diff``: compare two releases."""

from __future__ import annotations

import argparse

HELP = "nodules added, removed and changed between two releases"
NAMED = 20


def add_arguments(command: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The arguments of ``raymat release-diff``."""
    command.add_argument("before", help="the earlier release")
    command.add_argument("after", help="the later release")
    command.set_defaults(run=run)
    return command


def run(options: argparse.Namespace) -> int:
    """``raymat release-diff``."""
    from raymat.release.record import Release
    from raymat.release.verify import compare

    difference = compare(Release.open(options.before), Release.open(options.after))
    print(f"{'kind':<10}{' -> '.join(dict.fromkeys(difference.kinds)):>7}")
    if not difference.others:
        print("  mattes that one of them lacks are not compared: releases before format 3 have one per nodule")
    changed = [f"{nodule_id}: {what}" for nodule_id, what in difference.changed.items()]
    for name, lines in (("added", difference.added), ("removed", difference.removed), ("changed", changed)):
        print(f"{name:<10}{len(lines):>7}")
        for line in lines[:NAMED]:
            print(f"  {line}")
        if len(lines) > NAMED:
            print(f"  ... and {len(lines) - NAMED} more")
    print(f"{'the same':<10}{difference.same:>7}")
    return 0
