"""CT series in a folder tree: found by the UIDs in their headers, sliced by position, read in HU.

Names of folders and files mean nothing here, so the archive's tree, a flat folder and a renamed one are the same. The
tree may lie in an object store: its headers are read there, by their first bytes, and slices from a copy on disk.
"""

from __future__ import annotations

import io
import logging
import os
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import pydicom
from pydicom.encaps import parse_fragments
from pydicom.errors import InvalidDicomError
from pydicom.multival import MultiValue
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    EnhancedCTImageStorage,
    EnhancedMRImageStorage,
    EnhancedPETImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    LegacyConvertedEnhancedCTImageStorage,
    LegacyConvertedEnhancedMRImageStorage,
    LegacyConvertedEnhancedPETImageStorage,
    RLELossless,
)

from raymat.arrays import triple
from raymat.nodule import InputError
from raymat.places import HEADER_BYTES, ObjectFolder, State, Unreachable, is_uri
from raymat.volume import PLACEMENT_TOLERANCE_MM, Grid, utf8_path

logger = logging.getLogger(__name__)

# What pydicom decodes by itself; SimpleITK's GDCM knows the others (JPEG, JPEG-LS, JPEG 2000).
NATIVE_SYNTAXES = (
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    ExplicitVRBigEndian,
    DeflatedExplicitVRLittleEndian,
    RLELossless,
)
# Many slices in one file, their places in space in sequences of each frame.
ENHANCED = (
    EnhancedCTImageStorage,
    EnhancedMRImageStorage,
    EnhancedPETImageStorage,
    LegacyConvertedEnhancedCTImageStorage,
    LegacyConvertedEnhancedMRImageStorage,
    LegacyConvertedEnhancedPETImageStorage,
)
MULTI_FRAME = (
    "an Enhanced (multi-frame) image, which is not read: convert it to one file per slice, for example with "
    "`emf2sf` of dcm4che"
)
LOCALIZER = "LOCALIZER"  # in ImageType: a radiograph to plan the scan by
HEADER_TAGS = [
    "SOPClassUID",
    "ImageType",
    "NumberOfFrames",
    "SOPInstanceUID",
    "PatientID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "InstanceNumber",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "Rows",
    "Columns",
    "PixelSpacing",
]
SMALL_BYTES = 1 << 20
LARGEST_RESCALE = 1e9
READERS = 8  # headers read at once: the wait is for the disk
STORE_READERS = 32  # and for an object store, which answers later and minds no crowd


@dataclass(frozen=True, slots=True)
class Slice:
    """One image of a series, as its header and the file system tell.

    Attributes
    ----------
    path : relative to the tree's root, "/" between folders
    position : (z, y, x) mm, ImagePositionPatient: the centre of pixel [0, 0]
    orientation : two unit vectors (z, y, x): along growing rows, along growing columns
    spacing : (row, column) mm
    shape : (rows, columns)
    instance : InstanceNumber, 0 where there is none
    sop_uid, patient_id, study_uid : str
    size : bytes
    mtime_ns : time of change
    """

    path: str
    position: tuple[float, float, float]
    orientation: tuple[tuple[float, float, float], tuple[float, float, float]]
    spacing: tuple[float, float]
    shape: tuple[int, int]
    instance: int
    sop_uid: str
    patient_id: str
    study_uid: str
    size: int
    mtime_ns: int

    @property
    def z(self) -> float:
        """ImagePositionPatient z, mm."""
        return self.position[0]


@dataclass(frozen=True, slots=True)
class BrokenFile:
    """A file that should be a slice and cannot be used: where it lies and why."""

    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class Aside:
    """A sound image that bears a series' UID and is no slice of it: where it lies and why."""

    path: str
    reason: str


@dataclass
class Series:
    """The slices of one SeriesInstanceUID, by ascending z; ``raymat.sources.series`` says which of them are used.

    Attributes
    ----------
    uid : SeriesInstanceUID
    slices : every image with a place in space
    broken : files that say, or by their folder may be thought, to belong to it, but cannot be placed
    aside : images that are no slices (localizers)
    """

    uid: str
    slices: list[Slice] = field(default_factory=list)
    broken: list[BrokenFile] = field(default_factory=list)
    aside: list[Aside] = field(default_factory=list)


