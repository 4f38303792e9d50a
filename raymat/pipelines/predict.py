"""3DMM for users, on Ray Data: a centre in a scan in; alpha, masks and the ensemble's spread out.

Each target (one centre) has one outcome. What was predicted is a raymat dataset: `raymat.load(OUT)` gives the mattes
beside the image, and OUT/volumes holds them as NIfTI or NRRD, placed in the patient.
"""

from __future__ import annotations

import csv
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import ray.data
from ray.data import ActorPoolStrategy

from raymat.engine.cluster import connected, data_settings, refuse_too_many
from raymat.lock import held
from raymat.network.inference import Ensemble, Predicted
from raymat.network.training import read_checkpoint
from raymat.nodule import ACCEPTED, FAILED, OUTCOMES, InputError, Matte, Nodule, to_table
from raymat.prepare import FIELD_OF_VIEW_FLOOR, Crop
from raymat.sources import digest
from raymat.sources.dicom import index_tree, read_slab, slab_grid
from raymat.store import OUTCOME, Store
from raymat.volume import Grid, read_volume, write_volume
from raymat.words import counted

METHOD = "3dmm"
FORMATS = ("nii.gz", "nrrd")
CENTRES = ("coordX", "coordY", "coordZ")


@dataclass(frozen=True)
class Target:
    """A place in a scan.

    Attributes
    ----------
    target_id, patient_id : str
    image : path of a volume, or of a DICOM tree where ``series`` is given
    series : SeriesInstanceUID, or ""
    centre : (z, y, x) mm, patient coordinates (LPS)
    """

    target_id: str
    patient_id: str
    image: str
    series: str
    centre: tuple[float, float, float]


@dataclass(frozen=True)
class PredictJob:
    """What to predict, with what, where to.

    Attributes
    ----------
    targets : see ``targets_of_table``, ``targets_of_centres``
    weights : paths of the networks that predict together
    out : folder or URI of the dataset of predictions
    size_mm : side of the box around each centre; the network's input where None
    flips : also predict mirror images
    volumes : "nii.gz" or "nrrd"; None for the dataset alone
    workers : processes that predict, one GPU each where ``gpu``
    address : the Ray cluster; None for the one this job runs on, else a local one
    """

    targets: Sequence[Target]
    weights: tuple[str, ...]
    out: str
    size_mm: float | None = None
    flips: bool = False
    volumes: str | None = "nii.gz"
    workers: int = 1
    gpu: bool = False
    address: str | None = None


def targets_of_table(path: str) -> list[Target]:
    """Targets of a CSV table with the columns ``case_id, image, coordX, coordY, coordZ`` (and ``patient_id``).

    Images are paths relative to the table; coordinates are mm in the patient (LPS), as in LUNA16.
    """
    folder = Path(path).absolute().parent
    rows = _rows(path, ("case_id", "image", *CENTRES))
    return [
        Target(row["case_id"], row.get("patient_id") or row["case_id"], str(folder / row["image"]), "", centre)
        for row, centre in rows
    ]


def targets_of_centres(tree: str, path: str) -> list[Target]:
    """Targets of a DICOM tree and a table of centres as LUNA16 has it: ``seriesuid, coordX, coordY, coordZ``."""
    seen: Counter[str] = Counter()
    targets = []
    for row, centre in _rows(path, ("seriesuid", *CENTRES)):
        seen[row["seriesuid"]] += 1
        name = f"{row['seriesuid']}-{seen[row['seriesuid']]}"
        targets.append(Target(name, row["seriesuid"], tree, row["seriesuid"], centre))
    return targets


def _rows(path: str, needed: Sequence[str]) -> Iterator[tuple[dict, tuple[float, float, float]]]:
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            table = csv.DictReader(file)
            missing = [name for name in needed if name not in (table.fieldnames or ())]
            if missing:
                raise InputError(f"{path}: no column {', '.join(missing)}; it needs {', '.join(needed)}")
            rows = list(table)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read as CSV ({error})") from error
    if not rows:
        raise InputError(f"{path}: has no rows: nothing to predict")
    for number, row in enumerate(rows, start=2):
        try:
            x, y, z = (float(row[name]) for name in CENTRES)
        except (TypeError, ValueError):
            x = y = z = float("nan")
        if not np.isfinite((x, y, z)).all():
            raise InputError(f"{path}: line {number}: {', '.join(CENTRES)} must be three numbers, mm")
        if not all(row[name] for name in needed):
            raise InputError(f"{path}: line {number}: {', '.join(needed)} must all be given")
        yield row, (z, y, x)


