"""``raymat matte``: the matte of one volume."""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from raymat.commands.build_options import add_matting, add_prepare, matting_parameters, prepare_parameters
from raymat.commands.options import PICTURE_ENDINGS, VOLUME_ENDINGS, positive
from raymat.errors import InputError
from raymat.methods import METHODS, PRECONDITIONERS, is_calibrated
from raymat.words import utf8

if TYPE_CHECKING:
    import numpy as np

    from raymat.arrays import Box
    from raymat.volume import Grid

DEFAULT_RANGE = (-1000.0, 400.0)  # HU
HELP = "compute the matte of one volume"


def add_arguments(command: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The arguments of ``raymat matte``."""
    command.add_argument(
        "image",
        help="the image, 3D or 2D, in any format that SimpleITK reads; several (CT and PET) separated by ;",
    )
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
    """``raymat matte``: one volume, or one 2D image, on its own grid."""
    import numpy as np

    from raymat.arrays import UNKNOWN, box_around
    from raymat.channels import files_of
    from raymat.machine import GIB, free_memory_bytes, usable_cpus
    from raymat.matting import memory_needed
    from raymat.prepare import doubt_of_hu, make_trimap
    from raymat.sources.cases import read_case
    from raymat.steps import MattingParameters, solve_volume
    from raymat.volume import is_picture, write_picture, write_volume

    out, suffix = _out(options.out)
    files = files_of(options.image)
    parameters = prepare_parameters(options)
    image, masks, trimap, grid = read_case(files[0], options.mask or [], options.trimap, pictures=True)
    flat = is_picture(files[0])
    if suffix in PICTURE_ENDINGS and not flat:
        raise InputError(
            f"-o {out}: the image is a volume; name a file that ends in one of {', '.join(VOLUME_ENDINGS)}"
        )
    ranges = _ranges(options, files, image)
    if ranges[0][0] < 0 and (doubt := doubt_of_hu(image)):
        print(f"raymat: {utf8(files[0])}: {doubt}", file=sys.stderr)
    coarse = False
    several = len(files) > 1 or image.ndim > len(grid.shape)
    if several:
        marked = np.logical_or.reduce(masks) if trimap is None else trimap != 0
        names = [channel.name for channel in parameters.channels]
        first = names.index(parameters.calibrating) if names else 0
        reach = parameters.grow_out_mm + MattingParameters().roi_margin
        near = box_around(marked, [math.ceil(reach / step) for step in grid.spacing])
        image, ranges, coarse = _stacked(files, image, grid, ranges, first, near)
    # A single slice has no windows along z: it is solved as a 2D image.
    thin = slice(None) if grid.shape[0] > 1 else 0
    spacing = grid.spacing if grid.shape[0] > 1 else grid.spacing[1:]
    image, masks = image[thin], [mask[thin] for mask in masks]
    if trimap is None:
        trimap = make_trimap(masks, spacing, parameters.grow_out_mm, parameters.grow_in_mm, parameters.foreground)
    else:
        trimap = trimap[thin]
    threads = options.threads or usable_cpus()
    matting = matting_parameters(options, METHODS if options.all else (options.method,)).for_channels(coarse)
    unknowns = int(np.count_nonzero(trimap == UNKNOWN))
    needed, free = memory_needed(trimap.size, unknowns, matting.methods), free_memory_bytes()
    if needed > free:
        raise InputError(
            f"{options.image}: {unknowns:,} unknown voxels need about {needed / GIB:.1f} GiB of memory, and "
            f"{free / GIB:.1f} GiB are free: ask for one method at a time, cut the image to the lesion, make its "
            "voxels larger, or let --grow-out and --grow-in leave fewer voxels unknown"
        )
    try:
        mattes = solve_volume(image, trimap, masks, spacing, ranges if several else ranges[0], matting, threads)
    except ValueError as error:
        raise InputError(f"{options.image}: {error}") from error
    for method, (alpha, info) in mattes.items():
        path = out.with_name(f"{out.name[: -len(suffix)]}_{method}{suffix}") if options.all else out
        (write_picture if flat else write_volume)(path, alpha.reshape(grid.shape), grid)
        state = "" if info.converged else ", NOT converged"
        print(f"{path}: {method}, {info.unknowns} unknown voxels, {info.seconds:.2f} s ({info.solver}){state}")
    return 0


def _out(text: str) -> tuple[Path, str]:
    """The path of the matte, and its ending."""
    out, endings = Path(text), (*VOLUME_ENDINGS, *PICTURE_ENDINGS)
    suffix = next((ending for ending in endings[::-1] if out.name.lower().endswith(ending)), None)
    if suffix is None:
        raise InputError(f"-o {out}: name a file that ends in one of {', '.join(endings)}")
    if not out.absolute().parent.is_dir():
        raise InputError(f"-o {out}: there is no folder {out.absolute().parent}")
    return out, suffix


def _ranges(options: argparse.Namespace, files: list[str], image: np.ndarray) -> list[tuple[float, float]]:
    """The range of intensities of each file."""
    given = [(low, high) for low, high in options.intensity_range or []]
    if not given and len(files) == 1 and image.ndim > 3:
        given = [(0.0, 255.0)]
        if not options.window and (options.all or is_calibrated(options.method)):
            raise InputError(
                f"{files[0]}: a colour image has no HU that could calibrate: choose --method cf, or give --window of "
                "its first channel"
            )
    if len(given or files) != len(files) or (len(files) > 1 and not given):
        raise InputError(
            f"{options.image}: {len(files)} images and {len(given)} intensity ranges: repeat --intensity-range once "
            "per image, in the same order"
        )
    return given or [DEFAULT_RANGE]


def _stacked(
    files: list[str], first: np.ndarray, grid: Grid, ranges: list[tuple[float, float]], calibrating: int, near: Box
) -> tuple[np.ndarray, list[tuple[float, float]], bool]:
    """All channels on the grid of the first file, (z, y, x, channels), and their ranges; the calibrating file's first.

    ``near`` is the box (z, y, x) that each file has to cover. Also whether one has far larger voxels than the first.
    """
    import numpy as np

    from raymat.channels import own_grid, resampled, same_lattice, shortfall
    from raymat.sources.cases import read_channel
    from raymat.steps import is_coarse

    images, coarse = [first], False
    for path in files[1:]:
        channel = read_channel(path, pictures=True)
        values, own = channel.image, own_grid(channel, path)
        if not same_lattice(own, grid):
            needed = grid.crop([part.start for part in near], [part.stop - part.start for part in near])
            missing = shortfall(own, needed)
            if missing or grid.shape[0] == 1 or values.ndim > len(own.shape):
                raise InputError(
                    f"{path}: {' x '.join(map(str, own.shape))} voxels (z, y, x), on another grid than {files[0]}"
                    f"{', which reaches ' + missing if missing else ''}; resample it onto that one's grid"
                )
            values, coarse = resampled(values, own, grid), coarse or is_coarse([own.spacing, grid.spacing])
            print(f"raymat: {utf8(path)}: resampled to the grid of {utf8(files[0])}", file=sys.stderr)
        images.append(values)
    arrays, of_each = [], []
    for number in (calibrating, *(n for n in range(len(files)) if n != calibrating)):
        image = images[number] if images[number].ndim > len(grid.shape) else images[number][..., None]
        arrays.append(image)
        of_each += [ranges[number]] * image.shape[-1]
    return np.concatenate(arrays, axis=-1), of_each, coarse
