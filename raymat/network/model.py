"""3DMM: image in; union mask, overlap mask and alpha matte out (paper, section 5.1 and figure 4).

    image -> 3D U-Net -> features -+-> union branch     group of ResBlocks, 1x1x1 -> union mask   -+
                                   +-> overlap branch   group of ResBlocks, 1x1x1 -> overlap mask -+
                                   |                                                               | fused before
                                   +-> matting branch   3 groups of ResBlocks,                     | each group
                                                        1x1x1 -> alpha                           <-+

The source leaves open what it is built of; here: the U-Net of Cicek et al., "3D U-Net", MICCAI 2016 (two 3x3x3
convolutions a level, max pooling, transposed convolutions), and the ResBlock of He et al., CVPR 2016. Normalisation
is per instance, not per batch: with two volumes a GPU a batch's statistics are noise, and gradients would depend on
how a batch is dealt out to workers. "Fused" is a concatenation of both masks' probabilities to the features.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from raymat.nodule import InputError

MATTING_GROUPS = 3
# A lesion fills a few voxels in a hundred: heads that begin there need not first unlearn one half everywhere.
PRIOR_LOGIT = -3.0
# On CPUs torch leaves a batch of one to a convolution of its own where features x z x y are no more than this, all else
# to oneDNN's, which takes less for two.
ALONE = 20480


@dataclass(frozen=True)
class ModelConfig:
    """Width and depth of the network, and what it takes in.

    Attributes
    ----------
    width : features of the finest level and of the three branches; each level below has twice as many
    levels : resolutions of the U-Net; an input's sides are multiples of 2 ** (levels - 1)
    blocks : ResBlocks in a group
    auxiliary : whether the matting branch sees the masks; without, it is the 3DMM with the double dagger of Table 1
    intensity_range : HU that become 0 and 1 at the input; what lies beyond is clipped
    spacing_mm : of the grid that it is trained on and predicts on, every dimension; a whole multiple of the dataset's
    channels : of images with several channels, all of them, the image first: name and the values that become 0 and 1;
        empty for images of one
    """

    width: int = 32
    levels: int = 4
    blocks: int = 2
    auxiliary: bool = True
    intensity_range: tuple[float, float] = (-1000.0, 400.0)
    spacing_mm: float = 0.5
    channels: tuple[tuple[str, float, float], ...] = ()

    def __post_init__(self) -> None:
        if self.width < 1 or self.levels < 1 or self.blocks < 1:
            raise InputError(f"the network's width, levels and blocks must be 1 or more: {self}")
        low, high = self.intensity_range
        object.__setattr__(self, "intensity_range", (float(low), float(high)))
        if not low < high or not self.spacing_mm > 0:
            raise InputError(f"the network's intensity_range must rise and its spacing_mm be above 0: {self}")
        channels = tuple((str(name), float(low), float(high)) for name, low, high in self.channels)
        object.__setattr__(self, "channels", channels)
        if len(channels) == 1 or not all(low < high for _, low, high in channels):
            raise InputError(f"the network takes one channel, or several whose ranges rise: {self}")

    @property
    def ranges(self) -> list[tuple[float, float]]:
        """The values of each channel of the input that become 0 and 1."""
        return [(low, high) for _, low, high in self.channels] or [self.intensity_range]

    @property
    def stride(self) -> int:
        """What an input's sides must be multiples of, voxels."""
        return 2 ** (self.levels - 1)

    def to_dict(self) -> dict:
        """As plain values, for a checkpoint; of one channel without a list of them, as in earlier versions."""
        values = {**asdict(self), "intensity_range": list(self.intensity_range)}
        channels = [list(channel) for channel in values.pop("channels")]
        return values | ({"channels": channels} if channels else {})

    @classmethod
    def from_dict(cls, values: dict) -> ModelConfig:
        """From a checkpoint; raises InputError where it names what this version does not know."""
        unknown = set(values) - {field.name for field in fields(cls)}
        if unknown:
            raise InputError(f"unknown settings of the network: {', '.join(sorted(unknown))}")
        return cls(**values)


PRESETS = {
    "paper": ModelConfig(),
    "small": ModelConfig(width=16, levels=4, blocks=1, spacing_mm=1.0),
    "light": ModelConfig(width=8, levels=4, blocks=1, spacing_mm=1.0),
}


class Prediction(NamedTuple):
    """What the network gives, all (batch, 1, z, y, x).

    Attributes
    ----------
    union, overlap : logits of the masks; ``sigmoid`` gives probabilities
    alpha : the matte, 0 to 1
    """

    union: Tensor
    overlap: Tensor
    alpha: Tensor


class InstanceNorm(nn.InstanceNorm3d):
    """Normalisation per instance that leaves the memory format as it is.

    torch's own puts out contiguous volumes; the rectifier's gradient then meets one of the other format, and is slow.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Volumes (batch, channels, z, y, x) to the same shape and memory format."""
        last = x.is_contiguous(memory_format=torch.channels_last_3d) and not x.is_contiguous()
        found = super().forward(x)
        return found.contiguous(memory_format=torch.channels_last_3d) if last else found


def _convolution(inside: int, outside: int) -> nn.Sequential:
    # The normalisation's offset makes a bias of the convolution idle.
    return nn.Sequential(nn.Conv3d(inside, outside, 3, padding=1, bias=False), InstanceNorm(outside, affine=True))


