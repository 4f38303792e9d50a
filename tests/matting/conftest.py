import importlib.util
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter


@pytest.fixture(scope="session")
def dense():
    """The dense reference beside this file, which no package path leads to."""
    spec = importlib.util.spec_from_file_location("dense", Path(__file__).parent / "dense.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def nodule():
    """nodule(seed, shape, noise) -> image in HU, trimap: a bumpy ball in lung with a blurred border."""

    def draw(seed=0, shape=(12, 12, 12), noise=30.0):
        rng = np.random.default_rng(seed)
        centred = np.indices(shape) - np.array([(n - 1) / 2 for n in shape]).reshape(-1, *[1] * len(shape))
        radius = min(shape) / 2
        r = np.sqrt((centred**2).sum(axis=0)) + 4 * gaussian_filter(rng.normal(size=shape), 1.5)
        alpha = np.clip((0.55 * radius - r) / 3 + 0.5, 0, 1)
        image = -850 + 890 * alpha + noise * rng.normal(size=shape)
        trimap = np.full(shape, 128, dtype=np.uint8)
        trimap[r < 0.35 * radius] = 255
        trimap[r > 0.85 * radius] = 0
        return image, trimap

    return draw
