"""Second scans of phantoms on disk, as NIfTI, and as a source of nodules.

OUT/retests.csv                     one row per lesion
OUT/PATIENT/NODULE/image.nii.gz     HU, with membership, calibrated and reader-1 to reader-4 on the same grid
OUT/PATIENT/NODULE/phantom.json     what was drawn
"""

from __future__ import annotations

import csv
import io
import json
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from raymat.arrays import triple
from raymat.nodule import InputError, Nodule
from raymat.places import is_uri
from raymat.sources import NoduleRef, digest
from raymat.sources.phantom import choice, dicom
from raymat.sources.phantom.retest import retest_of
from raymat.sources.phantom.source import RECORD, TRUTHS, VERSION
from raymat.sources.pylidc_database import FEATURES
from raymat.volume import Grid, read_volume, write_volume

RETESTS = "retests.csv"
HEAD = ("nodule_id", "patient_id", "readers", "seed", "version")


def is_retest_folder(root: str | Path) -> bool:
    """Whether ``write_retests`` made this folder and finished; only folders of this machine are."""
    return not is_uri(root) and (Path(root) / RETESTS).is_file()


def write_retests(out: str | Path, n: int, seed: int = 0, progress: Callable[[str], None] | None = None) -> Path:
    """Write the second scans of the first n phantoms of a seed; a run after an interruption resumes.

    Returns
    -------
    Path of ``retests.csv``

    Raises
    ------
    InputError
        The folder is in an object store, contains anything else or cannot be written, or there are not n lesions.
    """
    say = progress or (lambda line: None)
    if is_uri(out):
        raise InputError(f"{out}: second scans are written to a folder of this machine; give one")
    root, rows = Path(out), []
    for number, case in enumerate(choice.choose(n, seed), start=1):
        folder = root / case.scan.patient_id / case.nodule_id
        row = dict(zip(HEAD, (case.nodule_id, case.scan.patient_id, len(case.annotations), seed, VERSION), strict=True))
        if not folder.exists():
            _write(folder, case, row)
        elif _record(folder)["row"] != row:
            raise InputError(f"{folder}: holds another phantom (seed or version); choose another folder or remove it")
        rows.append(row)
        say(f"second scan {number} of {n}: {case.nodule_id}")
    text = io.StringIO()
    writer = csv.DictWriter(text, HEAD, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    table = root / RETESTS
    table.write_text(text.getvalue(), encoding="utf-8")
    return table


def _write(folder: Path, case: choice.Case, row: dict) -> None:
    """One second scan; its folder appears whole or not at all."""
    drawn = retest_of(case, row["seed"])
    corner = dicom.corner_mm(choice.MATRIX, choice.MATRIX, case.scan.pixel_spacing)
    window = (float(case.scan.slice_z[case.slices[0]]), *(np.array(case.window) * case.scan.pixel_spacing + corner))
    grid = Grid(drawn.image.shape, drawn.spacing, triple(np.add(window, drawn.offset).tolist()), np.eye(3))
    partial = folder.parent / f".{folder.name}.{uuid.uuid4().hex}"
    try:
        partial.mkdir(parents=True)
        volumes = {"image": drawn.image, **{name: getattr(drawn, name) for name in TRUTHS}}
        volumes |= {f"reader-{number}": mask for number, mask in enumerate(drawn.readers, start=1)}
        for name, array in volumes.items():
            write_volume(partial / f"{name}.nii.gz", array, grid)
        ratings = {name: [mark.ratings[name] for mark in case.annotations] for name in FEATURES}
        record = {"row": row, "ratings": ratings, "parameters": drawn.parameters}
        (partial / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        partial.rename(folder)
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror or error}); choose another folder") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _record(folder: Path) -> dict:
    try:
        return json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{folder}: is no second scan of a phantom ({RECORD} cannot be read)") from error


class RetestSource:
    """The second scans of a folder that ``write_retests`` made, as a source of nodules.

    Raises
    ------
    InputError
        The folder has no ``retests.csv``.
    """

    kind = "phantoms"
    remote = False

    def __init__(self, root: str | Path):
        self.root = str(root).rstrip("/")
        if not is_retest_folder(self.root):
            raise InputError(f"{self.root}: holds no second scans; write them with raymat phantom --retest")

    def plan(self) -> Iterator[NoduleRef]:
        """One reference per lesion; no image is read."""
        with open(Path(self.root) / RETESTS, encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                folder = Path(self.root) / row["patient_id"] / row["nodule_id"]
                yield NoduleRef(
                    nodule_id=row["nodule_id"],
                    patient_id=row["patient_id"],
                    source=self.kind,
                    readers=int(row["readers"]),
                    fingerprint=digest("retest", row["version"], row["seed"], row["nodule_id"]),
                    location=str(folder),
                    problem="" if (folder / RECORD).is_file() else f"{folder}: its files are missing",
                )

    def read(self, ref: NoduleRef) -> Nodule:
        """The second scan with its readers' masks and both true mattes.

        Raises
        ------
        InputError
            A file cannot be read.
        """
        folder = Path(ref.location)
        record = _record(folder)
        image, grid = read_volume(folder / "image.nii.gz")
        readers = [read_volume(folder / f"reader-{number}.nii.gz")[0] for number in range(1, ref.readers + 1)]
        truth = {name: read_volume(folder / f"{name}.nii.gz")[0] for name in TRUTHS}
        drawn = {"seed": record["row"]["seed"], "version": record["row"]["version"], **record["parameters"]}
        return Nodule(
            nodule_id=ref.nodule_id,
            patient_id=ref.patient_id,
            source=self.kind,
            image=image.astype(np.float32),
            spacing=grid.spacing,
            origin=grid.origin,
            direction=grid.direction,
            readers=readers,
            true_membership=truth["membership"],
            true_calibrated=truth["calibrated"],
            metadata={"ratings": record["ratings"], "slice_spacing": grid.spacing[0], "phantom": drawn},
            notes=list(ref.notes),
        )
