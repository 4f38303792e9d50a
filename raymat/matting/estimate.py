"""From an image and a trimap to mattes: checks, region of interest, systems, solutions."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import TypeGuard

import numpy as np

from raymat.arrays import BACKGROUND, FOREGROUND, UNKNOWN, AnyArray, Box, Float32Array, Float64Array, box_around
from raymat.calibration import LUNG_WINDOW, HUWindow
from raymat.matting.prior import Prior, continued
from raymat.matting.region import Region
from raymat.matting.solve import solve
from raymat.matting.threads import Threads
from raymat.methods import METHODS, PRECONDITIONERS, SOLVERS, SolveInfo, is_calibrated, is_method, solver_of

# What is held beside the systems: per voxel of the grid, and per unknown voxel for the windows of all solvers.
BYTES_PER_VOXEL, BYTES_SHARED = 48, 300
TOGETHER = 500_000  # unknown voxels from which on the solvers do not run at the same time


def estimate_alpha(  # noqa: PLR0913 - the front door: what can be said of a matte, by keyword
    image: AnyArray,
    trimap: AnyArray,
    method: str,
    *,
    spacing: Sequence[float] | None = None,
    intensity_range: Sequence[float] | Sequence[Sequence[float]] = (-1000.0, 400.0),
    calibration: HUWindow | None = LUNG_WINDOW,
    constraint_weight: float = 100.0,
    roi_margin: float | None = 8.0,
    channel_axis: int | None = None,
    prior: Prior | None = None,
    preconditioner: str = "auto",
    threads: int = 1,
    **method_parameters: object,
) -> tuple[Float32Array, SolveInfo]:
    """Alpha matte of one image by one method (paper, section 4).

    Parameters
    ----------
    image: array (z, y, x) or (y, x), with one more axis where `channel_axis` is given
        Intensities in HU, or in any unit that `intensity_range` and `calibration` speak of. Finite.
    trimap: array (z, y, x) or (y, x)
        0 background, 128 unknown, 255 foreground.
    method: str
        One of `METHODS`. The names with "+" calibrate the foreground (Eq. 4).
    spacing: sequence of float
        Voxel size in mm along each spatial axis, in the image's axis order; 1 mm by default.
    intensity_range: (low, high), or one such pair a channel
        Intensities are clipped to it and scaled to [0, 1].
    calibration: HUWindow
        For the "+" methods. It reads the raw intensities, of the first channel where there are several: put the
        channel in HU first. Without CT give the window in the unit of that channel.
    constraint_weight: float
        lambda in Eq. 2 and 3, above 0.
    roi_margin: float or None
        The system is built on the box around all voxels that are not background, grown by this many mm and by at least
        two voxels, the reach of a window beyond an unknown voxel: so CF and LB do not depend on it. None takes the
        whole grid. KNN and IF look for neighbours inside the box; their distances are always relative to the longest
        side of the whole grid.
    channel_axis: int or None
        The axis of the channels; None for an image of one channel without such an axis.
    prior: Prior or None
        What is expected of unknown voxels beside what the image says; its arrays have the image's spatial shape.
    preconditioner: "auto", "jacobi" or "amg"
        Of the linear solver: the diagonal ("jacobi"), algebraic multigrid ("amg"), or "auto": multigrid where the
        unknown region is so thick that it costs less, or where steps with the diagonal turn out to be too many. Nodules
        do not need it. The systems of IF are not symmetric and always take the diagonal.
    threads: int
        Threads to use; the bits are the same for any number.
    **method_parameters
        Those of the method's solver in `raymat.methods.SOLVERS`: for cf and lb `epsilon`; for knn `neighbors`,
        `spatial_weights`, `kernel` ("soft" or "binary"); for if `known_to_unknown`, `regularization`, `epsilon`.

    Returns
    -------
    alpha: float32 array of the image's spatial shape, in [0, 1]
        S on known voxels, the solution on unknown ones.
    info: SolveInfo
        A solve that did not converge returns its alpha too, with `converged` False.

    Raises
    ------
    ValueError
        An argument that is wrong, by name, or a trimap with unknown voxels but no foreground or no background.

    Examples
    --------
    >>> import numpy as np
    >>> image = np.linspace(-1000.0, 400.0, 8)[None, None, :] * np.ones((6, 7, 1))
    >>> trimap = np.full(image.shape, 128, dtype=np.uint8)
    >>> trimap[..., 0], trimap[..., -1] = 0, 255
    >>> alpha, info = estimate_alpha(image, trimap, "cf", spacing=(0.5, 0.5, 0.5))
    >>> bool(info.converged), float(alpha[3, 3, 3].round(3))
    (True, 0.429)
    """
    if not is_method(method):
        raise ValueError(f"unknown matting method {method!r}: choose one of {', '.join(METHODS)}")
    return estimate_all(
        image,
        trimap,
        (method,),
        spacing=spacing,
        intensity_range=intensity_range,
        calibration=calibration,
        constraint_weight=constraint_weight,
        roi_margin=roi_margin,
        channel_axis=channel_axis,
        prior=prior,
        preconditioner=preconditioner,
        threads=threads,
        parameters={solver_of(method): method_parameters},
    )[method]


def estimate_all(  # noqa: PLR0913 - as estimate_alpha
    image: AnyArray,
    trimap: AnyArray,
    methods: Iterable[str] = METHODS,
    *,
    spacing: Sequence[float] | None = None,
    intensity_range: Sequence[float] | Sequence[Sequence[float]] = (-1000.0, 400.0),
    calibration: HUWindow | None = LUNG_WINDOW,
    constraint_weight: float = 100.0,
    roi_margin: float | None = 8.0,
    channel_axis: int | None = None,
    prior: Prior | None = None,
    preconditioner: str = "auto",
    threads: int = 1,
    parameters: Mapping[str, Mapping[str, object]] | None = None,
) -> dict[str, tuple[Float32Array, SolveInfo]]:
    """Alpha mattes of one image by several methods; a method and its "+" share everything but S.

    Parameters
    ----------
    image, trimap, spacing, intensity_range, calibration, constraint_weight, roi_margin, channel_axis, prior
    preconditioner, threads
        As in `estimate_alpha`, which returns the same bits for any one of the methods.
    methods: names out of `METHODS`.
    parameters: method parameters by the name without "+", such as `{"cf": {"epsilon": 1e-6}}`.

    Returns
    -------
    dict of name: (alpha, info), in the order of `methods`.

    Raises
    ------
    ValueError
        As `estimate_alpha`.
    """
    methods = _checked_methods(methods)
    parameters = _checked_parameters(methods, parameters or {})
    values, trimap, axes = _checked_arrays(image, trimap, channel_axis)
    lengths = _checked_spacing(spacing, axes)
    ranges = _checked_ranges(intensity_range, values.shape[3])
    _check_settings(methods, constraint_weight, roi_margin, calibration, preconditioner, threads)
    constraint = _constraints(values, trimap, methods, calibration)
    expected, trust = _expected(prior, constraint, trimap, lengths)
    unknowns = int(np.count_nonzero(trimap == UNKNOWN))
    spatial_shape = trimap.shape[3 - axes :]
    if unknowns == 0:
        nothing = SolveInfo(0, 0.0, True, 0.0, 0, "none")
        return {name: (constraint[name].astype(np.float32).reshape(spatial_shape), nothing) for name in methods}
    for value, label in ((FOREGROUND, "foreground (255)"), (BACKGROUND, "background (0)")):
        if not (trimap == value).any():
            raise ValueError(f"the trimap has unknown voxels but no {label}: there is nothing to tell them apart by")

    began = time.perf_counter()
    box = _region_of_interest(trimap, lengths, roi_margin)
    # Distances in KNN and IF are relative to the longest side of the whole grid, so that they do not change with the
    # region of interest. An axis that a 2D image lacks has no length.
    longest = float(((np.array(trimap.shape) - 1) * lengths).max())
    scaled = np.empty(values[box].shape)
    for a, (low, high) in enumerate(ranges):
        scaled[..., a] = (np.clip(values[box][..., a], low, high) - low) / (high - low)
    pool = Threads(int(threads))
    region = Region(scaled, trimap[box], lengths / longest, constraint_weight, pool)
    shared = (time.perf_counter() - began) / len(methods)

    def solved(base: str) -> dict[str, tuple[Float32Array, SolveInfo]]:
        pair = [name for name in methods if solver_of(name) == base]
        began = time.perf_counter()
        system = SOLVERS[base].system(region, **parameters[base])
        known = region.trimap.ravel()[system.variables] != UNKNOWN
        held = [expected[name][box].ravel()[system.variables] for name in pair]
        penalty = constraint_weight * known.astype(np.float64)
        if trust is not None and not known.all():
            unit = SOLVERS[base].prior_weight * float(np.median(system.diagonal[~known]))
            penalty += np.where(known, 0.0, unit * trust[box].ravel()[system.variables])
        solutions = solve(system, known, held, penalty, preconditioner)
        unknown = system.variables[~known]
        seconds = shared + (time.perf_counter() - began) / len(pair)
        mattes = {}
        for name, a in zip(pair, solutions, strict=True):
            alpha = constraint[name].astype(np.float32)
            matte = alpha[box].ravel()
            matte[unknown] = np.clip(a.a[~known], 0.0, 1.0)
            alpha[box] = matte.reshape(region.trimap.shape)
            info = SolveInfo(a.iterations, a.residual, a.converged, seconds, unknowns, a.solver)
            mattes[name] = alpha.reshape(spatial_shape), info
        return mattes

    with pool:
        # Each for itself where memory counts more; the threads then share the work on every one of them.
        works = [partial(solved, base) for base in parameters]
        found = pool.together(works) if unknowns < TOGETHER else [work() for work in works]
    mattes = {name: matte for pair in found for name, matte in pair.items()}
    return {name: mattes[name] for name in methods}


def memory_needed(voxels: int, unknowns: int, methods: Iterable[str] = METHODS) -> int:
    """Bytes that `estimate_all` takes at most, about, beside the image and the trimap.

    Parameters
    ----------
    voxels, unknowns: of the whole grid, and those that are unknown.
    methods: as in `estimate_all`.
    """
    methods = tuple(methods)
    solvers = [SOLVERS[base] for base in dict.fromkeys(map(solver_of, methods))]
    each = [solver.bytes_per_unknown for solver in solvers]
    together = sum(each) if unknowns < TOGETHER else max(each)
    return voxels * (BYTES_PER_VOXEL + 4 * len(methods)) + unknowns * (together + BYTES_SHARED)


def _constraints(
    values: Float64Array, trimap: AnyArray, methods: Sequence[str], calibration: HUWindow | None
) -> dict[str, Float64Array]:
    """S by method (paper, Eq. 2): alpha of the known voxels, calibrated inside the foreground for the "+" (Eq. 4)."""
    S = (trimap == FOREGROUND).astype(np.float64)
    S_plus = S.copy()
    if isinstance(calibration, HUWindow):
        S_plus[trimap == FOREGROUND] = calibration.alpha(values[trimap == FOREGROUND][:, 0])
    return {name: S_plus if is_calibrated(name) else S for name in methods}


def _expected(
    prior: Prior | None, constraint: Mapping[str, Float64Array], trimap: AnyArray, spacing: Float64Array
) -> tuple[Mapping[str, Float64Array], AnyArray | None]:
    """S by method with what the prior expects of the unknown voxels, and how far that is trusted; (z, y, x).

    The "+" methods expect of a voxel the prior's share of what the foreground near by is calibrated to.
    """
    if prior is None:
        return constraint, None
    for name, array in (("alpha", prior.alpha), ("trust", prior.trust)):
        if array.shape != trimap.shape[-array.ndim :] or trimap.size != array.size:
            raise ValueError(f"prior.{name} has shape {array.shape}, the trimap {trimap.shape}")
        if not (np.isfinite(array).all() and (array >= 0).all()):
            raise ValueError(f"prior.{name} must be finite and not negative")
    shares = np.asarray(prior.alpha, np.float64).reshape(trimap.shape)
    foreground = trimap == FOREGROUND
    steps = [float(step) or 1.0 for step in spacing]

    def of(name: str, S: Float64Array) -> Float64Array:
        level = continued(S, foreground, steps) if is_calibrated(name) else 1.0
        return np.where(trimap == UNKNOWN, shares * level, S)

    return {name: of(name, S) for name, S in constraint.items()}, prior.trust.reshape(trimap.shape)


def _region_of_interest(trimap: AnyArray, spacing: Float64Array, margin: float | None) -> Box:
    """Box around all voxels that are not background, grown by `margin` mm and at least two voxels."""
    if margin is None:
        return tuple(slice(0, n) for n in trimap.shape)
    sides = zip(trimap.shape, spacing, strict=True)
    grow = [n if step == 0 else min(n, max(2, math.ceil(margin / step))) for n, step in sides]
    return box_around(trimap != BACKGROUND, grow)


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)


def _check_settings(
    methods: Sequence[str],
    constraint_weight: float,
    roi_margin: float | None,
    calibration: HUWindow | None,
    preconditioner: str,
    threads: int,
) -> None:
    if not (_is_number(constraint_weight) and 0 < constraint_weight < math.inf):
        raise ValueError(f"constraint_weight must be a finite number above 0, not {constraint_weight!r}")
    if roi_margin is not None and not (_is_number(roi_margin) and 0 <= roi_margin < math.inf):
        raise ValueError(f"roi_margin must be a distance of 0 mm or more, or None, not {roi_margin!r}")
    if any(map(is_calibrated, methods)) and not isinstance(calibration, HUWindow):
        raise ValueError(f"the methods with + need calibration=HUWindow(level, width), not {calibration!r}")
    if preconditioner not in PRECONDITIONERS:
        raise ValueError(f"preconditioner must be one of {', '.join(PRECONDITIONERS)}, not {preconditioner!r}")
    if not (isinstance(threads, (int, np.integer)) and not isinstance(threads, bool) and threads >= 1):
        raise ValueError(f"threads must be a whole number of 1 or more, not {threads!r}")


def _checked_methods(methods: Iterable[str]) -> tuple[str, ...]:
    names = (methods,) if isinstance(methods, str) else tuple(methods)
    if not names:
        raise ValueError(f"no matting method asked for: choose from {', '.join(METHODS)}")
    for name in names:
        if not is_method(name):
            raise ValueError(f"unknown matting method {name!r}: choose from {', '.join(METHODS)}")
    return tuple(dict.fromkeys(names))


def _checked_parameters(
    methods: Sequence[str], parameters: Mapping[str, Mapping[str, object]]
) -> dict[str, dict[str, object]]:
    """All parameters of every solver that the methods need, by its name; the pairs in the order of the solvers."""
    for name, given in parameters.items():
        if name not in SOLVERS:
            raise ValueError(f"parameters are given by method name without +, one of {', '.join(SOLVERS)}: {name!r}")
        SOLVERS[name].checked(name, given)
    needed = set(map(solver_of, methods))
    return {name: SOLVERS[name].checked(name, parameters.get(name, {})) for name in SOLVERS if name in needed}


def _checked_arrays(image: AnyArray, trimap: AnyArray, channel_axis: int | None) -> tuple[Float64Array, AnyArray, int]:
    """Image as float64 (z, y, x, c), trimap as (z, y, x), and the number of spatial axes given."""
    image, trimap = np.asarray(image), np.asarray(trimap)
    if not (np.issubdtype(image.dtype, np.integer) or np.issubdtype(image.dtype, np.floating)):
        raise ValueError(f"the image must hold real numbers, not {image.dtype}")
    if channel_axis is None:
        image = image[..., None]
    else:
        if not (isinstance(channel_axis, (int, np.integer)) and -image.ndim <= channel_axis < image.ndim):
            raise ValueError(f"channel_axis {channel_axis!r} is no axis of an image of shape {image.shape}")
        image = np.moveaxis(image, channel_axis, -1)
    axes = image.ndim - 1
    if axes not in (2, 3):
        raise ValueError(
            f"the image must have 2 or 3 spatial axes, not {axes} with channel_axis={channel_axis}: {image.shape[:-1]}"
        )
    if trimap.shape != image.shape[:-1]:
        raise ValueError(f"image and trimap differ in spatial shape: {image.shape[:-1]} and {trimap.shape}")
    if trimap.size == 0 or image.size == 0:
        raise ValueError(f"the image is empty: shape {image.shape}")
    values = image.astype(np.float64)
    if not np.isfinite(values).all():
        bad = int(np.count_nonzero(~np.isfinite(values)))
        raise ValueError(f"the image holds {bad} NaN or infinite values: fill them first, in CT with air (-1024)")
    stray = ~np.isin(trimap, (BACKGROUND, UNKNOWN, FOREGROUND))
    if stray.any():
        some = ", ".join(str(v) for v in np.unique(trimap[stray])[:5])
        raise ValueError(f"the trimap holds {some}: only 0 (background), 128 (unknown) and 255 (foreground) may occur")
    if axes == 2:
        values, trimap = values[None], trimap[None]
    return values, trimap, axes


def _checked_spacing(spacing: Sequence[float] | None, axes: int) -> Float64Array:
    """Spacing along z, y, x in mm, 0 along the axis that a 2D image lacks."""
    values = np.ones(axes) if spacing is None else np.asarray(spacing, dtype=np.float64)
    if values.shape != (axes,) or not np.isfinite(values).all() or (values <= 0).any():
        raise ValueError(f"spacing must be {axes} lengths in mm above 0, one a spatial axis, not {spacing!r}")
    return np.concatenate([np.zeros(3 - axes), values])


def _checked_ranges(intensity_range: Sequence[float] | Sequence[Sequence[float]], channels: int) -> Float64Array:
    """One (low, high) a channel."""
    try:
        ranges = np.asarray(intensity_range, dtype=np.float64)
    except (TypeError, ValueError):
        ranges = np.empty(0)
    if ranges.shape == (2,):
        ranges = np.tile(ranges, (channels, 1))
    if ranges.shape != (channels, 2) or not np.isfinite(ranges).all() or (ranges[:, 0] >= ranges[:, 1]).any():
        raise ValueError(
            f"intensity_range must be (low, high) with low < high, or {channels} such pairs, not {intensity_range!r}"
        )
    return ranges
