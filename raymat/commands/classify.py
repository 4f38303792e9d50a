"""``raymat classify``: benign and malignant from masks and mattes."""

from __future__ import annotations

import argparse
from dataclasses import replace

from raymat.commands.options import add_address, add_tracking, numbers_of, output_of, positive, stated

HELP = "classify benign and malignant from image, masks and mattes (figure 5 of the paper)"


def add_arguments(command: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The arguments of ``raymat classify`` and ``jobs/classify_nodules.py``."""
    command.add_argument("dataset", help="a built dataset or a release, with ratings of malignancy")
    command.add_argument("-o", "--out", required=True, help="folder or URI of the experiment")
    command.add_argument(
        "--preset",
        choices=("paper", "small"),
        default="small",
        help="paper: DenseNet-121, ResNet-34, ResNet-50 on crops of 96 voxels; small: for CPUs (default: %(default)s)",
    )
    trials = command.add_argument_group("trials", "every input with every network, seed and repeated split")
    trials.add_argument(
        "--inputs",
        type=names_of,
        metavar="a,b",
        help="separated by commas (default: all but the best matte of the dataset's own kind, which is `chosen`)",
    )
    trials.add_argument(
        "--networks", type=names_of, metavar="a,b", help="separated by commas (default: the three of the preset)"
    )
    trials.add_argument(
        "--seeds",
        type=numbers_of,
        default=(0, 1, 2, 3),
        metavar="0,1,2,3",
        help="separated by commas (default: 0,1,2,3)",
    )
    trials.add_argument(
        "--splits",
        type=splits_or_each,
        default=(0,),
        metavar="0",
        help="repeated splits by patient, or `each`: one per seed, for more test nodules (default: 0)",
    )
    labels = command.add_argument_group("label", "from the mean of the readers' ratings of malignancy")
    labels.add_argument(
        "--threshold", type=float, help="mean above: malignant; below: benign; equal: left out (default: 3)"
    )
    labels.add_argument(
        "--margin", type=float, help="also leave out means within this distance of the threshold (default: 0)"
    )
    recipe = command.add_argument_group("recipe", "changes to the preset")
    recipe.add_argument("--side", type=positive, help="side of the crop, voxels")
    recipe.add_argument(
        "--spacing-mm", type=float, help="spacing of the crop, a whole multiple of the dataset's spacing"
    )
    recipe.add_argument("--width", type=float, help="factor on the number of features")
    recipe.add_argument("--stem", choices=("full", "small"), help="first layers of the networks; small for small crops")
    recipe.add_argument("--epochs", type=positive, help="largest number of epochs")
    recipe.add_argument(
        "--patience", type=positive, help="stop after this number of epochs without a better validation AUROC"
    )
    recipe.add_argument("--batch", type=positive, help="crops per step")
    recipe.add_argument("--learning-rate", type=float, help="rate of AdamW")
    cluster = command.add_argument_group("cluster")
    add_address(cluster)
    cluster.add_argument("--cpus", type=float, default=1.0, help="CPUs per trial (default: %(default)s)")
    cluster.add_argument("--gpus", type=float, help="GPUs per trial, fractions allowed (default: paper 1, small 0)")
    add_tracking(command)
    command.set_defaults(run=run)
    return command


def splits_or_each(text: str) -> tuple[int, ...] | None:
    """Numbers of repeated splits separated by commas, or None for "each", for argparse."""
    return None if text == "each" else numbers_of(text)


def names_of(text: str) -> tuple[str, ...]:
    """Names separated by commas, each once, for argparse."""
    names = tuple(dict.fromkeys(name.strip().lower() for name in text.split(",") if name.strip()))
    if not names:
        raise argparse.ArgumentTypeError("name at least one")
    return names


def run(options: argparse.Namespace) -> int:
    """``raymat classify``: status 1 if a trial failed."""
    from raymat.classification.networks import PAPER_NETWORKS, SMALL_NETWORKS
    from raymat.classification.recipe import PRESETS
    from raymat.pipelines.classify import ClassifyJob, classify

    paper = options.preset == "paper"
    recipe = PRESETS[options.preset]
    given = ("threshold", "margin", "width", "stem", "epochs", "patience", "batch", "learning_rate")
    crop = replace(recipe.crop, **stated(side=options.side, spacing_mm=options.spacing_mm))
    _, errors = classify(
        ClassifyJob(
            dataset=options.dataset,
            output=output_of(options),
            recipe=replace(recipe, crop=crop, **stated(**{name: getattr(options, name) for name in given})),
            inputs=options.inputs or (),
            networks=options.networks or (PAPER_NETWORKS if paper else SMALL_NETWORKS),
            seeds=options.seeds,
            splits=options.splits,
            cpus=options.cpus,
            gpus=(1.0 if paper else 0.0) if options.gpus is None else options.gpus,
            address=options.address,
        )
    )
    return 1 if errors else 0