@dataclass
class DicomTree:
    """What a folder tree holds.

    Attributes
    ----------
    root : the folder
    series : SeriesInstanceUID to Series, for the series asked for
    others : SeriesInstanceUID to the number of images, for all other series
    broken : every file that should be DICOM and cannot be read
    """

    root: str
    series: dict[str, Series]
    others: dict[str, int]
    broken: list[BrokenFile]


def index_tree(root: str | Path, wanted: Collection[str] | None = None) -> DicomTree:
    """Find the series of a folder tree by the SeriesInstanceUID in every file's header.

    Files that are no DICOM, and DICOM without an image in space (reports, structure sets, radiographs), are passed
    over. A file that claims to be DICOM (by its first bytes, or by the ending ``.dcm``) and breaks off before its
    place in the patient is known is kept in ``broken``. Of several copies of an image (one SOPInstanceUID) the largest
    file is used, for a smaller one is truncated; among equals the first by path.

    Parameters
    ----------
    root : folder, or a prefix of an object store
    wanted : the series to keep; all where None

    Raises
    ------
    InputError
        No such folder, or the store does not answer.
    """
    root = os.fspath(root)
    if not is_uri(root) and not os.path.isdir(root):
        raise InputError(f"{root}: no such folder")
    index = _Index(wanted)
    with ThreadPoolExecutor(STORE_READERS if is_uri(root) else READERS) as pool:
        for folder, headers in _headers(root, index.broken, pool):
            for header in headers:
                index.add(folder, header)
    return DicomTree(root, index.series(), dict(index.others), index.broken)


Header = BrokenFile | tuple[str, Slice | BrokenFile | Aside] | None


class _Index:
    """Sorts the headers of a tree into series."""

    def __init__(self, wanted: Collection[str] | None) -> None:
        self.wanted = wanted
        self.others: dict[str, int] = defaultdict(int)
        self.broken: list[BrokenFile] = []
        self._found: dict[str, Series] = {}
        self._copies: dict[tuple[str, str], Slice] = {}
        # By folder, for these files' series is not known.
        self._unplaced: dict[str, list[BrokenFile]] = defaultdict(list)
        self._shared: dict[object, object] = {}

    def add(self, folder: str, header: Header) -> None:
        """Take in what ``read_header`` made of a file."""
        if header is None:
            return
        if isinstance(header, BrokenFile):
            self.broken.append(header)
            self._unplaced[folder].append(header)
            return
        uid, item = header
        if self.wanted is not None and uid not in self.wanted:
            self.others[uid] += 1
        elif isinstance(item, BrokenFile):
            self._found.setdefault(uid, Series(uid)).broken.append(item)
            self.broken.append(item)
        elif isinstance(item, Aside):
            self._found.setdefault(uid, Series(uid)).aside.append(item)
        else:
            key = (uid, item.sop_uid or item.path)
            if key not in self._copies or self._copies[key].size < item.size:
                self._copies[key] = _sharing(item, self._shared)

    def series(self) -> dict[str, Series]:
        """The series found, their slices by ascending z."""
        for (uid, _), item in self._copies.items():
            self._found.setdefault(uid, Series(uid)).slices.append(item)
        for series in self._found.values():
            series.slices.sort(key=lambda item: (item.z, item.instance, item.path))
            for folder in sorted({os.path.dirname(item.path) or "." for item in series.slices}):
                series.broken += self._unplaced.get(folder, [])
        return self._found


def _headers(root: str, broken: list[BrokenFile], pool: ThreadPoolExecutor) -> Iterator[tuple[str, Iterator[Header]]]:
    """Every folder of the tree, relative to its root, with what ``read_header`` makes of its files."""
    if is_uri(root):
        tree = ObjectFolder(root)
        for folder, files in tree.walk():
            yield folder or ".", pool.map(partial(_object_header, tree), files, files.values())
        return
    for folder, names in _folders(root, broken):
        paths = [os.path.join(folder, name) for name in names]
        yield os.path.relpath(folder, root), pool.map(partial(read_header, root), paths)


