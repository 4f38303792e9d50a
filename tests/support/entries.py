"""Entries of the benchmark: mattes written as somebody else's method would write them, and judged without Ray."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from raymat.benchmark.judge import Judged, judge
from raymat.nodule import Nodule
from raymat.release.freeze import ReleaseRequest, release
from raymat.words import file_name
from tests.support import quiet
from tests.support.kinds import nodule_of_kind
from tests.support.nodules import write_dataset


def write_release(folder: Path, count: int, kind: str = "calibrated", **how) -> str:
    """A release of phantoms of ground glass, one per patient; its folder."""
    write_dataset(folder / "dataset", [nodule_of_kind(number, kind, **how) for number in range(count)])
    release(ReleaseRequest(str(folder / "dataset"), str(folder / "release"), "1.0"), say=quiet)
    return str(folder / "release")


def write_matte(path: Path, alpha: np.ndarray, nodule: Nodule, **header: Sequence[float]) -> Path:
    """A matte (z, y, x) on the nodule's grid; ``header`` has another spacing, origin, direction."""
    image = sitk.GetImageFromArray(alpha)
    image.SetSpacing([float(v) for v in header.get("spacing", nodule.spacing)][::-1])
    image.SetOrigin([float(v) for v in header.get("origin", nodule.origin)][::-1])
    direction = np.asarray(header.get("direction", nodule.direction))
    image.SetDirection(direction[::-1, ::-1].ravel().tolist())
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path))
    return path


def write_entry(folder: Path, nodules, matte) -> Path:
    """One file per nodule with what ``matte`` makes of it."""
    for nodule in nodules:
        write_matte(folder / f"{file_name(nodule.nodule_id)}.nii.gz", matte(nodule), nodule)
    return folder


def softened(nodule: Nodule) -> np.ndarray:
    """No released matte, but near the membership one."""
    return np.clip(0.9 * nodule.membership + 0.02, 0, 1).astype(np.float32)


def judge_in_a_loop(job, data, entrant, work, files, say) -> list[Judged]:
    """In place of the engine."""
    return [judge(data.nodules[row["position"]], row["file"] or None, entrant, row["problem"]) for row in work]