class ConvolutionPair(nn.Module):
    """Two 3x3x3 convolutions of the U-Net, each normalised and rectified."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        self.first, self.second = _convolution(inside, outside), _convolution(outside, outside)

    def forward(self, x: Tensor) -> Tensor:
        """Volumes (batch, inside, z, y, x) to (batch, outside, z, y, x)."""
        return functional.relu(self.second(functional.relu(self.first(x))))


class ResBlock(nn.Module):
    """He et al. 2016, figure 5 (left), in 3D; a 1x1x1 convolution on the way round where the features change number."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        self.first, self.second = _convolution(inside, outside), _convolution(outside, outside)
        self.around = nn.Identity() if inside == outside else nn.Conv3d(inside, outside, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Volumes (batch, inside, z, y, x) to (batch, outside, z, y, x)."""
        return functional.relu(self.second(functional.relu(self.first(x))) + self.around(x))


def _group(inside: int, outside: int, blocks: int) -> nn.Sequential:
    return nn.Sequential(ResBlock(inside, outside), *(ResBlock(outside, outside) for _ in range(blocks - 1)))


def _head(width: int) -> nn.Conv3d:
    head = nn.Conv3d(width, 1, 1)
    assert head.bias is not None
    nn.init.constant_(head.bias, PRIOR_LOGIT)
    return head


def max_pool(x: Tensor) -> Tensor:
    """The maximum of each 2 x 2 x 2 voxels; unlike ``nn.MaxPool3d`` its gradient is deterministic on a GPU too."""
    batch, features, z, y, x_ = x.shape
    return x.reshape(batch, features, z // 2, 2, y // 2, 2, x_ // 2, 2).amax((3, 5, 7))


class UNet(nn.Module):
    """Vanilla 3D U-Net: image (batch, inside, z, y, x) to ``width`` features per voxel."""

    def __init__(self, width: int, levels: int, inside: int = 1) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(levels)]
        ins = [inside, *widths[:-1]]
        self.down = nn.ModuleList([ConvolutionPair(a, b) for a, b in zip(ins, widths, strict=True)])
        self.up = nn.ModuleList([nn.ConvTranspose3d(2 * w, w, 2, stride=2) for w in widths[:-1]])
        self.merge = nn.ModuleList([ConvolutionPair(2 * w, w) for w in widths[:-1]])

    def forward(self, x: Tensor) -> Tensor:
        """Images (batch, inside, z, y, x) to features (batch, width, z, y, x)."""
        skipped = []
        for level, pair in enumerate(self.down):
            x = pair(max_pool(x) if level else x)
            skipped.append(x)
        skipped.pop()
        for up, merge, skip in zip(reversed(self.up), reversed(self.merge), reversed(skipped), strict=True):
            x = merge(torch.cat([skip, up(x)], dim=1))
        return x


class MaskBranch(nn.Module):
    """A group of ResBlocks and a 1x1x1 convolution: features to the logit of a mask."""

    def __init__(self, width: int, blocks: int) -> None:
        super().__init__()
        self.group, self.head = _group(width, width, blocks), _head(width)

    def forward(self, features: Tensor) -> Tensor:
        """Features (batch, width, z, y, x) to logits (batch, 1, z, y, x)."""
        return self.head(self.group(features))


class MattingBranch(nn.Module):
    """Three groups of ResBlocks and a 1x1x1 convolution; ``masks`` more features are fused before each group."""

    def __init__(self, width: int, blocks: int, masks: int) -> None:
        super().__init__()
        self.groups = nn.ModuleList([_group(width + masks, width, blocks) for _ in range(MATTING_GROUPS)])
        self.head = _head(width)

    def forward(self, features: Tensor, masks: list[Tensor]) -> Tensor:
        """Features (batch, width, z, y, x) and the masks' (batch, 1, z, y, x) each to alpha (batch, 1, z, y, x)."""
        for group in self.groups:
            features = group(torch.cat([features, *masks], dim=1))
        return torch.sigmoid(self.head(features))


class MattingNetwork(nn.Module):
    """3DMM. Weights are drawn from torch's generator: seed it to get the same network twice."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.unet = UNet(config.width, config.levels, len(config.ranges))
        self.union = MaskBranch(config.width, config.blocks)
        self.overlap = MaskBranch(config.width, config.blocks)
        self.matting = MattingBranch(config.width, config.blocks, masks=2 if config.auxiliary else 0)

    def forward(self, image: Tensor) -> Prediction:
        """Masks and matte of an image.

        Parameters
        ----------
        image : (batch, channels, z, y, x), HU brought to 0 to 1 by ``normalised``; sides are multiples of
            ``config.stride``

        Raises
        ------
        InputError
            Sides that the strides do not divide.
        """
        if image.ndim != 5 or any(side % self.config.stride or side == 0 for side in image.shape[2:]):
            raise InputError(
                f"an input of {' x '.join(map(str, image.shape[2:]))} voxels (z, y, x): every side must be a multiple "
                f"of the network's stride, {self.config.stride}; pad the image"
            )
        batch, _, z, y, _ = image.shape
        if batch == 1 and image.device.type == "cpu" and self.config.width * z * y <= ALONE:
            image = torch.cat([image, image])
        features = self.unet(image)
        union, overlap = self.union(features), self.overlap(features)
        masks = [torch.sigmoid(union), torch.sigmoid(overlap)] if self.config.auxiliary else []
        return Prediction(union[:batch], overlap[:batch], self.matting(features, masks)[:batch])


def normalised(image: Tensor, config: ModelConfig) -> Tensor:
    """HU to what the network takes in: 0 at the range's low end and below, 1 at its high end and above.

    Parameters
    ----------
    image : (z, y, x), or (channels, z, y, x) for a network of several channels
    """

    def scaled(one: Tensor, low: float, high: float) -> Tensor:
        return ((one - low) / (high - low)).clamp(0.0, 1.0)

    if not config.channels:
        return scaled(image, *config.intensity_range)
    return torch.stack([scaled(one, *low_high) for one, low_high in zip(image, config.ranges, strict=True)])