def predict(job: PredictJob, say: Callable[[str], None] = print) -> Counter[str]:
    """Predict every target that is not in the output already.

    Returns
    -------
    Counter
        Targets by outcome.

    Raises
    ------
    InputError
        Weights are missing or damaged, two targets have one name, or the output cannot be written.
    """
    if job.volumes not in (None, *FORMATS):
        raise InputError(f"volumes are written as {' or '.join(FORMATS)}, not {job.volumes!r}")
    names = Counter(target.target_id for target in job.targets)
    twice = [name for name, count in names.items() if count > 1]
    if twice:
        raise InputError(f"{twice[0]}: named {names[twice[0]]} times; every target needs an id of its own")
    for path in job.weights:
        read_checkpoint(path)
    weights = [Path(path).read_bytes() for path in job.weights]
    made_by = digest(*(digest(data.hex()) for data in weights), job.size_mm, job.flips)
    store = Store.create(job.out)
    with held(store):
        return _predict(job, weights, made_by, store, say)


def _predict(
    job: PredictJob, weights: list[bytes], made_by: str, store: Store, say: Callable[[str], None]
) -> Counter[str]:
    keys = {target: digest(repr(target), _state(target), made_by) for target in job.targets}
    store.write_manifest(_manifest_row(target, key) for target, key in keys.items())
    done = {row["key"] for row in store.index().select(["key", "outcome"]).to_pylist() if row["outcome"] != FAILED}
    todo = [target for target, key in keys.items() if key not in done]
    say(f"{counted(len(keys), 'target')}, {len(keys) - len(todo)} predicted already, {len(todo)} to do")
    if todo:
        series = {target.series for target in todo if target.series}
        slices = {}
        if series:
            tree = index_tree(todo[0].image, series)
            slices = {uid: found.slices for uid, found in tree.series.items()}
        work = [{**vars(target), "key": keys[target]} for target in todo]
        with connected(job.address):
            refuse_too_many(job.workers, job.gpu)
            rows = pa.concat_tables([part.cast(OUTCOME) for part in _stream(store, work, slices, weights, job)])
        store.add_to_index(rows)
    store.compact_index()
    store.remove_superseded()
    outcomes = store.outcomes().select(["nodule_id", "outcome", "reason"]).to_pylist()
    counts = Counter(row["outcome"] for row in outcomes)
    for row in outcomes:
        if row["outcome"] == FAILED:
            say(f"failed {row['nodule_id']}: {row['reason']}")
    say(", ".join(f"{counts[name]} {name}" for name in OUTCOMES if counts[name]))
    say(f"predictions  {job.out}" + (f"   ({job.out}/volumes/*.{job.volumes})" if job.volumes else ""))
    return counts


def _state(target: Target) -> str:
    """What tells an image from a later one of the same path."""
    path = Path(target.image)
    if target.series or not path.is_file():
        return ""
    stat = path.stat()
    return f"{stat.st_size} {stat.st_mtime_ns}"


def _manifest_row(target: Target, key: str) -> dict:
    row = {"nodule_id": target.target_id, "patient_id": target.patient_id, "source": METHOD, "readers": -1}
    return row | {"fingerprint": key, "location": target.image, "problem": "", "key": key}


def _stream(store: Store, work: list[dict], slices: dict, weights: list[bytes], job: PredictJob) -> Iterator[pa.Table]:
    with data_settings():
        rows = [{"target": row} for row in work]
        predicted = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
            Predictor,
            fn_constructor_kwargs={"store": store, "slices": slices, "weights": weights, "job": job},
            batch_size=1,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(size=job.workers),
            num_cpus=0.9,
            num_gpus=1 if job.gpu else None,
        )
    yield from predicted.iter_batches(batch_size=None, batch_format="pyarrow")


class Predictor:
    """An actor that holds the networks and predicts one target at a time."""

    def __init__(self, store: Store, slices: dict, weights: list[bytes], job: PredictJob) -> None:
        self.store, self.slices, self.job = store, slices, job
        with tempfile.TemporaryDirectory() as folder:
            paths = [Path(folder) / f"{number}.pt" for number in range(len(weights))]
            for path, data in zip(paths, weights, strict=True):
                path.write_bytes(data)
            self.ensemble = Ensemble([str(path) for path in paths], "cuda" if job.gpu else "cpu")

    def __call__(self, table: pa.Table) -> pa.Table:
        row = table.to_pylist()[0]["target"]
        key = row.pop("key")
        target = Target(**{**row, "centre": tuple(row["centre"])})
        nodule = Nodule(target.target_id, target.patient_id, METHOD, key=key, outcome=ACCEPTED, method=METHOD)
        try:
            image, scanner = read_around(target, self.slices.get(target.series, ()), self._sides_mm())
            image, grid = around(target, image, scanner, self._sides_mm(), self.ensemble.recipe.model.spacing_mm)
            found = self.ensemble.predict(image, self.job.flips)
            nodule = with_prediction(nodule, target, image, grid, found)
            # What an export to DICOM needs to find its way back.
            nodule.metadata |= {"series_uid": target.series, "scanner_spacing": list(scanner.spacing)}
            nodule.metadata["slice_spacing"] = scanner.spacing[0]
            if self.job.volumes:
                self._write(nodule, grid)
        except InputError as error:
            nodule.outcome, nodule.stage, nodule.reason, nodule.method = FAILED, "predict", str(error), None
        return self.store.commit(to_table([nodule]))

    def _sides_mm(self) -> tuple[float, ...]:
        spacing = self.ensemble.recipe.model.spacing_mm
        return tuple(max(side * spacing, self.job.size_mm or 0.0) for side in self.ensemble.window)

    def _write(self, nodule: Nodule, grid: Grid) -> None:
        with tempfile.TemporaryDirectory() as folder:
            for matte in nodule.candidates:
                path = Path(folder) / f"{nodule.nodule_id.replace('/', '_')}.{matte.method}.{self.job.volumes}"
                write_volume(path, matte.alpha, grid)
                self.store.write(f"volumes/{path.name}", path.read_bytes())


