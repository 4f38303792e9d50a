"""The row of a nodule: all measures of ``dictionary.MEASURES``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from raymat.arrays import AnyArray, Float32Array, box_around
from raymat.calibration import LUNG_WINDOW, HUWindow
from raymat.errors import InputError
from raymat.measures import size_classes
from raymat.measures.density import mass_mg, solid_by_hu, solid_by_mattes, tissue_mass_mg
from raymat.measures.dictionary import MEASURES, TEXTS
from raymat.measures.intensity import intensity_statistics
from raymat.measures.interval import evidence_of, volume_interval
from raymat.measures.size import NAN, AxialDiameters, axial_diameters, equivalent_diameter_mm, volume_mm3
from raymat.measures.surface import Border, border_of, surface_of
from raymat.methods import ANY, CALIBRATED, MEMBERSHIP, is_method
from raymat.nodule import Matte, Nodule, required

# Of the columns of IBSI's statistics that are not in HU.
ENDINGS = {"variance": "_hu2", "energy": "_hu2", "skewness": "", "excess_kurtosis": ""}


@dataclass(frozen=True)
class _Cut:
    """The part of a nodule where its membership matte is above 0."""

    membership: Float32Array
    calibrated: Float32Array | None
    image: Float32Array
    spacing: tuple[float, float, float]


def measure(nodule: Nodule, window: HUWindow = LUNG_WINDOW) -> dict[str, object]:
    """All measures of a nodule.

    Parameters
    ----------
    nodule : with an image in HU and a membership matte
    window : of the calibration of its calibrated mattes

    Returns
    -------
    dict
        Name to value, in the order of ``raymat.measures.dictionary.MEASURES``, which has units and meanings. A number
        that does not exist is NaN, a class or name None; ``notes`` say why.

    Raises
    ------
    InputError
        The nodule has no image or no membership matte, or its membership is 0 everywhere.
    """
    matte, calibrated = membership_of(nodule), nodule.best(CALIBRATED)
    image, spacing = required(nodule.image, nodule, "image"), required(nodule.spacing, nodule, "spacing")
    if calibrated is not None and calibrated.kind != CALIBRATED:
        calibrated = None
    box = box_around(matte.alpha > 0)
    if not matte.alpha[box].size:
        raise InputError(f"{nodule.nodule_id}: the membership matte {matte.method} is 0 everywhere: nothing to measure")
    cut = _Cut(matte.alpha[box], calibrated.alpha[box] if calibrated else None, image[box], spacing)
    notes = [*nodule.notes, *_doubts(matte, calibrated)]
    found: dict[str, object] = {"nodule_id": nodule.nodule_id, "patient_id": nodule.patient_id}
    found |= {"matte": matte.method, "calibrated_matte": calibrated.method if calibrated else None}
    diameters = axial_diameters(cut.membership, spacing)
    found |= _sizes(cut, diameters, notes) | _readers(nodule.readers, spacing, notes)
    found |= _interval(nodule, matte, notes)
    found |= _densities(cut, diameters, window, notes) | _shape(cut, notes)
    found |= _intensities(cut, notes)
    return {name: found.get(name, notes if measured.type == TEXTS else NAN) for name, measured in MEASURES.items()}


def membership_of(nodule: Nodule) -> Matte:
    """The membership matte that is measured: the chosen one, or the best one of that kind.

    Raises
    ------
    InputError
        No matte was chosen, or none is of that kind.
    """
    matte = nodule.best(MEMBERSHIP) if nodule.method else None
    if matte is not None and matte.kind == ANY and matte.method != nodule.method:
        matte = None  # a network's masks and spread
    if matte is None:
        why = f"its mattes: {', '.join(nodule.mattes)}" if nodule.candidates else "it has no mattes"
        raise InputError(
            f"{nodule.nodule_id}: has no chosen membership matte ({why}), whose sum is the volume; build with a method "
            "without +, or predict with a network that learnt membership"
        )
    return matte


def _doubts(matte: Matte, calibrated: Matte | None) -> list[str]:
    notes = [
        f"the solver of {one.method} did not converge (residual {one.solve.residual:.1g})"
        for one in (matte, calibrated)
        if one is not None and not one.solve.converged
    ]
    if matte.kind == ANY:
        notes.append(f"the matte {matte.method} does not say of which kind its alpha is; it is read as membership")
    return notes


def _sizes(cut: _Cut, diameters: AxialDiameters, notes: list[str]) -> dict[str, object]:
    volume = volume_mm3(cut.membership, cut.spacing)
    if math.isnan(diameters.longest_mm):
        notes.append("membership nowhere reaches 0.5: no diameters")
    return {
        "volume_mm3": volume,
        "equivalent_diameter_mm": equivalent_diameter_mm(volume),
        "longest_diameter_mm": diameters.longest_mm,
        "perpendicular_diameter_mm": diameters.perpendicular_mm,
        "mean_diameter_mm": diameters.mean_mm,
        "fleischner_2017_diameter": size_classes.fleischner_by_diameter(diameters.mean_mm),
        "fleischner_2017_volume": size_classes.fleischner_by_volume(volume),
        "lung_rads_2022_diameter": size_classes.lung_rads_by_diameter(diameters.mean_mm),
        "lung_rads_2022_volume": size_classes.lung_rads_by_volume(volume),
    }


def _interval(nodule: Nodule, matte: Matte, notes: list[str]) -> dict[str, object]:
    if nodule.trimap is None or not is_method(matte.method):
        notes.append("no matte of raymat's solvers in a trimap: no estimate and no interval of the volume")
        return {}
    image, spacing = required(nodule.image, nodule, "image"), required(nodule.spacing, nodule, "spacing")
    evidence = evidence_of(matte.alpha, image, nodule.trimap, nodule.readers, spacing)
    found = volume_interval(evidence)
    return {
        "volume_estimate_mm3": found.estimate,
        "volume_low_mm3": found.low,
        "volume_high_mm3": found.high,
    }


def _readers(readers: Sequence[AnyArray], spacing: Sequence[float], notes: list[str]) -> dict[str, object]:
    volumes = [volume_mm3(mask != 0, spacing) for mask in readers]
    if len(volumes) < 2:
        notes.append("no readers' masks" if not volumes else "one reader: no spread of the readers' volumes")
    return {
        "readers": len(volumes),
        "reader_volumes_mm3": volumes,
        "readers_mean_mm3": float(np.mean(volumes)) if volumes else NAN,
        "readers_sd_mm3": float(np.std(volumes, ddof=1)) if len(volumes) > 1 else NAN,
        "readers_min_mm3": min(volumes, default=NAN),
        "readers_max_mm3": max(volumes, default=NAN),
    }


def _densities(cut: _Cut, diameters: AxialDiameters, window: HUWindow, notes: list[str]) -> dict[str, object]:
    by_hu = solid_by_hu(cut.image)
    whole = volume_mm3(cut.membership, cut.spacing)
    solid_hu = volume_mm3(cut.membership * by_hu, cut.spacing)
    found: dict[str, object] = {
        "mass_mg": mass_mg(cut.membership, cut.image, cut.spacing),
        "solid_volume_hu_mm3": solid_hu,
        "ground_glass_volume_hu_mm3": max(whole - solid_hu, 0.0),
    }
    if cut.calibrated is None:
        notes.append("no calibrated matte: no solid part by mattes, no mass of the tissue")
        return found
    part = cut.membership * solid_by_mattes(cut.membership, cut.calibrated, window)
    solid = volume_mm3(part, cut.spacing)
    longest = axial_diameters(part, cut.spacing).longest_mm
    longest = 0.0 if math.isnan(longest) else longest
    return found | {
        "tissue_mass_mg": tissue_mass_mg(cut.membership, cut.calibrated, window, cut.spacing),
        "solid_volume_mm3": solid,
        "ground_glass_volume_mm3": max(whole - solid, 0.0),
        "solid_share": solid / whole,
        "solid_longest_diameter_mm": longest,
        "consolidation_tumor_ratio": longest / diameters.longest_mm,
    }


def _shape(cut: _Cut, notes: list[str]) -> dict[str, object]:
    surface = surface_of(cut.membership, cut.spacing)
    if surface is None:
        notes.append("membership nowhere exceeds 0.5: no surface")
        return {}
    border = border_of(cut.membership, cut.spacing, surface)
    if border == Border():
        notes.append("membership nowhere falls from 0.9 to 0.1 within 6 mm of the surface: no border width")
    return {
        "mesh_volume_mm3": surface.volume_mm3,
        "surface_mm2": surface.area_mm2,
        "sphericity": surface.sphericity,
        "border_width_mm": border.width_mm,
        "border_width_spread_mm": border.spread_mm,
        "border_measured": border.measured,
    }


def _intensities(cut: _Cut, notes: list[str]) -> dict[str, object]:
    statistics = intensity_statistics(cut.image, cut.membership)
    if math.isnan(statistics["minimum"]):
        notes.append("membership nowhere reaches 0.5: no minimum and maximum of intensity")
    return {f"intensity_{name}{ENDINGS.get(name, '_hu')}": value for name, value in statistics.items()}


def missing(row: Mapping[str, object]) -> list[str]:
    """The names of the numbers, classes and names that a row lacks."""
    return [name for name, value in row.items() if value is None or (isinstance(value, float) and math.isnan(value))]
