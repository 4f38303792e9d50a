"""Table 1 on Ray Data: every method's errors on the test nodules of each split, with pictures and an MLflow run."""

from __future__ import annotations

import functools
import io
import json
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from raymat.blocks import factor_of
from raymat.engine.cluster import connected, refuse_too_many
from raymat.engine.job import Job, new_session, part_of
from raymat.engine.sharing import shared
from raymat.engine.stages import Pool, Stage, Work
from raymat.engine.stream import gather
from raymat.engine.tries import Marks
from raymat.experiment import EVALUATE, TRAIN, Experiment, Facts, Output, experiment
from raymat.folder import Folder
from raymat.guard import guarded
from raymat.learning import Data
from raymat.matting import LUNG_WINDOW
from raymat.methods import ANY, alpha_in_words
from raymat.network.evaluation import (
    CHOSEN,
    RAMP,
    TITLES,
    TRUE,
    as_markdown,
    differences_as_markdown,
    errors_of,
    evaluation_box,
    is_automatic,
    masks_score,
    nodules_of,
    reliability_curve,
    summarise,
    title_of,
)
from raymat.network.inference import Ensemble, Predicted
from raymat.network.recipe import Recipe
from raymat.network.refinement import refined, solver_for
from raymat.network.samples import images_of, masks_of, target_of
from raymat.network.shipped import SHIPPED, shipped_weights
from raymat.network.training import read_checkpoint
from raymat.nodule import ACCEPTED, FAILED, IMAGE_CHANNEL, InputError, Nodule, required
from raymat.pictures.network import error_bars, reliability, show_predictions
from raymat.pipelines.fit import WEIGHTS as WEIGHTS_FILE
from raymat.pipelines.nodules import SHARED, read_nodule, work_rows
from raymat.sources import digest
from raymat.version import __version__
from raymat.words import counted, markdown_table, plain_name

DRAWN = 4
NETWORK, ABLATION = "3DMM", "3DMM‡"
WEIGHTS, KIND, REFINE = "weights", "kind", "refine"  # what the workers share beside the nodules

JUDGED = pa.schema(
    [
        ("key", pa.string()),
        ("nodule_id", pa.string()),
        ("outcome", pa.string()),
        ("reason", pa.string()),
        ("split", pa.int32()),
        ("errors", pa.string()),
        ("masks", pa.string()),
        ("picture", pa.string()),
    ]
)


@dataclass(frozen=True)
class EvaluateJob:
    """What to evaluate.

    Attributes
    ----------
    dataset : folder or URI of the dataset that the networks were trained on, or of another one: then its nodules of
        patients whom they have not seen are the test nodules
    trainings : outputs of ``raymat train``: the 3DMM, and the one without masks where it was trained; or weights files,
        or "shipped"
    output : where table and pictures are written and logged
    workers : processes that predict
    address : the Ray cluster; None for the one this job runs on, else a local one
    refine : solvers that refine the networks' mattes, each a row of its own; of the kind that the networks predict
    """

    dataset: str
    trainings: tuple[str, ...]
    output: Output
    workers: int = 1
    address: str | None = None
    refine: tuple[str, ...] = ()


