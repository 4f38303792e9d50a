"""Nodules drawn in memory, and datasets of them as a finished build leaves them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np
from scipy.ndimage import gaussian_filter

from raymat.matting import METHODS
from raymat.methods import SolveInfo
from raymat.nodule import Matte, Nodule, from_table, to_table
from raymat.quality.selection import WEIGHTS
from raymat.review.decisions import mattes_of
from raymat.sources import NoduleRef
from raymat.store import PARAMETERS, Store, outcome_row


def distances(shape: Sequence[int], centre: Sequence[float] | None = None, spacing=1.0) -> np.ndarray:
    """Distance of every voxel from a voxel position (the middle where none is given), in the units of ``spacing``."""
    centre = (np.array(shape) - 1) / 2 if centre is None else centre
    axes = [(np.arange(n) - c) * s for n, c, s in zip(shape, centre, np.broadcast_to(spacing, len(shape)), strict=True)]
    return np.sqrt(sum(np.square(axis) for axis in np.meshgrid(*axes, indexing="ij", sparse=True)))


def draw_nodule(
    number: int,
    shape: tuple[int, int, int] = (20, 32, 32),
    outcome: str = "accepted",
    *,
    spacing: float = 0.5,
    edge: float = 1.0,
    readers: Sequence[float] = (-0.8, -0.3, 0.2, 0.7),
    methods: Sequence[str] = METHODS,
    per_patient: int = 2,
    known: bool = False,
) -> Nodule:
    """A ball in noisy lung, each of its mattes a little softer than the one before.

    Parameters
    ----------
    edge : width of the ball's border, voxels
    readers : how far outside the ball's surface each reader draws, voxels
    methods : one matte each; the first is the chosen one
    per_patient : nodules of one patient
    known : the first matte is also the true alpha
    """
    rng = np.random.default_rng(number)
    distance = distances(shape, [n / 2 - rng.uniform(-1, 1) for n in shape])
    radius = min(shape) / 4 + edge - 1 + number % 3
    alpha = np.clip((radius - distance) / edge, 0, 1).astype(np.float32)
    trimap = np.where(distance < radius - edge - 1, 255, np.where(distance < radius + 2, 128, 0)).astype(np.uint8)
    softer = [np.clip((radius + k / 8 - distance) / (edge + k / 4), 0, 1) * (trimap > 0) for k in range(len(methods))]
    mattes = [
        Matte(
            method,
            np.where(trimap == 255, 1, matte).astype(np.float32),
            scores={term: float(np.clip(0.95 - k / 20 + rng.uniform(-0.05, 0.05), 0, 1)) for term in WEIGHTS},
            score=0.8 - k / 20,
        )
        for k, (method, matte) in enumerate(zip(methods, softer, strict=True))
    ]
    chosen = methods[0] if outcome == "accepted" else None
    return Nodule(
        f"case-{number:03d}",
        f"patient-{number // per_patient:03d}",
        "phantoms" if known else "cases",
        image=(-850 + 880 * alpha + rng.normal(0, 20, shape)).astype(np.float32),
        spacing=(spacing,) * 3,
        origin=(-100.0, 10.0 + number, 20.0),
        direction=np.eye(3),
        readers=[(distance < radius + (1 - edge) / 2 + step).astype(np.uint8) for step in readers],
        trimap=trimap,
        true_membership=mattes[0].alpha if known else None,
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


def small_nodule(number: int, shape: tuple[int, int, int] = (16, 24, 24), spacing: float = 0.5) -> Nodule:
    """A nodule to train a small network on: its alpha is known, it has a soft edge, two readers and two mattes."""
    return draw_nodule(
        number,
        shape,
        spacing=spacing,
        edge=3.0,
        readers=(-0.8, 0.9),
        methods=("cf+", "knn+"),
        per_patient=1,
        known=True,
    )


def predicted_nodule(number: int) -> Nodule:
    """A nodule as `raymat predict` commits it: no readers, no trimap, mattes without scores."""
    drawn = draw_nodule(number)
    alpha = drawn.candidates[0].alpha
    candidates = [Matte(f"3dmm{name}", alpha) for name in ("", "-union", "-overlap", "-spread")]
    return replace(drawn, source="3dmm", readers=[], trimap=None, candidates=candidates, method="3dmm")


def random_nodule(name: str = "a", outcome: str | None = "accepted", key: str | None = None, **more) -> Nodule:
    """A record of a few voxels with a value in every field."""
    rng, shape = np.random.default_rng(len(name)), (3, 4, 5)
    return Nodule(
        name,
        f"patient-{name}",
        "cases",
        image=rng.normal(size=shape).astype(np.float32),
        spacing=(2.5, 0.7, 0.7),
        origin=(-100.0, 10.0, 20.0),
        direction=np.diag([1.0, -1.0, -1.0]),
        readers=[np.ones(shape, np.uint8)] * 2,
        trimap=np.full(shape, 128, np.uint8),
        candidates=[Matte("cf+", rng.random(shape).astype(np.float32), SolveInfo(7, 1e-6), {"agreement": 0.5}, 0.7)],
        method="cf+",
        metadata={"malignancy": [1, 2]},
        notes=["padded"],
        outcome=outcome,
        key=key or f"key-{name}",
        **more,
    )


def failed_nodule(name: str = "a", reason: str = "broken", key: str | None = None) -> Nodule:
    """A nodule that could not be read."""
    return Nodule(name, "p", "cases", outcome="failed", stage="read", reason=reason, key=key or f"key-{name}")


def shown(nodule: Nodule) -> str:
    """What a decision keeps of this nodule's mattes once it is committed."""
    return mattes_of(outcome_row(from_table(to_table([nodule]))[0]))