def read_around(target: Target, slices: Sequence, sides_mm: Sequence[float]) -> tuple[np.ndarray, Grid]:
    """The target's scan, HU (z, y, x): the whole volume, or of a DICOM series the slices near the centre.

    Raises
    ------
    InputError
        The image or the series is missing or damaged.
    """
    if not target.series:
        return read_volume(target.image)
    if not slices:
        raise InputError(f"{target.image}: holds no images of series {target.series}")
    whole = slab_grid(slices)
    reach = sides_mm[0] / 2 + 2 * whole.spacing[0]
    near = [item for item in slices if abs(item.z - target.centre[0]) <= reach]
    if not near:
        refuse_outside(target, whole)
    return read_slab(target.image, near, whole.spacing[0])


def refuse_outside(target: Target, grid: Grid) -> None:
    """Raise InputError where the target's centre is not in the scan."""
    step = np.asarray(grid.direction) * np.asarray(grid.spacing)
    index = np.linalg.solve(step, np.asarray(target.centre) - np.asarray(grid.origin))
    if ((index < -0.5) | (index > np.array(grid.shape) - 0.5)).any():
        corners = grid.to_patient([(0, 0, 0), np.array(grid.shape) - 1])
        low, high = corners.min(axis=0)[::-1].round(1).tolist(), corners.max(axis=0)[::-1].round(1).tolist()
        raise InputError(
            f"{target.target_id}: the centre {tuple(target.centre[::-1])} (x, y, z; mm, LPS) lies outside the scan, "
            f"which runs from {low} to {high}; viewers that show RAS have x and y with the other sign"
        )


def around(
    target: Target, image: np.ndarray, grid: Grid, sides_mm: Sequence[float], spacing_mm: float
) -> tuple[np.ndarray, Grid]:
    """The box of ``sides_mm`` (z, y, x) around the target's centre, resampled to ``spacing_mm``; air beyond the scan.

    Raises
    ------
    InputError
        The centre lies outside the scan.
    """
    refuse_outside(target, grid)
    step = np.asarray(grid.direction) * np.asarray(grid.spacing)
    index = np.linalg.solve(step, np.asarray(target.centre) - np.asarray(grid.origin))
    half = np.asarray(sides_mm) / 2 / np.asarray(grid.spacing) + 1
    start, stop = np.floor(index - half).astype(int), np.ceil(index + half).astype(int) + 1
    crop = Crop(grid, start, stop, spacing_mm)
    values = crop.resample(np.maximum(crop.cut(image), np.float32(FIELD_OF_VIEW_FLOOR)), fill=-1000.0)
    step = np.asarray(crop.grid.direction) * spacing_mm
    middle = np.linalg.solve(step, np.asarray(target.centre) - np.asarray(crop.grid.origin))
    sides = [round(side / spacing_mm) for side in sides_mm]
    first = [
        int(np.clip(round(at - (side - 1) / 2), 0, n - side))
        for at, side, n in zip(middle, sides, values.shape, strict=True)
    ]
    box = tuple(slice(f, f + side) for f, side in zip(first, sides, strict=True))
    return np.ascontiguousarray(values[box]), crop.grid.crop(first, sides)


def with_prediction(nodule: Nodule, target: Target, image: np.ndarray, grid: Grid, found: Predicted) -> Nodule:
    """The nodule with the image, and the matte, masks and spread as its candidates."""
    nodule.image, nodule.spacing, nodule.origin = image, grid.spacing, grid.origin
    nodule.direction = np.asarray(grid.direction)
    nodule.candidates = [
        Matte(METHOD, found.alpha),
        Matte(f"{METHOD}-union", found.union),
        Matte(f"{METHOD}-overlap", found.overlap),
        Matte(f"{METHOD}-spread", found.spread),
    ]
    nodule.metadata = {"centre": list(target.centre), "image": target.image}
    return nodule