def evaluate(job: EvaluateJob, say: Callable[[str], None] = print) -> tuple[dict[str, dict], int]:
    """Compare all methods on the test nodules of each split that every training has.

    Returns
    -------
    tables, failed
        For each ground truth the table of ``raymat.network.evaluation.summarise``, and how many nodules failed.

    Raises
    ------
    InputError
        A training is unfinished or has seen every patient of the dataset, two of them are of the same network or learnt
        different kinds of alpha, or weights are damaged.
    """
    data = Data.open(job.dataset)
    trainings = [_networks(path, data) for path in job.trainings]
    kinds = {networks.kind: path for path, networks in zip(job.trainings, trainings, strict=True)}
    if len(kinds) > 1:
        learnt = " and ".join(f"{path} learnt alpha of the kind {kind}" for kind, path in kinds.items())
        raise InputError(f"{learnt}: their ground truths differ; evaluate each kind in an output of its own")
    (kind,) = kinds
    for method in job.refine:
        solver_for(method, kind)
    names = [networks.name for networks in trainings]
    if len(set(names)) < len(names):
        raise InputError(f"{' and '.join(job.trainings)}: both are {names[0]}; give one with masks, one without")
    splits = sorted(set.intersection(*(set(networks.weights) for networks in trainings)))
    if not splits:
        raise InputError(f"{' and '.join(job.trainings)}: no split is finished in all; run raymat train to its end")
    test = {split: frozenset.intersection(*(networks.test[split] for networks in trainings)) for split in splits}
    work = [row for split in splits for row in work_rows(data, data.of(test[split]), split=split)]
    say(f"{counted(len(splits), 'split')}, {counted(len(work), 'test nodule')}")
    weights = {(networks.name, split): networks.weights[split] for networks in trainings for split in splits}
    parameters = {"dataset": job.dataset, "trainings": " ".join(job.trainings), "kind": kind}
    parameters |= {"refine": " ".join(job.refine)} if job.refine else {}
    facts = Facts(parameters, {"of": digest(data.digest, *job.trainings, *job.refine)})
    with experiment(EVALUATE, job.output, facts, say) as output:
        alpha = alpha_in_words(kind)
        output.describe(f"Errors of 3DMM and the solvers on the test nodules of each split, against {alpha}.")
        output.input(job.dataset, data.digest, kind)
        how = ["--refine", *job.refine] if job.refine else []
        command = shlex.join(["raymat", "evaluate", job.dataset, *job.trainings, *how, "-o", job.output.path])
        output.write_note(command=command, raymat=__version__, kind=kind)
        rows = _judge_all(job, data, work, {WEIGHTS: weights, KIND: kind, REFINE: job.refine}, output.files, say)
        errors = [row | {"split": one["split"]} for one in rows for row in json.loads(one["errors"])]
        tables = {truth: summarise(errors, truth, kind) for truth in (CHOSEN, TRUE)}
        tables = {truth: table for truth, table in tables.items() if table}
        report = ["# Errors on the test nodules", ""]
        report += [*_tables(output, tables, errors, names, kind), *_masks(output, rows, names)]
        drawn = [{name: np.array(a) for name, a in json.loads(row["picture"]).items()} for row in rows[:DRAWN]]
        output.figure("predictions.png", show_predictions(drawn, [row["nodule_id"] for row in rows[:DRAWN]], kind))
        output.text("table.md", "\n".join(report))
        columns = ["split", "nodule_id", "truth", "method", "metric", "value"]
        output.table("errors.csv", pa.Table.from_pylist(errors).select(columns))
        output.conclude("\n".join(report))
        say("\n".join(report))
        say(f"table and pictures  {job.output.path}")
    return tables, len(work) - len(rows)


@dataclass(frozen=True)
class Networks:
    """The networks of one training.

    Attributes
    ----------
    name : what a table calls them
    kind : of the alpha that they learnt
    weights : content of the weights file of each finished split
    test : the patients of the data whom each split's network has not seen, by split
    """

    name: str
    kind: str
    weights: dict[int, bytes]
    test: dict[int, frozenset[str]]


def _networks(path: str, data: Data) -> Networks:
    """The networks of a training's output, or of a weights file as the only split."""
    if path == SHIPPED:
        path = shipped_weights()
    if Path(path).is_file():
        weights, note = {0: Path(path).read_bytes()}, read_checkpoint(path)
    else:
        files = Folder.at(path)
        if not files.exists(TRAIN.note):
            raise InputError(f"{path}: no training here ({TRAIN.note} is missing)")
        note = files.read_json(TRAIN.note)
        finished = [n for n in files.listing("") if n.endswith(f"/{WEIGHTS_FILE}") and n.count("/") == 1]
        weights = {int(n.split("/")[0].removeprefix("split-")): files.read(n) for n in finished}
    recipe = Recipe.from_dict(note["recipe"])
    if note.get("data_digest") == data.digest and not note.get("splits_of"):
        test = {number: frozenset(data.split(number).test) for number in weights}
    else:
        test = {number: _unseen(path, content, data) for number, content in weights.items()}
    return Networks(NETWORK if recipe.model.auxiliary else ABLATION, recipe.kind, weights, test)