def read_header(root: str, path: str) -> Header:
    """A file's SeriesInstanceUID and slice, its pixels not read.

    BrokenFile where the file should be DICOM and the header has lost them; None where it never was an image in space.
    """
    relative = Path(os.path.relpath(path, root)).as_posix()
    try:
        stat = os.stat(path)
        with _bounded(path) as file:
            return _header(relative, file, State(stat.st_size, stat.st_mtime_ns))
    except OSError as error:
        return BrokenFile(relative, f"cannot be read: {error.strerror}")


def _object_header(tree: ObjectFolder, name: str, state: State) -> Header:
    with _Bounded(tree.open(name), state.size, HEADER_BYTES) as file:
        return _header(name, file, state)


def _header(relative: str, file: _Bounded, state: State) -> Header:
    try:
        start = file.read(132)
        if start[128:] != b"DICM":
            # Only the ending says that this was meant to be an image.
            claims = relative.lower().endswith(".dcm") or not start
            return BrokenFile(relative, "empty file" if not start else "no DICOM header") if claims else None
        file.seek(0)
        header = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=HEADER_TAGS)
        uid = str(header.get("SeriesInstanceUID", "") or "").strip()
    except InvalidDicomError:
        return BrokenFile(relative, "no DICOM header")
    except (OSError, Unreachable):
        raise
    except Exception as error:
        # A header cut anywhere makes pydicom raise almost anything.
        return BrokenFile(relative, f"damaged header ({type(error).__name__}: {error})")
    if not uid:
        return BrokenFile(relative, "its header breaks off before the series UID")
    item = _slice_of(header, relative, state)
    return None if item is None else (uid, item)


def _slice_of(header: pydicom.Dataset, relative: str, state: State) -> Slice | BrokenFile | Aside | None:
    """A header's slice; None where it is of no image in space."""
    try:
        if LOCALIZER in _words_of(header.get("ImageType")):
            return Aside(relative, "a localizer")
        if _is_multi_frame(header):
            return BrokenFile(relative, MULTI_FRAME)
        # Reports, segmentations, structure sets and radiographs have no place in space by nature, not by damage.
        ct = header.get("SOPClassUID") in (None, CTImageStorage)
        needed = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "Rows", "Columns")
        missing = [name for name in needed if header.get(name) is None]
        if missing and not ct:
            return None
        if missing:
            return BrokenFile(relative, f"its header has no {', '.join(missing)}")
        x, y, z = (float(v) for v in header.ImagePositionPatient)
        cx, cy, cz, rx, ry, rz = (float(v) for v in header.ImageOrientationPatient)
        row_spacing, column_spacing = (float(v) for v in header.PixelSpacing)
        item = Slice(
            path=relative,
            position=(z, y, x),
            # ImageOrientationPatient's first triple runs along a row, which is the way column indices grow.
            orientation=((rz, ry, rx), (cz, cy, cx)),
            spacing=(row_spacing, column_spacing),
            shape=(int(header.Rows), int(header.Columns)),
            instance=int(header.get("InstanceNumber") or 0),
            sop_uid=str(header.get("SOPInstanceUID", "") or "").strip(),
            patient_id=str(header.get("PatientID", "") or "").strip(),
            study_uid=str(header.get("StudyInstanceUID", "") or "").strip(),
            size=state.size,
            mtime_ns=state.mtime_ns,
        )
    except (TypeError, ValueError) as error:
        return BrokenFile(relative, f"its header has values that are no numbers ({error})")
    except Exception as error:
        # A value is decoded when it is asked for, and pydicom raises almost anything over one of a damaged type.
        return BrokenFile(relative, f"its header has damaged values ({type(error).__name__}: {error})")
    if not np.isfinite([*item.position, *item.spacing]).all() or min(item.spacing) <= 0:
        return BrokenFile(relative, f"its header has position {item.position} and spacing {item.spacing}")
    return item


