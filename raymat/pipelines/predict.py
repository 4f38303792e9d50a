"""3DMM for users: places of lesions in scans in; alpha, masks and the ensemble's spread out.

Each target (one place in a scan) has one outcome. What was predicted is a raymat dataset: `raymat.load(OUT)` gives the
mattes beside the image. ``raymat.pipelines.predict_files`` writes what lies beside it.

OUT/volumes/ID.METHOD.nii.gz    each matte on the grid of the network, placed in the patient
OUT/measures.csv                one row per predicted target, with ID.csv-metadata.json; also as measures.parquet
OUT/sheets/SCAN.png             all targets of a scan
OUT/segmentations/UID.seg.dcm   of a DICOM series: one segment per target
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from raymat.engine.here import is_here, outcomes_of, workplace
from raymat.engine.job import Job, new_session, part_of
from raymat.engine.sharing import shared
from raymat.engine.stages import READ, Pool, Stage, Work
from raymat.engine.tries import Marks
from raymat.experiment import PREDICT, Experiment, Facts, Output, experiment
from raymat.guard import guarded
from raymat.matting.warm_up import are_compiled, compile_kernels
from raymat.methods import CALIBRATED, MEMBERSHIP, SOLVERS, alpha_in_words, kind_of, solver_of
from raymat.network.inference import Ensemble, Predicted, shared_recipe
from raymat.network.lesion import CUT, is_cut, of_target
from raymat.network.recipe import Recipe
from raymat.network.refinement import AUTO, NONE, refined, solver_for
from raymat.network.refinement import SPACING_MM as REFINED_MM
from raymat.network.samples import images_of
from raymat.network.surroundings import around, read_around, read_channels, scans_of
from raymat.network.targets import Target
from raymat.network.training import read_checkpoint
from raymat.nodule import ACCEPTED, FAILED, IMAGE_CHANNEL, OUTCOMES, InputError, Matte, Nodule, required
from raymat.pipelines.predict_files import Beside, write_beside
from raymat.prepare import doubt_of_hu
from raymat.sources import digest
from raymat.sources.series import Scan
from raymat.store import OUTCOME, Store
from raymat.volume import Grid, nodule_grid, write_volume
from raymat.words import counted, file_name, utf8

METHOD = "3dmm"
FORMATS = ("nii.gz", "nrrd")


@dataclass(frozen=True)
class PredictJob:
    """What to predict, with what, where to.

    Attributes
    ----------
    targets : see ``raymat.network.targets`` and ``raymat.network.images``
    weights : paths of the networks that predict together
    output : where the dataset of predictions is written and logged
    scans : of the targets' series, by UID; found where None
    size_mm : least side of the box around each centre; the network's input where None. A larger lesion widens it
    flips : also predict mirror images
    refine : the solver that refines the network's matte, "auto" or "none", see ``raymat.network.refinement``
    volumes : "nii.gz" or "nrrd"; None for the dataset and its measures alone
    workers : processes that predict, one GPU each where ``gpu``
    address : the Ray cluster; None for the one this job runs on, else a local one
    """

    targets: Sequence[Target]
    weights: tuple[str, ...]
    output: Output
    scans: Mapping[str, Scan] | None = None
    size_mm: float | None = None
    flips: bool = False
    refine: str = AUTO
    volumes: str | None = "nii.gz"
    workers: int = 1
    gpu: bool = False
    address: str | None = None


def predict(job: PredictJob, say: Callable[[str], None] = print) -> Counter[str]:
    """Predict every target that is not in the output already.

    Returns
    -------
    Counter
        Targets by outcome.

    Raises
    ------
    InputError
        Weights are missing or damaged or of networks that cannot predict together, two targets have one name, or the
        output cannot be written.
    """
    if job.volumes not in (None, *FORMATS):
        raise InputError(f"volumes are written as {' or '.join(FORMATS)}, not {job.volumes!r}")
    # Names of files may hold bytes that are no UTF-8.
    named = [replace(t, target_id=utf8(t.target_id), patient_id=utf8(t.patient_id)) for t in job.targets]
    job = replace(job, targets=named)
    names = Counter(target.target_id for target in job.targets)
    twice = [name for name, count in names.items() if count > 1]
    if twice:
        raise InputError(f"{twice[0]}: named {names[twice[0]]} times; every target needs an id of its own")
    kind = shared_recipe({path: Recipe.from_dict(read_checkpoint(path)["recipe"]) for path in job.weights}).kind
    weights = [Path(path).read_bytes() for path in job.weights]
    solver = solver_for(job.refine, kind)
    job = replace(job, refine=solver or NONE)
    how = [job.size_mm, job.flips, *([solver, SOLVERS[solver_of(solver)].identity] if solver else [])]
    made_by = digest(*(digest(data.hex()) for data in weights), *how)
    scans = scans_of(job.targets) if job.scans is None else job.scans
    keys = {target: digest(*_identity(target), _state(target, scans), made_by) for target in job.targets}
    work = digest(*keys.values())
    parameters = {"weights": " ".join(job.weights), "size_mm": job.size_mm, "flips": job.flips, "targets": len(keys)}
    parameters |= {"kind": kind, "refine": job.refine}
    store = Store.create(job.output.path)
    with experiment(PREDICT, job.output, Facts(parameters, {"of": work}), say, store) as output:
        by = f"3DMM and refined by {solver}" if solver else "3DMM"
        output.describe(f"Mattes of lesions at given places, {alpha_in_words(kind)} predicted by {by}.")
        output.input(job.targets[0].image, work, kind)
        store.write_manifest(_manifest_row(target, key) for target, key in keys.items())
        done = {row["key"] for row in store.index(["key", "outcome"]).to_pylist() if row["outcome"] != FAILED}
        todo = {target: key for target, key in keys.items() if key not in done}
        say(f"{counted(len(keys), 'target')}, {len(keys) - len(todo)} predicted already, {len(todo)} to do")
        # One cluster for all steps, and none where there is nothing to do.
        with workplace(job.workers, job.address) if todo else contextlib.nullcontext():
            if todo:
                if solver and not are_compiled():
                    say("compiling the solvers' loops first, once on this machine: half a minute or so")
                _predict(job, {"weights": weights, "scans": scans, "kind": kind}, todo, store, say)
            counts = _conclude(job, kind, output, store, say)
            if counts[ACCEPTED]:
                beside = Beside(job.output.path, job.volumes is not None, job.workers, job.address)
                write_beside(beside, keys, scans, output, say)
    return counts


def _predict(
    job: PredictJob, shared: dict[str, Any], keys: dict[Target, str], store: Store, say: Callable[[str], None]
) -> None:
    """Predict targets by what the workers share."""
    if job.gpu and is_here(job.workers, job.address) and not torch.cuda.is_available():
        raise InputError("--gpu: torch finds no GPU on this machine; leave it out")
    asked = {target.series for target in keys}
    shared = {**shared, "scans": {uid: scan for uid, scan in shared["scans"].items() if uid in asked}}
    rows = [_work_row(target, key) for target, key in keys.items()]
    prediction = Prediction(job, store, new_session())
    store.add_to_index(outcomes_of(prediction.engine_job(rows, shared), say).cast(OUTCOME))
    store.compact_index()
    store.remove_superseded()


def _conclude(job: PredictJob, kind: str, output: Experiment, store: Store, say: Callable[[str], None]) -> Counter[str]:
    """Say and log what became of the targets; their number by outcome."""
    outcomes = store.outcomes(["nodule_id", "outcome", "reason", "notes"]).to_pylist()
    counts = Counter(row["outcome"] for row in outcomes)
    output.run.metrics({f"nodules/{name}": counts[name] for name in OUTCOMES})
    for row in outcomes:
        if row["outcome"] == FAILED:
            say(f"failed {row['nodule_id']}: {row['reason']}")
        for note in row["notes"]:
            say(f"note on {row['nodule_id']}: {note}")
    words = ", ".join(f"{counts[name]} {name}" for name in OUTCOMES if counts[name])
    output.conclude(words)
    say(words)
    volumes = f"   ({job.output.path}/volumes/*.{job.volumes})" if job.volumes else ""
    say(f"predictions of {alpha_in_words(kind)}  {job.output.path}{volumes}")
    return counts


def _identity(target: Target) -> tuple[object, ...]:
    """All of a target that its record depends on; in which line of a file it stands is none of that."""
    named = (target.target_id, target.patient_id, target.image, target.series)
    channels = (target.channels,) if target.channels else ()
    return *named, target.centre, target.sides, target.probability, target.problem, *channels


def _state(target: Target, scans: Mapping[str, Scan]) -> str:
    """What tells an image from a later one of the same path or series: sizes and times of change of its files."""
    if target.series:
        slices = scans[target.series].slices if target.series in scans else []
        return digest(*((item.path, item.size, item.mtime_ns) for item in slices))
    stats = [Path(path).stat() for path in (target.image, *target.channels) if Path(path).is_file()]
    return " ".join(f"{stat.st_size} {stat.st_mtime_ns}" for stat in stats)


def _manifest_row(target: Target, key: str) -> dict:
    row = {"nodule_id": target.target_id, "patient_id": target.patient_id, "source": METHOD, "readers": -1}
    return row | {"fingerprint": key, "location": target.image, "problem": "", "key": key}


def _work_row(target: Target, key: str) -> dict:
    row = {"nodule_id": target.target_id, "patient_id": target.patient_id, "source": METHOD, "key": key}
    return row | {"target": json.dumps(vars(target))}


@dataclass(frozen=True)
class Prediction:
    """The steps of a prediction, as the engine runs them; known to every worker."""

    job: PredictJob
    store: Store
    session: str

    def engine_job(self, rows: list[dict], shared: dict[str, object]) -> Job:
        """What the engine runs for these rows, with what its workers share."""
        job = replace(self, job=replace(self.job, targets=(), scans=None))  # the workers need none but their own
        stage = Stage("predict", job.predict, cpus=0.9, gpus=float(self.job.gpu))
        work = Work(job.read, (stage,), job.commit, job.recall)
        pool = Pool(work.stages, min(self.job.workers, len(rows)))
        return Job(work, [part_of(rows)], [pool], Marks(self.store), self.session, shared=shared)

    @property
    def _ensemble(self) -> Ensemble:
        return _ensemble_of(self.session, "cuda" if self.job.gpu else "cpu")

    def read(self, row: dict) -> Nodule:
        """The image around a target, resampled; it says where it came from."""
        target = _target_of(row)
        kind = shared(self.session, "kind")
        start = Nodule(target.target_id, target.patient_id, METHOD, key=row["key"], kind=kind)

        def work(nodule: Nodule) -> Nodule:
            if target.problem:
                raise InputError(f"{target.where}: {target.problem}" if target.where else target.problem)
            scan = shared(self.session, "scans").get(target.series)
            image, scanner = read_around(target, scan, self._sides_mm())
            notes = list(scan.notes) if scan else []
            if doubt := doubt_of_hu(image):
                notes.append(doubt)
            spacing_mm = self._ensemble.recipe.model.spacing_mm / self._finer
            image, grid = around(target, image, scanner, self._sides_mm(), spacing_mm)
            metadata: dict[str, object] = {"centre": list(target.centre), "image": utf8(target.image)}
            if target.sides:
                metadata["sides_mm"] = list(target.sides)
            if target.probability is not None:
                metadata["probability"] = target.probability
            # What an export to DICOM needs to find its way back.
            metadata |= {"series_uid": target.series, "scanner_spacing": list(scanner.spacing)}
            metadata["slice_spacing"] = scanner.spacing[0]
            config = self._ensemble.recipe.model
            channels = read_channels(target, scanner, grid, config)
            if channels:
                name, *low_high = config.channels[0]
                metadata[IMAGE_CHANNEL] = {"name": name, "intensity_range": low_high}
            return replace(
                nodule,
                image=image,
                channels=channels,
                spacing=grid.spacing,
                origin=grid.origin,
                direction=np.asarray(grid.direction),
                metadata=metadata,
                notes=notes,
            )

        return guarded(READ, start, work)

    def predict(self, nodule: Nodule) -> Nodule:
        """The nodule with matte, masks and spread of its target's lesion as its candidates."""

        def work(nodule: Nodule) -> Nodule:
            image = images_of(nodule, self._ensemble.recipe.model)
            whole = self._ensemble.predict_finer(image, self._finer, self.job.flips)
            found, note = of_target(whole, *_place_of(nodule))
            notes = [*nodule.notes, note] if note else list(nodule.notes)
            if not note and is_cut(found.union):
                notes.append(CUT)
            mattes: dict[str, np.ndarray] = {}
            if self.job.refine != NONE and not note:
                try:
                    mattes = self._refined(nodule, found)
                except InputError as error:
                    notes = [*notes, f"the matte is the network's own: {error}"]
            return with_prediction(replace(nodule, notes=notes), found, mattes)

        return guarded("predict", nodule, work)

    @property
    def _finer(self) -> int:
        """Voxels of a prediction along a voxel of the network: solvers work on the grid of a build, where that fits."""
        times = self._ensemble.recipe.model.spacing_mm / REFINED_MM
        return round(times) if self.job.refine != NONE and times >= 1 and math.isclose(times, round(times)) else 1

    def _refined(self, nodule: Nodule, found: Predicted) -> dict[str, np.ndarray]:
        """The refined matte by method, and after a calibrated one that of the membership."""
        compile_kernels()
        methods = dict.fromkeys((self.job.refine, solver_of(self.job.refine)))
        image, spacing = images_of(nodule, self._ensemble.recipe.model), required(nodule.spacing, nodule, "spacing")
        return dict(refined(image, found, spacing, tuple(methods), self._ensemble.recipe.model.ranges))

    def commit(self, nodules: list[Nodule]) -> pa.Table:
        """The volumes first, as a committed nodule is done."""
        for nodule in nodules:
            if self.job.volumes and nodule.candidates:
                self._write(nodule)
        return self.store.commit_nodules(nodules, self.session)

    def recall(self, nodules: list[Nodule]) -> list[pa.Table]:
        return self.store.recall(nodules, self.session)

    def _sides_mm(self) -> tuple[float, ...]:
        spacing = self._ensemble.recipe.model.spacing_mm
        return tuple(max(side * spacing, self.job.size_mm or 0.0) for side in self._ensemble.window)

    def _write(self, nodule: Nodule) -> None:
        grid = nodule_grid(nodule, required(nodule.image, nodule, "image"))
        with tempfile.TemporaryDirectory() as folder:
            for matte in nodule.candidates:
                path = Path(folder) / f"{file_name(nodule.nodule_id)}.{matte.method}.{self.job.volumes}"
                write_volume(path, matte.alpha, grid)
                self.store.write(f"volumes/{path.name}", path.read_bytes())