def excluded_nodule(number: int) -> Nodule:
    """A nodule that the rules left out: no arrays, no mattes."""
    name, key = f"case-{number:03d}", f"{number:032x}"
    return Nodule(name, f"patient-{number}", "cases", outcome="excluded", stage="read", reason="2 readers", key=key)


def manifest_row(nodule_id: str, patient_id: str = "p", source: str = "cases", readers: int = 4, key="") -> dict:
    """The row of a nodule in a dataset's manifest."""
    row = {"nodule_id": nodule_id, "patient_id": patient_id, "source": source, "readers": readers, "fingerprint": "f"}
    return row | {"location": "{}", "problem": "", "key": key or f"key-{nodule_id}"}


def write_dataset(folder, nodules: Iterable[Nodule]) -> Store:
    """A dataset of these nodules, as a finished build leaves it."""
    store, rows = Store.create(folder), []
    for nodule in nodules:
        store.commit(to_table([nodule]))
        rows.append(manifest_row(nodule.nodule_id, nodule.patient_id, nodule.source, len(nodule.readers), nodule.key))
    note = {"raymat": "0.1.0", "source": "cases drawn", "parameters": {"min_readers": 4, "prepare": {"crop_px": 128}}}
    store.write(PARAMETERS, json.dumps(note).encode())
    store.write_manifest(rows)
    store.compact_index()
    return store


def rated_nodules(count: int, rate=lambda n: "5;4" if n % 2 else "1;2", patient=lambda n: n // 2) -> list[Nodule]:
    """Nodules with ratings of malignancy: of each patient a benign and a malignant one."""
    return [
        replace(draw_nodule(n), patient_id=f"patient-{patient(n):03d}", metadata={"malignancy": rate(n)})
        for n in range(count)
    ]


def write_small_nodules(folder, count: int, **changes) -> str:
    """A dataset of small nodules, one per patient; its folder."""
    write_dataset(folder, [small_nodule(number, **changes) for number in range(count)])
    return str(folder)


class DrawnSource:
    """A source of drawn nodules, without what a build adds to them."""

    remote = False

    def __init__(self, nodules: Iterable[Nodule]) -> None:
        self.nodules = {nodule.nodule_id: nodule for nodule in nodules}

    def plan(self) -> Iterator[NoduleRef]:
        for name, nodule in self.nodules.items():
            yield NoduleRef(name, nodule.patient_id, "cases", len(nodule.readers), "f", "{}")

    def read(self, ref: NoduleRef) -> Nodule:
        whole = self.nodules[ref.nodule_id]
        return Nodule(
            whole.nodule_id,
            whole.patient_id,
            "cases",
            image=whole.image,
            spacing=whole.spacing,
            origin=whole.origin,
            direction=whole.direction,
            readers=list(whole.readers),
        )


def bumpy_ball(
    seed: int = 0, shape: Sequence[int] = (12, 12, 12), noise: float = 30.0
) -> tuple[np.ndarray, np.ndarray]:
    """Image in HU and trimap of a bumpy ball in lung with a blurred border, in any number of dimensions."""
    rng = np.random.default_rng(seed)
    radius = min(shape) / 2
    r = distances(shape) + 4 * gaussian_filter(rng.normal(size=shape), 1.5)
    alpha = np.clip((0.55 * radius - r) / 3 + 0.5, 0, 1)
    image = -850 + 890 * alpha + noise * rng.normal(size=shape)
    trimap = np.full(shape, 128, dtype=np.uint8)
    trimap[r < 0.35 * radius] = 255
    trimap[r > 0.85 * radius] = 0
    return image, trimap
