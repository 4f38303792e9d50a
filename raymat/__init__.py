"""raymat: readers' masks of lung nodules in CT to a dataset of 3D alpha mattes."""

from raymat.loading import load

__version__ = "0.1.0"

__all__ = ["__version__", "load"]
