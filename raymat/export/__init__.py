"""Nodules for the tools people have: NIfTI and NRRD volumes, DICOM Segmentations and reports."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from raymat.calibration import LUNG_WINDOW, HUWindow
from raymat.export.dicom_seg import find_series, write_segmentation
from raymat.export.dicom_sr import write_report
from raymat.export.volumes import write_volumes
from raymat.loading import Nodules
from raymat.methods import MEANINGS, MEMBERSHIP
from raymat.nodule import InputError, Nodule
from raymat.sources.dicom import Series
from raymat.sources.series import scan_of
from raymat.words import file_name

DICOM_SEG, DICOM_SR = "dicom-seg", "dicom-sr"
CHOSEN = "chosen"
ENDINGS = {"nifti": ".nii.gz", "nrrd": ".nrrd"}


@dataclass(frozen=True)
class ExportRequest:
    """What to write of every nodule.

    Attributes
    ----------
    form : "nifti", "nrrd" (one folder per nodule), "dicom-seg" (one file per nodule) or "dicom-sr" (a report and the
        segmentation that it refers to)
    dicom : folder tree with the source series, for "dicom-seg" and "dicom-sr"
    level : a binary segmentation of the voxels with at least this alpha, instead of a fractional one
    kind : "chosen" for the chosen matte, "membership" or "calibrated" for the best one of that kind. None for the
        chosen one, and for membership with a level: a border lies where half of a voxel belongs to the lesion, whereas
        a level of calibrated alpha cuts off ground glass. A report is of the membership matte.
    window : that the calibrated mattes were calibrated by, for the masses of a report
    together : one segmentation per series, with a segment per nodule, instead of one per nodule
    """

    form: str
    dicom: str | None = None
    level: float | None = None
    kind: str | None = None
    window: HUWindow = LUNG_WINDOW
    together: bool = False

    def __post_init__(self) -> None:
        if self.form == DICOM_SR and self.kind not in (None, MEMBERSHIP):
            raise InputError(f"--kind {self.kind}: a report has the measures of the membership matte; leave it out")
        if self.form in (DICOM_SEG, DICOM_SR) and self.dicom is None:
            raise InputError(
                f"--format {self.form} needs the source series: name the folder of their files with --lidc DIR"
            )
        if self.together and self.form != DICOM_SEG:
            raise InputError("--together makes one DICOM Segmentation per series: use it with --format dicom-seg")
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
        kind = self.kind or (CHOSEN if self.level is None and self.form != DICOM_SR else MEMBERSHIP)
        if kind == CHOSEN:
            return nodule
        matte = nodule.best(kind)
        if matte is None:
            use = "a report has the measures" if self.form == DICOM_SR else "--level makes a binary segmentation"
            why = "" if self.kind else f", of which {use}"
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
    nodule_id : str, or the series where its nodules are written together
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
    tree = request.dicom if request.form in (DICOM_SEG, DICOM_SR) else None
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
        scan = scan_of(series[nodule_id], nodule.patient_id)
        write_segmentation([nodule], scan, tree, path, request.level)
        if request.form == DICOM_SEG:
            return path
        report = out / f"{file_name(nodule_id)}.sr.dcm"
        return write_report(nodule, series[nodule_id], tree, path, report, request.window)

    if request.together and tree is not None:
        yield from _together(nodules, series, out, request, tree)
        return
    for nodule_id in ids:
        yield _attempted(nodule_id, write)


def _together(
    nodules: Nodules, series: Mapping[str, Series], out: Path, request: ExportRequest, tree: str
) -> Iterator[Exported]:
    """Write one segmentation per series, with a segment per nodule."""
    by_series: dict[str, list[str]] = {}
    for nodule_id, one in series.items():
        by_series.setdefault(one.uid, []).append(nodule_id)
    named = f".{request.kind}" if request.kind in MEANINGS else ""
    for uid, ids in by_series.items():

        def write(_: str, uid: str = uid, ids: list[str] = ids) -> Path:
            chosen = [request.with_its_matte(nodules[nodule_id]) for nodule_id in ids]
            path = out / f"{file_name(uid)}{named}.seg.dcm"
            scan = scan_of(series[ids[0]], chosen[0].patient_id)
            problems = write_segmentation(chosen, scan, tree, path, request.level)
            if problems:
                raise InputError(f"{path}: lacks nodules: {'; '.join(problems)}")
            return path

        yield _attempted(uid, write)


def _attempted(nodule_id: str, write: Callable[[str], Path]) -> Exported:
    try:
        return Exported(nodule_id, write(nodule_id))
    except InputError as error:
        return Exported(nodule_id, problem=str(error))
