"""``raymat leaderboard``: entries of the benchmark side by side."""

from __future__ import annotations

import argparse

from raymat.errors import InputError

HELP = "entries of the benchmark side by side, in one page"


def add_arguments(command: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The arguments of ``raymat leaderboard``."""
    command.add_argument("tables", nargs="+", metavar="TABLE", help="outputs of raymat benchmark on one release")
    command.add_argument("-o", "--out", required=True, metavar="FILE", help="for example leaderboard.md")
    command.set_defaults(run=run)
    return command


def run(options: argparse.Namespace) -> int:
    """``raymat leaderboard``."""
    from raymat.benchmark.leaderboard import leaderboard, read_table
    from raymat.folder import Folder

    if not options.out.endswith(".md"):
        raise InputError(f"-o {options.out}: name a file that ends in .md")
    page = leaderboard([read_table(table) for table in options.tables])
    folder, _, name = options.out.rpartition("/")
    Folder.at(folder or ("/" if options.out.startswith("/") else ".")).write(name, page.encode())
    print(f"leaderboard  {options.out}")
    return 0
