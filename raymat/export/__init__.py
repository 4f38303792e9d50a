"""Nodules for the tools people have: NIfTI and NRRD volumes, DICOM Segmentations beside the source series."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from raymat.export.dicom_seg import find_series, write_segmentation
from raymat.export.volumes import write_volumes
from raymat.loading import Nodules
from raymat.nodule import InputError
from raymat.sources import digest

ENDINGS = {"nifti": ".nii.gz", "nrrd": ".nrrd"}


def export(
    nodules: Nodules, ids: Sequence[str], out: Path, form: str, dicom: str | None = None, level: float | None = None
) -> Iterator[Path]:
    """Write nodules below ``out``, one after the other.

    Parameters
    ----------
    nodules : of ``raymat.load``
    ids : which of them
    form : "nifti", "nrrd" (one folder per nodule) or "dicom-seg" (one file per nodule)
    dicom : folder tree with the source series, for "dicom-seg"
    level : a binary segmentation of the voxels with at least this alpha, instead of a fractional one

    Yields
    ------
    Path
        of each folder or file, once it is written.

    Raises
    ------
    InputError
        A nodule has no source series, or the tree lacks it (then nothing is written); a file cannot be written.
    """
    if form in ENDINGS:
        for nodule_id in ids:
            yield write_volumes(nodules[nodule_id], out / file_name(nodule_id), ENDINGS[form])
        return
    if dicom is None:
        raise InputError("--format dicom-seg needs the source series: name the folder of their files with --lidc DIR")
    if level is not None and not 0 < level <= 1:
        raise InputError(f"--level {level:g}: alpha lies above 0 and up to 1")
    series = find_series(nodules, ids, dicom)
    for nodule_id in ids:
        path = out / f"{file_name(nodule_id)}.seg.dcm"
        yield write_segmentation(nodules[nodule_id], series[nodule_id], dicom, path, level)


def file_name(nodule_id: str) -> str:
    """The id where it is a plain file name, else a plain one that no other id has."""
    plain = re.sub(r"[^\w.-]", "_", nodule_id).lstrip(".")
    return plain if plain and plain == nodule_id else f"{plain}-{digest(nodule_id)[:8]}"