def _words_of(value: object) -> list[str]:
    """The parts of a header's value, of which there may be none, one or several, in capitals."""
    parts = value if isinstance(value, (list, tuple, MultiValue)) else [value]
    return [str(part).strip().upper() for part in parts if part]


def _is_multi_frame(header: pydicom.Dataset) -> bool:
    kind = header.get("SOPClassUID")
    return kind in ENHANCED or (kind == CTImageStorage and int(header.get("NumberOfFrames") or 1) > 1)


def read_slab(root: str | Path, slices: Sequence[Slice], slice_spacing: float | None = None) -> tuple[np.ndarray, Grid]:
    """Slices of one series, by ascending z, as one volume.

    ``slice_spacing`` (mm) serves where there is one slice alone.

    Returns
    -------
    image : float32 (z, y, x), HU (RescaleSlope and RescaleIntercept applied)
    grid : Grid
        Axis 0 grows along the patient's z, axes 1 and 2 along the images' rows and columns.

    Raises
    ------
    InputError
        The slices are not axial, differ in size, spacing or orientation, are shifted against each other (gantry tilt),
        are not evenly spaced, or a file is damaged; the message names the file.
    """
    grid = slab_grid(slices, slice_spacing)
    image = np.empty(grid.shape, dtype=np.float32)
    for k, item in enumerate(slices):
        image[k] = read_slice(os.path.join(os.fspath(root), item.path), grid.shape[1:])
    return image, grid


def slab_grid(slices: Sequence[Slice], slice_spacing: float | None = None) -> Grid:
    """The grid of slices by ascending z; raises as ``read_slab`` does, without reading pixels."""
    first = slices[0]
    for item in slices:
        if item.shape != first.shape or not np.allclose(item.spacing, first.spacing, rtol=0, atol=1e-4):
            raise InputError(
                f"{item.path}: {item.shape} pixels of {item.spacing} mm, but {first.path} has {first.shape} of "
                f"{first.spacing} mm: the series mixes images of different grids"
            )
        if not np.allclose(item.orientation, first.orientation, rtol=0, atol=1e-3):
            raise InputError(f"{item.path}: another orientation than {first.path}: the series mixes orientations")
    rows, columns = (np.array(vector) for vector in first.orientation)
    normal = np.cross(rows, columns)
    if abs(abs(normal[0]) - 1) > 1e-4 or abs(rows @ columns) > 1e-4:
        raise InputError(
            f"{first.path}: the slices are not axial (their normal is {np.round(normal[::-1], 3).tolist()} in x, y, z; "
            "a tilted gantry or a reformatted plane): resample the series to axial slices first"
        )
    positions = np.array([item.position for item in slices])
    z = positions[:, 0]
    shift = np.abs(positions[:, 1:] - positions[0, 1:]).max()
    if shift > PLACEMENT_TOLERANCE_MM:
        raise InputError(
            f"{first.path}: the slices are shifted against each other by up to {shift:.2f} mm in plane (a tilted "
            "gantry): resample the series to axial slices first"
        )
    if len(slices) > 1:
        slice_spacing = float((z[-1] - z[0]) / (len(z) - 1))
    if not slice_spacing:
        raise InputError(f"{first.path}: one slice alone has no slice spacing")
    if not evenly_spaced(z):
        steps = ", ".join(f"{step:.3f}" for step in np.unique(np.diff(z).round(3)))
        raise InputError(f"{first.path}: the slices from z = {z[0]:g} to {z[-1]:g} are not evenly spaced: {steps} mm")
    # In (z, y, x): the columns of direction are the patient directions of index z, y and x.
    direction = np.stack([np.array([1.0, 0.0, 0.0]), rows, columns], axis=1)
    return Grid(
        (len(slices), *first.shape),
        (slice_spacing, *first.spacing),
        triple(float(p) for p in first.position),
        direction,
    )


def evenly_spaced(z: np.ndarray) -> bool:
    """Whether ascending z (mm) grow in equal steps, to a tenth of a millimetre in every place."""
    return bool(np.abs(z - np.linspace(z[0], z[-1], len(z))).max() <= PLACEMENT_TOLERANCE_MM)