def _unseen(path: str, weights: bytes, data: Data) -> frozenset[str]:
    """The patients of the data whom those weights have not seen."""
    checkpoint = read_checkpoint(io.BytesIO(weights))
    if "patients" not in checkpoint:
        raise InputError(
            f"{path}: was trained on other nodules than {data.path} holds by an earlier raymat, which did not write "
            "down whom it has seen; train it again"
        )
    unseen = frozenset(data.patients) - set(checkpoint["patients"])
    if not unseen:
        raise InputError(f"{path}: has seen every patient of {data.path}; there is nobody to test it on")
    return unseen


@dataclass(frozen=True)
class Evaluation:
    """The steps of an evaluation, as the engine runs them; the nodules and networks are shared with every worker."""

    session: str

    @property
    def work(self) -> Work:
        return Work(self.read, (Stage("judge", self.judge, cpus=0.9),), self.rows)

    def read(self, row: dict) -> Nodule:
        """A test nodule, which knows its split."""
        nodule = read_nodule(self.session, row)
        channel = {name: nodule.metadata[name] for name in (IMAGE_CHANNEL,) if name in nodule.metadata}
        return replace(nodule, metadata={"split": row["split"], **channel})

    def judge(self, nodule: Nodule) -> Nodule:
        """The nodule without arrays, with the errors of every method and what is drawn of it."""
        return guarded("judge", nodule, lambda nodule: self._judged(nodule))

    def _judged(self, nodule: Nodule) -> Nodule:
        metadata: dict[str, Any] = nodule.metadata
        split = metadata["split"]
        ensembles = _ensembles(self.session, split)
        factors = {name: factor_of(nodule, ensemble.recipe.model.spacing_mm) for name, ensemble in ensembles.items()}
        seen = [factors[name] * np.array(ensemble.window) for name, ensemble in ensembles.items()]
        box = evaluation_box(nodule, np.max(seen, axis=0).tolist())
        spacing = required(nodule.spacing, nodule, "spacing")
        images = {name: _within(box, images_of(nodule, each.recipe.model)) for name, each in ensembles.items()}
        predicted = {name: each.predict_finer(images[name], factors[name]) for name, each in ensembles.items()}
        kind, methods = shared(self.session, KIND), shared(self.session, REFINE)
        finer = {
            name: _refined(images[name], found, spacing, methods, ensembles[name].recipe.model.ranges)
            for name, found in predicted.items()
        }
        rows = {f"{name}, refined by {how}": alpha for name, found in finer.items() for how, alpha in found.items()}
        picture = _slice(nodule, target_of(nodule, kind).alpha, box, next(iter(predicted.values())))
        judged: dict[str, object] = {
            "split": split,
            "errors": json.dumps(errors_of(nodule, box, predicted, kind, rows)),
            "masks": json.dumps({name: masks_score(nodule, box, found) for name, found in predicted.items()}),
            "picture": json.dumps(picture),
        }
        return nodule.without_arrays(outcome=ACCEPTED, metadata=judged)

    def rows(self, nodules: list[Nodule]) -> pa.Table:
        """What comes back of the nodules; nothing is stored of them."""
        return pa.Table.from_pylist(
            [
                {
                    "key": nodule.key,
                    "nodule_id": nodule.nodule_id,
                    "outcome": nodule.outcome,
                    "reason": nodule.reason,
                    **{name: nodule.metadata.get(name) for name in ("split", "errors", "masks", "picture")},
                }
                for nodule in nodules
            ],
            schema=JUDGED,
        )


def _refined(
    image: np.ndarray,
    found: Predicted,
    spacing: Sequence[float],
    methods: Sequence[str],
    ranges: Sequence[Sequence[float]],
) -> dict[str, np.ndarray]:
    """The refined mattes by method; as a prediction's, the network's own where there is nothing to refine."""
    if not methods:
        return {}
    try:
        return dict(refined(image, found, spacing, methods, ranges))
    except InputError:
        return dict.fromkeys(methods, found.alpha)


def _within(box: tuple[slice, ...], image: np.ndarray) -> np.ndarray:
    """The box of an image (z, y, x) or (channels, z, y, x)."""
    return image[box if image.ndim == len(box) else (slice(None), *box)]


