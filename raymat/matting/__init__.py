"""The four matting methods of the paper, section 4, in two and three dimensions, and their "+" forms (Eq. 4).

`estimate_alpha` computes one matte, `estimate_all` several of one image with the work they share done once.
"""

from raymat.calibration import LUNG_WINDOW, HUWindow
from raymat.matting.estimate import estimate_all, estimate_alpha, memory_needed
from raymat.matting.prior import PRIOR_VERSION, Prior, expected_prior, readers_prior
from raymat.methods import METHODS, SolveInfo

__all__ = [
    "LUNG_WINDOW",
    "METHODS",
    "PRIOR_VERSION",
    "HUWindow",
    "Prior",
    "SolveInfo",
    "estimate_all",
    "estimate_alpha",
    "expected_prior",
    "memory_needed",
    "readers_prior",
]