def read_slice(path: str, shape: tuple[int, int]) -> np.ndarray:
    """The HU of one image file, float32 (rows, columns).

    Raises
    ------
    InputError
        The file is damaged, or no longer the image that was indexed.
    """
    try:
        with _bounded(path) as file:
            header = pydicom.dcmread(file, defer_size=None)
        syntax = header.file_meta.TransferSyntaxUID
        if "PixelData" not in header:
            raise InputError(f"{path}: truncated: it has no pixel data; download the file again")
        if getattr(header, "NumberOfFrames", 1) not in (None, 1) or header.SamplesPerPixel != 1:
            raise InputError(f"{path}: not a single grey image")
        for name in ("RescaleSlope", "RescaleIntercept"):
            if header.get(name) is None:
                raise InputError(f"{path}: {name} is missing: the stored values cannot be turned into HU")
        slope, intercept = float(header.RescaleSlope), float(header.RescaleIntercept)
        if not (abs(slope) < LARGEST_RESCALE and abs(intercept) < LARGEST_RESCALE):
            raise InputError(
                f"{path}: RescaleSlope {slope:g} and RescaleIntercept {intercept:g} give no HU; download it again"
            )
        if syntax in NATIVE_SYNTAXES:
            stored = header.pixel_array
            values = stored.astype(np.float32) * np.float32(slope) + np.float32(intercept)
        else:
            import SimpleITK as sitk

            # GDCM makes room for whatever a damaged fragment claims as its length; pydicom refuses it.
            parse_fragments(header.PixelData)
            # GDCM applies slope and intercept.
            with utf8_path(path) as readable:
                image = sitk.ReadImage(readable, imageIO="GDCMImageIO")
            values = sitk.GetArrayFromImage(image).astype(np.float32).squeeze()
    except InputError:
        raise
    except Exception as error:
        # Damaged files make pydicom and its decoders raise almost anything.
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        raise InputError(
            f"{path}: the image cannot be read, the file is truncated or damaged ({lines[-1]}); download it again"
        ) from error
    if values.shape != tuple(shape):
        raise InputError(f"{path}: {values.shape} pixels where the header had {tuple(shape)}: the file has changed")
    return values


class _Bounded(io.BufferedReader):
    """A file that makes no room for more than it holds, whatever a damaged length field asks for."""

    def __init__(self, raw: io.RawIOBase, size: int, buffer: int = io.DEFAULT_BUFFER_SIZE) -> None:
        super().__init__(raw, buffer)
        self.bytes = size

    def read(self, size: int | None = -1) -> bytes:
        if size is not None and size > SMALL_BYTES and size > self.bytes - self.tell():
            raise EOFError(f"an element claims {size} bytes, {self.bytes - self.tell()} are left")
        return super().read(size)


def _bounded(path: str | Path) -> _Bounded:
    raw = io.FileIO(path)
    return _Bounded(raw, os.fstat(raw.fileno()).st_size)


def _folders(root: str, broken: list[BrokenFile]) -> Iterator[tuple[str, list[str]]]:
    """Every folder with its files, in a fixed order; links are followed, each folder is visited once."""

    def failed(error: OSError) -> None:
        broken.append(BrokenFile(os.path.relpath(error.filename, root), f"cannot be listed: {error.strerror}"))

    visited = set()
    for folder, folders, names in os.walk(root, onerror=failed, followlinks=True):
        stat = os.stat(folder)
        if (stat.st_dev, stat.st_ino) in visited:
            folders.clear()
            continue
        visited.add((stat.st_dev, stat.st_ino))
        folders.sort()
        yield folder, sorted(names)


def _sharing(item: Slice, shared: dict) -> Slice:
    """The slice, holding one copy of what all slices of a series have in common."""
    for name in ("orientation", "spacing", "shape", "patient_id", "study_uid"):
        value = getattr(item, name)
        object.__setattr__(item, name, shared.setdefault((name, value), value))
    return item