@functools.cache
def _ensembles(session: str, split: int) -> dict[str, Ensemble]:
    """The networks of one split by name, once for each worker."""
    weights = shared(session, WEIGHTS)
    return {name: Ensemble.of_bytes([data]) for (name, of), data in weights.items() if of == split}


def _judge_all(
    job: EvaluateJob, data: Data, work: list[dict], networks: dict, files: Folder, say: Callable[[str], None]
) -> list[dict]:
    """The rows of all test nodules that could be judged by what the workers share of the networks; others are named."""
    session = new_session()
    evaluation = Evaluation(session)
    with connected(job.address):
        refuse_too_many(job.workers)
        pool = Pool(evaluation.work.stages, min(job.workers, len(work)))
        marks = Marks(files)
        shared_values = {SHARED: data.nodules, **networks}
        what = Job(evaluation.work, [part_of(work)], [pool], marks, session, shared=shared_values)
        rows = sorted(gather(what, say).to_pylist(), key=lambda row: row["key"])
    failed = [row for row in rows if row["outcome"] == FAILED]
    for row in failed:
        say(f"failed {row['nodule_id']}: {row['reason']}")
    if len(failed) == len(rows):
        raise InputError(f"{job.dataset}: no test nodule could be judged; the reasons are above")
    return [row for row in rows if row["outcome"] != FAILED]


def _slice(nodule: Nodule, alpha: np.ndarray, box: tuple[slice, ...], predicted) -> dict[str, list]:
    """What ``show_predictions`` draws of a nodule, the one slice that it shows."""
    union, overlap = (mask[box].astype(float) for mask in masks_of(nodule))
    arrays = {
        "image": LUNG_WINDOW.alpha(required(nodule.image, nodule, "image")[box]),
        "union": union,
        "overlap": overlap,
        "alpha": alpha[box],
        "predicted union": predicted.union,
        "predicted overlap": predicted.overlap,
        "predicted alpha": predicted.alpha,
    }
    place = int(np.argmax(arrays["alpha"].sum(axis=(1, 2))))
    return {name: np.round(array[place : place + 1].astype(float), 3).tolist() for name, array in arrays.items()}


def _tables(output: Experiment, tables: dict[str, dict], errors: list[dict], names: list[str], kind: str) -> list[str]:
    """The lines of Table 1 against each truth, and less the networks; draws its figure and logs its numbers."""
    lines = []
    for truth, table in tables.items():
        of_kind = "" if kind == ANY else f" ({kind})"
        lines += [f"Against the {truth}{of_kind}, mean (± standard deviation over the splits, n - 1):", ""]
        lines += [as_markdown(table, nodules_of(errors, truth), kind), ""]
        for name in names:
            lines += [f"Less the error of {name} on the same nodules (above 0: {name} is nearer):", ""]
            lines += [differences_as_markdown(errors, truth, name, kind), ""]
        # The window alone is so far off that its bar would hide all others.
        shown = {title_of(method, kind): errors for method, errors in table.items() if method != RAMP}
        automatic = set(filter(is_automatic, shown))
        output.figure(f"errors-{truth.replace(' ', '-')}.png", error_bars(shown, TITLES, automatic))
        for method, found in table.items():
            key = plain_name(f"{truth}/{method}")
            output.run.metrics({f"{key}/{metric}": mean for metric, (mean, _) in found.items()})
    return lines


def _masks(output: Experiment, rows: list[dict], names: list[str]) -> list[str]:
    """The lines of the table of the networks' masks; draws how reliable their probabilities are."""
    curves, lines = {}, []
    for name in names:
        masks = [json.loads(row["masks"])[name] for row in rows]
        for mask in ("union", "overlap"):
            curves[f"{name} {mask}"] = reliability_curve(one[mask]["bins"] for one in masks)
            lines.append((f"{name} {mask}", f"{np.mean([one[mask]['dice'] for one in masks]):.3f}"))
    output.figure("reliability.png", reliability(curves))
    return ["Masks:", "", markdown_table(("mask", "Dice"), lines), ""]
