"""Mattes as a DICOM Segmentation on the grid of their source series, a segment per nodule.

Fractional, type OCCUPANCY, in steps of 1/255: a voxel's value is the share of it that the lesion fills (membership), or
that tissue as dense as a solid lesion would fill (calibrated); the content's description says which. With a level,
binary: the voxels whose alpha reaches it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pydicom
import SimpleITK as sitk
from highdicom.seg import SegmentationFractionalTypeValues, SegmentationTypeValues
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from raymat.export.description import chosen_matte, description
from raymat.loading import Nodules
from raymat.methods import alpha_in_words
from raymat.nodule import InputError, Matte, Nodule, required
from raymat.sources.dicom import Series, Slice, index_tree, slab_grid
from raymat.sources.series import Scan, slab_around
from raymat.version import __version__
from raymat.volume import Grid, nodule_grid, to_sitk
from raymat.words import LONGEST_LABEL, label

MAKER = "raymat"
LEVELS = 255  # steps of alpha in a fractional segmentation
SERIES_NUMBER = 900  # beyond those that scanners give
# What a segmentation repeats of its source: attributes that must have a value (type 1), and those that may be empty
# (type 2), which many files lack although they must be there.
NEEDED = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")
MAY_BE_EMPTY = (
    "AccessionNumber",
    "PatientBirthDate",
    "PatientID",
    "PatientName",
    "PatientSex",
    "ReferringPhysicianName",
    "StudyDate",
    "StudyID",
    "StudyTime",
)
SEXES = ("M", "F", "O")  # that the standard knows


def find_series(nodules: Nodules, ids: Sequence[str], root: str) -> tuple[dict[str, Series], dict[str, str]]:
    """Nodule id to its source series in a folder tree, and to the problem of one that has none there.

    Only headers are read, and no array of a nodule.

    Raises
    ------
    InputError
        There is no such folder.
    """
    uids, problems = {}, {}
    for nodule_id in ids:
        uid = nodules.metadata(nodule_id).get("series_uid")
        if uid:
            uids[nodule_id] = str(uid)
        else:
            problems[nodule_id] = (
                f"{nodule_id}: comes from no DICOM series (its metadata has no series_uid), so no DICOM Segmentation "
                "can refer to one; export it as nifti or nrrd"
            )
    tree = index_tree(root, set(uids.values()))
    for nodule_id, uid in uids.items():
        if uid not in tree.series:
            problems[nodule_id] = (
                f"{root}: does not hold the source series {uid} of {nodule_id}; name the folder that the dataset was "
                "built from"
            )
    return {nodule_id: tree.series[uid] for nodule_id, uid in uids.items() if uid in tree.series}, problems


def write_segmentation(
    nodules: Sequence[Nodule], scan: Scan, root: str, path: Path, level: float | None = None
) -> list[str]:
    """Write the chosen mattes of nodules of one series as one DICOM Segmentation of it, a segment per nodule.

    Parameters
    ----------
    scan : the nodules', below ``root``
    level : alpha from which a voxel is in a binary segmentation; None for a fractional one

    Returns
    -------
    list of str
        Why nodules are left out: slices are missing or damaged, or no voxel of the scan has enough alpha.

    Raises
    ------
    InputError
        No nodule is left, or the file cannot be written.
    """
    headers: dict[str, pydicom.Dataset] = {}
    parts, problems = [], []
    for nodule in nodules:
        try:
            parts.append(_part(nodule, scan, root, level, headers))
        except InputError as error:
            problems.append(str(error))
    if not parts:
        raise InputError(problems[0])
    segmentation = _joined(parts)
    if not f"{segmentation.PatientName}{segmentation.PatientID}{[n.nodule_id for n in nodules]}".isascii():
        segmentation.SpecificCharacterSet = "ISO_IR 192"
    try:
        segmentation.save_as(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error})") from error
    return problems


def _part(
    nodule: Nodule, scan: Scan, root: str, level: float | None, headers: dict[str, pydicom.Dataset]
) -> hd.seg.Segmentation:
    """A segmentation of one nodule, on the slices that it reaches; ``headers`` keeps those of the images by path."""
    where = f"{nodule.nodule_id}: series {scan.uid}"
    slices, grid = source_slices(nodule, scan)
    alpha = on_grid(nodule, grid)
    if level is not None:
        pixels = (alpha >= level).astype(np.uint8)
        kind = SegmentationTypeValues.BINARY
    else:
        pixels, kind = alpha, SegmentationTypeValues.FRACTIONAL
    if not np.rint(pixels * LEVELS).any():
        raise InputError(
            f"{where}: no voxel of the scan has alpha {level or 1 / LEVELS:.2g} or more (the most is "
            f"{alpha.max():.2f}); choose a lower --level"
        )
    for item in slices:
        if item.path not in headers:
            headers[item.path] = source_header(os.path.join(root, item.path), grid.spacing[0])
    matte = chosen_matte(nodule)
    # The same matte of the same series is the same object, however often it is exported.
    seed = [scan.uid, nodule.nodule_id, matte.method, repr(level), pixels.tobytes().hex()]
    title = f"{MAKER} {alpha_in_words(matte.kind)}"
    try:
        segmentation = hd.seg.Segmentation(
            source_images=[headers[item.path] for item in slices],
            pixel_array=pixels,
            segmentation_type=kind,
            segment_descriptions=[_segment(nodule, matte, level, seed)],
            series_instance_uid=generate_uid(entropy_srcs=["series", *seed]),
            series_number=SERIES_NUMBER,
            sop_instance_uid=generate_uid(entropy_srcs=["instance", *seed]),
            instance_number=1,
            manufacturer=MAKER,
            manufacturer_model_name=MAKER,
            software_versions=__version__,
            device_serial_number="none",
            fractional_type=SegmentationFractionalTypeValues.OCCUPANCY,
            max_fractional_value=LEVELS,
            content_description=label(description(matte)),
            content_label="ALPHA" if level is None else "ALPHA_LEVEL",
            content_creator_name=f"{MAKER}^",
            transfer_syntax_uid=ExplicitVRLittleEndian,
            series_description=f"{title} {label(nodule.nodule_id, LONGEST_LABEL - len(title) - 1)}",
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{where}: its headers do not carry a DICOM Segmentation ({error})") from error
    tell_of_deidentification(segmentation, headers[slices[0].path])
    return segmentation


def _joined(parts: Sequence[hd.seg.Segmentation]) -> hd.seg.Segmentation:
    """Segmentations of one series, each of one segment, as one of several.

    highdicom makes such a one of an array of all slices times all segments, which takes gigabytes for ten nodules.
    """
    first = parts[0]
    if len(parts) == 1:
        return first
    frames = [frame for part in parts for frame in part.PerFrameFunctionalGroupsSequence]
    numbers = [number for number, part in enumerate(parts, start=1) for _ in part.PerFrameFunctionalGroupsSequence]
    at = [tuple(map(float, frame.PlanePositionSequence[0].ImagePositionPatient)) for frame in frames]
    heights = sorted({xyz[2] for xyz in at}, reverse=True)  # as highdicom counts them
    order = {height: index for index, height in enumerate(heights, start=1)}
    for number, (_, _, height), frame in zip(numbers, at, frames, strict=True):
        segment = pydicom.Dataset()
        segment.ReferencedSegmentNumber = number
        frame.SegmentIdentificationSequence = [segment]
        # The dimensions are the segment and the place along the patient's axis.
        frame.FrameContentSequence[0].DimensionIndexValues = [number, order[height]]
    segments = [part.SegmentSequence[0] for part in parts]
    for number, segment in enumerate(segments, start=1):
        segment.SegmentNumber = number
    images = {image.ReferencedSOPInstanceUID: image for part in parts for image in part.SourceImageSequence}
    uids = [part.SOPInstanceUID for part in parts]
    first.PixelData = _pixels(parts)
    first.NumberOfFrames = len(frames)
    first.PerFrameFunctionalGroupsSequence = frames
    first.SegmentSequence = segments
    first.SegmentsOverlap = "UNDEFINED"
    # Where the segment is the same for all frames, highdicom says it once.
    first.SharedFunctionalGroupsSequence[0].pop("SegmentIdentificationSequence", None)
    first.pop("DimensionOrganizationType", None)  # the frames of several nodules are no one stack of slices
    first.SourceImageSequence = list(images.values())
    first.ReferencedSeriesSequence[0].ReferencedInstanceSequence = list(images.values())
    first.SeriesInstanceUID = generate_uid(entropy_srcs=["series", *uids])
    first.SOPInstanceUID = first.file_meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=["instance", *uids])
    first.SeriesDescription = f"{MAKER} {len(parts)} nodules"
    return first


def _pixels(parts: Sequence[hd.seg.Segmentation]) -> bytes:
    """The frames of all parts, one after the other; 8 to the byte where they are binary, and of an even length."""
    binary = parts[0].BitsAllocated == 1
    arrays = []
    for part in parts:
        stored = np.frombuffer(part.PixelData, np.uint8)
        stored = np.unpackbits(stored, bitorder="little") if binary else stored
        arrays.append(stored[: part.NumberOfFrames * part.Rows * part.Columns])
    pixels = np.concatenate(arrays)
    data = (np.packbits(pixels, bitorder="little") if binary else pixels).tobytes()
    return data + b"\0" * (len(data) % 2)


def source_slices(nodule: Nodule, scan: Scan) -> tuple[list[Slice], Grid]:
    """The slices of the scan, which the nodule was read from, that its matte reaches, and their grid.

    Raises
    ------
    InputError
        Slices are missing or damaged.
    """
    where = f"{nodule.nodule_id}: series {scan.uid}"
    if scan.problem:
        raise InputError(f"{nodule.nodule_id}: {scan.problem}")
    slices = covering(nodule, scan.slices, where)
    try:
        metadata: dict[str, Any] = nodule.metadata
        return slices, slab_grid(slices, metadata.get("slice_spacing"))
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def covering(nodule: Nodule, slices: Sequence[Slice], where: str) -> list[Slice]:
    """The slices of the series, by ascending z, whose planes run through the matte, and their neighbours.

    Raises
    ------
    InputError
        The series begins after or ends before the matte, or lacks slices in between.
    """
    # A network's alpha is nowhere quite 0; what rounds to 0 is not written.
    alpha = required(nodule.alpha, nodule, "chosen matte")
    shown = np.rint(alpha * LEVELS) > 0
    inside = np.argwhere(shown & _scanned(nodule))
    if not len(inside):
        raise InputError(f"{where}: the matte is empty")
    grid = nodule_grid(nodule, alpha)
    # The corners of the matte's box give its ends.
    low, high = inside.min(axis=0), inside.max(axis=0)
    corners = np.array(np.meshgrid(*zip(low, high, strict=True), indexing="ij")).reshape(3, -1).T
    z = grid.to_patient(corners)[:, 0]
    at = np.array([item.z for item in slices])
    through = np.flatnonzero((at >= z.min()) & (at <= z.max()))
    metadata: dict[str, Any] = nodule.metadata
    step = metadata.get("scanner_spacing", [np.inf])[0]
    if not len(through) or at[0] > z.min() + step or at[-1] < z.max() - step:
        raise InputError(
            f"{where}: the folder has its slices from z = {at[0]:g} to {at[-1]:g}, the matte lies from {z.min():g} to "
            f"{z.max():g}; download the series again"
        )
    try:
        slab = slab_around(slices, float(z.min() + z.max()) / 2, float(z.max() - z.min()) / 2)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    crossed = [k for k, item in enumerate(slab) if z.min() <= item.z <= z.max()]
    return slab[max(crossed[0] - 1, 0) : crossed[-1] + 2]


def _scanned(nodule: Nodule) -> np.ndarray:
    """Which planes of the nodule's grid the scan has, (z, 1, 1): beyond its ends the image is filled with one value."""
    image = required(nodule.image, nodule, "image")
    return (image != image[:, :1, :1]).any(axis=(1, 2))[:, None, None]


