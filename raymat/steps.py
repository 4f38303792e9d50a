"""One nodule's way through the build, as plain functions: read and prepare, solve, assess.

Each step takes a nodule and returns a nodule. What goes wrong with it becomes its outcome (``raymat.guard``); a nodule
that has an outcome passes the later steps untouched. What is no nodule's fault, a store that does not answer, is raised
on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property

import numpy as np

from raymat.guard import guarded
from raymat.matting import LUNG_WINDOW, PRIOR_VERSION, HUWindow, estimate_all, readers_prior
from raymat.methods import (
    ANY,
    METHODS,
    PRECONDITIONERS,
    SOLVERS,
    SolveInfo,
    in_order,
    is_calibrated,
    is_method,
    kind_among,
    kind_of,
    solver_of,
)
from raymat.nodule import REJECTED, InputError, Matte, Nodule, NoduleExcluded, required
from raymat.prepare import DOUBT_OF_HU, PREPARE_VERSION, PrepareParameters, prepare
from raymat.quality import QualityParameters, assess
from raymat.sources import NoduleRef, Source, digest
from raymat.words import bounded, counted

# Within a window of the solvers a channel of far larger voxels is a ramp, which explains any alpha that rises along it:
# CF and LB take it for the border of the lesion unless a large epsilon makes steep coefficients costly. Chosen on
# PET-CT phantoms (docs/results/channels.md).
COARSE, COARSE_EPSILON = 2.0, 1e-2
WITH_EPSILON = ("cf", "lb")


@dataclass(frozen=True)
class MattingParameters:
    """What the solvers are given (specification's defaults).

    Attributes
    ----------
    methods : subset of ``raymat.matting.METHODS``; their order and repetitions do not matter
    window_level, window_width : HU, the window that calibrates the "+" methods' foreground (Eq. 4)
    constraint_weight : lambda of Eq. 3
    roi_margin : mm
    prior : whether the readers' mean mask counts where the image cannot tell the lesion from what lies beside it
        (``raymat.matting.readers_prior``); not in the paper
    preconditioner : of the linear solver, one of ``raymat.methods.PRECONDITIONERS``
    epsilon : of CF and LB; None for the default of each or, where a channel is coarse beside another, for
        ``COARSE_EPSILON``
    """

    methods: tuple[str, ...] = METHODS
    window_level: float = LUNG_WINDOW.level
    window_width: float = LUNG_WINDOW.width
    constraint_weight: float = 100.0
    roi_margin: float = 8.0
    prior: bool = True
    preconditioner: str = PRECONDITIONERS[0]
    epsilon: float | None = None

    def __post_init__(self) -> None:
        unknown = [method for method in self.methods if not is_method(method)]
        if unknown or not self.methods:
            raise InputError(f"unknown methods {unknown}; choose one or more of {', '.join(METHODS)}")
        object.__setattr__(self, "methods", in_order(self.methods))
        try:
            HUWindow(self.window_level, self.window_width)
        except ValueError as error:
            raise InputError(
                f"the window (level {self.window_level:g}, width {self.window_width:g}): {error}"
            ) from None
        if not self.constraint_weight > 0:
            raise InputError(f"the constraint weight must be above 0, not {self.constraint_weight:g}")
        if self.preconditioner not in PRECONDITIONERS:
            raise InputError(
                f"the preconditioner must be one of {', '.join(PRECONDITIONERS)}, not {self.preconditioner!r}"
            )
        if self.epsilon is not None and not 0 < self.epsilon < math.inf:
            raise InputError(f"epsilon must be above 0 and finite, not {self.epsilon:g}")

    def to_dict(self) -> dict[str, object]:
        """As plain values, for notes and runs; without an epsilon where none was asked for, as in earlier versions."""
        return {name: value for name, value in asdict(self).items() if name != "epsilon" or value is not None}

    def for_channels(self, coarse: bool) -> MattingParameters:
        """The parameters for channels of which one is ``coarse`` beside another, or none is."""
        return replace(self, epsilon=COARSE_EPSILON) if coarse and self.epsilon is None else self

    @property
    def of_solvers(self) -> dict[str, dict[str, float]]:
        """What is asked for of the solvers by name, as ``raymat.matting.estimate_all`` takes it."""
        if self.epsilon is None:
            return {}
        asked = {solver_of(method) for method in self.methods}
        return {name: {"epsilon": self.epsilon} for name in WITH_EPSILON if name in asked}

    def identity(self, method: str) -> str:
        """What a matte by this method depends on beside the prepared nodule, as text."""
        window = (self.window_level, self.window_width) if is_calibrated(method) else None
        solver = SOLVERS[solver_of(method)]
        prior = (PRIOR_VERSION, solver.prior_weight) if self.prior else ()
        # The default is no part of the keys: where it takes the diagonal, bits are those of before there was a choice.
        other: tuple[object, ...] = () if self.preconditioner == PRECONDITIONERS[0] else (self.preconditioner,)
        if self.epsilon is not None and solver_of(method) in WITH_EPSILON:
            other = (*other, "epsilon", self.epsilon)
        return repr((method, solver.identity, self.constraint_weight, self.roi_margin, window, *prior, *other))


# The parts of a nodule's key, in hexadecimal digits: of all that the prepared nodule depends on, of what its mattes
# depend on beside it, and of quality.
PREPARED_DIGITS, MATTES_DIGITS, QUALITY_DIGITS = 24, 8, 8


@dataclass(frozen=True)
class BuildParameters:
    """All that decides what a dataset's arrays are, and the keys that follow from it.

    Attributes
    ----------
    min_readers : nodules with fewer readers' masks are excluded (those with a given trimap are not)
    prepare, matting, quality : the parameters of each step
    """

    min_readers: int = 4
    prepare: PrepareParameters = field(default_factory=PrepareParameters)
    matting: MattingParameters = field(default_factory=MattingParameters)
    quality: QualityParameters = field(default_factory=QualityParameters)

    def __post_init__(self) -> None:
        kind, kinds = self.quality.kind, {kind_of(method) for method in self.matting.methods}
        if kind not in (None, ANY, *kinds):
            fitting = ", ".join(method for method in METHODS if kind_of(method) == kind)
            raise InputError(f"mattes of the kind {kind} are made by {fitting}; add one of them to the methods")
        window = (self.matting.window_level, self.matting.window_width)
        chosen = replace(self.quality, kind=kind or kind_among(self.matting.methods), window=window)
        object.__setattr__(self, "quality", chosen)

    @property
    def kind(self) -> str:
        """What alpha means in the dataset, one of ``raymat.methods.ALPHA_KINDS``."""
        return self.quality.kind or ANY

    def to_dict(self) -> dict[str, object]:
        """As plain values, for notes and runs."""
        return {**asdict(self), "prepare": self.prepare.to_dict(), "matting": self.matting.to_dict()}

    def key(self, ref: NoduleRef) -> str:
        """Digest of all that the nodule's record depends on; begins with that of the prepared nodule alone."""
        of = (ref.nodule_id, ref.fingerprint, ref.problem, self.min_readers, self._prepare_text, PREPARE_VERSION)
        return digest(*of)[:PREPARED_DIGITS] + self.judged

    def matte_key(self, key: str, method: str) -> str:
        """Digest of all that a method's matte depends on, of the nodule of that key."""
        return key[:PREPARED_DIGITS] + self.mattes[method]

    @cached_property
    def mattes(self) -> dict[str, str]:
        """Method to the part of its mattes' keys that is the same for all nodules."""
        # What is done to coarse channels concerns nodules that have several.
        rule = (COARSE, COARSE_EPSILON) if self.prepare.channels else ()
        return {name: digest(self.matting.identity(name), *rule)[:MATTES_DIGITS] for name in self.matting.methods}

    @cached_property
    def judged(self) -> str:
        """The part of a key that is the same for all nodules: which mattes they have, and how those are judged."""
        mattes = digest(*sorted(self.mattes.values()))[:MATTES_DIGITS]
        return mattes + digest(self.quality.identity)[:QUALITY_DIGITS]

    @cached_property
    def _prepare_text(self) -> str:
        # Once, and not for each of millions of keys.
        return repr(sorted(self.prepare.to_dict().items()))


def read_and_prepare(source: Source, ref: NoduleRef, parameters: BuildParameters) -> Nodule:
    """The nodule on the working grid with its trimap, or with the outcome that ends its way here."""

    def read(nodule: Nodule) -> Nodule:
        if ref.problem:
            raise InputError(ref.problem)
        if 0 <= ref.readers < parameters.min_readers:
            raise NoduleExcluded(f"{counted(ref.readers, 'reader')}, fewer than the {parameters.min_readers} asked for")
        return replace(source.read(ref), key=nodule.key, kind=nodule.kind)

    start = Nodule(ref.nodule_id, ref.patient_id, ref.source, notes=list(ref.notes))
    start = replace(start, key=parameters.key(ref), kind=parameters.kind)
    nodule = guarded("read", start, read)
    return nodule if nodule.outcome else guarded("read", nodule, lambda nodule: prepare(nodule, parameters.prepare))


def solve_volume(
    image: np.ndarray,
    trimap: np.ndarray,
    readers: Sequence[np.ndarray],
    spacing: Sequence[float],
    intensity_range: Sequence[float] | Sequence[Sequence[float]],
    parameters: MattingParameters,
    threads: int = 1,
) -> dict[str, tuple[np.ndarray, SolveInfo]]:
    """``raymat.matting.estimate_all`` with the parameters of a build; arrays and spacing (z, y, x), HU, mm.

    ``readers`` are the masks that the trimap was made of, for the prior; empty where it was given. Of several channels
    the image has a last axis more, the channel that calibrates before the others, and there is a range for each.
    ``threads`` change no bit.
    """
    several = image.ndim > trimap.ndim
    first = image[..., 0] if several else image
    return estimate_all(
        image,
        trimap,
        methods=parameters.methods,
        spacing=spacing,
        intensity_range=intensity_range,
        calibration=HUWindow(parameters.window_level, parameters.window_width),
        constraint_weight=parameters.constraint_weight,
        roi_margin=parameters.roi_margin,
        channel_axis=-1 if several else None,
        prior=readers_prior(first, trimap, readers, spacing) if parameters.prior and readers else None,
        preconditioner=parameters.preconditioner,
        threads=threads,
        parameters=parameters.of_solvers,
    )


def is_coarse(spacings: Iterable[Sequence[float]]) -> bool:
    """Whether the voxels of one channel are ``COARSE`` times as wide as those of another or more, on average; in mm."""
    volumes = [float(np.prod(spacing)) for spacing in spacings]
    return max(volumes) >= COARSE**3 * min(volumes)


def _coarse_channels(nodule: Nodule) -> bool:
    spacings = nodule.metadata.get("channel_spacings")
    return bool(nodule.channels) and isinstance(spacings, Mapping) and is_coarse(spacings.values())


def solve(nodule: Nodule, parameters: BuildParameters) -> Nodule:
    """The nodule with one candidate matte per method; those that it has are kept."""
    missing = tuple(method for method in parameters.matting.methods if method not in nodule.mattes)

    def work(nodule: Nodule) -> Nodule:
        image, trimap = required(nodule.image, nodule, "image"), required(nodule.trimap, nodule, "trimap")
        spacing = required(nodule.spacing, nodule, "spacing")
        matting = replace(parameters.matting, methods=missing).for_channels(_coarse_channels(nodule))
        ranges: Sequence[float] | Sequence[Sequence[float]] = parameters.prepare.intensity_range
        if nodule.channels:
            image = np.stack([image, *(channel.image for channel in nodule.channels)], axis=-1)
            ranges = [parameters.prepare.intensity_range, *(channel.intensity_range for channel in nodule.channels)]
        solved = solve_volume(image, trimap, nodule.readers, spacing, ranges, matting)
        mattes = {matte.method: matte for matte in nodule.candidates}
        for method, (alpha, info) in solved.items():
            mattes[method] = Matte(method, alpha, info, key=parameters.matte_key(nodule.key, method))
        return replace(nodule, candidates=[mattes[method] for method in in_order(mattes)])

    if nodule.outcome or not missing:
        return nodule
    return guarded("solve", nodule, work)


def score(nodule: Nodule, parameters: BuildParameters, finish: Callable[[Nodule], Nodule] | None = None) -> Nodule:
    """The nodule with scores, the chosen method and its outcome; then what ``finish`` makes of it."""

    def work(nodule: Nodule) -> Nodule:
        judged = assess(nodule, parameters.quality)
        doubts = [note for note in judged.notes if note.startswith(DOUBT_OF_HU)]
        if judged.outcome == REJECTED and doubts:
            # The terms speak of the matte, but the image is at fault.
            judged = replace(judged, reason=bounded(f"{judged.reason}; {doubts[0]}"))
        return finish(judged) if finish else judged

    if nodule.outcome:
        return nodule
    return guarded("quality", nodule, work)
