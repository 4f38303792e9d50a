"""Nodules for the tools people have: NIfTI and NRRD volumes, DICOM Segmentations beside the source series."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from raymat.export.dicom_seg import find_series, write_segmentation
from raymat.export.volumes import write_volumes
from raymat.loading import Nodules
from raymat.nodule import InputError
from raymat.words import file_name

ENDINGS = {"nifti": ".nii.gz", "nrrd": ".nrrd"}


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


def export(
    nodules: Nodules, ids: Sequence[str], out: Path, form: str, dicom: str | None = None, level: float | None = None
) -> Iterator[Exported]:
    """Write nodules below ``out``, one after the other; one that cannot be written keeps no other back.

    Parameters
    ----------
    nodules : of ``raymat.load``
    ids : which of them
    form : "nifti", "nrrd" (one folder per nodule) or "dicom-seg" (one file per nodule)
    dicom : folder tree with the source series, for "dicom-seg"
    level : a binary segmentation of the voxels with at least this alpha, instead of a fractional one

    Yields
    ------
    Exported
        of each nodule, once it is written or is known not to be.

    Raises
    ------
    InputError
        The options cannot be used, or there is no such folder tree.
    """
    if form in ENDINGS:
        for nodule_id in ids:
            yield _attempted(nodule_id, lambda i: write_volumes(nodules[i], out / file_name(i), ENDINGS[form]))
        return
    if dicom is None:
        raise InputError("--format dicom-seg needs the source series: name the folder of their files with --lidc DIR")
    if level is not None and not 0 < level <= 1:
        raise InputError(f"--level {level:g}: alpha lies above 0 and up to 1")
    tree = dicom
    series, problems = find_series(nodules, ids, tree)
    for nodule_id, problem in problems.items():
        yield Exported(nodule_id, problem=problem)

    def write(nodule_id: str) -> Path:
        path = out / f"{file_name(nodule_id)}.seg.dcm"
        return write_segmentation(nodules[nodule_id], series[nodule_id], tree, path, level)

    for nodule_id in ids:
        if nodule_id in series:
            yield _attempted(nodule_id, write)


def _attempted(nodule_id: str, write: Callable[[str], Path]) -> Exported:
    try:
        return Exported(nodule_id, write(nodule_id))
    except InputError as error:
        return Exported(nodule_id, problem=str(error))