def on_grid(nodule: Nodule, grid: Grid) -> np.ndarray:
    """The chosen matte at the voxels of a grid, linearly interpolated; 0 beyond its crop. float32 (z, y, x)."""
    alpha = required(nodule.alpha, nodule, "chosen matte")
    own = nodule_grid(nodule, alpha)
    reference = to_sitk(np.zeros(grid.shape, np.uint8), grid)
    moved = sitk.Resample(to_sitk(alpha, own), reference, sitk.Transform(), sitk.sitkLinear, 0.0, sitk.sitkFloat32)
    return np.clip(sitk.GetArrayFromImage(moved), 0.0, 1.0)


def tell_of_deidentification(segmentation: pydicom.Dataset, source: pydicom.Dataset) -> None:
    """Whoever says that the identity was removed must say how, and what is derived says it after its source."""
    names = ("DeidentificationMethod", "DeidentificationMethodCodeSequence")
    for name in names:
        if source.get(name):
            segmentation[name] = source[name]
    if segmentation.get("PatientIdentityRemoved") == "YES" and not any(segmentation.get(name) for name in names):
        segmentation.DeidentificationMethod = "not stated in the source series"


def _segment(nodule: Nodule, matte: Matte, level: float | None, seed: list[str]) -> hd.seg.SegmentDescription:
    suffix = "" if level is None else f" {alpha_in_words(matte.kind)} >= {level:g}"
    # A viewer shows 20 characters or so, and the series all segments have in common.
    name = nodule.nodule_id.removeprefix(f"{seed[0]}-")
    name = nodule.nodule_id if name == nodule.nodule_id else f"nodule {name}"
    return hd.seg.SegmentDescription(
        segment_number=1,
        segment_label=label(name, LONGEST_LABEL - len(suffix)) + suffix,
        segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
        segmented_property_type=codes.SCT.Nodule,
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.SEMIAUTOMATIC,
        algorithm_identification=hd.AlgorithmIdentificationSequence(
            name=f"{MAKER} {matte.method}",
            version=__version__,
            family=codes.DCM.ArtificialIntelligence,
        ),
        tracking_uid=generate_uid(entropy_srcs=["nodule", seed[0], nodule.nodule_id]),
        tracking_id=label(nodule.nodule_id),
    )


def source_header(path: str, slice_spacing: float) -> pydicom.Dataset:
    """The header of a source image, with every attribute that a segmentation takes over from it."""
    try:
        header = pydicom.dcmread(path, stop_before_pixels=True)
    except Exception as error:
        # A header damaged anywhere makes pydicom raise almost anything.
        raise InputError(f"{path}: cannot be read ({error}); download it again") from error
    missing = [name for name in NEEDED if not header.get(name)]
    if missing:
        raise InputError(
            f"{path}: its header has no {', '.join(missing)}, which a DICOM Segmentation has to repeat; export the "
            "nodule as nifti or nrrd"
        )
    for name in MAY_BE_EMPTY:
        if name not in header:
            setattr(header, name, "")
    if not header.get("SliceThickness"):
        header.SliceThickness = f"{slice_spacing:.6g}"
    if header.PatientSex not in SEXES:
        header.PatientSex = ""
    return header
