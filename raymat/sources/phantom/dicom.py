"""A phantom as the archive would hand it out: CT slices under the real patient, study and series."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, CTImageStorage, DeflatedExplicitVRLittleEndian

from raymat.sources.pylidc_database import Scan

MANUFACTURER = "raymat phantom"
# Identifies who wrote the file; a fixed one, so that a new pydicom does not change the bytes.
IMPLEMENTATION = (UID("2.25.214318914602175923580175238712934523870"), "RAYMAT PHANTOM")
RESCALE_INTERCEPT = -1024


def uid(*parts: object) -> str:
    """A UID under 2.25 that depends on the parts alone."""
    text = "\x1f".join(str(part) for part in parts)
    return f"2.25.{int.from_bytes(hashlib.blake2b(text.encode(), digest_size=15).digest(), 'big')}"


def corner_mm(rows: int, columns: int, pixel_spacing: float) -> tuple[float, float]:
    """Where the first pixel lies, (y, x) mm: the image's centre is the patient's axis, the database knows no better."""
    return (-(rows - 1) / 2 * pixel_spacing, -(columns - 1) / 2 * pixel_spacing)


def write_series(
    folder: Path, image: np.ndarray, slice_z, scan: Scan, kernel: str, *, seed: int, version: int
) -> list[Path]:
    """Write slices as ``000001.dcm``, ``000002.dcm`` ... from the lowest z up.

    Parameters
    ----------
    folder : exists
    image : int16 (z, y, x), HU from -1024 to 3071
    slice_z : (z,) mm, ImagePositionPatient z of each slice
    scan : the series that the phantom stands in for: its UIDs, patient, pixel spacing and slice thickness
    kernel : ConvolutionKernel
    seed, version : of the phantom; the instances' UIDs depend on them

    Returns
    -------
    list of paths
    """
    paths = []
    rows, columns = image.shape[1:]
    for number, (z, pixels) in enumerate(zip(slice_z, image, strict=True), start=1):
        header = Dataset()
        header.SpecificCharacterSet = "ISO_IR 100"
        header.ImageType = ["DERIVED", "PRIMARY", "AXIAL"]
        header.SOPClassUID = CTImageStorage
        header.SOPInstanceUID = uid("raymat phantom", version, seed, scan.series_uid, number)
        header.StudyDate = header.SeriesDate = header.AcquisitionDate = header.ContentDate = "20000101"
        header.StudyTime = header.AccessionNumber = ""
        header.Modality = "CT"
        header.Manufacturer = MANUFACTURER
        header.ReferringPhysicianName = ""
        header.SeriesDescription = f"SYNTHETIC raymat phantom, version {version}, seed {seed}"
        header.DerivationDescription = "Synthetic CT drawn by raymat from LIDC-IDRI readers' contours and ratings"
        header.ManufacturerModelName = "raymat phantom"
        header.PatientName = ""
        header.PatientID = scan.patient_id
        header.PatientBirthDate = header.PatientSex = ""
        header.PatientIdentityRemoved = "YES"
        header.BodyPartExamined = "CHEST"
        header.SliceThickness = f"{scan.slice_thickness:.6g}"
        header.KVP = "120"
        header.ConvolutionKernel = kernel
        header.PatientPosition = "FFS"
        header.StudyInstanceUID = scan.study_uid
        header.SeriesInstanceUID = scan.series_uid
        header.StudyID = ""
        header.SeriesNumber = "1"
        header.InstanceNumber = str(number)
        y, x = corner_mm(rows, columns, scan.pixel_spacing)
        header.ImagePositionPatient = [f"{x:.6f}", f"{y:.6f}", f"{z:.10g}"]
        header.ImageOrientationPatient = ["1", "0", "0", "0", "1", "0"]
        header.FrameOfReferenceUID = uid("raymat phantom frame", version, seed, scan.series_uid)
        header.PositionReferenceIndicator = ""
        header.SliceLocation = f"{z:.10g}"
        header.ImageComments = "SYNTHETIC PHANTOM, NOT A PATIENT"
        header.SamplesPerPixel = 1
        header.PhotometricInterpretation = "MONOCHROME2"
        header.Rows, header.Columns = rows, columns
        header.PixelSpacing = [f"{scan.pixel_spacing:.8g}"] * 2
        header.BitsAllocated, header.BitsStored, header.HighBit, header.PixelRepresentation = 16, 12, 11, 0
        header.WindowCenter, header.WindowWidth = "-600", "1500"
        header.RescaleIntercept, header.RescaleSlope, header.RescaleType = str(RESCALE_INTERCEPT), "1", "HU"
        header.PixelData = (pixels.astype(np.int32) - RESCALE_INTERCEPT).astype("<u2").tobytes()
        header["PixelData"].VR = "OW"
        header.file_meta = FileMetaDataset()
        header.file_meta.MediaStorageSOPClassUID = header.SOPClassUID
        header.file_meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID
        # Most of the matrix is room air: deflated it takes a fourteenth of the space, and GDCM reads it as fast.
        header.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
        header.file_meta.ImplementationClassUID, header.file_meta.ImplementationVersionName = IMPLEMENTATION
        paths.append(folder / f"{number:06d}.dcm")
        header.save_as(paths[-1], enforce_file_format=True)
    return paths
