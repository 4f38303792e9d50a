"""The ``raymat`` command."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from pathlib import Path

from raymat.commands import curation, evidence, network
from raymat.commands.building import (
    add_grid,
    add_matting,
    add_methods,
    add_pools,
    add_prepare,
    add_source,
    build_parameters,
    matting_parameters,
    open_source,
    pools,
    prepare_parameters,
)
from raymat.commands.options import VOLUME_ENDINGS, add_tracking, output_of, positive, stated
from raymat.errors import InputError, MissingPackage, NoduleExcluded, missing_packages_named
from raymat.methods import METHODS
from raymat.sources.kinds import DEMO_PHANTOMS
from raymat.stopping import stoppable
from raymat.version import __version__


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status: 0 done, 1 nodules failed, 2 the command or its input cannot be used."""
    return run(parser(), arguments)


def run(command: argparse.ArgumentParser, arguments: list[str] | None = None) -> int:
    """Parse the arguments of a command and run it, and print an error as one line."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    options = command.parse_args(arguments)
    try:
        with stoppable(), missing_packages_named():
            return options.run(options)
    except (InputError, NoduleExcluded, MissingPackage) as error:
        print(f"raymat: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # The reader of the output has ended (`| head`): print nothing more, also at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        print("raymat: stopped; committed nodules are kept, run the same command again to resume", file=sys.stderr)
        return 130


def parser() -> argparse.ArgumentParser:
    """The command line of all subcommands."""
    top = argparse.ArgumentParser(prog="raymat", description="3D alpha mattes of nodules from CT and readers' masks")
    top.add_argument("--version", action="version", version=f"raymat {__version__}")
    commands = top.add_subparsers(title="commands", required=True, metavar="COMMAND")

    demo = commands.add_parser("demo", help="build a small dataset from phantoms; needs no data")
    demo.add_argument("-o", "--out", default="raymat-demo", help="folder of the dataset (default: %(default)s)")
    demo.add_argument("-n", type=positive, default=DEMO_PHANTOMS, help="number of phantoms (default: %(default)s)")
    demo.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    add_tracking(demo)
    demo.set_defaults(run=run_demo)

    add_build_arguments(commands.add_parser("build", help="build a dataset of alpha mattes"))

    phantom = commands.add_parser("phantom", help="write CT phantoms with a known alpha as DICOM files")
    phantom.add_argument("-o", "--out", required=True, help="folder to write")
    phantom.add_argument("-n", type=positive, default=DEMO_PHANTOMS, help="number of phantoms (default: %(default)s)")
    phantom.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    phantom.set_defaults(run=run_phantom)

    matte = commands.add_parser("matte", help="compute the matte of one volume")
    matte.add_argument("image", help="the image, in any format that SimpleITK reads")
    given = matte.add_mutually_exclusive_group(required=True)
    given.add_argument("--mask", action="append", metavar="FILE", help="a reader's mask; repeat for each reader")
    given.add_argument("--trimap", metavar="FILE", help="instead of masks: 0 background, 128 unknown, 255 foreground")
    which = matte.add_mutually_exclusive_group()
    which.add_argument("--method", type=str.lower, choices=METHODS, default="cf+", help="default: %(default)s")
    which.add_argument("--all", action="store_true", help="all methods, written as OUT_<method>")
    matte.add_argument("-o", "--out", required=True, metavar="FILE", help="the alpha matte, for example alpha.nii.gz")
    add_prepare(matte)
    add_matting(matte)
    matte.set_defaults(run=run_matte)

    inspect = commands.add_parser("inspect", help="print the outcomes and methods of a dataset")
    inspect.add_argument("dataset", help="folder or URI of a dataset")
    inspect.add_argument("--json", action="store_true", help="print a JSON object")
    inspect.set_defaults(run=run_inspect)

    show = commands.add_parser("show", help="draw one nodule with its mattes")
    show.add_argument("dataset", help="folder or URI of a dataset")
    show.add_argument("nodule", help="nodule id; raymat inspect lists the ids")
    show.add_argument("-o", "--out", required=True, metavar="PNG")
    show.set_defaults(run=run_show)

    curation.add_commands(commands)
    network.add_commands(commands)
    evidence.add_commands(commands)
    return top


def add_build_arguments(build: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The arguments of ``raymat build`` and ``jobs/build_dataset.py``."""
    add_source(build)
    build.add_argument("-o", "--out", help="folder or URI of the dataset (default: raymat-lidc, -cases or -phantoms)")
    build.add_argument(
        "--min-readers", type=positive, default=4, help="exclude nodules with fewer readers (default: %(default)s)"
    )
    add_methods(build)
    build.add_argument("--floor", type=float, help="quality score below which a nodule is rejected (default: 0.33)")
    build.add_argument("--retry-failed", action="store_true", help="try failed nodules again")
    build.add_argument(
        "--nodule-timeout",
        type=positive,
        metavar="S",
        help="seconds that one stage may take on one nodule before its worker is ended (default: 600); three tries",
    )
    add_prepare(build)
    add_grid(build)
    add_matting(build)
    add_pools(build)
    add_tracking(build)
    build.set_defaults(run=run_build)
    return build


def run_build(options: argparse.Namespace) -> int:
    """``raymat build``."""
    from raymat.pipelines.dataset import Job, build_dataset, exit_status
    from raymat.places import is_uri, refuse_credentials

    if options.out and is_uri(options.out):
        refuse_credentials(options.out)
    opened = open_source(options)
    job = Job(
        source=opened.source,
        source_name=opened.title,
        output=output_of(options, opened.out),
        parameters=build_parameters(options, options.min_readers, options.floor),
        pools=pools(options),
        retry_failed=options.retry_failed,
        **stated(nodule_timeout_s=options.nodule_timeout),
        address=options.address,
    )
    return exit_status(build_dataset(job))


def run_demo(options: argparse.Namespace) -> int:
    """``raymat demo``."""
    from raymat.store import Store

    arguments = ["build", "--phantoms", str(options.n), "--seed", str(options.seed), "-o", options.out]
    if options.tracking_uri:
        arguments += ["--tracking-uri", options.tracking_uri]
    if options.no_tracking:
        arguments += ["--no-tracking"]
    print(f"building {options.n} phantoms, drawn from the contours of real readers, into {options.out}")
    status = run_build(parser().parse_args(arguments))
    first = Store.open(options.out).outcomes(["nodule_id"])["nodule_id"][0].as_py()
    print(f"one nodule     raymat show {options.out} {first} -o nodule.png")
    print(f"review         raymat review {options.out}")
    print(f'in Python      for nodule in raymat.load("{options.out}"): nodule.image, nodule.mattes, nodule.method')
    return status


def run_phantom(options: argparse.Namespace) -> int:
    """``raymat phantom``."""
    from raymat.sources.phantom import write_phantoms

    table = write_phantoms(options.out, options.n, options.seed, progress=print)
    print(f"{options.n} phantoms in {options.out}; their true alpha and parameters are listed in {table}")
    return 0


def run_matte(options: argparse.Namespace) -> int:
    """``raymat matte``: one volume, on its own grid."""
    from raymat.prepare import make_trimap
    from raymat.sources.cases import read_case
    from raymat.steps import solve_volume
    from raymat.volume import write_volume

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
    import pyarrow.compute as pc

    from raymat.nodule import ACCEPTED, OUTCOMES
    from raymat.store import Store, counts

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
    from raymat.pictures.figure import save
    from raymat.pictures.nodule import show_nodule
    from raymat.store import Store

    save(show_nodule(Store.open(options.dataset).find(options.nodule)), options.out)
    print(options.out)
    return 0
