"""The matting methods by name, and what is known of them without the code that solves.

That code needs half a second to import its compiler, which the command line and the readers of a dataset do without.
Each solver gives two methods: one of its own name, and one with a "+", which calibrates the foreground (paper, Eq. 4).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from numbers import Integral, Number, Real
from typing import Any

PLUS = "+"
# What alpha means in a matte: the share of a voxel that belongs to the lesion, or that share times the share of pure
# lesion tissue that the lesion's density stands for (Eq. 4). A dataset is of one of these kinds, or mixes them.
MEMBERSHIP, CALIBRATED, ANY = "membership", "calibrated", "any"
MEANINGS = (CALIBRATED, MEMBERSHIP)
ALPHA_KINDS = (*MEANINGS, ANY)
# Of the linear systems: the diagonal, multigrid, or the one and then the other; the first is the default.
PRECONDITIONERS = ("auto", "jacobi", "amg")


@dataclass(frozen=True)
class SolveInfo:
    """How the solution of one matte went.

    Attributes
    ----------
    iterations: steps of the linear solver, with any preconditioner.
    residual: |b - A a| / |b|, rows divided by their diagonal entries, computed again from the returned solution.
    converged: whether the residual came below the tolerance. False is a fact for quality control, not an error.
    seconds: time spent on this matte; work shared by several mattes is counted in equal parts.
    unknowns: voxels marked unknown in the trimap.
    solver: the linear solver and its preconditioner, such as "cg, jacobi" or "cg, jacobi, then amg"; "none" where
        nothing was unknown.
    """

    iterations: int = field(default=0, metadata={"arrow": "int32"})
    residual: float = 0.0
    converged: bool = True
    seconds: float = 0.0
    unknowns: int = 0
    solver: str = ""


@dataclass(frozen=True)
class Parameter:
    """What may be set of a solver.

    Attributes
    ----------
    default : part of the keys of the solver's mattes
    valid : whether a value can be used
    must_be : what is said of one that cannot
    """

    default: object
    valid: Callable[[object], bool]
    must_be: str


def positive(default: float) -> Parameter:
    """A finite number above 0."""
    return Parameter(default, _is_positive, "a finite number above 0")


def counts(*default: int) -> Parameter:
    """Whole numbers above 0, one or more."""

    def valid(values: object) -> bool:
        return _all_of(values, lambda value: _is_positive(value) and isinstance(value, Integral))

    return Parameter(default, valid, "whole numbers above 0, one per pass")


def weights(*default: float) -> Parameter:
    """Finite numbers above 0, one or more."""
    return Parameter(default, lambda values: _all_of(values, _is_positive), "finite numbers above 0, one per pass")


def one_of(*names: str) -> Parameter:
    """One of several names; the first is the default."""
    return Parameter(names[0], lambda value: value in names, " or ".join(map(repr, names)))


def switch(default: bool) -> Parameter:
    """True or False."""

    def valid(value: object) -> bool:
        # NumPy's booleans are no numbers, and no subclass of bool.
        return isinstance(value, bool) or (type(value).__module__ == "numpy" and not isinstance(value, Number))

    return Parameter(default, valid, "True or False")


def _is_positive(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and 0 < float(value) < math.inf


def _all_of(values: object, valid: Callable[[object], bool]) -> bool:
    return isinstance(values, Sequence) and not isinstance(values, str) and len(values) > 0 and all(map(valid, values))


@dataclass(frozen=True)
class Solver:
    """An algorithm that solves for alpha.

    Attributes
    ----------
    module : where its ``system(region, **parameters) -> raymat.matting.solve.System`` is; imported when it is needed
    version : part of the keys of its mattes; raised by every change that moves an alpha of this solver
    parameters : by name; ``system`` is always given all of them
    prior_weight : how much a trusted prior counts, in units of the median diagonal entry of the system's unknown voxels
    bytes_per_unknown : memory that its two mattes take per unknown voxel, about; as measured on nodules, which have the
        most voxels around the unknown ones
    """

    module: str
    version: int
    parameters: Mapping[str, Parameter]
    prior_weight: float = 0.05
    bytes_per_unknown: int = 900

    @property
    def system(self) -> Callable[..., Any]:
        """The function that makes the linear system of a region of interest."""
        function: Callable[..., Any] = import_module(self.module).system
        return function

    @property
    def defaults(self) -> dict[str, object]:
        """The default of every parameter."""
        return {name: parameter.default for name, parameter in self.parameters.items()}

    @property
    def identity(self) -> str:
        """What a matte depends on that no image and no option says: version and defaults."""
        return repr((self.version, sorted(self.defaults.items())))

    def checked(self, name: str, given: Mapping[str, object]) -> dict[str, object]:
        """All parameters, as given or by default.

        Raises
        ------
        ValueError
            One is unknown or cannot be used; the message calls the solver ``name``.
        """
        for parameter, value in given.items():
            if parameter not in self.parameters:
                raise ValueError(f"{name} has no parameter {parameter!r}: it takes {', '.join(self.parameters)}")
            if not self.parameters[parameter].valid(value):
                must_be = self.parameters[parameter].must_be
                raise ValueError(f"{name}: {parameter} must be {must_be}, not {value!r}")
        return {**self.defaults, **given}


# One line per solver. Their order is that of columns and of the keys on the review page, and decides between equal
# scores. The epsilons of cf and lb are those of the authors' own code.
SOLVERS: dict[str, Solver] = {
    "cf": Solver("raymat.matting.closed_form", 3, {"epsilon": positive(1e-7)}),
    "knn": Solver(
        "raymat.matting.knn",
        3,
        {"neighbors": counts(20, 10), "spatial_weights": weights(2.0, 0.1), "kernel": one_of("soft", "binary")},
        prior_weight=0.3,
        bytes_per_unknown=3200,
    ),
    "lb": Solver("raymat.matting.learning_based", 3, {"epsilon": positive(1e-7)}),
    "if": Solver(
        "raymat.matting.information_flow",
        2,
        {"known_to_unknown": switch(True), "regularization": positive(1e-6), "epsilon": positive(1e-6)},
        prior_weight=0.2,
        bytes_per_unknown=2100,
    ),
}
METHODS = (*SOLVERS, *(f"{name}{PLUS}" for name in SOLVERS))


def solver_of(method: str) -> str:
    """The name of the solver that makes a method's mattes."""
    return method.removesuffix(PLUS)


