"""``raymat matte``: the matte of one volume."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from raymat.commands.build_options import add_matting, add_prepare, matting_parameters, prepare_parameters
from raymat.commands.options import VOLUME_ENDINGS, positive
from raymat.errors import InputError
from raymat.methods import METHODS, PRECONDITIONERS
from raymat.words import utf8

HELP = "compute the matte of one volume"


def add_arguments(command: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The arguments of ``raymat matte``."""
    command.add_argument("image", help="the image, in any format that SimpleITK reads")
    given = command.add_mutually_exclusive_group(required=True)
    given.add_argument("--mask", action="append", metavar="FILE", help="a reader's mask; repeat for each reader")
    given.add_argument("--trimap", metavar="FILE", help="instead of masks: 0 background, 128 unknown, 255 foreground")
    which = command.add_mutually_exclusive_group()
    which.add_argument("--method", type=str.lower, choices=METHODS, default="cf+", help="default: %(default)s")
    which.add_argument("--all", action="store_true", help="all methods, written as OUT_<method>")
    command.add_argument("-o", "--out", required=True, metavar="FILE", help="the alpha matte, for example alpha.nii.gz")
    add_prepare(command)
    add_matting(command)
    group = command.add_argument_group("computation")
    group.add_argument(
        "--preconditioner",
        choices=PRECONDITIONERS,
        help="of the linear solver: the diagonal, multigrid, or multigrid where the diagonal is too slow, as in thick "
        "unknown regions (default: auto)",
    )
    group.add_argument(
        "--threads",
        type=positive,
        help="threads; alpha does not depend on them (default: all CPUs that are free to use)",
    )
    command.set_defaults(run=run)
    return command


def run(options: argparse.Namespace) -> int:
    """``raymat matte``: one volume, on its own grid."""
    import numpy as np

    from raymat.arrays import UNKNOWN
    from raymat.machine import GIB, free_memory_bytes, usable_cpus
    from raymat.matting import memory_needed
    from raymat.prepare import doubt_of_hu, make_trimap
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
    if parameters.intensity_range[0] < 0 and (doubt := doubt_of_hu(image)):
        print(f"raymat: {utf8(options.image)}: {doubt}", file=sys.stderr)
    if trimap is None:
        trimap = make_trimap(masks, grid.spacing, parameters.grow_out_mm, parameters.grow_in_mm, parameters.foreground)
    threads = options.threads or usable_cpus()
    matting = matting_parameters(options, METHODS if options.all else (options.method,))
    unknowns = int(np.count_nonzero(trimap == UNKNOWN))
    needed, free = memory_needed(trimap.size, unknowns, matting.methods), free_memory_bytes()
    if needed > free:
        raise InputError(
            f"{options.image}: {unknowns:,} unknown voxels need about {needed / GIB:.1f} GiB of memory, and "
            f"{free / GIB:.1f} GiB are free: ask for one method at a time, cut the image to the lesion, make its "
            "voxels larger, or let --grow-out and --grow-in leave fewer voxels unknown"
        )
    try:
        mattes = solve_volume(image, trimap, masks, grid.spacing, parameters.intensity_range, matting, threads)
    except ValueError as error:
        raise InputError(f"{options.image}: {error}") from error
    for method, (alpha, info) in mattes.items():
        path = out.with_name(f"{out.name[: -len(suffix)]}_{method}{suffix}") if options.all else out
        write_volume(path, alpha, grid)
        state = "" if info.converged else ", NOT converged"
        print(f"{path}: {method}, {info.unknowns} unknown voxels, {info.seconds:.2f} s ({info.solver}){state}")
    return 0
