"""Small tables of cases, and what a build of them gives."""

from __future__ import annotations

import csv
import random
import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np

import raymat
from raymat.channels import ChannelRange
from raymat.nodule import Nodule
from raymat.prepare import PrepareParameters
from raymat.quality import QualityParameters
from raymat.sources.cases import CasesSource
from raymat.steps import BuildParameters, read_and_prepare, score, solve
from raymat.volume import Grid, read_volume, write_volume
from tests.support.nodules import distances

GRID = Grid((14, 28, 28), (1.0, 1.0, 1.0), (-50.0, 10.0, 20.0), np.eye(3))
PARAMETERS = BuildParameters(
    min_readers=2, prepare=PrepareParameters(crop_px=24, spacing_mm=1.0), quality=QualityParameters(floor=0.0)
)
# The same on the command line.
OPTIONS = ("--min-readers", "2", "--crop-px", "24", "--spacing-mm", "1", "--floor", "0")

# Of real crops, after those.
REAL_PARAMETERS = BuildParameters(quality=QualityParameters(floor=0.0))
REAL_OPTIONS = ("--min-readers", "4", "--crop-px", "128", "--spacing-mm", "0.5")


def write_cases(folder: Path, count: int) -> str:
    """A table of small nodules with two readers each; its path."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["case_id,patient_id,image,masks,malignancy"]
    for i in range(count):
        distance = distances(GRID.shape, (7, 14, 14 + i % 3))
        noise = np.random.default_rng(i).normal(0, 20, GRID.shape)
        image = -850 + 880 * np.clip(5.5 - distance, 0, 1) + noise
        write_volume(folder / f"{i}.nii.gz", image.astype(np.float32), GRID)
        for reader, radius in enumerate((4.6, 5.6)):
            write_volume(folder / f"{i}.r{reader}.nii.gz", (distance < radius).astype(np.uint8), GRID)
        lines.append(f"case{i},p{i // 2},{i}.nii.gz,{i}.r0.nii.gz;{i}.r1.nii.gz,{1 + i % 5}")
    (folder / "cases.csv").write_text("\n".join(lines) + "\n")
    return str(folder / "cases.csv")


def real_cases(data: Path, folder: Path, count: int, dice: random.Random) -> str:
    """A table of real crops with four readers, and their files; its path. ``data`` has lidc-voi."""
    lines = (data / "lidc-voi" / "cases.csv").read_text().splitlines()
    wanted = [row for row in csv.DictReader(lines) if row["masks"].count(";") == 3]
    rows = dice.sample(wanted, count)
    for row in rows:
        for name in (row["image"], *row["masks"].split(";")):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(data / "lidc-voi" / name, folder / name)
    with open(folder / "cases.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    return str(folder / "cases.csv")


def first_cases(table: str, count: int) -> str:
    """A table beside this one of its first cases; its path."""
    path = Path(table)
    fewer = path.with_name(f"first-{count}.csv")
    fewer.write_text("".join(path.read_text().splitlines(keepends=True)[: count + 1]))
    return str(fewer)


def arrays(dataset) -> dict[tuple[str, str], bytes]:
    """Every array of every nodule of a dataset, by id and name, as bytes."""
    return arrays_of(raymat.load(dataset, outcomes=("accepted", "rejected")))


def arrays_of(nodules: Iterable[Nodule]) -> dict[tuple[str, str], bytes]:
    """Every array of every nodule, by id and name, as bytes."""
    found = {}
    for nodule in nodules:
        named = {"image": nodule.image, "trimap": nodule.trimap, **nodule.mattes}
        named |= {f"reader{i}": mask for i, mask in enumerate(nodule.readers)}
        found |= {(nodule.nodule_id, name): array.tobytes() for name, array in named.items()}
    return found


def arrays_without_ray(table: str, parameters: BuildParameters = PARAMETERS) -> dict[tuple[str, str], bytes]:
    """The arrays of a dataset built from a table of cases in a plain loop."""
    source = CasesSource(table)
    prepared = (read_and_prepare(source, ref, parameters) for ref in source.plan())
    return arrays_of(score(solve(nodule, parameters), parameters) for nodule in prepared)


def of_first(count: int, arrays: dict[tuple[str, str], bytes]) -> dict[tuple[str, str], bytes]:
    """Those of the arrays that belong to the first cases."""
    return {key: data for key, data in arrays.items() if int(key[0].removeprefix("case")) < count}


PET_GRID = Grid((8, 12, 12), (4.0, 4.0, 4.0), (-58.0, 0.0, 10.0), np.eye(3))
CHANNELS = (ChannelRange("CT", -1000, 400), ChannelRange("PET", 0, 12))
PET_PARAMETERS = replace(PARAMETERS, prepare=replace(PARAMETERS.prepare, channels=CHANNELS))
PET_OPTIONS = (*OPTIONS, "--channels", "CT,PET", "--intensity-range", "-1000", "400", "--intensity-range", "0", "12")


def write_pet_cases(folder: Path, count: int, wall: bool = False) -> str:
    """The table of ``write_cases`` with a PET of 4 mm beside each CT, in which the nodule is hot; its path.

    With ``wall`` soft tissue that is not hot lies beside the nodules, from which CT cannot tell them.
    """
    table = Path(write_cases(folder, count))
    for i in range(count):
        at = PET_GRID.to_patient(np.moveaxis(np.indices(PET_GRID.shape), 0, -1))
        distance = np.linalg.norm(at - GRID.to_patient((7, 14, 14 + i % 3)), axis=-1)
        uptake = 0.5 + 9.5 / (1 + np.exp((distance - 5) / 1.5))
        write_volume(folder / f"{i}.pet.nii.gz", uptake.astype(np.float32), PET_GRID)
        if wall:
            image, grid = read_volume(folder / f"{i}.nii.gz")
            image[:, :, 17 + i % 3 :] = 30
            write_volume(folder / f"{i}.nii.gz", image, grid)
    text = table.read_text()
    for i in range(count):
        text = text.replace(f",{i}.nii.gz,", f",{i}.nii.gz;{i}.pet.nii.gz,")
    table.write_text(text)
    return str(table)
