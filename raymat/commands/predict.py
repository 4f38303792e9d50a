"""``raymat predict``: mattes of lesions in new scans."""

from __future__ import annotations

import argparse
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from raymat.commands.options import add_address, add_tracking, output_of, positive
from raymat.errors import InputError

if TYPE_CHECKING:
    from raymat.network.images import Found

HELP = "predict mattes of lesions in new scans; needs their places, no masks"


def add_arguments(command: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The arguments of ``raymat predict`` and ``jobs/predict.py``."""
    source = command.add_argument_group("scans").add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--image",
        metavar="PATH",
        help="a volume, or one per channel (CT and PET) separated by ;, or a folder of volumes that --targets names",
    )
    source.add_argument("--dicom", metavar="DIR", help="DICOM files in any folder tree")
    source.add_argument(
        "--cases", metavar="CSV", help="lesions with their images: case_id, image, coordX, coordY, coordZ"
    )
    command.add_argument("--series", metavar="UID", help="the one series of --dicom (default: those --targets names)")
    places = command.add_argument_group(
        "places of lesions",
        "from a detector or drawn by hand; a file is known by its content. Coordinates are mm in the patient (LPS), as "
        "in DICOM and LUNA16",
    )
    places.add_argument("--center", type=float, nargs=3, metavar=("X", "Y", "Z"), help="centre of one lesion")
    places.add_argument(
        "--targets",
        "--centers",
        metavar="FILE",
        help="CSV of LUNA16 (coordX, coordY, coordZ; seriesuid, diameter_mm, probability or class), JSON of MONAI's "
        "detection, label map (NIfTI, NRRD, MetaImage) or DICOM Segmentation",
    )
    places.add_argument(
        "--min-probability", type=float, metavar="P", help="leave out what a detector thinks less likely (CSV, JSON)"
    )
    places.add_argument(
        "--coordinates", choices=("LPS", "RAS"), default="LPS", help="of --center, CSV and JSON (default: %(default)s)"
    )
    places.add_argument(
        "--boxes",
        choices=("cccwhd", "xyzxyz"),
        default="cccwhd",
        help="boxes of JSON: centre and sides, or two corners (default: %(default)s)",
    )
    places.add_argument(
        "--labels",
        type=int,
        nargs="+",
        default=[],
        metavar="N",
        help="values or segments that are lesions (default: all)",
    )
    places.add_argument(
        "--per",
        choices=("component", "label"),
        help="what of a label map is one target (default: component of a mask, label where there are several)",
    )
    command.add_argument(
        "--model",
        nargs="+",
        default=["shipped"],
        metavar="WEIGHTS",
        help="weights.pt files or outputs of raymat train; several networks form an ensemble (default: shipped, the "
        "weights that come with raymat)",
    )
    command.add_argument(
        "--refine",
        default="auto",
        metavar="METHOD",
        help="solver that draws the edge of the matte between the network's masks; none for the network's own matte "
        "(default: auto, cf+ for calibrated and cf for membership alpha)",
    )
    command.add_argument("-o", "--out", required=True, help="folder or URI of the predictions")
    command.add_argument(
        "--format",
        choices=("nii.gz", "nrrd", "none"),
        default="nii.gz",
        help="of volumes; none: neither volumes nor sheets nor segmentations (default: %(default)s)",
    )
    command.add_argument(
        "--size-mm", type=float, help="least side of the box around a lesion (default: the network's input)"
    )
    command.add_argument("--flips", action="store_true", help="also predict the mirror images and take the mean")
    command.add_argument(
        "--workers", type=positive, default=1, help="number of processes; one works without Ray (default: 1)"
    )
    command.add_argument("--gpu", action="store_true", help="one GPU per worker")
    add_address(command)
    add_tracking(command, named=True)
    command.set_defaults(run=run)
    return command


def weights_of(given: list[str]) -> list[str]:
    """Weights files; an output of ``raymat train`` gives the weights of its finished repeated splits."""
    from raymat.network.shipped import SHIPPED, shipped_weights

    found = []
    for path in given:
        if path == SHIPPED:
            found.append(shipped_weights())
            continue
        if not Path(path).is_dir():
            found.append(path)
            continue
        inside = sorted(str(weights) for weights in Path(path).glob("split-*/weights.pt"))
        if not inside:
            raise InputError(f"{path}: no finished training here (split-*/weights.pt)")
        found += inside
    return found


def run(options: argparse.Namespace) -> int:
    """``raymat predict``."""
    found = find_targets(options)
    for line in found.said:
        print(line)
    # Threads of torch that spin while they wait take several times the CPU on a machine that does other work.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    # torch takes a second and more: what is wrong with the places is said before.
    from raymat.nodule import FAILED
    from raymat.pipelines.predict import PredictJob, predict

    counts = predict(
        PredictJob(
            targets=found.targets,
            weights=tuple(weights_of(options.model)),
            output=output_of(options),
            scans=found.scans,
            size_mm=options.size_mm,
            flips=options.flips,
            refine=options.refine,
            volumes=None if options.format == "none" else options.format,
            workers=options.workers,
            gpu=options.gpu,
            address=options.address,
        )
    )
    return 1 if counts[FAILED] else 0


def find_targets(options: argparse.Namespace) -> Found:
    """The targets that the options name, and their scans.

    Raises
    ------
    InputError
        Options do not go together, or what they name cannot be used.
    """
    from raymat.channels import files_of
    from raymat.network.images import Found, in_tree, in_volumes
    from raymat.network.targets import (
        NO_DETECTOR,
        Place,
        Places,
        Reading,
        from_coordinates,
        places_of,
        refuse_unused,
        targets_of_table,
    )

    reading = Reading(options.min_probability, options.coordinates, options.boxes, tuple(options.labels), options.per)
    if options.min_probability is not None and not 0 <= options.min_probability <= 1:
        raise InputError(f"--min-probability {options.min_probability:g}: is not from 0 to 1")
    if options.series and not options.dicom:
        raise InputError("--series names one of the series of --dicom DIR")
    if options.cases:
        if options.center or options.targets:
            raise InputError("--cases has the places in its table: leave out --center and --targets")
        refuse_unused(options.cases, "table", reading)
        return Found(targets_of_table(options.cases, reading))
    if bool(options.center) == bool(options.targets):
        raise InputError("--center or --targets: give one of them" if options.center else NO_DETECTOR)
    if options.targets:
        places = places_of(options.targets, reading)
    else:
        if not all(map(math.isfinite, options.center)):
            raise InputError("--center: X, Y and Z must be three numbers, mm")
        centre = from_coordinates(options.center, options.coordinates)
        places = Places("--center", [Place("", "1", centre, where="--center")])
    if options.dicom:
        found = in_tree(str(Path(options.dicom).absolute()), places, options.series)
    else:
        image, *others = files_of(options.image)
        found = with_channels(in_volumes(image, places), others)
    if options.center and options.image:
        # The one lesion of a volume has its name.
        found = replace(found, targets=[replace(found.targets[0], target_id=found.targets[0].patient_id)])
    return replace(found, said=[*places.said, *found.said])


def with_channels(found: Found, files: list[str]) -> Found:
    """The targets of a volume, with the volumes of the channels beside it."""
    channels = tuple(str(Path(path).absolute()) for path in files)
    return replace(found, targets=[replace(target, channels=channels) for target in found.targets])