def is_calibrated(method: str) -> bool:
    """Whether a method calibrates the foreground (Eq. 4)."""
    return method.endswith(PLUS)


def kind_of(method: str) -> str:
    """What alpha means in a method's mattes; "any" for a name that is no solver's, which does not say."""
    return CALIBRATED if is_calibrated(method) else MEMBERSHIP if method in SOLVERS else ANY


def kind_among(methods: Iterable[str]) -> str:
    """The kind of a dataset with mattes by these methods, where none is asked for: calibrated if one of them is."""
    kinds = {kind_of(method) for method in methods}
    return next((kind for kind in MEANINGS if kind in kinds), ANY)


def alpha_in_words(kind: str) -> str:
    """What texts and pictures call the alpha of a kind."""
    return "alpha" if kind == ANY else f"{kind} alpha"


def is_method(name: str) -> bool:
    """Whether there is a method of that name."""
    return solver_of(name) in SOLVERS


def in_order(methods: Iterable[str]) -> tuple[str, ...]:
    """The methods in the order of ``METHODS``, each once; names that are none come last."""
    place = {name: number for number, name in enumerate(SOLVERS)}

    def precedence(name: str) -> tuple[bool, bool, int, str]:
        return not is_method(name), is_calibrated(name), place.get(solver_of(name), len(place)), name

    return tuple(sorted(set(methods), key=precedence))
