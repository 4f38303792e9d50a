"""A network's masks as the trimap of a solver: mattes without readers, with a solver's edge.

The network knows where a lesion is, a solver where its border runs. What the network's masks leave open becomes the
unknown region of a trimap, as readers' masks do in a build (``raymat.prepare.make_trimap``), and their mean probability
is what the solver expects beside tissue that is as dense as the lesion, as the readers' mean mask is there.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from raymat.arrays import FOREGROUND, UNKNOWN, Float32Array, UInt8Array
from raymat.errors import InputError
from raymat.matting import LUNG_WINDOW, HUWindow, estimate_all, expected_prior
from raymat.methods import ANY, CALIBRATED, MEMBERSHIP, METHODS, is_method, kind_of, solver_of
from raymat.network.inference import Predicted
from raymat.network.lesion import FROM, NOTHING
from raymat.prepare import make_trimap

# Standard deviation of the mattes of an ensemble at which a voxel is unknown whatever its masks say.
DISAGREEMENT = 0.25
# mm, the spacing on which solvers work in a build: the network's own grid is too coarse for an edge.
SPACING_MM = 0.5
# Of CF and LB where there are several channels: a build's where one of them is far coarser than another, as PET is.
EPSILON_OF_SEVERAL = 1e-2
AUTO, NONE = "auto", "none"
# By the kind of alpha; a network of the kind "any" does not say what its alpha means.
BY_KIND = {CALIBRATED: "cf+", MEMBERSHIP: "cf"}


def solver_for(asked: str, kind: str) -> str | None:
    """The method that refines a network's mattes; None where they stay its own.

    Parameters
    ----------
    asked : one of ``raymat.methods.METHODS``, or "auto" for that of ``BY_KIND``, or "none"
    kind : of the alpha that the network predicts

    Raises
    ------
    InputError
        There is no such method, or it makes alpha of another kind.
    """
    if asked in (AUTO, NONE):
        return BY_KIND.get(kind) if asked == AUTO else None
    if not is_method(asked):
        raise InputError(f"no method {asked!r} to refine with: choose one of {', '.join(METHODS)}, {AUTO} or {NONE}")
    if kind not in (ANY, kind_of(asked)):
        fitting = ", ".join(name for name in METHODS if kind_of(name) == kind)
        raise InputError(f"{asked} makes {kind_of(asked)} alpha, the network predicts {kind}: refine with {fitting}")
    return asked


def trimap_of(found: Predicted, spacing: Sequence[float]) -> UInt8Array | None:
    """The trimap that a network's masks make; None where it sees no lesion.

    Parameters
    ----------
    found : of a network or an ensemble
    spacing : (z, y, x) mm

    Returns
    -------
    uint8 (z, y, x): 0 background, 128 unknown, 255 foreground; unknown also where the ensemble disagrees
    """
    union = found.union >= FROM
    if not union.any():
        return None
    overlap = union & (found.overlap >= FROM)
    if not overlap.any():
        # Readers who share nothing make no trimap; of the network's lesion the likeliest voxels are what they share.
        overlap = union & (found.overlap >= found.overlap[union].max())
    trimap = make_trimap([union, overlap], spacing)
    unsure = found.spread >= DISAGREEMENT
    if (trimap[~unsure] == FOREGROUND).any():
        trimap[unsure] = UNKNOWN
    return trimap


def refined(
    image: np.ndarray,
    found: Predicted,
    spacing: Sequence[float],
    methods: Sequence[str],
    ranges: Sequence[Sequence[float]] = ((-1000.0, 400.0),),
    window: HUWindow = LUNG_WINDOW,
) -> dict[str, Float32Array]:
    """A solver's mattes in the trimap of a network's masks.

    Parameters
    ----------
    image : (z, y, x), HU, or (channels, z, y, x) with that which calibrates first
    found : what a network says of it, on the same grid
    spacing : (z, y, x) mm
    methods : of ``raymat.methods.METHODS``, of the kind of alpha that the network predicts
    ranges : HU, the intensity range of each channel
    window : HU, as for ``raymat.matting.estimate_all``

    Returns
    -------
    dict
        Method to matte, float32 (z, y, x), 0 to 1.

    Raises
    ------
    InputError
        The network sees no lesion, or nothing but lesion.
    """
    trimap = trimap_of(found, spacing)
    if trimap is None:
        raise InputError(NOTHING)
    expected = (found.union + found.overlap) / 2
    several = image.ndim > trimap.ndim
    prior = expected_prior(image[0] if several else image, trimap, expected, spacing)
    smooth = {"epsilon": EPSILON_OF_SEVERAL}
    asked = {solver_of(method) for method in methods}
    try:
        solved = estimate_all(
            image,
            trimap,
            methods,
            spacing=spacing,
            intensity_range=ranges if several else ranges[0],
            calibration=window,
            channel_axis=0 if several else None,
            prior=prior,
            parameters={name: smooth for name in ("cf", "lb") if several and name in asked},
        )
    except ValueError as error:
        raise InputError(f"the network's masks cannot be refined ({error}); take a larger box (--size-mm)") from None
    return {method: alpha for method, (alpha, _) in solved.items()}
