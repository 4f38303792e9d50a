"""Made what lies here, with the raymat of format 1 (see README.md): ``python make.py`` in an empty folder."""

import os
import sys
from functools import partial
from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter

from raymat import pictures
from raymat.cli import main
from raymat.release.freeze import ReleaseRequest, release
from raymat.review.decisions import Decision, Decisions, mattes_of
from raymat.store import Store
from raymat.volume import Grid, write_volume

GRID = Grid((9, 16, 16), (1.0, 1.0, 1.0), (-50.0, 10.0, 20.0), np.eye(3))
CHANGED_NS = 1_700_000_000 * 10**9  # the files' time of change, part of what a nodule's key is made of


def write_cases(folder: Path) -> None:
    """Four cases of two readers, the third without a lesion to be seen, and a fifth of one reader."""
    folder.mkdir()
    lines = ["case_id,patient_id,image,masks,malignancy"]
    z, y, x = np.indices(GRID.shape)
    for number in range(5):
        distance = np.sqrt((z - 4) ** 2 + (y - 7.5) ** 2 + (x - 7.5 - number / 4) ** 2)
        alpha = np.clip(5.0 - distance, 0, 1) * (number != 2)
        noise = gaussian_filter(np.random.default_rng(number).normal(0, 60, GRID.shape), 1)
        image = -850 + 880 * alpha + noise
        write_volume(folder / f"{number}.nii.gz", np.rint(image).astype(np.int16), GRID)
        readers = [f"{number}.r{reader}.nii.gz" for reader in range(1 if number == 4 else 2)]
        for name, radius in zip(readers, (4.1, 5.1), strict=False):
            write_volume(folder / name, (distance < radius).astype(np.uint8), GRID)
        lines.append(f"case{number},patient{number // 2},{number}.nii.gz,{';'.join(readers)},{number + 1};3")
    (folder / "cases.csv").write_text("\n".join(lines) + "\n")
    for path in folder.iterdir():
        os.utime(path, ns=(CHANGED_NS, CHANGED_NS))


def decide(store: Store, nodule_id: str, action: str, method: str | None, at: int) -> None:
    """A decision as the review page sends it."""
    rows = {row["nodule_id"]: row for row in store.outcomes(["nodule_id", "key"]).to_pylist()}
    mattes = mattes_of(rows[nodule_id]["key"])
    Decisions(store).record(Decision(f"decision-{at}", nodule_id, mattes, "Ada", action, method, at))


write_cases(Path("cases"))
build = ["build", "--cases", "cases/cases.csv", "-o", "dataset", "--methods", "knn+,cf", "--min-readers", "2"]
build += ["--crop-px", "13", "--pad-slices", "2", "--spacing-mm", "1", "--workers", "1", "--no-tracking"]
status = main(build)
if status:
    sys.exit(status)
dataset = Store.open("dataset")
dataset.delete("contact_sheet.png")  # as large as all the rest
decide(dataset, "case0", "choose", "knn+", 1)
decide(dataset, "case1", "reject", None, 2)
pictures.png_bytes = partial(pictures.png_bytes, dpi=12)  # nobody looks at them
release(ReleaseRequest("dataset", "release", "1.0"))
