"""``raymat predict``: mattes of lesions in new scans."""

from __future__ import annotations

import argparse
from pathlib import Path

from raymat.commands.options import VOLUME_ENDINGS, add_address, add_tracking, output_of, positive
from raymat.errors import InputError

HELP = "predict mattes of lesions in new scans; needs centres, no masks"


def add_arguments(command: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The arguments of ``raymat predict`` and ``jobs/predict.py``."""
    source = command.add_argument_group("scans", "coordinates in mm in the patient (LPS), as in DICOM and LUNA16")
    source = source.add_mutually_exclusive_group(required=True)
    source.add_argument("--image", metavar="FILE", help="one volume; with --center")
    source.add_argument("--cases", metavar="CSV", help="case_id, image, coordX, coordY, coordZ")
    source.add_argument("--dicom", metavar="DIR", help="DICOM files in any folder tree; with --centers")
    command.add_argument(
        "--center", type=float, nargs=3, metavar=("X", "Y", "Z"), help="centre of the lesion in --image, mm"
    )
    command.add_argument("--centers", metavar="CSV", help="seriesuid, coordX, coordY, coordZ (LUNA16)")
    command.add_argument(
        "--model",
        nargs="+",
        required=True,
        metavar="WEIGHTS",
        help="weights.pt files or outputs of raymat train; several networks form an ensemble",
    )
    command.add_argument("-o", "--out", required=True, help="folder or URI of the predictions")
    command.add_argument("--format", choices=("nii.gz", "nrrd", "none"), default="nii.gz", help="default: %(default)s")
    command.add_argument("--size-mm", type=float, help="side of the box around a centre (default: the network's input)")
    command.add_argument("--flips", action="store_true", help="also predict the mirror images and take the mean")
    command.add_argument("--workers", type=positive, default=1, help="number of processes (default: %(default)s)")
    command.add_argument("--gpu", action="store_true", help="one GPU per worker")
    add_address(command)
    add_tracking(command)
    command.set_defaults(run=run)
    return command


def weights_of(given: list[str]) -> list[str]:
    """Weights files; an output of ``raymat train`` gives the weights of its finished repeated splits."""
    found = []
    for path in given:
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
    from raymat.network.targets import Target, targets_of_centres, targets_of_table
    from raymat.nodule import FAILED
    from raymat.pipelines.predict import PredictJob, predict

    if bool(options.image) != bool(options.center) or bool(options.dicom) != bool(options.centers):
        raise InputError("--image goes with --center X Y Z, --dicom with --centers CSV")
    if options.image:
        path = Path(options.image).absolute()
        name = next((path.name[: -len(e)] for e in VOLUME_ENDINGS[::-1] if path.name.lower().endswith(e)), path.stem)
        targets = [Target(name, name, str(path), "", tuple(options.center[::-1]))]
    elif options.cases:
        targets = targets_of_table(options.cases)
    else:
        targets = targets_of_centres(str(Path(options.dicom).absolute()), options.centers)
    counts = predict(
        PredictJob(
            targets=targets,
            weights=tuple(weights_of(options.model)),
            output=output_of(options),
            size_mm=options.size_mm,
            flips=options.flips,
            volumes=None if options.format == "none" else options.format,
            workers=options.workers,
            gpu=options.gpu,
            address=options.address,
        )
    )
    return 1 if counts[FAILED] else 0
