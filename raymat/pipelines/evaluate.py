"""Table 1 on Ray Data: every method's errors on the test nodules of each re-split, with pictures and an MLflow run."""

from __future__ import annotations

import json
import shlex
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import ray.data
from ray.data import ActorPoolStrategy

from raymat import pictures
from raymat.blocks import factor_of
from raymat.engine.cluster import connected, data_settings, refuse_too_many
from raymat.engine.progress import Progress
from raymat.evidence.files import EVALUATE_NOTE
from raymat.loading import Nodules
from raymat.network.evaluation import (
    CHOSEN,
    RAMP,
    TITLES,
    TRUE,
    as_markdown,
    errors_of,
    evaluation_box,
    is_automatic,
    masks_score,
    reliability_curve,
    summarise,
)
from raymat.network.inference import Ensemble
from raymat.network.samples import masks_of
from raymat.network_pictures import error_bars, reliability, show_predictions
from raymat.nodule import InputError, Nodule
from raymat.pipelines.train import WEIGHTS, Data
from raymat.places import open_filesystem
from raymat.store import Store
from raymat.tracking import TRAININGS, Run, as_csv, how_to_look
from raymat.version import __version__
from raymat.words import counted

DRAWN = 4
NETWORK, ABLATION = "3DMM", "3DMM‡"
# MLflow's metric names know no such signs.
PLAIN = str.maketrans({"+": "_plus", "‡": "_ablation", "'": "", ",": ""})


@dataclass(frozen=True)
class EvaluateJob:
    """What to evaluate.

    Attributes
    ----------
    dataset : folder or URI of the dataset that the networks were trained on
    trainings : outputs of ``raymat train``: the 3DMM, and the one without masks where it was trained
    out : folder for the table and pictures
    workers : processes that predict
    tracking_uri : the MLflow store; None for no run
    address : the Ray cluster; None for the one this job runs on, else a local one
    """

    dataset: str
    trainings: tuple[str, ...]
    out: str
    workers: int = 1
    tracking_uri: str | None = None
    address: str | None = None


def evaluate(job: EvaluateJob, say: Callable[[str], None] = print) -> dict[str, dict]:
    """Compare all methods on the test nodules of each re-split that every training has.

    Returns
    -------
    dict
        For each ground truth the table of ``raymat.network.evaluation.summarise``.

    Raises
    ------
    InputError
        A training is unfinished or was made on another dataset, or its weights are damaged.
    """
    data = Data.open(job.dataset)
    networks = [_networks(path, data) for path in job.trainings]
    names = [name for name, _ in networks]
    if len(set(names)) < len(names):
        raise InputError(f"{' and '.join(job.trainings)}: both are {names[0]}; give one of each kind")
    splits = sorted(set.intersection(*(set(weights) for _, weights in networks)))
    if not splits:
        raise InputError(f"{' and '.join(job.trainings)}: no re-split is finished in all; run raymat train to its end")
    work = [{"split": split, "place": place} for split in splits for place in data.of(data.split(split).test)]
    say(f"{counted(len(splits), 're-split')}, {counted(len(work), 'test nodule')}")
    weights = {(name, split): found[split] for name, found in networks for split in splits}
    with connected(job.address):
        refuse_too_many(job.workers)
        progress, rows = Progress(len(work), say), []
        for row in _stream(data.nodules, work, weights, job.workers):
            rows.append(row)
            progress.add(["judged"])
    errors = [row | {"split": one["split"]} for one in rows for row in json.loads(one["errors"])]
    tables = {truth: summarise(errors, truth) for truth in (CHOSEN, TRUE)}
    tables = {truth: table for truth, table in tables.items() if table}
    _write(job, tables, errors, rows, names, say)
    return tables


def _networks(path: str, data: Data) -> tuple[str, dict[int, bytes]]:
    """What to call a training's networks, and the weights of each finished re-split."""
    place = Store(*open_filesystem(path))
    if not place.exists("training.json"):
        raise InputError(f"{path}: no training here (training.json is missing)")
    note = json.loads(place.read("training.json"))
    if note["data_digest"] != data.digest:
        raise InputError(f"{path}: was trained on other nodules than {data.path} holds; its test part is unknown")
    name = NETWORK if note["recipe"]["model"]["auxiliary"] else ABLATION
    finished = [n for n in place.listing("") if n.endswith(f"/{WEIGHTS}") and n.count("/") == 1]
    return name, {int(n.split("/")[0].removeprefix("split-")): place.read(n) for n in finished}


def _stream(nodules: Nodules, work: list[dict], weights: dict, workers: int) -> Iterator[dict]:
    with data_settings():
        judged = ray.data.from_items(work, override_num_blocks=len(work)).map_batches(
            Evaluator,
            # By reference: every actor would be sent its own copy of all weights.
            fn_constructor_kwargs={"nodules": ray.put(nodules), "weights": ray.put(weights)},
            batch_size=1,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(size=workers),
            num_cpus=0.9,
        )
    yield from judged.iter_rows()


