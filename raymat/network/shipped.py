"""The weights that come with the package; how they were made and what they reach is in their model card.

They are what `raymat train` wrote, in half precision: half the bytes, and alpha differs by less than 0.01.
"""

from __future__ import annotations

import io
from importlib.resources import files

import torch

from raymat.network.training import read_checkpoint

# What commands take in the place of a weights file.
SHIPPED = "shipped"
FILE = "weights/3dmm-calibrated.pt"


def shipped_weights() -> str:
    """The file of the weights that come with the package."""
    return str(files("raymat.network").joinpath(FILE))


def in_half_precision(weights: bytes) -> bytes:
    """The content of a weights file (``raymat.network.training.save_weights``) with its numbers in half precision."""
    content = read_checkpoint(io.BytesIO(weights))
    content["model"] = {
        name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in content["model"].items()
    }
    written = io.BytesIO()
    torch.save(content, written)
    return written.getvalue()
