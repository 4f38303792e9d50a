"""Options that several commands share."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from raymat.errors import InputError

VOLUME_ENDINGS = (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd")


def add_tracking(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("MLflow")
    group.add_argument("--tracking-uri", help="default: MLFLOW_TRACKING_URI, else ./mlflow.db")
    group.add_argument("--no-tracking", action="store_true", help="log no run")


def positive(text: str) -> int:
    """A positive whole number, for argparse."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


def stated(**values: Any) -> dict[str, Any]:
    """Those of the options that were given."""
    return {name: value for name, value in values.items() if value is not None}


def refuse_lost_output(out: str) -> None:
    """Refuse a relative output in a submitted job, whose folder is thrown away."""
    from raymat.places import is_uri
    from raymat.tracking import in_submitted_job

    if in_submitted_job() and not is_uri(out) and not Path(out).is_absolute():
        raise InputError(f"-o {out}: a job's folder is thrown away; give an absolute path that all nodes see, or a URI")
