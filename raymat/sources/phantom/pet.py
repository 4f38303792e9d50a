"""PET-CT phantoms: a hot lesion, in half of them against collapsed lung that CT cannot tell from it; as a case table.

OUT/cases.csv                      one row per lesion, as `raymat build --cases` takes it
OUT/PATIENT/NODULE/ct.nii.gz       HU of a scan in breath-hold
OUT/PATIENT/NODULE/pet.nii.gz      standardised uptake values (SUV) on a grid of 4 mm, of free breathing
OUT/PATIENT/NODULE/reader-1.nii.gz to reader-4; membership and calibrated, the true alphas, all on the grid of the CT

The lesion is the CT phantom's own. Uptake is the drawn share of lesion times the lesion's uptake, beside that of lung
and soft tissue by their HU; it is smeared along z by breathing, blurred by the scanner (which is what spills out of a
small lesion), sampled at 4 mm and given noise. The CT shows one moment of the breath, as the truth does.
"""

from __future__ import annotations

import csv
import io
import json
import shutil
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from scipy import ndimage

from raymat.arrays import triple
from raymat.nodule import InputError
from raymat.places import is_uri
from raymat.sources.phantom import choice, dicom, scanner
from raymat.sources.phantom.draw import Fine, plain
from raymat.sources.phantom.fields import generator, smooth_field
from raymat.sources.phantom.retest import fine_of
from raymat.sources.phantom.source import RECORD, VERSION
from raymat.volume import Grid, write_volume

CASES = "cases.csv"
FILES = ("ct", "pet", "membership", "calibrated")
PET_MM = 4.0
FWHM_MM = (4.5, 6.5)  # of the PET scanner's point spread
BREATH_MM = (4.0, 14.0)  # from end to end, along z
LESION_SUV = (5.0, 14.0)
LUNG_SUV, SOFT_SUV, COLLAPSED_SUV = 0.4, 1.2, 1.8
LUNG_HU, SOFT_HU = -850.0, 30.0
NOISE = 0.06  # standard deviation, as a share of the uptake, with 0.05 SUV beside it
SOLID = 4.0  # mean rating of texture from which on a lesion is as dense as collapsed lung
COLLAPSED_HU = 35.0
COLLAPSED_MM = 25.0  # how far it reaches from the lesion's middle


@dataclass
class PetCt:
    """A drawn PET-CT.

    Attributes
    ----------
    image : int16 (z, y, x), HU
    pet : float32 (z, y, x), SUV, on a grid of ``PET_MM``
    pet_offset : (z, y, x) mm from the CT's first voxel to that of the PET
    membership, calibrated : float32 (z, y, x), what the CT scanner shows of either truth
    parameters : what was drawn, by name
    """

    image: np.ndarray
    pet: np.ndarray
    pet_offset: tuple[float, float, float]
    membership: np.ndarray
    calibrated: np.ndarray
    parameters: dict


def is_solid(case: choice.Case) -> bool:
    """Whether the readers call the lesion solid."""
    return float(np.mean([mark.ratings["texture"] for mark in case.annotations])) >= SOLID


def choose_solid(n: int, seed: int = 0) -> list[choice.Case]:
    """The first n solid lesions of those that ``choose`` takes."""
    more = n
    while True:
        cases = choice.choose(more, seed)  # refuses more than there are
        solid = [case for case in cases if is_solid(case)]
        if len(solid) >= n:
            return solid[:n]
        more += n - len(solid)


