"""Volumes and their position in the patient.

Everywhere inside raymat an array is indexed ``[z, y, x]`` and every triple that belongs to it (spacing, origin, the
rows and columns of direction) is in the same (z, y, x) order. SimpleITK's (x, y, z) appears where an image enters or
leaves: here and in the resampling of ``raymat.prepare``.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from raymat.arrays import triple
from raymat.nodule import InputError, Nodule, required
from raymat.words import utf8

if TYPE_CHECKING:
    # Imported where a voxel is read or written: a driver that plans millions of nodules does not need their 110 MB.
    import SimpleITK as sitk

PLACEMENT_TOLERANCE_MM = 0.1
ANGLE_TOLERANCE = 1e-4  # of products of unit vectors at right angles: what headers in single precision leave

WHOLE = (".nrrd", ".mha")  # header and voxels in one file, plain or deflated
DEFLATED = 1100  # more bytes than deflate ever makes of one
LINE_BYTES = 900
LARGEST = 1e30
VOXELS_ELSEWHERE = re.compile(rb"(ElementDataFile\s*[=:]|data ?file\s*:)\s*", re.IGNORECASE)
LIST_BYTES = 2**20
MEASURES = re.compile(rb"dim|size|spac|origin|matrix|offset|orientation|rotation|position", re.IGNORECASE)


@dataclass(frozen=True)
class Grid:
    """A voxel grid in patient coordinates (DICOM's LPS, mm).

    Attributes
    ----------
    shape : (z, y, x) voxels
    spacing : (z, y, x) mm
    origin : (z, y, x) mm, the centre of voxel [0, 0, 0]
    direction : 3 x 3 array, column a is the patient direction, as (z, y, x), along which index a grows
    """

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    origin: tuple[float, float, float]
    direction: np.ndarray

    def to_patient(self, index) -> np.ndarray:
        """Patient coordinates (z, y, x) in mm of voxel indices ``[..., 3]``, fractions allowed."""
        step = np.asarray(self.direction) * np.asarray(self.spacing)
        return np.asarray(self.origin) + np.asarray(index, dtype=float) @ step.T

    def to_index(self, point) -> np.ndarray:
        """The voxel index (z, y, x), with fractions, of patient coordinates (z, y, x) in mm; of one point or (n, 3)."""
        step = np.asarray(self.direction) * np.asarray(self.spacing)
        return np.linalg.solve(step, (np.asarray(point, dtype=float) - np.asarray(self.origin)).T).T

    def crop(self, start, shape) -> Grid:
        """The grid of ``shape`` voxels that begins at voxel ``start``, which may lie outside."""
        return Grid(
            triple(int(n) for n in shape), self.spacing, triple(self.to_patient(start).tolist()), self.direction
        )

    def placement_difference(self, other: Grid) -> float:
        """The largest distance in mm between the corners of two grids of one shape."""
        corners = np.array(np.meshgrid(*[(0, n - 1) for n in self.shape], indexing="ij")).reshape(3, -1).T
        return float(np.linalg.norm(self.to_patient(corners) - other.to_patient(corners), axis=1).max())


def nodule_grid(nodule: Nodule, array: np.ndarray) -> Grid:
    """The grid of one of a nodule's arrays.

    Raises
    ------
    InputError
        The nodule has no spacing, origin or direction.
    """
    return Grid(
        triple(array.shape),
        required(nodule.spacing, nodule, "spacing"),
        required(nodule.origin, nodule, "origin"),
        np.asarray(required(nodule.direction, nodule, "direction")),
    )


def to_sitk(array: np.ndarray, grid: Grid) -> sitk.Image:
    """A SimpleITK image of ``array`` (z, y, x), placed on ``grid``."""
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(array)
    image.SetSpacing(tuple(grid.spacing[::-1]))
    image.SetOrigin(tuple(grid.origin[::-1]))
    image.SetDirection(np.asarray(grid.direction)[::-1, ::-1].ravel().tolist())
    return image


def grid_of(image: sitk.Image | sitk.ImageFileReader) -> Grid:
    """The grid of a SimpleITK image, or of a header that was read; that of a 2D image has one slice of 1 mm."""
    axes = image.GetDimension()
    direction = np.eye(3)
    direction[3 - axes :, 3 - axes :] = np.array(image.GetDirection()).reshape(axes, axes)[::-1, ::-1]
    more = 3 - axes
    return Grid(
        triple((1,) * more + image.GetSize()[::-1]),
        triple((1.0,) * more + image.GetSpacing()[::-1]),
        triple((0.0,) * more + image.GetOrigin()[::-1]),
        direction,
    )


def read_volume(path: str | Path, pictures: bool = False) -> tuple[np.ndarray, Grid]:
    """Read a 3D image of any format SimpleITK knows.

    Parameters
    ----------
    pictures : whether 2D images, and images of several channels (colour), are read, too

    Returns
    -------
    array : (z, y, x), the file's own dtype; (1, y, x) of a 2D image, with an axis of channels last where there are any
    grid : Grid

    Raises
    ------
    InputError
        The file is missing, unreadable or, without ``pictures``, not a 3D image of one channel.
    """
    if not Path(path).is_file():
        raise InputError(f"{path}: no such file")
    name = Path(path).name.lower()
    if name.endswith((".nrrd", ".nhdr", ".mha", ".mhd")):
        _verify_text_header(path)
    if name.endswith((".nii", ".nii.gz")):
        _verify_nifti(path)
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    try:
        with utf8_path(path) as readable:
            reader.SetFileName(readable)
            reader.ReadImageInformation()
            if name.endswith(WHOLE):
                _verify_size(path, reader.GetSize())
            image = reader.Execute()
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        if "orthonormal" in str(error) and name.endswith((".nii", ".nii.gz")):
            return _read_sheared_nifti(path)
        raise InputError(f"{path}: SimpleITK cannot read it: {lines[-1]}") from error
    axes, several = image.GetDimension(), image.GetNumberOfComponentsPerPixel() != 1
    if axes not in ((2, 3) if pictures else (3,)) or (several and not pictures):
        raise InputError(
            f"{path}: expected a 3D image of one channel, found {image.GetDimension()}D of "
            f"{image.GetNumberOfComponentsPerPixel()} channels"
        )
    grid = grid_of(image)
    if not np.isfinite([*grid.spacing, *grid.origin, *grid.direction.flat]).all():
        raise InputError(
            f"{path}: spacing {grid.spacing}, origin {grid.origin} or direction {grid.direction.tolist()} (z, y, x) of "
            "its header is not finite; correct the header"
        )
    values = sitk.GetArrayFromImage(image)
    return values[None] if axes == 2 else values, orthonormal(path, grid)


def is_picture(path: str | Path) -> bool:
    """Whether a file that ``read_volume`` reads holds a 2D image."""
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    with utf8_path(path) as readable:
        reader.SetFileName(readable)
        try:
            reader.ReadImageInformation()
        except RuntimeError:
            return False  # axes that ITK refuses and nibabel reads are a volume's
    return bool(reader.GetDimension() == 2)


def read_grid(path: str | Path) -> Grid:
    """The grid of a volume, by its header alone where SimpleITK reads that; raises as ``read_volume`` does."""
    if not Path(path).is_file():
        raise InputError(f"{path}: no such file")
    if Path(path).name.lower().endswith((".nrrd", ".nhdr", ".mha", ".mhd")):
        _verify_text_header(path)
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    try:
        with utf8_path(path) as readable:
            reader.SetFileName(readable)
            reader.ReadImageInformation()
    except RuntimeError:
        return read_volume(path)[1]
    if reader.GetDimension() != 3:
        return read_volume(path)[1]  # which says what is wrong
    return orthonormal(path, grid_of(reader))


def orthonormal(path: str | Path, grid: Grid) -> Grid:
    """The grid with axes at right angles: as it is, or turned to them where no voxel moves by a tenth of a millimetre.

    Raises
    ------
    InputError
        The axes are sheared by more.
    """
    direction = np.asarray(grid.direction)
    if np.abs(direction.T @ direction - np.eye(3)).max() <= ANGLE_TOLERANCE:
        return grid
    # The orthonormal matrix that is nearest (polar decomposition), turned about the middle of the volume.
    u, _, v = np.linalg.svd(direction)
    middle = (np.array(grid.shape) - 1) / 2
    turned = Grid(grid.shape, grid.spacing, (0.0, 0.0, 0.0), u @ v)
    origin = grid.to_patient(middle) - turned.to_patient(middle)
    turned = Grid(grid.shape, grid.spacing, triple(origin.tolist()), u @ v)
    moved = grid.placement_difference(turned)
    if moved > PLACEMENT_TOLERANCE_MM:
        raise InputError(
            f"{path}: the axes of its header are not at right angles; voxels lie up to {moved:.2f} mm from a grid "
            "whose axes are: resample it onto one (Slicer: Resample Scalar Volume), or correct the header (sform, "
            "space directions or TransformMatrix)"
        )
    return turned


def _read_sheared_nifti(path: str | Path) -> tuple[np.ndarray, Grid]:
    """A NIfTI volume whose axes ITK refuses."""
    import nibabel

    image = nibabel.nifti1.load(path)
    if len(image.shape) != 3:
        raise InputError(f"{path}: expected a 3D image of one channel, found {len(image.shape)}D")
    # From RAS to LPS, and from (x, y, z) to (z, y, x).
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ image.affine
    step = affine[:3, :3][::-1, ::-1]
    spacing = np.linalg.norm(step, axis=0)
    if not np.isfinite(affine).all() or spacing.min() <= 0 or np.linalg.matrix_rank(step) < 3:
        raise InputError(f"{path}: the axes of its header (sform) span no volume; correct the header")
    grid = Grid(
        triple(image.shape[::-1]), triple(spacing.tolist()), triple(affine[:3, 3][::-1].tolist()), step / spacing
    )
    values = np.asanyarray(image.dataobj).T
    return values.astype(values.dtype.newbyteorder("="), order="C"), orthonormal(path, grid)


@contextlib.contextmanager
def utf8_path(path: str | Path) -> Iterator[str]:
    """A path to the same file that is valid UTF-8, as libraries in C++ need it; the file need not be there yet."""
    text = os.path.abspath(path)
    if utf8(text) == text:
        yield str(path)
        return
    folder, name = os.path.split(text)
    if utf8(name) != name:
        raise InputError(f"{utf8(text)}: the name of the file is not valid UTF-8; rename it")
    with tempfile.TemporaryDirectory(prefix="raymat-") as scratch:
        os.symlink(folder, os.path.join(scratch, "folder"))
        yield os.path.join(scratch, "folder", name)


def _verify_size(path: str | Path, shape: tuple[int, ...]) -> None:
    # Readers of files allocate, and some fill, memory for the voxels before they see that the file is too short.
    size = Path(path).stat().st_size
    if any(n < 1 for n in shape) or math.prod(shape) > DEFLATED * size:
        raise InputError(
            f"{path}: its header claims {' x '.join(map(str, shape))} voxels, which its {size} bytes cannot hold: "
            "truncated or damaged; copy it again"
        )


def _verify_text_header(path: str | Path) -> None:
    # On a damaged header the libraries below SimpleITK do worse than fail: teem (NRRD) overruns its buffers at a long
    # line, MetaIO dies of a negative number of dimensions, ITK hangs over a direction whose squares overflow.
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            text = line.strip()
            if VOXELS_ELSEWHERE.match(text):
                named = VOXELS_ELSEWHERE.sub(b"", text)
                _verify_voxels_beside(path, file.read(LIST_BYTES).splitlines() if named == b"LIST" else [named])
            if not text or text.startswith(b"ElementDataFile"):
                return
            if b":=" in text or text.startswith(b"#"):  # free text of NRRD
                continue
            if len(text) > LINE_BYTES:
                raise InputError(f"{path}: line {number} of its header has {len(text)} bytes: damaged; copy it again")
            field, _, value = text.replace(b"=", b":", 1).partition(b":")
            if MEASURES.search(field):
                _verify_measures(f"{path}: {field.decode('latin1').strip()}", value)


def _verify_voxels_beside(path: str | Path, named: list[bytes]) -> None:
    # A header may name any file of the machine as its voxels, a password file among them.
    folder = os.path.dirname(os.path.abspath(path))
    for line in named:
        for name in {line.strip(), *line.split()}:
            file = os.path.normpath(os.path.join(folder, os.fsdecode(name)))
            if os.path.commonpath([folder, file]) != folder:
                raise InputError(
                    f"{path}: its voxels are in {os.fsdecode(name)}, out of its folder: put them beside it"
                )


def _verify_measures(where: str, value: bytes) -> None:
    for word in re.split(rb"[\s(),]+", value):
        try:
            number = float(word)
        except ValueError:
            continue  # "none", "left-posterior-superior"
        negative = number < 0 and where.lower().endswith(("dims", "dimsize", "dimension", "sizes"))
        if abs(number) > LARGEST or negative:
            raise InputError(f"{where} of its header holds {number:g}: damaged; copy it again")


def _verify_nifti(path: str | Path) -> None:
    # ITK's NIfTI reader turns NaN into 0 and fills a truncated file with 0, both without a warning.
    import nibabel

    broken = (
        nibabel.filebasedimages.ImageFileError,
        nibabel.spatialimages.HeaderDataError,
        nibabel.wrapstruct.WrapStructError,
    )
    try:
        image = nibabel.nifti1.load(path)
        _verify_size(path, image.shape)
        values = np.asanyarray(image.dataobj)
    except InputError:
        raise
    except (OSError, EOFError, ValueError, OverflowError, zlib.error, *broken) as error:
        raise InputError(f"{path}: truncated or damaged ({error}); copy it again") from error
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        x, y, z = np.argwhere(~np.isfinite(values))[0][:3]
        raise InputError(
            f"{path}: {np.count_nonzero(~np.isfinite(values))} voxels are NaN or infinite, the first at "
            f"({z}, {y}, {x}) (z, y, x); replace them"
        )


def write_picture(path: str | Path, alpha: np.ndarray, grid: Grid) -> None:
    """Write the matte (1, y, x) of a 2D image as one: 8 bits of 0 to 255 as ``.png``, else float32.

    Raises
    ------
    InputError
        The file cannot be written, or its ending names no format SimpleITK writes.
    """
    import SimpleITK as sitk

    flat = alpha[0]
    if str(path).lower().endswith(".png"):
        flat = np.rint(flat * 255).astype(np.uint8)
    image = sitk.GetImageFromArray(flat)
    image.SetSpacing(tuple(grid.spacing[:0:-1]))
    image.SetOrigin(tuple(grid.origin[:0:-1]))
    image.SetDirection(np.asarray(grid.direction)[:0:-1, :0:-1].ravel().tolist())
    _write(image, path)


def write_volume(path: str | Path, array: np.ndarray, grid: Grid, about: str = "") -> None:
    """Write ``array`` (z, y, x) in its position in the patient; the file name sets the format (``.nii.gz``, ``.nrrd``).

    ``about`` is stored in the header (NIfTI: ``descrip``, 79 characters; NRRD: ``ITK_FileNotes``).

    Raises
    ------
    InputError
        The file cannot be written, or its ending names no format SimpleITK writes.
    """
    image = to_sitk(array, grid)
    if about:
        image.SetMetaData("ITK_FileNotes", about)
    _write(image, path)


def _write(image: sitk.Image, path: str | Path) -> None:
    import SimpleITK as sitk

    try:
        with utf8_path(path) as writable:
            sitk.WriteImage(image, writable, useCompression=True)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise InputError(f"{path}: cannot be written: {lines[-1]}") from error
