"""Options that several commands share."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raymat.errors import InputError

if TYPE_CHECKING:
    from raymat.experiment import Output

VOLUME_ENDINGS = (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd")
PICTURE_ENDINGS = (".png", ".tif", ".tiff")  # of 2D images alone


def add_tracking(command: argparse.ArgumentParser, named: bool = False) -> None:
    """Whether and where a run is logged; with ``named`` only to a store that is named, and no file is made for it."""
    group = command.add_argument_group("MLflow")
    default = "MLFLOW_TRACKING_URI, else none" if named else "MLFLOW_TRACKING_URI, or ./mlflow.db"
    group.add_argument("--tracking-uri", help=f"where runs are logged (default: {default})")
    group.add_argument("--no-tracking", action="store_true", help="log no MLflow run")
    command.set_defaults(tracking_named=named)


def add_address(command: argparse._ActionsContainer) -> None:
    """The Ray cluster."""
    command.add_argument("--address", help="Ray cluster (default: the cluster of the job, or a local one)")


def positive(text: str) -> int:
    """A positive whole number, for argparse."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


def numbers_of(text: str) -> tuple[int, ...]:
    """Different numbers from 0 up, separated by commas, for argparse."""
    values = tuple(int(part) for part in text.split(","))
    if min(values) < 0 or len(set(values)) < len(values):
        raise argparse.ArgumentTypeError(f"{text}: give different numbers from 0 up, separated by commas")
    return values


def stated(**values: Any) -> dict[str, Any]:
    """The options that were given."""
    return {name: value for name, value in values.items() if value is not None}


def output_of(options: argparse.Namespace, default: str = "") -> Output:
    """Where the command writes and logs.

    Raises
    ------
    InputError
        A submitted job writes to a relative folder, which would be deleted with the job's, or its run would be lost.
    """
    from raymat.experiment import Output
    from raymat.places import in_submitted_job, is_uri
    from raymat.tracking import tracking_uri

    out: str = options.out or default
    if in_submitted_job() and not is_uri(out) and not Path(out).is_absolute():
        raise InputError(
            f"-o {out}: the folder of a job is deleted; give an absolute path that all nodes share, or a URI"
        )
    named = options.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
    if options.no_tracking or (options.tracking_named and not named):
        return Output(out, None, typed())
    return Output(out, tracking_uri(out, options.tracking_uri), typed())


def typed() -> tuple[str, ...]:
    """The command line without credentials."""
    from raymat.places import without_credentials

    return ("raymat", *(without_credentials(argument) for argument in sys.argv[1:]))
