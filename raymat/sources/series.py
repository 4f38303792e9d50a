"""What a DICOM series is to every command: which of its images are used, which are left aside and why, which slab of it
is needed. ``raymat.sources.dicom`` finds the images and reads them.

- Of several images at one position one is used: of the patient that is meant before another's, then the one of the
  lowest instance number.
- Localizers are left aside; files that are damaged or multi-frame are named where slices are missing.
- Only the slab around a lesion has to be whole and evenly spaced, wherever else slices are missing or doubled.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from raymat.nodule import InputError
from raymat.sources.dicom import MULTI_FRAME, Series, Slice, evenly_spaced
from raymat.volume import PLACEMENT_TOLERANCE_MM
from raymat.words import counted

NAMED = 3  # files named in a message
ONE_POSITION = 0.25  # of the usual step: images nearer than this lie at one position


@dataclass(frozen=True)
class Scan:
    """The images of a series that are used.

    Attributes
    ----------
    uid : SeriesInstanceUID
    slices : one per position, by ascending z
    notes : what was left aside
    problem : why there are no slices; empty where there are
    """

    uid: str
    slices: list[Slice] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    problem: str = ""


def scan_of(series: Series, patient_id: str = "") -> Scan:
    """The images of a series that are used for a patient; by default for the one whose images are most."""
    groups: list[list[Slice]] = []
    if series.slices:
        near = ONE_POSITION * usual_step(np.array([item.z for item in series.slices]))
        for item in series.slices:  # by ascending z
            if groups and item.z - groups[-1][0].z <= near:
                groups[-1].append(item)
            else:
                groups.append([item])
    patient = patient_meant(series, patient_id)
    slices = [preferred(group, patient)[0] for group in groups]
    doubled = sum(len(group) > 1 for group in groups)
    notes = notes_on_aside(series)
    if doubled:
        notes.append(
            f"several images lie at {counted(doubled, 'position')} of the series: the one of this patient and of the "
            "lowest instance number is used"
        )
    return Scan(series.uid, slices, notes, "" if slices else why_empty(series))


def patient_meant(series: Series, patient_id: str = "") -> str:
    """The patient id as the images have it where any of them has it, else the one that most of them have."""
    borne = Counter(item.patient_id for item in series.slices)
    return patient_id if patient_id in borne or not borne else min(borne, key=lambda name: (-borne[name], name))


def preferred(items: Sequence[Slice], patient_id: str) -> list[Slice]:
    """Images at one position, the one that is used first: pylidc's choice, but for images of another patient."""
    return sorted(items, key=lambda item: (item.patient_id != patient_id, item.instance, item.sop_uid))


def usual_step(z: np.ndarray) -> float:
    """The distance of neighbouring slices in mm, of ascending z: their mean where all are even, else their median.

    0 where all images lie at one position.
    """
    if len(z) > 1 and z[-1] > z[0] and evenly_spaced(z):
        return float((z[-1] - z[0]) / (len(z) - 1))
    steps = np.diff(z)
    steps = steps[steps > PLACEMENT_TOLERANCE_MM / 10]
    return float(np.median(steps)) if len(steps) else 0.0


def slab_around(slices: Sequence[Slice], z: float, half_mm: float) -> list[Slice]:
    """The slices within ``half_mm`` of a height (mm), and two more at both ends where they fit.

    Parameters
    ----------
    slices : one per position, by ascending z; at least one

    Raises
    ------
    InputError
        The height lies outside the slices, or one of those within ``half_mm`` is missing or unevenly spaced.
    """
    at = np.array([item.z for item in slices])
    step = usual_step(at)
    if not at[0] - step <= z <= at[-1] + step:
        raise InputError(
            f"z = {z:g} mm lies outside the scan, whose slices run from z = {at[0]:g} to {at[-1]:g}; see that the "
            "coordinates are in mm of the patient (LPS)"
        )
    near = np.flatnonzero(np.abs(at - z) <= half_mm + 2 * step)
    first, last = _even_run(at[near], z, step) if len(near) else (0, -1)
    run = near[first : last + 1]
    low, high = max(at[0], z - half_mm), min(at[-1], z + half_mm)
    if not len(run) or at[run[0]] > low + step or at[run[-1]] < high - step:
        ends = [at[run[0]] - step, at[run[-1]] + step] if len(run) else [z]
        missing = min((end for end in ends if low - step < end < high + step), key=lambda end: abs(end - z), default=z)
        raise InputError(
            f"a slice is missing, or unevenly spaced, near z = {missing:g}, within the {half_mm:g} mm below and above "
            f"z = {z:g} that are needed; download the series again"
        )
    return [slices[k] for k in run]


def _even_run(at: np.ndarray, z: float, step: float) -> tuple[int, int]:
    """First and last of the slices (ascending z, mm) around a height between which all steps are alike."""
    if len(at) > 2 and evenly_spaced(at):
        return 0, len(at) - 1
    steps = np.diff(at)
    # Two slices alone are always even.
    usual = np.median(steps) if len(steps) > 1 else step
    even = np.abs(steps - usual) <= PLACEMENT_TOLERANCE_MM
    first = last = int(np.abs(at - z).argmin())
    while first > 0 and even[first - 1]:
        first -= 1
    while last < len(at) - 1 and even[last]:
        last += 1
    return first, last


def notes_on_aside(series: Series) -> list[str]:
    """One note for the images that bear the series' UID and are none of its slices; none where there are none."""
    if not series.aside:
        return []
    reasons = ", ".join(sorted({item.reason for item in series.aside}))
    return [f"{counted(len(series.aside), 'image')} of the series left aside ({reasons}): {series.aside[0].path}"]


def multi_frame(series: Series) -> str:
    """The problem of a series that is in multi-frame files; empty for any other."""
    paths = [item.path for item in series.broken if item.reason == MULTI_FRAME]
    return f"series {series.uid}: {paths[0]} is {MULTI_FRAME}" if paths and not series.slices else ""


def why_empty(series: Series) -> str:
    """Why a series has no slices."""
    if problem := multi_frame(series):
        return problem
    left = [f"{item.path}: {item.reason}" for item in series.broken]
    left += [f"{item.path}: {item.reason}" for item in series.aside]
    more = f" and {len(left) - NAMED} more" if len(left) > NAMED else ""
    return f"series {series.uid}: none of its files is a slice ({'; '.join(left[:NAMED])}{more})"