@functools.lru_cache(maxsize=1)
def _ensemble_of(session: str, device: str) -> Ensemble:
    """The networks of a prediction, once for each worker."""
    return Ensemble.of_bytes(shared(session, "weights"), device)


def _target_of(row: dict) -> Target:
    found = json.loads(row["target"])
    sides = found["sides"] and tuple(found["sides"])
    triples = {"centre": tuple(found["centre"]), "sides": sides}
    return Target(**{**found, **triples, "channels": tuple(found["channels"])})


def _place_of(nodule: Nodule) -> tuple[Sequence[float], Sequence[float] | None, Grid]:
    """Centre and sides of the nodule's target, and the grid of its image."""
    metadata: dict[str, Any] = nodule.metadata
    grid = nodule_grid(nodule, required(nodule.image, nodule, "image"))
    return metadata["centre"], metadata.get("sides_mm"), grid


def with_prediction(nodule: Nodule, found: Predicted, mattes: Mapping[str, np.ndarray]) -> Nodule:
    """The nodule with the mattes, those that solvers refined first, masks and spread as its candidates.

    The first is chosen. A calibrated matte does not sum to the volume: beside it is one of the kind membership, the
    solver's, or the mean of both masks' probabilities.
    """
    candidates = [Matte(f"{METHOD}-{method}", alpha, kind=kind_of(method)) for method, alpha in mattes.items()]
    candidates.append(Matte(METHOD, found.alpha, kind=nodule.kind))
    if nodule.kind == CALIBRATED and not mattes:
        candidates.append(Matte(f"{METHOD}-membership", (found.union + found.overlap) / 2, kind=MEMBERSHIP))
    others = {"-union": found.union, "-overlap": found.overlap, "-spread": found.spread}
    candidates += [Matte(f"{METHOD}{name}", array) for name, array in others.items()]
    return replace(nodule, candidates=candidates, outcome=ACCEPTED, method=candidates[0].method)
