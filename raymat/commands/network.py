"""The commands of 3DMM: train, tune, evaluate, predict."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from raymat.commands.options import VOLUME_ENDINGS, add_tracking, output_of, positive, stated
from raymat.errors import InputError

if TYPE_CHECKING:
    from raymat.pipelines.train import TrainJob

GRID = (1.0, 3.0, 10.0, 30.0)


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Add them to the parser of ``raymat``."""
    add_train_arguments(commands.add_parser("train", help="train 3DMM on a dataset"))
    add_tune_arguments(commands.add_parser("tune", help="search the weights of the loss of 3DMM"))
    add_evaluate_arguments(commands.add_parser("evaluate", help="compare 3DMM and the solvers on the test nodules"))
    add_predict_arguments(
        commands.add_parser("predict", help="predict mattes of lesions in new scans; needs centres, no masks")
    )


def add_train_arguments(train: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The arguments of ``raymat train`` and ``jobs/train_3dmm.py``."""
    add_training(train)
    train.add_argument(
        "--splits",
        type=splits_of,
        default=(0, 1, 2, 3),
        metavar="0,1,2,3",
        help="repeated splits by patient (default: all four)",
    )
    weights = train.add_argument_group("weights of the loss", "default: 10 and 10")
    weights.add_argument("--loss-weights", metavar="JSON", help="best.json of raymat tune")
    weights.add_argument("--alpha-weight", type=float, help="weight alpha of Eq. 6")
    weights.add_argument("--gradient-weight", type=float, help="weight beta of Eq. 6")
    train.set_defaults(run=run_train)
    return train


def add_tune_arguments(tune: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The arguments of ``raymat tune`` and ``jobs/tune_loss_weights.py``."""
    add_training(tune)
    tune.add_argument("--alphas", type=weights_list, default=GRID, metavar="1,3,10,30", help="values of alpha")
    tune.add_argument("--betas", type=weights_list, default=GRID, metavar="1,3,10,30", help="values of beta")
    tune.add_argument("--split", type=int, default=0, help="the repeated split for validation (default: %(default)s)")
    tune.add_argument("--early", action="store_true", help="stop trials that fall behind (ASHA)")
    tune.set_defaults(run=run_tune)
    return tune


def add_evaluate_arguments(evaluate: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The arguments of ``raymat evaluate`` and ``jobs/evaluate.py``."""
    evaluate.add_argument("dataset", help="the dataset that the networks were trained on")
    evaluate.add_argument(
        "trainings", nargs="+", metavar="TRAINING", help="outputs of raymat train, one per kind of network"
    )
    evaluate.add_argument("-o", "--out", required=True, help="folder or URI of the table and pictures")
    evaluate.add_argument("--workers", type=positive, default=1, help="number of processes (default: %(default)s)")
    evaluate.add_argument("--address", help="Ray cluster (default: the cluster of the job, or a local one)")
    add_tracking(evaluate)
    evaluate.set_defaults(run=run_evaluate)
    return evaluate


def add_predict_arguments(predict: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The arguments of ``raymat predict`` and ``jobs/predict.py``."""
    source = predict.add_argument_group("scans", "coordinates in mm in the patient (LPS), as in DICOM and LUNA16")
    source = source.add_mutually_exclusive_group(required=True)
    source.add_argument("--image", metavar="FILE", help="one volume; with --center")
    source.add_argument("--cases", metavar="CSV", help="case_id, image, coordX, coordY, coordZ")
    source.add_argument("--dicom", metavar="DIR", help="DICOM files in any folder tree; with --centers")
    predict.add_argument(
        "--center", type=float, nargs=3, metavar=("X", "Y", "Z"), help="centre of the lesion in --image, mm"
    )
    predict.add_argument("--centers", metavar="CSV", help="seriesuid, coordX, coordY, coordZ (LUNA16)")
    predict.add_argument(
        "--model",
        nargs="+",
        required=True,
        metavar="WEIGHTS",
        help="weights.pt files or outputs of raymat train; several networks form an ensemble",
    )
    predict.add_argument("-o", "--out", required=True, help="folder or URI of the predictions")
    predict.add_argument("--format", choices=("nii.gz", "nrrd", "none"), default="nii.gz", help="default: %(default)s")
    predict.add_argument("--size-mm", type=float, help="side of the box around a centre (default: the network's input)")
    predict.add_argument("--flips", action="store_true", help="also predict the mirror images and take the mean")
    predict.add_argument("--workers", type=positive, default=1, help="number of processes (default: %(default)s)")
    predict.add_argument("--gpu", action="store_true", help="one GPU per worker")
    predict.add_argument("--address", help="Ray cluster (default: the cluster of the job, or a local one)")
    add_tracking(predict)
    predict.set_defaults(run=run_predict)
    return predict


def add_training(train: argparse.ArgumentParser) -> None:
    """The arguments that ``raymat train`` and ``raymat tune`` share."""
    train.add_argument("dataset", help="folder or URI of a built dataset; training uses its accepted nodules")
    train.add_argument("-o", "--out", required=True, help="folder or URI of the training")
    train.add_argument(
        "--preset",
        choices=("paper", "small"),
        default="small",
        help="paper: the recipe of the paper, eight GPUs; small: for CPUs (default: %(default)s)",
    )
    train.add_argument(
        "--without-masks", action="store_true", help="ablation: the matting branch does not see the masks"
    )
    recipe = train.add_argument_group("recipe", "changes to the preset")
    recipe.add_argument("--epochs", type=positive, help="passes over the training nodules")
    recipe.add_argument("--batch", type=positive, help="volumes per step, over all workers")
    recipe.add_argument("--crop", type=positive, help="side of the input of the network, voxels")
    recipe.add_argument(
        "--spacing-mm", type=float, help="spacing of the input, a whole multiple of the dataset's spacing"
    )
    recipe.add_argument("--width", type=positive, help="features of the finest level")
    recipe.add_argument("--levels", type=positive, help="resolutions of the U-Net")
    recipe.add_argument("--learning-rate", type=float, help="base rate of ADAM")
    recipe.add_argument("--seed", type=int, help="seed of weights, order and augmentation")
    recipe.add_argument(
        "--precision", choices=("float32", "bfloat16", "float16"), help="of the network; losses are in float32"
    )
    recipe.add_argument(
        "--channels-last", action=argparse.BooleanOptionalAction, default=None, help="memory format; faster on CPUs"
    )
    recipe.add_argument("--compile", action=argparse.BooleanOptionalAction, default=None, help="torch.compile")
    recipe.add_argument(
        "--deterministic",
        action="store_true",
        default=None,
        help="same result in every run on a GPU; operations without this guarantee are refused",
    )
    cluster = train.add_argument_group("cluster")
    cluster.add_argument("--address", help="Ray cluster (default: the cluster of the job, or a local one)")
    cluster.add_argument("--workers", type=positive, help="processes that share each batch (default: paper 8, small 1)")
    cluster.add_argument(
        "--gpu",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="one GPU per worker (default: paper yes, small no)",
    )
    cluster.add_argument("--threads", type=positive, help="threads per worker on CPUs (default: the available CPUs)")
    add_tracking(train)


def weights_list(text: str) -> tuple[float, ...]:
    """Weights of the loss separated by commas, for argparse."""
    values = tuple(float(part) for part in text.split(","))
    if min(values) < 0 or len(set(values)) < len(values):
        raise argparse.ArgumentTypeError(f"{text}: give different numbers, none below 0, separated by commas")
    return values


def splits_of(text: str) -> tuple[int, ...]:
    """Numbers of repeated splits separated by commas, for argparse."""
    values = tuple(int(part) for part in text.split(","))
    if min(values) < 0 or len(set(values)) < len(values):
        raise argparse.ArgumentTypeError(f"{text}: give different numbers from 0 up, separated by commas")
    return values


def run_train(options: argparse.Namespace) -> int:
    """``raymat train``."""
    from raymat.pipelines.train import train

    job = training_job(options, options.splits)
    weights = stated(alpha_weight=options.alpha_weight, gradient_weight=options.gradient_weight)
    if options.loss_weights:
        weights = read_loss_weights(options.loss_weights) | weights
    train(replace(job, recipe=replace(job.recipe, **weights)))
    return 0


def run_tune(options: argparse.Namespace) -> int:
    """``raymat tune``."""
    from raymat.pipelines.tune import TuneJob, tune_loss_weights

    job = training_job(options, (options.split,))
    tune_loss_weights(TuneJob(job, options.alphas, options.betas, options.early))
    return 0


def training_job(options: argparse.Namespace, splits: tuple[int, ...]) -> TrainJob:
    """``raymat.pipelines.train.TrainJob`` from the command line."""
    from raymat.network.recipe import preset
    from raymat.pipelines.train import TrainJob

    paper = options.preset == "paper"
    recipe = preset(options.preset, auxiliary=not options.without_masks)
    names = ("epochs", "batch", "learning_rate", "seed", "precision", "channels_last", "deterministic")
    return TrainJob(
        dataset=options.dataset,
        output=output_of(options),
        recipe=replace(
            recipe,
            model=replace(
                recipe.model, **stated(width=options.width, levels=options.levels, spacing_mm=options.spacing_mm)
            ),
            augmentation=replace(recipe.augmentation, **stated(crop=(options.crop,) * 3 if options.crop else None)),
            **stated(**{name: getattr(options, name) for name in names}, compiled=options.compile),
        ),
        splits=splits,
        workers=options.workers or (8 if paper else 1),
        gpu=paper if options.gpu is None else options.gpu,
        threads=options.threads,
        address=options.address,
    )


def read_loss_weights(path: str) -> dict[str, float]:
    """Alpha and beta from best.json of ``raymat tune``."""
    try:
        found = json.loads(Path(path).read_text())
        return {name: float(found[name]) for name in ("alpha_weight", "gradient_weight")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: contains no alpha_weight and gradient_weight ({error})") from error


def run_evaluate(options: argparse.Namespace) -> int:
    """``raymat evaluate``."""
    from raymat.pipelines.evaluate import EvaluateJob, evaluate

    trainings = tuple(options.trainings)
    job = EvaluateJob(options.dataset, trainings, output_of(options), options.workers, options.address)
    _, failed = evaluate(job)
    return 1 if failed else 0


def run_predict(options: argparse.Namespace) -> int:
    """``raymat predict``."""
    from raymat.nodule import FAILED
    from raymat.pipelines.predict import PredictJob, Target, predict, targets_of_centres, targets_of_table

    if bool(options.image) != bool(options.center) or bool(options.dicom) != bool(options.centers):
        raise InputError("--image goes with --center X Y Z, --dicom with --centers CSV")
    if options.image:
        path = Path(options.image).absolute()
        name = next((path.name[: -len(e)] for e in VOLUME_ENDINGS[::-1] if path.name.lower().endswith(e)), path.stem)
        targets = [Target(name, name, str(path), "", tuple(options.center[::-1]))]
    elif options.cases:
        targets = targets_of_table(options.cases)
    else:
        targets = targets_of_centres(str(Path(options.dicom).absolute()), options.centers)
    counts = predict(
        PredictJob(
            targets=targets,
            weights=tuple(weights_of(options.model)),
            output=output_of(options),
            size_mm=options.size_mm,
            flips=options.flips,
            volumes=None if options.format == "none" else options.format,
            workers=options.workers,
            gpu=options.gpu,
            address=options.address,
        )
    )
    return 1 if counts[FAILED] else 0


def weights_of(given: list[str]) -> list[str]:
    """Weights files; an output of ``raymat train`` gives the weights of its finished repeated splits."""
    found = []
    for path in given:
        if not Path(path).is_dir():
            found.append(path)
            continue
        inside = sorted(str(weights) for weights in Path(path).glob("split-*/weights.pt"))
        if not inside:
            raise InputError(f"{path}: no finished training here (split-*/weights.pt)")
        found += inside
    return found
