"""IBSI's digital phantom (A. Zwanenburg et al., IBSI reference manual, arXiv:1612.07003) and its published values."""

import numpy as np

SPACING_MM = (2.0, 2.0, 2.0)
OUT = -1  # outside the region of interest
IMAGE = np.array(
    [
        [[1, 4, 4, 1, 1], [1, 4, 6, 1, 1], [4, 1, 6, 4, 1], [4, 4, 6, 4, 1]],
        [[1, 4, 4, 1, 1], [1, 1, 6, 1, 1], [OUT, 1, 3, 1, 1], [4, 4, 6, 1, 1]],
        [[1, 4, 4, OUT, OUT], [1, 1, 1, 1, 1], [1, 1, OUT, 1, 1], [1, 1, 6, 1, 1]],
        [[1, 4, 4, OUT, OUT], [1, 1, 1, 1, 1], [1, 1, 1, 1, 1], [1, 1, 6, 1, 1]],
    ]
)
MASK = IMAGE != OUT

# Of the digital phantom, as published with three digits.
STATISTICS = {
    "mean": 2.15,
    "variance": 3.05,
    "skewness": 1.08,
    "excess_kurtosis": -0.355,
    "median": 1,
    "minimum": 1,
    "p10": 1,
    "p90": 4,
    "maximum": 6,
    "interquartile_range": 3,
    "range": 5,
    "mean_absolute_deviation": 1.55,
    "robust_mean_absolute_deviation": 1.11,
    "median_absolute_deviation": 1.15,
    "energy": 567,
    "root_mean_square": 2.77,
}
