"""3D classifiers: DenseNet-121, ResNet-34 and ResNet-50 (paper, section 6.1) by MONAI, and small ones for CPUs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from raymat.nodule import InputError

FULL, SMALL = "full", "small"
STEMS = (FULL, SMALL)


def _densenet(blocks: tuple[int, ...], features: int, growth: int) -> Callable[[float, str], nn.Module]:
    def make(width: float, stem: str) -> nn.Module:
        # Imported here: MONAI takes seconds, which only a process that trains has to spend.
        from monai.networks.nets import DenseNet

        first = max(4, round(features * width))
        network = DenseNet(
            spatial_dims=3,
            in_channels=1,
            out_channels=1,
            init_features=first,
            growth_rate=max(2, round(growth * width)),
            block_config=blocks,
        )
        if stem == SMALL:
            network.features.conv0 = nn.Conv3d(1, first, kernel_size=3, stride=2, padding=1, bias=False)
            network.features.pool0 = nn.Identity()
        return network

    return make


def _resnet(block: str, layers: tuple[int, ...], features: int) -> Callable[[float, str], nn.Module]:
    def make(width: float, stem: str) -> nn.Module:
        from monai.networks.nets import ResNet

        small = stem == SMALL
        return ResNet(
            block=block,
            layers=list(layers),
            block_inplanes=[max(4, round(features * width)) * 2**level for level in range(4)],
            spatial_dims=3,
            n_input_channels=1,
            conv1_t_size=3 if small else 7,
            conv1_t_stride=2,
            no_max_pool=small,
            num_classes=1,
        )

    return make


NETWORKS = {
    "densenet121": _densenet((6, 12, 24, 16), 64, 32),
    "resnet34": _resnet("basic", (3, 4, 6, 3), 64),
    "resnet50": _resnet("bottleneck", (3, 4, 6, 3), 64),
    # The same designs with a quarter of the features and the fewest blocks.
    "densenet-small": _densenet((2, 2, 2, 2), 16, 8),
    "resnet10-small": _resnet("basic", (1, 1, 1, 1), 16),
    "resnet14-small": _resnet("bottleneck", (1, 1, 1, 1), 16),
}
PAPER_NETWORKS = ("densenet121", "resnet34", "resnet50")
SMALL_NETWORKS = ("densenet-small", "resnet10-small", "resnet14-small")
TITLES = {
    "densenet121": "DenseNet-121",
    "resnet34": "ResNet-34",
    "resnet50": "ResNet-50",
    "densenet-small": "DenseNet, small",
    "resnet10-small": "ResNet-10, small",
    "resnet14-small": "ResNet-14, small",
}


def make_network(name: str, width: float = 1.0, stem: str = SMALL) -> nn.Module:
    """A network of one input channel and one output, the logit of malignancy.

    Parameters
    ----------
    name : one of ``NETWORKS``
    width : factor on the features of every level
    stem : "full", 7 x 7 x 7 and max pooling, a quarter of the resolution before the first block; "small", 3 x 3 x 3
        and half of it, for small crops

    Returns
    -------
    torch.nn.Module
        (batch, 1, z, y, x) to (batch, 1).

    Raises
    ------
    InputError
        There is no such network or stem, or the width is not above 0.
    """
    if name not in NETWORKS or stem not in STEMS or not width > 0:
        raise InputError(
            f"no network {name!r} of width {width} and stem {stem!r}; there are {', '.join(NETWORKS)}, widths above 0, "
            f"stems {' and '.join(STEMS)}"
        )
    return NETWORKS[name](width, stem)


def refuse_small_crop(name: str, width: float, stem: str, side: int) -> None:
    """Raise InputError where a crop of ``side`` voxels along every axis is used up before the network's last level."""
    with torch.device("meta"):
        network = make_network(name, width, stem).eval()
        try:
            network(torch.empty(2, 1, side, side, side))
        except RuntimeError as error:
            raise InputError(
                f"a crop of {side} voxels is too small for {name} with the {stem} stem ({str(error).splitlines()[0]}); "
                "choose a larger --side"
            ) from None
