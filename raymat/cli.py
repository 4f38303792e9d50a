"""The ``raymat`` command: the parser of all commands, and what an error prints."""

from __future__ import annotations

import argparse
import io
import logging
import os
import sys

from raymat.commands import COMMANDS
from raymat.errors import InputError, MissingPackage, NoduleExcluded, missing_packages_named
from raymat.stopping import stoppable
from raymat.version import __version__
from raymat.words import utf8


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status: 0 done, 1 nodules failed, 2 the command or its input cannot be used."""
    return run(parser(), arguments)


def parser() -> argparse.ArgumentParser:
    """The command line of all commands."""
    top = argparse.ArgumentParser(prog="raymat", description="3D alpha mattes of nodules from CT and readers' masks")
    top.add_argument("--version", action="version", version=f"raymat {__version__}")
    commands = top.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        command.add_arguments(commands.add_parser(name, help=command.HELP))
    return top


def run(command: argparse.ArgumentParser, arguments: list[str] | None = None) -> int:
    """Parse the arguments of a command and run it, and print an error as one line."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Names of files may hold bytes that are no UTF-8; stderr prints them so anyway.
        sys.stdout.reconfigure(errors="backslashreplace")
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    options = command.parse_args(arguments)
    try:
        with stoppable(), missing_packages_named():
            return options.run(options)
    except (InputError, NoduleExcluded, MissingPackage) as error:
        print(f"raymat: {utf8(str(error))}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # The reader of the output has ended (`| head`): print nothing more, also at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        print("raymat: stopped; committed nodules are kept, run the same command again to resume", file=sys.stderr)
        return 130
