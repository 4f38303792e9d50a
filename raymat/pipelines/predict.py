"""3DMM for users, on Ray Data: a centre in a scan in; alpha, masks and the ensemble's spread out.

Each target (one centre) has one outcome. What was predicted is a raymat dataset: `raymat.load(OUT)` gives the mattes
beside the image, and OUT/volumes holds them as NIfTI or NRRD, placed in the patient.
"""

from __future__ import annotations

import functools
import json
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from raymat.engine.cluster import connected, refuse_too_many
from raymat.engine.ledger import shared
from raymat.engine.stages import READ, Pool, Stage, Work
from raymat.engine.stream import Job, gather, new_session, part_of
from raymat.engine.tries import Marks
from raymat.experiment import PREDICT, Facts, Output, experiment
from raymat.methods import alpha_in_words
from raymat.network.inference import Ensemble, Predicted, shared_recipe
from raymat.network.recipe import Recipe
from raymat.network.surroundings import around, read_around, scans_of
from raymat.network.targets import Target
from raymat.network.training import read_checkpoint
from raymat.nodule import ACCEPTED, FAILED, OUTCOMES, InputError, Matte, Nodule, required
from raymat.prepare import doubt_of_hu
from raymat.sources import digest
from raymat.sources.series import Scan
from raymat.steps import guarded
from raymat.store import OUTCOME, Store
from raymat.volume import nodule_grid, write_volume
from raymat.words import counted, file_name, utf8

METHOD = "3dmm"
FORMATS = ("nii.gz", "nrrd")


@dataclass(frozen=True)
class PredictJob:
    """What to predict, with what, where to.

    Attributes
    ----------
    targets : see ``targets_of_table``, ``targets_of_centres``
    weights : paths of the networks that predict together
    output : where the dataset of predictions is written and logged
    size_mm : side of the box around each centre; the network's input where None
    flips : also predict mirror images
    volumes : "nii.gz" or "nrrd"; None for the dataset alone
    workers : processes that predict, one GPU each where ``gpu``
    address : the Ray cluster; None for the one this job runs on, else a local one
    """

    targets: Sequence[Target]
    weights: tuple[str, ...]
    output: Output
    size_mm: float | None = None
    flips: bool = False
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
    made_by = digest(*(digest(data.hex()) for data in weights), job.size_mm, job.flips)
    scans = scans_of(job.targets)
    keys = {target: digest(repr(target), _state(target, scans), made_by) for target in job.targets}
    work = digest(*keys.values())
    parameters = {"weights": " ".join(job.weights), "size_mm": job.size_mm, "flips": job.flips, "targets": len(keys)}
    parameters["kind"] = kind
    store = Store.create(job.output.path)
    with experiment(PREDICT, job.output, Facts(parameters, {"of": work}), say, store) as output:
        output.describe(f"Mattes of lesions at given places, {alpha_in_words(kind)} predicted by 3DMM.")
        output.input(job.targets[0].image, work, kind)
        outcomes = _predict(job, {"weights": weights, "scans": scans, "kind": kind}, keys, store, say)
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
        out = job.output.path
        volumes = f"   ({out}/volumes/*.{job.volumes})" if job.volumes else ""
        say(f"predictions of {alpha_in_words(kind)}  {out}{volumes}")
    return counts


def _predict(
    job: PredictJob, shared: dict[str, Any], keys: dict[Target, str], store: Store, say: Callable[[str], None]
) -> list[dict]:
    """Predict the targets that have no prediction yet, by what the workers share; the outcome rows of all."""
    store.write_manifest(_manifest_row(target, key) for target, key in keys.items())
    done = {row["key"] for row in store.index().select(["key", "outcome"]).to_pylist() if row["outcome"] != FAILED}
    todo = [target for target, key in keys.items() if key not in done]
    say(f"{counted(len(keys), 'target')}, {len(keys) - len(todo)} predicted already, {len(todo)} to do")
    if todo:
        asked = {target.series for target in todo}
        shared = {**shared, "scans": {uid: scan for uid, scan in shared["scans"].items() if uid in asked}}
        rows = [_work_row(target, keys[target]) for target in todo]
        with connected(job.address):
            refuse_too_many(job.workers, job.gpu)
            prediction = Prediction(job, store, new_session())
            what = prediction.engine_job(rows, shared)
            store.add_to_index(gather(what, say).cast(OUTCOME))
    store.compact_index()
    store.remove_superseded()
    return store.outcomes(["nodule_id", "outcome", "reason", "notes"]).to_pylist()


def _state(target: Target, scans: Mapping[str, Scan]) -> str:
    """What tells an image from a later one of the same path or series: sizes and times of change of its files."""
    if target.series:
        slices = scans[target.series].slices if target.series in scans else []
        return digest(*((item.path, item.size, item.mtime_ns) for item in slices))
    path = Path(target.image)
    if not path.is_file():
        return ""
    stat = path.stat()
    return f"{stat.st_size} {stat.st_mtime_ns}"


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
        job = replace(self, job=replace(self.job, targets=()))  # the workers need none but their own
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
            scan = shared(self.session, "scans").get(target.series)
            image, scanner = read_around(target, scan, self._sides_mm())
            notes = list(scan.notes) if scan else []
            if doubt := doubt_of_hu(image):
                notes.append(doubt)
            spacing_mm = self._ensemble.recipe.model.spacing_mm
            image, grid = around(target, image, scanner, self._sides_mm(), spacing_mm)
            metadata: dict[str, object] = {"centre": list(target.centre), "image": utf8(target.image)}
            # What an export to DICOM needs to find its way back.
            metadata |= {"series_uid": target.series, "scanner_spacing": list(scanner.spacing)}
            metadata["slice_spacing"] = scanner.spacing[0]
            return replace(
                nodule,
                image=image,
                spacing=grid.spacing,
                origin=grid.origin,
                direction=np.asarray(grid.direction),
                metadata=metadata,
                notes=notes,
            )

        return guarded(READ, start, work)

    def predict(self, nodule: Nodule) -> Nodule:
        """The nodule with matte, masks and spread as its candidates."""

        def work(nodule: Nodule) -> Nodule:
            image = required(nodule.image, nodule, "image")
            return with_prediction(nodule, self._ensemble.predict(image, self.job.flips))

        return guarded("predict", nodule, work)

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


@functools.cache
def _ensemble_of(session: str, device: str) -> Ensemble:
    """The networks of a prediction, once for each worker."""
    return Ensemble.of_bytes(shared(session, "weights"), device)


def _target_of(row: dict) -> Target:
    found = json.loads(row["target"])
    return Target(**{**found, "centre": tuple(found["centre"])})


def with_prediction(nodule: Nodule, found: Predicted) -> Nodule:
    """The nodule with the matte, of the nodule's kind, masks and spread as its candidates, the matte chosen."""
    others = {"-union": found.union, "-overlap": found.overlap, "-spread": found.spread}
    candidates = [Matte(METHOD, found.alpha, kind=nodule.kind)]
    candidates += [Matte(f"{METHOD}{name}", array) for name, array in others.items()]
    return replace(nodule, candidates=candidates, outcome=ACCEPTED, method=METHOD)
