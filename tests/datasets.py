"""Small datasets of drawn nodules, committed without a build, for what comes after one."""

from __future__ import annotations

import json

import numpy as np

from raymat.matting import METHODS
from raymat.nodule import Matte, Nodule, to_table
from raymat.quality.selection import WEIGHTS
from raymat.store import PARAMETERS, Store

SHAPE = (20, 32, 32)


def draw_nodule(number: int, shape=SHAPE, outcome: str = "accepted") -> Nodule:
    """A ball in noisy lung with four readers and eight mattes, each matte a little softer than the one before."""
    rng = np.random.default_rng(number)
    z, y, x = np.indices(shape)
    distance = np.sqrt(sum((g - n / 2 + rng.uniform(-1, 1)) ** 2 for g, n in zip((z, y, x), shape, strict=True)))
    radius = 5.0 + number % 3
    alpha = np.clip(radius - distance, 0, 1).astype(np.float32)
    trimap = np.where(distance < radius - 2, 255, np.where(distance < radius + 2, 128, 0)).astype(np.uint8)
    mattes = [
        Matte(
            method,
            np.where(trimap == 255, 1, np.clip((radius + k / 8 - distance) / (1 + k / 4), 0, 1) * (trimap > 0)).astype(
                np.float32
            ),
            scores={term: float(np.clip(0.95 - k / 20 + rng.uniform(-0.05, 0.05), 0, 1)) for term in WEIGHTS},
            score=0.8 - k / 20,
        )
        for k, method in enumerate(METHODS)
    ]
    chosen = METHODS[0] if outcome == "accepted" else None
    return Nodule(
        f"case-{number:03d}",
        f"patient-{number // 2:03d}",
        "cases",
        image=(-850 + 880 * alpha + rng.normal(0, 20, shape)).astype(np.float32),
        spacing=(0.5, 0.5, 0.5),
        origin=(-100.0, 10.0 + number, 20.0),
        direction=np.eye(3),
        readers=[(distance < radius + step).astype(np.uint8) for step in (-0.8, -0.3, 0.2, 0.7)],
        trimap=trimap,
        candidates=mattes,
        method=chosen,
        outcome=outcome,
        stage=None if chosen else "quality",
        reason=None if chosen else "best score 0.20 (cf) is below the floor 0.33: holes inside",
        metadata={
            "ratings": {"malignancy": [1 + number % 5, 3, 3, 4], "texture": [5, 5, 4, 5]},
            "scanner_spacing": [2.5, 0.7, 0.7],
        },
        notes=["padded with -1000 beyond the edge of the scan: 3 px before the first along x"] if number == 0 else [],
        key=f"{number:024x}{'q' * 8}",
    )


def make_dataset(folder, nodules: list[Nodule]) -> Store:
    """A dataset of these nodules, as a finished build leaves it."""
    store = Store.create(folder)
    for nodule in nodules:
        store.commit(to_table([nodule]))
    note = {"raymat": "0.1.0", "source": "cases drawn", "parameters": {"min_readers": 4, "prepare": {"crop_px": 128}}}
    store.write(PARAMETERS, json.dumps(note).encode())
    store.write_manifest(
        {
            "nodule_id": nodule.nodule_id,
            "patient_id": nodule.patient_id,
            "source": nodule.source,
            "readers": len(nodule.readers),
            "fingerprint": "f",
            "location": "{}",
            "problem": "",
            "key": nodule.key,
        }
        for nodule in nodules
    )
    store.compact_index()
    return store


def an_exclusion(number: int) -> Nodule:
    """A nodule that the rules left out: no arrays, no mattes."""
    name = f"case-{number:03d}"
    return Nodule(
        name, f"patient-{number}", "cases", outcome="excluded", stage="read", reason="2 readers", key=f"{number:032x}"
    )
