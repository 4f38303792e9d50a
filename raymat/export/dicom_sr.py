"""The measures of a nodule as a DICOM Structured Report (TID 1500, TID 1411) that refers to its segmentation.

The segmentation is that of the membership matte, of which the report's volume is the sum, on the grid of the series.
The estimate of the volume has the ends of its 90 % interval as its measurement uncertainty. What no public scheme has a
code for is coded by ``99RAYMAT``.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path

import highdicom as hd
import pydicom
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import generate_uid

from raymat.calibration import HUWindow
from raymat.export.dicom_seg import MAKER, SERIES_NUMBER, source_header, source_slices, tell_of_deidentification
from raymat.measures.nodule import measure
from raymat.nodule import InputError, Nodule
from raymat.sources.dicom import Series
from raymat.sources.series import scan_of
from raymat.version import __version__
from raymat.words import label

SCHEME = "99RAYMAT"
MM3, MM2, MM, HU, ONE = (
    codes.UCUM.CubicMillimeter,
    codes.UCUM.SquareMillimeter,
    codes.UCUM.Millimeter,
    codes.UCUM.HounsfieldUnit,
    codes.UCUM.NoUnits,
)
MILLIGRAM = Code("mg", "UCUM", "milligram")
DEVICE_UID = "2.25.281907562387106893456724561908234567123"

# Name of a measure to what a report calls it, and its unit.
CODES: dict[str, tuple[Code, Code]] = {
    "volume_mm3": (codes.SCT.Volume, MM3),
    "volume_estimate_mm3": (Code("VolumeEstimate", SCHEME, "Estimate of volume with 90 % interval"), MM3),
    "longest_diameter_mm": (codes.SCT.LongAxis, MM),
    "perpendicular_diameter_mm": (codes.SCT.ShortAxis, MM),
    "mass_mg": (Code("118538004", "SCT", "Mass"), MILLIGRAM),
    "tissue_mass_mg": (Code("TissueMass", SCHEME, "Mass of the lesion's own tissue"), MILLIGRAM),
    "intensity_mean_hu": (codes.DCM.AttenuationCoefficient, HU),
    "solid_volume_mm3": (Code("SolidVolume", SCHEME, "Volume of the solid part"), MM3),
    "consolidation_tumor_ratio": (Code("CTR", SCHEME, "Consolidation-to-tumor ratio"), ONE),
    "surface_mm2": (Code("C0JK", "IBSI", "Surface Area of Mesh"), MM2),
    "sphericity": (Code("QCFX", "IBSI", "Sphericity"), ONE),
    "border_width_mm": (Code("BorderWidth", SCHEME, "Width of the border"), MM),
}
DERIVED = {"intensity_mean_hu": codes.SCT.Mean}


def write_report(nodule: Nodule, series: Series, root: str, segmentation: Path, path: Path, window: HUWindow) -> Path:
    """Write the measures of a nodule as a report.

    Parameters
    ----------
    nodule : its chosen matte is the segmented one, of the kind membership
    series : the nodule's, below ``root``
    segmentation : file of ``raymat.export.dicom_seg.write_segmentation``
    window : of the calibration

    Raises
    ------
    InputError
        Slices are missing or damaged, the nodule cannot be measured, or the file cannot be written.
    """
    where = f"{nodule.nodule_id}: series {series.uid}"
    slices, grid = source_slices(nodule, scan_of(series, nodule.patient_id))
    sources = [source_header(os.path.join(root, item.path), grid.spacing[0]) for item in slices]
    segmented = pydicom.dcmread(segmentation)
    row = measure(nodule, window)
    seed = ["report", str(segmented.SOPInstanceUID), repr(sorted(_numbers(row).items()))]
    try:
        report = hd.sr.Comprehensive3DSR(
            evidence=[segmented, *sources],
            content=_content(nodule, segmented, row)[0],
            series_instance_uid=generate_uid(entropy_srcs=["series", *seed]),
            series_number=SERIES_NUMBER + 1,
            sop_instance_uid=generate_uid(entropy_srcs=["instance", *seed]),
            instance_number=1,
            manufacturer=MAKER,
            is_complete=True,
            series_description=label(f"{MAKER} measures {nodule.nodule_id}"),
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{where}: its headers do not carry a DICOM report ({error})") from error
    tell_of_deidentification(report, sources[0])
    if not f"{report.PatientName}{report.PatientID}{nodule.nodule_id}".isascii():
        report.SpecificCharacterSet = "ISO_IR 192"
    try:
        report.save_as(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error})") from error
    return path


def _content(nodule: Nodule, segmented: pydicom.Dataset, row: Mapping[str, object]) -> hd.sr.MeasurementReport:
    (segment,) = segmented.SegmentSequence
    observer = hd.sr.DeviceObserverIdentifyingAttributes(
        DEVICE_UID, name=MAKER, manufacturer_name=MAKER, model_name=MAKER
    )
    group = hd.sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=hd.sr.TrackingIdentifier(segment.TrackingUID, segment.TrackingID),
        referenced_segment=hd.sr.ReferencedSegment(
            segmented.SOPClassUID,
            segmented.SOPInstanceUID,
            segment.SegmentNumber,
            source_series=hd.sr.SourceSeriesForSegmentation(segmented.ReferencedSeriesSequence[0].SeriesInstanceUID),
        ),
        finding_type=codes.SCT.Nodule,
        finding_sites=[hd.sr.FindingSite(codes.SCT.Lung)],
        algorithm_id=hd.sr.AlgorithmIdentification(f"{MAKER} {row['matte']}", __version__),
        measurements=[_measurement(name, value, row) for name, value in _numbers(row).items()],
    )
    return hd.sr.MeasurementReport(
        observation_context=hd.sr.ObservationContext(
            observer_device_context=hd.sr.ObserverContext(codes.DCM.Device, observer)
        ),
        procedure_reported=codes.LN.CTUnspecifiedBodyRegion,
        imaging_measurements=[group],
        title=codes.DCM.ImagingMeasurementReport,
    )


def _numbers(row: Mapping[str, object]) -> dict[str, float]:
    """The measures that a report has codes for and that the nodule has, six digits of each."""
    known = ((name, row[name]) for name in CODES)
    return {name: float(f"{value:.6g}") for name, value in known if isinstance(value, float) and math.isfinite(value)}


def _measurement(name: str, value: float, row: Mapping[str, object]) -> hd.sr.Measurement:
    properties = None
    if name == "volume_estimate_mm3":
        low, high = (float(f"{float(str(row[f'volume_{end}_mm3'])):.6g}") for end in ("low", "high"))
        properties = hd.sr.MeasurementProperties(upper_measurement_uncertainty=high, lower_measurement_uncertainty=low)
    meaning, unit = CODES[name]
    return hd.sr.Measurement(meaning, value, unit, derivation=DERIVED.get(name), properties=properties)
