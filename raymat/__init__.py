"""raymat: readers' masks of lung nodules in CT to a dataset of 3D alpha mattes."""

from raymat.loading import load
from raymat.version import __version__

__all__ = ["__version__", "load"]