class Evaluator:
    """An actor that holds the networks and judges one nodule at a time."""

    def __init__(self, nodules: ray.ObjectRef, weights: ray.ObjectRef) -> None:
        self.nodules, self.ensembles = ray.get(nodules), {}
        with tempfile.TemporaryDirectory() as folder:
            for (name, split), data in ray.get(weights).items():
                path = Path(folder) / f"{name}-split-{split}.pt"
                path.write_bytes(data)
                self.ensembles[name, split] = Ensemble([str(path)])

    def __call__(self, table: pa.Table) -> pa.Table:
        (work,) = table.to_pylist()
        nodule = self.nodules[work["place"]]
        split = work["split"]
        mine = {name: ensemble for (name, of), ensemble in self.ensembles.items() if of == split}
        factors = {name: factor_of(nodule, ensemble.recipe.model.spacing_mm) for name, ensemble in mine.items()}
        seen = [factors[name] * np.array(ensemble.window) for name, ensemble in mine.items()]
        box = evaluation_box(nodule, np.max(seen, axis=0).tolist())
        predicted = {name: ensemble.predict_finer(nodule.image[box], factors[name]) for name, ensemble in mine.items()}
        first = next(iter(predicted.values()))
        row = {
            "split": split,
            "nodule_id": nodule.nodule_id,
            "errors": json.dumps(errors_of(nodule, box, predicted)),
            "masks": json.dumps({name: masks_score(nodule, box, found) for name, found in predicted.items()}),
            "picture": json.dumps(_slice(nodule, box, first)),
        }
        return pa.Table.from_pylist([row])


def _slice(nodule: Nodule, box: tuple[slice, ...], predicted) -> dict[str, list]:
    """What ``show_predictions`` draws of a nodule, the one slice that it shows."""
    union, overlap = (mask[box].astype(float) for mask in masks_of(nodule))
    level, width = pictures.LEVEL, pictures.WIDTH
    arrays = {
        "image": np.clip((nodule.image[box] - (level - width / 2)) / width, 0, 1),
        "union": union,
        "overlap": overlap,
        "alpha": nodule.alpha[box],
        "predicted union": predicted.union,
        "predicted overlap": predicted.overlap,
        "predicted alpha": predicted.alpha,
    }
    place = int(np.argmax(arrays["alpha"].sum(axis=(1, 2))))
    return {name: np.round(array[place : place + 1].astype(float), 3).tolist() for name, array in arrays.items()}


def _write(
    job: EvaluateJob, tables: dict, errors: list[dict], rows: list[dict], names: list[str], say: Callable[[str], None]
) -> None:
    place = Store(*open_filesystem(job.out))
    run = None
    if job.tracking_uri:
        parameters = {"dataset": job.dataset, "trainings": " ".join(job.trainings)}
        run = Run(job.tracking_uri, f"evaluate {job.out}", parameters, TRAININGS)

    def keep(name: str, text: str) -> None:
        place.write(name, text.encode())
        if run:
            run.text(name, text)

    def draw(name: str, figure) -> None:
        place.write(name, pictures.png_bytes(figure))
        if run:
            run.figure(name, figure)

    command = shlex.join(["raymat", "evaluate", job.dataset, *job.trainings, "-o", job.out])
    keep(EVALUATE_NOTE, json.dumps({"command": command, "raymat": __version__}, indent=1))
    report = ["# Errors on the test nodules", ""]
    for truth, table in tables.items():
        report += [f"Against the {truth}, mean (± standard deviation over the re-splits):", "", as_markdown(table), ""]
        # What the window alone says is so far off that its bar would hide all others.
        shown = {method: errors for method, errors in table.items() if method != RAMP}
        draw(f"errors-{truth.replace(' ', '-')}.png", error_bars(shown, TITLES, set(filter(is_automatic, shown))))
        if run:
            for method, found in table.items():
                key = f"{truth}/{method}".translate(PLAIN)
                run.metrics({f"{key}/{metric}": mean for metric, (mean, _) in found.items()})
    curves, lines = {}, []
    for name in names:
        masks = [json.loads(row["masks"])[name] for row in rows]
        for mask in ("union", "overlap"):
            curves[f"{name} {mask}"] = reliability_curve(one[mask]["bins"] for one in masks)
            lines.append(f"| {name} {mask} | {np.mean([one[mask]['dice'] for one in masks]):.3f} |")
    report += ["Masks:", "", "| mask | Dice |", "| --- | --- |", *lines, ""]
    draw("reliability.png", reliability(curves))
    shown = [{name: np.array(a) for name, a in json.loads(row["picture"]).items()} for row in rows[:DRAWN]]
    draw("predictions.png", show_predictions(shown, [row["nodule_id"] for row in rows[:DRAWN]]))
    keep("table.md", "\n".join(report))
    keep(
        "errors.csv",
        as_csv(pa.Table.from_pylist(errors).select(["split", "nodule_id", "truth", "method", "metric", "value"])),
    )
    if run:
        run.end()
    say("\n".join(report))
    say(f"table and pictures  {job.out}")
    if run:
        say(f"MLflow              {how_to_look(job.tracking_uri, run.page)}")