def pet_ct_of(case: choice.Case, seed: int = 0, collapsed: bool = False) -> PetCt:
    """The PET-CT of a case, on request with collapsed lung on one side of the lesion."""
    fine = fine_of(case, seed)

    def random(what: str) -> np.random.Generator:
        return generator(seed, case.nodule_id, f"pet {what}")

    uptake = background_suv(fine.volume)
    if collapsed:
        where = beside(fine, random("collapse"))
        tissue = COLLAPSED_HU + 8.0 * smooth_field(fine.volume.shape, fine.spacing, 3.0, random("tissue"))
        # Denser than what was there, and never less dense than the lesion: no dark seam gives its border away.
        fine = replace(fine, volume=fine.volume + where * np.maximum(tissue - fine.volume, 0.0))
        uptake += where * (COLLAPSED_SUV - uptake)
    how = random("uptake")
    suv, fwhm, breath = (float(how.uniform(*limits)) for limits in (LESION_SUV, FWHM_MM, BREATH_MM))
    uptake += fine.share * (suv - uptake)
    pet, offset = scanned(uptake, fine, fwhm, breath, random("noise"))
    image = fine.shown(fine.volume)
    image += scanner.noise(image.shape, case.spacing, fine.scanner, random("ct noise"))
    membership, calibrated = (np.clip(fine.shown(t), 0, 1).astype(np.float32) for t in (fine.share, fine.pure))
    drawn = {"lesion_suv": suv, "pet_fwhm_mm": fwhm, "breath_mm": breath, "collapsed": collapsed}
    parameters = plain({**fine.parameters, **asdict(fine.scanner), **drawn})
    return PetCt(scanner.to_hounsfield(image), pet, offset, membership, calibrated, parameters)


def background_suv(volume: np.ndarray) -> np.ndarray:
    """Uptake of lung and soft tissue, by their HU; float32 (z, y, x)."""
    solid = np.clip((volume - LUNG_HU) / (SOFT_HU - LUNG_HU), 0, 1)
    return np.asarray(LUNG_SUV + (SOFT_SUV - LUNG_SUV) * solid, np.float32)


def beside(fine: Fine, rng: np.random.Generator) -> np.ndarray:
    """Where lung has collapsed: 0 to 1, float32 (z, y, x); a side of the lesion, begun near its middle."""
    axes = [(np.arange(n) * step).astype(np.float32) for n, step in zip(fine.share.shape, fine.spacing, strict=True)]
    inside = fine.share > 0.5
    centre = [float(axis[inside.any(axis=tuple(o for o in range(3) if o != a))].mean()) for a, axis in enumerate(axes)]
    towards = rng.standard_normal(3) * (0.3, 1.0, 1.0)
    towards /= np.linalg.norm(towards)
    radius = (0.75 / np.pi * float(inside.sum()) * float(np.prod(fine.spacing))) ** (1 / 3)
    z, y, x = np.meshgrid(*(a - c for a, c in zip(axes, centre, strict=True)), indexing="ij", sparse=True)
    along = z * towards[0] + y * towards[1] + x * towards[2] - rng.uniform(-0.3, 0.3) * radius
    along = along + 1.5 * smooth_field(fine.share.shape, fine.spacing, 8.0, rng)
    distance = np.sqrt(z * z + y * y + x * x)
    edge = np.clip(0.5 + along / 1.5, 0, 1) * np.clip(0.5 + (COLLAPSED_MM + radius - distance) / 1.5, 0, 1)
    return np.asarray(edge, np.float32)


def scanned(
    uptake: np.ndarray, fine: Fine, fwhm_mm: float, breath_mm: float, rng: np.random.Generator
) -> tuple[np.ndarray, tuple[float, float, float]]:
    """What a PET scanner shows of a finely drawn uptake.

    Returns
    -------
    pet : float32 (z, y, x), SUV, on a grid of ``PET_MM`` that covers the slices of the CT
    offset : (z, y, x) mm from the centre of the CT's first voxel to that of its first
    """
    # A breath is longest at its end: most of the time is spent near the place where the CT was held.
    moments = np.sin(np.linspace(0, np.pi, 41)[:-1]) ** 4 * breath_mm / fine.spacing[0]
    reach = int(np.ceil(moments.max())) + 1
    weights = np.zeros(2 * reach + 1, np.float32)
    for moment in moments:
        low = int(moment)
        weights[reach + low] += 1 - (moment - low)
        weights[reach + low + 1] += moment - low
    smeared = ndimage.correlate1d(uptake, weights / weights.sum(), axis=0, mode="nearest")
    sigma = [fwhm_mm / 2.3548 / step for step in fine.spacing]
    blurred = ndimage.gaussian_filter(smeared, sigma, mode="nearest", truncate=3.5)
    first = np.array([fine.reach, 0, 0])
    last = np.array([fine.reach + (fine.slices - 1) * fine.planes, *(n - 1 for n in uptake.shape[1:])])
    sides = (last - first) * fine.spacing
    start = -PET_MM * rng.uniform(0.5, 1.0, 3)  # mm: the lattices of the two scanners do not meet
    shape = [int(np.ceil((side - begin) / PET_MM)) + 2 for side, begin in zip(sides, start, strict=True)]
    at = [
        f + (begin + np.arange(n) * PET_MM) / step
        for f, begin, n, step in zip(first, start, shape, fine.spacing, strict=True)
    ]
    pet = ndimage.map_coordinates(blurred, np.meshgrid(*at, indexing="ij"), order=1, mode="nearest")
    grain = ndimage.gaussian_filter(rng.standard_normal(shape), 0.6)
    pet = pet + grain / grain.std() * (NOISE * pet + 0.05)
    return np.maximum(pet, 0).astype(np.float32), triple(start.tolist())


