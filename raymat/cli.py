"""The ``raymat`` command."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow.compute as pc

from raymat import __version__
from raymat.commands import add_commands
from raymat.matting import METHODS
from raymat.nodule import ACCEPTED, FAILED, OUTCOMES, InputError, NoduleExcluded
from raymat.places import is_uri, refuse_credentials
from raymat.prepare import PrepareParameters, make_trimap
from raymat.quality import QualityParameters
from raymat.sources import Source
from raymat.sources.cases import CasesSource, read_case
from raymat.sources.lidc import LidcSource
from raymat.sources.phantom import PhantomSource, is_phantom_folder, write_phantoms
from raymat.steps import BuildParameters, MattingParameters, solve_volume
from raymat.store import Store, counts
from raymat.volume import write_volume

DEMO_PHANTOMS = 12
GRID = (1.0, 3.0, 10.0, 30.0)
VOLUME_ENDINGS = (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd")


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status: 0 done, 1 nodules failed, 2 the command or its input is at fault."""
    return run(parser(), arguments)


def run(command: argparse.ArgumentParser, arguments: list[str] | None = None) -> int:
    """Parse the arguments of a command and run it, with what is at fault said in one line."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    options = command.parse_args(arguments)
    try:
        return options.run(options)
    except (InputError, NoduleExcluded) as error:
        print(f"raymat: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # Whoever read the output has gone (`| head`): nothing is left to say, at exit neither.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        print("raymat: stopped; what is committed stands, the same command goes on from there", file=sys.stderr)
        return 130


def parser() -> argparse.ArgumentParser:
    """The command line of all subcommands."""
    top = argparse.ArgumentParser(prog="raymat", description="3D alpha mattes of nodules from CT and readers' masks")
    top.add_argument("--version", action="version", version=f"raymat {__version__}")
    commands = top.add_subparsers(title="commands", required=True, metavar="COMMAND")

    demo = commands.add_parser("demo", help="build a small dataset from phantoms; needs no data")
    demo.add_argument("-o", "--out", default="raymat-demo", help="folder of the dataset (default: %(default)s)")
    demo.add_argument("-n", type=positive, default=DEMO_PHANTOMS, help="phantoms (default: %(default)s)")
    demo.add_argument("--seed", type=int, default=0)
    add_tracking(demo)
    demo.set_defaults(run=run_demo)

    add_build_arguments(commands.add_parser("build", help="build a dataset of alpha mattes"))

    add_train_arguments(commands.add_parser("train", help="train 3DMM on a dataset"))

    add_tune_arguments(commands.add_parser("tune", help="search the weights of 3DMM's loss"))
    add_evaluate_arguments(commands.add_parser("evaluate", help="compare 3DMM and the solvers on the test nodules"))
    add_predict_arguments(commands.add_parser("predict", help="matte lesions in new scans; needs centres, no masks"))

    phantom = commands.add_parser("phantom", help="write CT phantoms of known alpha as DICOM")
    phantom.add_argument("-o", "--out", required=True, help="folder to write")
    phantom.add_argument("-n", type=positive, default=DEMO_PHANTOMS, help="how many (default: %(default)s)")
    phantom.add_argument("--seed", type=int, default=0)
    phantom.set_defaults(run=run_phantom)

    matte = commands.add_parser("matte", help="matte one volume")
    matte.add_argument("image", help="the image, any format SimpleITK reads")
    given = matte.add_mutually_exclusive_group(required=True)
    given.add_argument("--mask", action="append", metavar="FILE", help="a reader's mask; repeat for each reader")
    given.add_argument("--trimap", metavar="FILE", help="0 background, 128 unknown, 255 foreground")
    which = matte.add_mutually_exclusive_group()
    which.add_argument("--method", type=str.lower, choices=METHODS, default="cf+", help="default: %(default)s")
    which.add_argument("--all", action="store_true", help="all eight, as OUT_<method>")
    matte.add_argument("-o", "--out", required=True, metavar="FILE", help="the alpha matte, for example alpha.nii.gz")
    add_prepare(matte)
    add_matting(matte)
    matte.set_defaults(run=run_matte)

    inspect = commands.add_parser("inspect", help="what a dataset holds")
    inspect.add_argument("dataset")
    inspect.add_argument("--json", action="store_true", help="as a JSON object")
    inspect.set_defaults(run=run_inspect)

    show = commands.add_parser("show", help="draw one nodule with its mattes")
    show.add_argument("dataset")
    show.add_argument("nodule", help="nodule id (raymat inspect lists them)")
    show.add_argument("-o", "--out", required=True, metavar="PNG")
    show.set_defaults(run=run_show)

    add_commands(commands)
    return top


def add_build_arguments(build: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The arguments of ``raymat build`` and ``jobs/build_dataset.py``."""
    source = build.add_argument_group("source", "one of these; 12 phantoms where none is given")
    source = source.add_mutually_exclusive_group()
    source.add_argument("--lidc", metavar="DIR", help="LIDC-IDRI's DICOM files, in any tree of folders")
    source.add_argument("--cases", metavar="FILE", help="CSV or Parquet: case_id, patient_id, image, masks (or trimap)")
    source.add_argument("--phantoms", type=positive, metavar="N", help="CT phantoms of known alpha")
    build.add_argument("--seed", type=int, default=0, help="of the phantoms (default: %(default)s)")
    build.add_argument("-o", "--out", help="folder or URI of the dataset (default: raymat-lidc, -cases or -phantoms)")
    build.add_argument("--min-readers", type=positive, default=4, help="fewer exclude a nodule (default: %(default)s)")
    build.add_argument("--methods", default=",".join(METHODS), help="solvers, by comma (default: %(default)s)")
    build.add_argument("--floor", type=float, help="quality score below which a nodule is rejected (default: 0.33)")
    build.add_argument("--retry-failed", action="store_true", help="try again what failed before")
    build.add_argument(
        "--nodule-timeout",
        type=positive,
        metavar="S",
        help="seconds that one stage may take on one nodule before its worker is ended (600); three tries in all",
    )
    add_prepare(build)
    build.add_argument("--crop-px", type=positive, help="in-plane size of the crop, pixels of the scan (default: 128)")
    build.add_argument("--pad-slices", type=int, help="slices kept beyond the nodule at both ends (default: 3)")
    build.add_argument("--spacing-mm", type=float, help="of the working grid, every dimension (default: 0.5)")
    add_matting(build)
    cluster = build.add_argument_group("cluster")
    cluster.add_argument("--address", help="Ray cluster (default: the one the job runs on, else a local one)")
    cluster.add_argument(
        "--workers",
        "--solve-workers",
        dest="solve_workers",
        type=positive,
        help="solver actors (default: one a CPU); on a cluster that grows, the most there may be (one a nodule)",
    )
    cluster.add_argument("--solve-cpus", type=float, help="CPUs, and threads, of each (default: 0.9, one thread)")
    cluster.add_argument("--solve-memory-gib", type=float, default=2.0, help="of each (default: %(default)s)")
    cluster.add_argument("--read-workers", type=positive, help="read-and-prepare tasks at once")
    cluster.add_argument("--score-workers", type=positive, help="scoring actors")
    add_tracking(build)
    build.set_defaults(run=run_build)
    return build


