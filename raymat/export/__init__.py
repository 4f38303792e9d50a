"""Nodules for the tools people have: NIfTI and NRRD volumes, DICOM Segmentations beside the source series."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from raymat.export.dicom_seg import find_series, write_segmentation
from raymat.export.volumes import write_volumes
from raymat.loading import Nodules
from raymat.methods import MEANINGS, MEMBERSHIP
from raymat.nodule import InputError, Nodule
from raymat.sources.dicom import Series
from raymat.words import file_name

DICOM_SEG = "dicom-seg"
CHOSEN = "chosen"
ENDINGS = {"nifti": ".nii.gz", "nrrd": ".nrrd"}


@dataclass(frozen=True)
class ExportRequest:
    """What to write of every nodule.

    Attributes
    ----------
    form : "nifti", "nrrd" (one folder per nodule) or "dicom-seg" (one file per nodule)
    dicom : folder tree with the source series, for "dicom-seg"
    level : a binary segmentation of the voxels with at least this alpha, instead of a fractional one
    kind : "chosen" for the chosen matte, "membership" or "calibrated" for the best one of that kind. None for the
        chosen one, and for membership with a level: a border lies where half of a voxel belongs to the lesion, whereas
        a level of calibrated alpha cuts off ground glass.
    """

    form: str
    dicom: str | None = None
    level: float | None = None
    kind: str | None = None

    def __post_init__(self) -> None:
        if self.form == DICOM_SEG and self.dicom is None:
            raise InputError(
                "--format dicom-seg needs the source series: name the folder of their files with --lidc DIR"
            )
        if self.level is not None and self.form != DICOM_SEG:
            raise InputError("--level makes a binary DICOM Segmentation: use it with --format dicom-seg")
        if self.level is not None and not 0 < self.level <= 1:
            raise InputError(f"--level {self.level:g}: alpha lies above 0 and up to 1")

    def with_its_matte(self, nodule: Nodule) -> Nodule:
        """The nodule with the matte to write as its chosen one.

        Raises
        ------
        InputError
            It has no such matte.
        """
        kind = self.kind or (CHOSEN if self.level is None else MEMBERSHIP)
        if kind == CHOSEN:
            return nodule
        matte = nodule.best(kind)
        if matte is None:
            why = "" if self.kind else ", of which --level makes a binary segmentation"
            (other,) = (name for name in MEANINGS if name != kind)
            raise InputError(
                f"{nodule.nodule_id}: has no {kind} matte{why} (its mattes: {', '.join(nodule.mattes) or 'none'}); "
                f"export another one with --kind {CHOSEN} or --kind {other}"
            )
        return replace(nodule, method=matte.method)


@dataclass(frozen=True)
class Exported:
    """What became of a nodule.

    Attributes
    ----------
    nodule_id : str
    path : of its folder or file; None where it was not written
    problem : why it was not written; empty where it was
    """

    nodule_id: str
    path: Path | None = None
    problem: str = ""


def export(nodules: Nodules, ids: Sequence[str], out: Path, request: ExportRequest) -> Iterator[Exported]:
    """Write nodules below ``out``, one after the other; one that cannot be written keeps no other back.

    Parameters
    ----------
    nodules : of ``raymat.load``
    ids : which of them

    Yields
    ------
    Exported
        of each nodule, once it is written or is known not to be.

    Raises
    ------
    InputError
        There is no folder tree with the source series.
    """
    tree = request.dicom if request.form == DICOM_SEG else None
    series: dict[str, Series] = {}
    if tree is not None:
        series, problems = find_series(nodules, ids, tree)
        for nodule_id, problem in problems.items():
            yield Exported(nodule_id, problem=problem)
        ids = [nodule_id for nodule_id in ids if nodule_id in series]

    def write(nodule_id: str) -> Path:
        nodule = request.with_its_matte(nodules[nodule_id])
        if tree is None:
            name = request.kind if request.kind in MEANINGS else "alpha"
            return write_volumes(nodule, out / file_name(nodule_id), ENDINGS[request.form], name)
        named = f".{request.kind}" if request.kind in MEANINGS else ""
        path = out / f"{file_name(nodule_id)}{named}.seg.dcm"
        return write_segmentation(nodule, series[nodule_id], tree, path, request.level)

    for nodule_id in ids:
        yield _attempted(nodule_id, write)


def _attempted(nodule_id: str, write: Callable[[str], Path]) -> Exported:
    try:
        return Exported(nodule_id, write(nodule_id))
    except InputError as error:
        return Exported(nodule_id, problem=str(error))