def write_pet_cts(out: str | Path, n: int, seed: int = 0, progress: Callable[[str], None] | None = None) -> Path:
    """Write n PET-CT phantoms and their case table; a run after an interruption resumes.

    Every second one lies against collapsed lung.

    Returns
    -------
    Path of ``cases.csv``

    Raises
    ------
    InputError
        The folder is in an object store, contains anything else or cannot be written, or there are not n solid lesions.
    """
    say = progress or (lambda line: None)
    if is_uri(out):
        raise InputError(f"{out}: PET-CT phantoms are written to a folder of this machine; give one")
    root, rows = Path(out), []
    for number, case in enumerate(choose_solid(n, seed), start=1):
        collapsed = number % 2 == 0
        known = {"seed": seed, "version": VERSION, "collapsed": collapsed}
        folder = root / case.scan.patient_id / case.nodule_id
        if not folder.exists():
            _write(folder, case, known)
        elif _known(folder) != known:
            raise InputError(f"{folder}: holds another phantom (seed or version); choose another folder or remove it")
        rows.append(_row(folder.relative_to(root), case, collapsed))
        say(f"PET-CT {number} of {n}: {case.nodule_id}")
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    table = root / CASES
    table.write_text(text.getvalue(), encoding="utf-8")
    return table


def _row(folder: Path, case: choice.Case, collapsed: bool) -> dict[str, object]:
    readers = range(1, len(case.annotations) + 1)
    return {
        "case_id": case.nodule_id,
        "patient_id": case.scan.patient_id,
        "image": f"{folder}/ct.nii.gz;{folder}/pet.nii.gz",
        "masks": ";".join(f"{folder}/reader-{number}.nii.gz" for number in readers),
        "malignancy": ";".join(str(mark.ratings["malignancy"]) for mark in case.annotations),
        "membership": f"{folder}/membership.nii.gz",
        "calibrated": f"{folder}/calibrated.nii.gz",
        "collapsed": "yes" if collapsed else "no",
    }


def _write(folder: Path, case: choice.Case, known: dict) -> None:
    """One PET-CT; its folder appears whole or not at all."""
    drawn = pet_ct_of(case, known["seed"], known["collapsed"])
    corner = dicom.corner_mm(choice.MATRIX, choice.MATRIX, case.scan.pixel_spacing)
    window = (float(case.scan.slice_z[case.slices[0]]), *(np.array(case.window) * case.scan.pixel_spacing + corner))
    grid = Grid(triple(drawn.image.shape), triple(case.spacing), triple(float(v) for v in window), np.eye(3))
    at = triple((np.array(window) + drawn.pet_offset).tolist())
    pet_grid = Grid(triple(drawn.pet.shape), (PET_MM,) * 3, at, np.eye(3))
    partial = folder.parent / f".{folder.name}.{uuid.uuid4().hex}"
    try:
        partial.mkdir(parents=True)
        for name, array in zip(FILES, (drawn.image, drawn.pet, drawn.membership, drawn.calibrated), strict=True):
            write_volume(partial / f"{name}.nii.gz", array, pet_grid if name == "pet" else grid)
        for number, mask in enumerate(case.readers, start=1):
            write_volume(partial / f"reader-{number}.nii.gz", np.asarray(mask, np.uint8), grid)
        record = {"known": known, "parameters": drawn.parameters}
        (partial / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        partial.rename(folder)
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror or error}); choose another folder") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _known(folder: Path) -> object:
    try:
        return json.loads((folder / RECORD).read_text(encoding="utf-8")).get("known")
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"{folder}: is no PET-CT phantom ({RECORD} cannot be read)") from error