def add_train_arguments(train: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The arguments of ``raymat train`` and ``jobs/train_3dmm.py``."""
    add_training(train)
    train.add_argument(
        "--splits",
        type=splits_of,
        default=(0, 1, 2, 3),
        metavar="0,1,2,3",
        help="which re-splits by patient (all four)",
    )
    weights = train.add_argument_group("weights of the loss", "10 and 10 where nothing is given")
    weights.add_argument("--loss-weights", metavar="JSON", help="best.json of raymat tune")
    weights.add_argument("--alpha-weight", type=float, help="alpha")
    weights.add_argument("--gradient-weight", type=float, help="beta")
    train.set_defaults(run=run_train)
    return train


def add_tune_arguments(tune: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The arguments of ``raymat tune`` and ``jobs/tune_loss_weights.py``."""
    add_training(tune)
    tune.add_argument("--alphas", type=weights_list, default=GRID, metavar="1,3,10,30", help="of the grid")
    tune.add_argument("--betas", type=weights_list, default=GRID, metavar="1,3,10,30", help="of the grid")
    tune.add_argument("--split", type=int, default=0, help="the re-split that is validated on (default: %(default)s)")
    tune.add_argument("--early", action="store_true", help="stop trials that fall behind (ASHA)")
    tune.set_defaults(run=run_tune)
    return tune


def add_evaluate_arguments(evaluate: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The arguments of ``raymat evaluate`` and ``jobs/evaluate.py``."""
    evaluate.add_argument("dataset", help="the dataset that the networks were trained on")
    evaluate.add_argument("trainings", nargs="+", metavar="TRAINING", help="outputs of raymat train, one of each kind")
    evaluate.add_argument("-o", "--out", required=True, help="folder or URI for the table and pictures")
    evaluate.add_argument("--workers", type=positive, default=1, help="processes that predict (default: %(default)s)")
    evaluate.add_argument("--address", help="Ray cluster (default: the one the job runs on, else a local one)")
    add_tracking(evaluate)
    evaluate.set_defaults(run=run_evaluate)
    return evaluate


def add_predict_arguments(predict: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The arguments of ``raymat predict`` and ``jobs/predict.py``."""
    source = predict.add_argument_group("scans", "mm in the patient (LPS), as in DICOM and LUNA16")
    source = source.add_mutually_exclusive_group(required=True)
    source.add_argument("--image", metavar="FILE", help="one volume; with --center")
    source.add_argument("--cases", metavar="CSV", help="case_id, image, coordX, coordY, coordZ")
    source.add_argument("--dicom", metavar="DIR", help="DICOM files in any tree of folders; with --centers")
    predict.add_argument("--center", type=float, nargs=3, metavar=("X", "Y", "Z"), help="of the lesion in --image, mm")
    predict.add_argument("--centers", metavar="CSV", help="seriesuid, coordX, coordY, coordZ (LUNA16)")
    predict.add_argument(
        "--model",
        nargs="+",
        required=True,
        metavar="WEIGHTS",
        help="weights.pt, or outputs of raymat train: an ensemble",
    )
    predict.add_argument("-o", "--out", required=True, help="folder or URI of the predictions")
    predict.add_argument("--format", choices=("nii.gz", "nrrd", "none"), default="nii.gz", help="default: %(default)s")
    predict.add_argument("--size-mm", type=float, help="side of the box around a centre (default: the network's input)")
    predict.add_argument("--flips", action="store_true", help="also predict the mirror images, and take the mean")
    predict.add_argument("--workers", type=positive, default=1, help="processes that predict (default: %(default)s)")
    predict.add_argument("--gpu", action="store_true", help="one GPU a worker")
    predict.add_argument("--address", help="Ray cluster (default: the one the job runs on, else a local one)")
    predict.set_defaults(run=run_predict)
    return predict


def add_training(train: argparse.ArgumentParser) -> None:
    """What ``raymat train`` and ``raymat tune`` share."""
    train.add_argument("dataset", help="folder or URI of a built dataset; its accepted nodules are learnt from")
    train.add_argument("-o", "--out", required=True, help="folder or URI of what is trained")
    train.add_argument(
        "--preset",
        choices=("paper", "small"),
        default="small",
        help="paper: the source's recipe, eight GPUs; small: for CPUs (default: %(default)s)",
    )
    train.add_argument("--without-masks", action="store_true", help="the 3DMM whose matte sees no masks (ablation)")
    recipe = train.add_argument_group("recipe", "what the preset says otherwise")
    recipe.add_argument("--epochs", type=positive)
    recipe.add_argument("--batch", type=positive, help="volumes a step, over all workers")
    recipe.add_argument("--crop", type=positive, help="side of the network's input, voxels")
    recipe.add_argument("--width", type=positive, help="features of the finest level")
    recipe.add_argument("--levels", type=positive, help="resolutions of the U-Net")
    recipe.add_argument("--learning-rate", type=float)
    recipe.add_argument("--seed", type=int)
    recipe.add_argument("--precision", choices=("float32", "bfloat16", "float16"))
    recipe.add_argument("--channels-last", action=argparse.BooleanOptionalAction, default=None)
    recipe.add_argument("--compile", action=argparse.BooleanOptionalAction, default=None, help="torch.compile")
    recipe.add_argument(
        "--deterministic", action="store_true", default=None, help="refuse what may differ from run to run on a GPU"
    )
    cluster = train.add_argument_group("cluster")
    cluster.add_argument("--address", help="Ray cluster (default: the one the job runs on, else a local one)")
    cluster.add_argument("--workers", type=positive, help="processes that share each batch (default: 1; paper: 8)")
    cluster.add_argument("--gpu", action=argparse.BooleanOptionalAction, default=None, help="one a worker (paper: yes)")
    cluster.add_argument("--threads", type=positive, help="of each worker on CPUs (default: the CPUs it can have)")
    add_tracking(train)


def weights_list(text: str) -> tuple[float, ...]:
    """Weights of the loss by comma, for argparse."""
    values = tuple(float(part) for part in text.split(","))
    if min(values) < 0 or len(set(values)) < len(values):
        raise argparse.ArgumentTypeError(f"{text}: different numbers, none below 0, by comma")
    return values


def splits_of(text: str) -> tuple[int, ...]:
    """Numbers of re-splits by comma, for argparse."""
    values = tuple(int(part) for part in text.split(","))
    if min(values) < 0 or len(set(values)) < len(values):
        raise argparse.ArgumentTypeError(f"{text}: different numbers from 0 on, by comma")
    return values


def add_prepare(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("trimap")
    group.add_argument("--grow-out", type=float, metavar="MM", help="unknown region into the background (default: 2)")
    group.add_argument("--grow-in", type=float, metavar="MM", help="unknown region into the foreground (default: 1)")
    group.add_argument("--foreground", choices=("intersection", "majority"), help="of the readers' masks")


def add_matting(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("solvers")
    group.add_argument(
        "--intensity-range", type=float, nargs=2, metavar=("LOW", "HIGH"), help="HU (default: -1000 400)"
    )
    group.add_argument(
        "--window",
        type=float,
        nargs=2,
        metavar=("LEVEL", "WIDTH"),
        help='HU; calibrates the foreground of the "+" methods (default: -600 1500)',
    )


def add_tracking(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("MLflow")
    group.add_argument("--tracking-uri", help="default: MLFLOW_TRACKING_URI, else ./mlflow.db")
    group.add_argument("--no-tracking", action="store_true", help="log no run")


def positive(text: str) -> int:
    """A positive whole number, for argparse."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


def _given(**values: object) -> dict[str, object]:
    return {name: value for name, value in values.items() if value is not None}


def prepare_parameters(options: argparse.Namespace) -> PrepareParameters:
    """``PrepareParameters`` from the command line; what is not given keeps its default."""
    low_high = options.intensity_range
    names = ("crop_px", "pad_slices", "spacing_mm", "foreground")
    return PrepareParameters(
        **_given(
            grow_out_mm=options.grow_out,
            grow_in_mm=options.grow_in,
            intensity_range=tuple(low_high) if low_high else None,
            **{name: getattr(options, name, None) for name in names},
        )
    )


def matting_parameters(options: argparse.Namespace, methods: tuple[str, ...]) -> MattingParameters:
    """``MattingParameters`` from the command line."""
    level, width = options.window or (None, None)
    return MattingParameters(methods, **_given(window_level=level, window_width=width))


def build_parameters(options: argparse.Namespace) -> BuildParameters:
    """``BuildParameters`` from the command line."""
    # Another range of intensities is another modality, where quality cannot know what pure lesion looks like.
    other_modality = {"pure_lesion": None} if options.intensity_range else {}
    return BuildParameters(
        min_readers=options.min_readers,
        prepare=prepare_parameters(options),
        matting=matting_parameters(options, tuple(name.strip().lower() for name in options.methods.split(","))),
        quality=QualityParameters(**_given(floor=options.floor), **other_modality),
    )


def open_source(options: argparse.Namespace) -> tuple[Source, str, str]:
    """The source asked for, what to call it, and where its dataset goes by default."""
    for given in (options.cases, options.lidc):
        if given and is_uri(given):
            refuse_credentials(given)
        elif given and not Path(given).exists():
            raise InputError(f"{given}: no such file or folder")
    if options.cases:
        return CasesSource(options.cases), f"cases {options.cases}", "raymat-cases"
    if options.lidc:
        if is_phantom_folder(options.lidc):
            return PhantomSource.from_folder(options.lidc), f"phantoms in {options.lidc}", "raymat-phantoms"
        return LidcSource(options.lidc), f"lidc {options.lidc}", "raymat-lidc"
    n = options.phantoms or DEMO_PHANTOMS
    out = options.out or "raymat-phantoms"
    return phantom_source(out, n, options.seed), f"{n} phantoms, seed {options.seed}", "raymat-phantoms"


def phantom_source(out: str, n: int, seed: int) -> PhantomSource:
    """Phantoms drawn as they are read: beside the dataset, or on each worker's own disk for an object store."""
    beside = f"raymat-phantom-scans-{seed}" if is_uri(out) else f"{out}/scans"
    return PhantomSource(str(Path(beside).absolute()), n, seed)


def run_build(options: argparse.Namespace) -> int:
    """``raymat build``."""
    # Ray takes a second to import and the small commands do without it.
    from raymat.pipelines.cluster import Pools
    from raymat.pipelines.dataset import Job, build_dataset, exit_status
    from raymat.tracking import tracking_uri

    if options.out and is_uri(options.out):
        refuse_credentials(options.out)
    source, name, default_out = open_source(options)
    out = options.out or default_out
    refuse_lost_output(out)
    job = Job(
        source=source,
        source_name=name,
        out=out,
        parameters=build_parameters(options),
        pools=Pools(
            read_workers=options.read_workers,
            solve_workers=options.solve_workers,
            solve_cpus=options.solve_cpus,
            solve_memory_gib=options.solve_memory_gib,
            score_workers=options.score_workers,
        ),
        retry_failed=options.retry_failed,
        **_given(nodule_timeout_s=options.nodule_timeout),
        tracking_uri=None if options.no_tracking else tracking_uri(out, options.tracking_uri),
        address=options.address,
    )
    return exit_status(build_dataset(job))


def run_train(options: argparse.Namespace) -> int:
    """``raymat train``."""
    from raymat.pipelines.train import train

    job = training_job(options, options.splits)
    weights = _given(alpha_weight=options.alpha_weight, gradient_weight=options.gradient_weight)
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


def training_job(options: argparse.Namespace, splits: tuple[int, ...]):
    """``raymat.pipelines.train.TrainJob`` from the command line."""
    from raymat.network.recipe import preset
    from raymat.pipelines.train import TrainJob
    from raymat.tracking import tracking_uri

    refuse_lost_output(options.out)
    paper = options.preset == "paper"
    recipe = preset(options.preset, auxiliary=not options.without_masks)
    names = ("epochs", "batch", "learning_rate", "seed", "precision", "channels_last", "deterministic")
    return TrainJob(
        dataset=options.dataset,
        out=options.out,
        recipe=replace(
            recipe,
            model=replace(recipe.model, **_given(width=options.width, levels=options.levels)),
            augmentation=replace(recipe.augmentation, **_given(crop=(options.crop,) * 3 if options.crop else None)),
            **_given(**{name: getattr(options, name) for name in names}, compiled=options.compile),
        ),
        splits=splits,
        workers=options.workers or (8 if paper else 1),
        gpu=paper if options.gpu is None else options.gpu,
        threads=options.threads,
        tracking_uri=None if options.no_tracking else tracking_uri(options.out, options.tracking_uri),
        address=options.address,
    )


def read_loss_weights(path: str) -> dict[str, float]:
    """Alpha and beta as ``raymat tune`` leaves them in best.json."""
    try:
        found = json.loads(Path(path).read_text())
        return {name: float(found[name]) for name in ("alpha_weight", "gradient_weight")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: holds no alpha_weight and gradient_weight ({error})") from error


def run_evaluate(options: argparse.Namespace) -> int:
    """``raymat evaluate``."""
    from raymat.pipelines.evaluate import EvaluateJob, evaluate
    from raymat.tracking import tracking_uri

    refuse_lost_output(options.out)
    uri = None if options.no_tracking else tracking_uri(options.out, options.tracking_uri)
    evaluate(EvaluateJob(options.dataset, tuple(options.trainings), options.out, options.workers, uri, options.address))
    return 0


def run_predict(options: argparse.Namespace) -> int:
    """``raymat predict``."""
    from raymat.pipelines.predict import PredictJob, Target, predict, targets_of_centres, targets_of_table

    refuse_lost_output(options.out)
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
            out=options.out,
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
    """Weights files; an output of ``raymat train`` stands for those of its finished re-splits."""
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


def refuse_lost_output(out: str) -> None:
    """Refuse a relative output in a submitted job, whose folder is thrown away."""
    from raymat.tracking import in_submitted_job

    if in_submitted_job() and not is_uri(out) and not Path(out).is_absolute():
        raise InputError(f"-o {out}: a job's folder is thrown away; give an absolute path that all nodes see, or a URI")


def run_demo(options: argparse.Namespace) -> int:
    """``raymat demo``."""
    arguments = ["build", "--phantoms", str(options.n), "--seed", str(options.seed), "-o", options.out]
    if options.tracking_uri:
        arguments += ["--tracking-uri", options.tracking_uri]
    if options.no_tracking:
        arguments += ["--no-tracking"]
    print(f"building {options.n} phantoms, CT drawn from real readers' contours, into {options.out}")
    status = run_build(parser().parse_args(arguments))
    first = Store.open(options.out).outcomes(["nodule_id"])["nodule_id"][0].as_py()
    print(f"one nodule     raymat show {options.out} {first} -o nodule.png")
    print(f"review         raymat review {options.out}")
    print(f'in Python      for nodule in raymat.load("{options.out}"): nodule.image, nodule.mattes, nodule.method')
    return status


def run_phantom(options: argparse.Namespace) -> int:
    """``raymat phantom``."""
    table = write_phantoms(options.out, options.n, options.seed, progress=print)
    print(f"{options.n} phantoms in {options.out}; their true alpha and parameters are listed in {table}")
    return 0


def run_matte(options: argparse.Namespace) -> int:
    """``raymat matte``: one volume, on its own grid."""
    parameters = prepare_parameters(options)
    out = Path(options.out)
    suffix = next((ending for ending in VOLUME_ENDINGS[::-1] if out.name.lower().endswith(ending)), None)
    if suffix is None:
        raise InputError(f"-o {out}: name a file that ends in one of {', '.join(VOLUME_ENDINGS)}")
    if not out.absolute().parent.is_dir():
        raise InputError(f"-o {out}: there is no folder {out.absolute().parent}")
    image, masks, trimap, grid = read_case(options.image, options.mask or [], options.trimap)
    if trimap is None:
        trimap = make_trimap(masks, grid.spacing, parameters.grow_out_mm, parameters.grow_in_mm, parameters.foreground)
    matting = matting_parameters(options, METHODS if options.all else (options.method,))
    try:
        mattes = solve_volume(image, trimap, grid.spacing, parameters.intensity_range, matting)
    except ValueError as error:
        raise InputError(f"{options.image}: {error}") from error
    for method, (alpha, info) in mattes.items():
        path = out.with_name(f"{out.name[: -len(suffix)]}_{method}{suffix}") if options.all else out
        write_volume(path, alpha, grid)
        state = "" if info.converged else ", NOT converged"
        print(f"{path}: {method}, {info.unknowns} unknown voxels, {info.seconds:.2f} s{state}")
    return 0


def run_inspect(options: argparse.Namespace) -> int:
    """``raymat inspect``."""
    store = Store.open(options.dataset)
    rows = store.outcomes(("nodule_id", "patient_id", "outcome", "method", "stage", "reason", "notes", "shape"))
    planned = store.manifest(["nodule_id"]).num_rows
    of = counts(rows["outcome"])
    chosen = counts(rows.filter(pc.equal(rows["outcome"], ACCEPTED))["method"])
    report = {
        "dataset": options.dataset,
        "planned": planned,
        "not_yet_built": planned - rows.num_rows,
        "outcomes": {name: of[name] for name in OUTCOMES},
        "methods": dict(chosen.most_common()),
        "bytes": store.size_bytes(),
    }
    nodules = (row for batch in rows.to_batches(max_chunksize=1_000) for row in batch.to_pylist())
    if options.json:
        # Nodule by nodule, as there may be millions.
        print(json.dumps(report, indent=1).removesuffix("\n}") + ',\n "nodules": [')
        for number, row in enumerate(nodules, 1):
            print("  " + json.dumps(row) + ("," if number < rows.num_rows else ""))
        print(" ]\n}")
        return 0
    print(f"{options.dataset}: {planned} nodules, {len(rows['patient_id'].unique())} patients")
    for name in OUTCOMES:
        print(f"  {name:<10}{of[name]:>7}")
    if planned > rows.num_rows:
        print(f"  not built {planned - rows.num_rows:>7}   (run the build again to finish)")
    print("chosen   " + (", ".join(f"{method} {n}" for method, n in chosen.most_common()) or "none"))
    print(f"on disk  {report['bytes'] / 1e6:.1f} MB")
    for row in nodules:
        text = row["method"] or ""
        shape = "x".join(map(str, row["shape"])) if row["shape"] else ""
        print(f"  {row['nodule_id']:<24}{row['outcome']:<10}{text:<6}{shape:<14}{row['reason'] or ''}".rstrip())
    return 0


def run_show(options: argparse.Namespace) -> int:
    """``raymat show``."""
    from raymat import pictures

    pictures.save(pictures.show_nodule(Store.open(options.dataset).find(options.nodule)), options.out)
    print(options.out)
    return 0
