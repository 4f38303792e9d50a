"""pylidc 0.2.3 as it was released, to compare with; it predates NumPy 2 and needs setuptools before 81."""

from __future__ import annotations

import functools
import importlib
import types
import warnings

import numpy as np
import pytest


@functools.cache
def import_pylidc() -> types.ModuleType:
    """pylidc with its view of NumPy repaired, never NumPy; the test is skipped where pylidc cannot be imported."""
    with warnings.catch_warnings():
        # pkg_resources, sqlalchemy's declarative_base and scipy.ndimage.morphology are deprecated: pylidc's affair.
        warnings.simplefilter("ignore")
        pylidc = pytest.importorskip("pylidc", exc_type=ImportError)
        importlib.import_module("pylidc.utils")
    view = _NumpyOfOld("numpy as pylidc knows it")
    for module in (pylidc.Annotation, pylidc.Contour, pylidc.Scan):
        vars(importlib.import_module(module.__module__))["np"] = view
    for name in ("pylidc.utils", "pylidc.annotation_distance_metrics"):
        vars(importlib.import_module(name))["np"] = view
    return pylidc


class _NumpyOfOld(types.ModuleType):
    """NumPy with the aliases that NumPy 1.24 dropped."""

    int = int
    float = float
    bool = bool

    def __getattr__(self, name: str):
        return getattr(np, name)
