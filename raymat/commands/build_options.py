"""Options of the commands that build: a source, the trimap, the solvers, the workers."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from raymat.commands.options import add_address, positive, stated
from raymat.errors import InputError
from raymat.methods import ALPHA_KINDS, METHODS, is_calibrated
from raymat.sources.kinds import DEFAULT, DEMO_PHANTOMS, KINDS, Opened, asked_for

if TYPE_CHECKING:
    from raymat.engine.cluster import Pools
    from raymat.prepare import PrepareParameters
    from raymat.steps import BuildParameters, MattingParameters


def add_source(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("source", f"one of these; default: {DEMO_PHANTOMS} phantoms")
    source = group.add_mutually_exclusive_group()
    for name, kind in KINDS.items():
        source.add_argument(f"--{name}", metavar=kind.metavar, type=positive if kind.number else str, help=kind.words)
    group.add_argument("--seed", type=int, default=0, help="seed of the phantoms (default: %(default)s)")


def add_phantoms(command: argparse.ArgumentParser) -> None:
    command.add_argument("-n", type=positive, default=DEMO_PHANTOMS, help="number of phantoms (default: %(default)s)")
    command.add_argument("--seed", type=int, default=0, help="default: %(default)s")


def add_methods(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--methods", default=",".join(METHODS), help="methods, separated by commas (default: %(default)s)"
    )


def add_kind(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--kind",
        choices=ALPHA_KINDS,
        help='what alpha means in the chosen mattes (default: calibrated; membership where no method has a "+")',
    )


def add_grid(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--crop-px", type=positive, help="size of the crop in the slice, in pixels of the scan (default: 128)"
    )
    command.add_argument(
        "--pad-slices", type=int, help="slices of the crop beyond the nodule at both ends (default: 3)"
    )
    command.add_argument(
        "--spacing-mm", type=float, help="spacing of the working grid in every dimension (default: 0.5)"
    )


def add_pools(command: argparse.ArgumentParser) -> None:
    cluster = command.add_argument_group("cluster")
    add_address(cluster)
    cluster.add_argument(
        "--workers",
        "--solve-workers",
        dest="solve_workers",
        type=positive,
        help="number of workers (default: one per CPU); on a cluster that grows, the largest number (default: one per "
        "nodule)",
    )
    cluster.add_argument("--solve-cpus", type=float, help="CPUs and threads per worker (default: 0.9, one thread)")
    cluster.add_argument("--solve-memory-gib", type=float, default=2.0, help="memory per worker (default: %(default)s)")
    cluster.add_argument("--apart", action="store_true", help="score and commit in separate workers")
    cluster.add_argument(
        "--score-workers", type=positive, help="number of scoring workers, with --apart (default: 1 per 16 CPUs)"
    )


def add_prepare(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("trimap")
    group.add_argument(
        "--grow-out", type=float, metavar="MM", help="growth of the unknown region into the background (default: 2)"
    )
    group.add_argument(
        "--grow-in", type=float, metavar="MM", help="growth of the unknown region into the foreground (default: 1)"
    )
    group.add_argument(
        "--foreground",
        choices=("intersection", "majority"),
        help="voxels marked by all readers, or by more than half (default: intersection)",
    )


def add_matting(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("solvers")
    group.add_argument(
        "--intensity-range",
        type=float,
        nargs=2,
        action="append",
        metavar=("LOW", "HIGH"),
        help="intensities are clipped to this range, HU (default: -1000 400); of cases with several images, repeat for "
        "each image in the order of the table",
    )
    group.add_argument(
        "--channels",
        metavar="CT,PET",
        help="names of the images of a case, in the order of the table (default: channel 1, channel 2 and so on)",
    )
    group.add_argument(
        "--calibrate-by",
        metavar="NAME",
        help='the channel that calibrates the foreground of the "+" methods, and that quality and measures go by '
        "(default: the first)",
    )
    group.add_argument(
        "--window",
        type=float,
        nargs=2,
        metavar=("LEVEL", "WIDTH"),
        help='window that calibrates the foreground of the "+" methods, HU (default: -600 1500)',
    )
    group.add_argument(
        "--epsilon",
        type=float,
        help="regularisation of CF and LB (default: 1e-7; 1e-2 where one channel is far coarser than another)",
    )
    group.add_argument(
        "--no-prior",
        dest="prior",
        action="store_false",
        default=None,
        help="solve from the image alone, as in the paper (default: the readers' mean mask counts beside chest wall, "
        "mediastinum and vessels, where the image cannot tell them from the lesion)",
    )


def add_stages(command: argparse.ArgumentParser) -> None:
    """The options of all that a build does to a nodule, and of its workers."""
    add_prepare(command)
    add_grid(command)
    add_matting(command)
    add_pools(command)


def prepare_parameters(options: argparse.Namespace) -> PrepareParameters:
    """``PrepareParameters`` from the command line; options that are not given keep their defaults."""
    from raymat.channels import channel_ranges
    from raymat.prepare import PrepareParameters

    ranges = options.intensity_range or []
    names = [name.strip() for name in options.channels.split(",")] if options.channels else None
    channels = channel_ranges(ranges, names)
    others = ("crop_px", "pad_slices", "spacing_mm", "foreground", "calibrate_by")
    return PrepareParameters(
        channels=channels,
        **stated(
            grow_out_mm=options.grow_out,
            grow_in_mm=options.grow_in,
            intensity_range=tuple(ranges[0]) if ranges and not channels else None,
            **{name: getattr(options, name, None) for name in others},
        ),
    )


def matting_parameters(options: argparse.Namespace, methods: tuple[str, ...]) -> MattingParameters:
    """``MattingParameters`` from the command line."""
    from raymat.steps import MattingParameters

    level, width = options.window or (None, None)
    preconditioner = getattr(options, "preconditioner", None)
    return MattingParameters(
        methods,
        **stated(
            window_level=level,
            window_width=width,
            prior=options.prior,
            preconditioner=preconditioner,
            epsilon=options.epsilon,
        ),
    )


def build_parameters(options: argparse.Namespace, min_readers: int, floor: float | None = None) -> BuildParameters:
    """``BuildParameters`` from the command line."""
    from raymat.prepare import PrepareParameters
    from raymat.quality import QualityParameters
    from raymat.steps import BuildParameters

    prepare = prepare_parameters(options)
    # Another range of intensities is another modality, where quality cannot know what pure lesion looks like. Of
    # several channels each has to be given a range, CT its usual one.
    is_ct = bool(prepare.channels) and prepare.intensity_range == PrepareParameters().intensity_range
    other_modality: dict[str, Any] = {"pure_lesion": None} if options.intensity_range and not is_ct else {}
    methods = tuple(name.strip().lower() for name in options.methods.split(","))
    if prepare.channels and not is_ct and not options.window and any(map(is_calibrated, methods)):
        raise InputError(
            f"channel {prepare.calibrating} calibrates and has no window: give --window LEVEL WIDTH in its unit, name "
            "another channel with --calibrate-by, or leave out the methods with +"
        )
    return BuildParameters(
        min_readers=min_readers,
        prepare=prepare,
        matting=matting_parameters(options, methods),
        quality=QualityParameters(**stated(floor=floor, kind=getattr(options, "kind", None)), **other_modality),
    )


def open_source(options: argparse.Namespace) -> Opened:
    """The source asked for."""
    return KINDS[asked_for(options) or DEFAULT].open(options)


def pools(options: argparse.Namespace) -> Pools:
    """``raymat.engine.cluster.Pools`` from the command line."""
    from raymat.engine.cluster import Pools

    return Pools(
        workers=options.solve_workers,
        cpus=options.solve_cpus,
        memory_gib=options.solve_memory_gib,
        apart=options.apart,
        scorers=options.score_workers,
    )
