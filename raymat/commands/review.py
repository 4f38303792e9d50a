"""``raymat review``: choose or reject mattes on a local web page."""

from __future__ import annotations

import argparse

HELP = "choose or reject mattes on a local web page"


def add_arguments(command: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The arguments of ``raymat review``."""
    command.add_argument("dataset", help="folder or URI of a built dataset")
    command.add_argument("--host", default="127.0.0.1", help="address of the server (default: %(default)s)")
    command.add_argument("--port", type=int, default=8790, help="default: %(default)s; 0 for any free port")
    command.add_argument("--token", help="token of the page (default: a new token at every start)")
    command.set_defaults(run=run)
    return command


def run(options: argparse.Namespace) -> int:
    """``raymat review``."""
    from raymat.review.server import serve

    return serve(options.dataset, options.host, options.port, options.token)
