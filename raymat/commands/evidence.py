"""The commands of the evidence: readers, classify, report."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from raymat.commands.building import (
    add_grid,
    add_matting,
    add_methods,
    add_pools,
    add_prepare,
    add_source,
    build_parameters,
    open_source,
    pools,
)
from raymat.commands.network import splits_of
from raymat.commands.options import add_tracking, output_of, positive, stated
from raymat.errors import InputError
from raymat.sources.kinds import KINDS, asked_for


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Add them to the parser of ``raymat``."""
    add_readers_arguments(
        commands.add_parser(
            "readers", help="leave one reader out: how well do mattes of three readers predict the fourth?"
        )
    )
    add_classify_arguments(
        commands.add_parser("classify", help="classify benign and malignant from 14 inputs (figure 5 of the paper)")
    )
    command = commands.add_parser(
        "report", help="write one self-contained HTML page about datasets, measurements and experiments"
    )
    command.add_argument(
        "runs", nargs="+", metavar="RUN", help="outputs of raymat build, release, readers, classify and evaluate"
    )
    command.add_argument("-o", "--out", required=True, metavar="HTML", help="for example report.html")
    command.set_defaults(run=run_report)


def add_readers_arguments(readers: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The arguments of ``raymat readers`` and ``jobs/leave_one_reader_out.py``."""
    add_source(readers)
    readers.add_argument("-o", "--out", required=True, help="folder or URI of the measurements")
    readers.add_argument(
        "--nodules", type=positive, metavar="N", help="measure N randomly drawn nodules (default: all)"
    )
    add_methods(readers)
    readers.add_argument("--retry-failed", action="store_true", help="try failed nodules again")
    add_prepare(readers)
    add_grid(readers)
    add_matting(readers)
    add_pools(readers)
    add_tracking(readers)
    readers.set_defaults(run=run_readers)
    return readers


def run_readers(options: argparse.Namespace) -> int:
    """``raymat readers``: status 1 if a split failed."""
    from raymat.evidence.left_out import READERS
    from raymat.nodule import FAILED
    from raymat.pipelines.readers import ReadersJob, leave_one_reader_out

    if not asked_for(options):
        named = ", ".join(f"--{name} {kind.metavar}" for name, kind in KINDS.items())
        raise InputError(f"name a source of nodules with four readers, one of {named}")
    opened = open_source(options)
    _, outcomes = leave_one_reader_out(
        ReadersJob(
            source=opened.source,
            source_name=opened.title,
            output=output_of(options),
            parameters=build_parameters(options, READERS - 1),
            pools=pools(options),
            nodules=options.nodules,
            retry_failed=options.retry_failed,
            address=options.address,
        )
    )
    return 1 if outcomes[FAILED] else 0


def add_classify_arguments(command: argparse.ArgumentParser) -> argparse.ArgumentParser:
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
    trials.add_argument("--inputs", type=names_of, metavar="a,b", help="separated by commas (default: all)")
    trials.add_argument(
        "--networks", type=names_of, metavar="a,b", help="separated by commas (default: the three of the preset)"
    )
    trials.add_argument(
        "--seeds",
        type=splits_of,
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
    cluster.add_argument("--address", help="Ray cluster (default: the cluster of the job, or a local one)")
    cluster.add_argument("--cpus", type=float, default=1.0, help="CPUs per trial (default: %(default)s)")
    cluster.add_argument("--gpus", type=float, help="GPUs per trial, fractions allowed (default: paper 1, small 0)")
    add_tracking(command)
    command.set_defaults(run=run_classify)
    return command


def splits_or_each(text: str) -> tuple[int, ...] | None:
    """Numbers of repeated splits separated by commas, or None for "each", for argparse."""
    return None if text == "each" else splits_of(text)


def names_of(text: str) -> tuple[str, ...]:
    """Names separated by commas, each once, for argparse."""
    names = tuple(dict.fromkeys(name.strip().lower() for name in text.split(",") if name.strip()))
    if not names:
        raise argparse.ArgumentTypeError("name at least one")
    return names


def run_classify(options: argparse.Namespace) -> int:
    """``raymat classify``: status 1 if a trial failed."""
    from raymat.classification.networks import PAPER_NETWORKS, SMALL_NETWORKS
    from raymat.classification.recipe import PRESETS
    from raymat.evidence.inputs import INPUTS
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
            inputs=options.inputs or INPUTS,
            networks=options.networks or (PAPER_NETWORKS if paper else SMALL_NETWORKS),
            seeds=options.seeds,
            splits=options.splits,
            cpus=options.cpus,
            gpus=(1.0 if paper else 0.0) if options.gpus is None else options.gpus,
            address=options.address,
        )
    )
    return 1 if errors else 0


def run_report(options: argparse.Namespace) -> int:
    """``raymat report``."""
    from raymat.report.report import write_report

    out = Path(options.out)
    if out.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"-o {options.out}: name a file that ends in .html")
    for line in write_report(options.runs, out):
        print(line)
    print(f"report   {out}   figures {out.with_name(f'{out.stem}-figures')}/")
    return 0
