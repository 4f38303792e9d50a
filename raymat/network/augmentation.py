"""Random crop, flips and rotation of a training volume (paper, section 6.2.1), drawn from a seed of its own.

A sample's seed is made of the run's seed, the epoch and the sample's place in it. What a network is trained on hangs
therefore neither on the number of workers nor on whether the run was interrupted.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Augmentation:
    """What a training volume is put through.

    Attributes
    ----------
    crop : (z, y, x) voxels, the network's input
    centred : share of crops that hold the middle of the volume, where the nodule is; the others are drawn from the
        whole. Of a crop of 96 in a volume of 180 every one holds it.
    off_centre : how far the volume's middle lies from that of a crop which holds it, at most, as a share of the crop's
        side; one half is anywhere in it
    flips : mirror along each axis with probability one half
    rotation : largest angle about a random axis, degrees; 0 for none
    """

    crop: tuple[int, int, int] = (96, 96, 96)
    centred: float = 0.8
    off_centre: float = 0.5
    flips: bool = True
    rotation: float = 30.0


def generator(*parts: object) -> torch.Generator:
    """A generator seeded by the digest of all that is named."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


class Placement(NamedTuple):
    """Where a crop lies in its volume, and how it is turned and mirrored.

    Attributes
    ----------
    start : first voxel (z, y, x), before the turn; may lie outside
    turn : rotation about the crop's middle, 3 x 3, (z, y, x); None for none
    mirrored : axes of the crop, 0 to 2
    """

    start: list[int]
    turn: Tensor | None
    mirrored: list[int]

    def within(self, box: tuple[slice, ...]) -> Placement:
        """The same crop, of that part of the volume."""
        return self._replace(start=[first - part.start for first, part in zip(self.start, box, strict=True)])


def draw(shape: Sequence[int], parameters: Augmentation, seed: torch.Generator) -> Placement:
    """A random placement in a volume of ``shape`` (z, y, x)."""
    middle = torch.rand((), generator=seed).item() < parameters.centred
    off_centre = parameters.off_centre if middle else None
    start = [_start(size, side, off_centre, seed) for size, side in zip(shape, parameters.crop, strict=True)]
    mirrored = torch.rand(3, generator=seed) < 0.5
    axis, angle = torch.randn(3, generator=seed), (2 * torch.rand((), generator=seed).item() - 1)
    angle *= math.radians(parameters.rotation)
    turn = rotation_matrix(axis, angle) if angle else None
    return Placement(start, turn, [a for a in range(3) if parameters.flips and mirrored[a]])


def reach(placement: Placement, crop: Sequence[int], shape: Sequence[int]) -> tuple[slice, ...]:
    """The box of a volume of ``shape`` that the crop is made of, one voxel at least."""
    half = torch.tensor([(side - 1) / 2 for side in crop])
    # The corner of a turned box that lies farthest along an axis; a voxel more for the interpolation.
    far = half if placement.turn is None else placement.turn.abs() @ half + 1
    box = []
    for first, h, f, n in zip(placement.start, half.tolist(), far.tolist(), shape, strict=True):
        start = min(max(math.floor(first + h - f), 0), n - 1)
        box.append(slice(start, min(max(math.ceil(first + h + f) + 1, start + 1), n)))
    return tuple(box)


def cut(volume: Tensor, smooth: int, placement: Placement, size: Sequence[int]) -> Tensor:
    """The crop of ``size`` (z, y, x) voxels at that placement of a volume, as ``augment`` describes both."""
    if placement.turn is None:
        part = crop(volume, placement.start, size)
    else:
        part = _turned(volume, placement.start, size, placement.turn, smooth)
    return part.flip([1 + axis for axis in placement.mirrored])


def augment(volume: Tensor, smooth: int, parameters: Augmentation, seed: torch.Generator) -> Tensor:
    """A random crop of a volume, mirrored and turned.

    Parameters
    ----------
    volume : float (channels, z, y, x); its last channel is 1 where there is scan, and beyond its edges there is none
    smooth : the number of first channels (image, alpha) that are interpolated, the rest are masks and stay 0 or 1;
        below 0 the number of those masks
    parameters : Augmentation
    seed : where the draws come from

    Returns
    -------
    (channels, *crop), on the volume's device. What lies beyond the volume is 0 in all channels.
    """
    return cut(volume, smooth, draw(volume.shape[1:], parameters, seed), parameters.crop)


def centre(shape: Sequence[int], size: Sequence[int]) -> Placement:
    """The middle of a volume, as it is."""
    return Placement([(n - side) // 2 for n, side in zip(shape, size, strict=True)], None, [])


def centre_crop(volume: Tensor, size: Sequence[int]) -> Tensor:
    """The middle of a volume (channels, z, y, x), filled up with 0 where it is smaller."""
    return crop(volume, centre(volume.shape[1:], size).start, size)


def crop(volume: Tensor, start: Sequence[int], size: Sequence[int]) -> Tensor:
    """The box of ``size`` voxels that begins at ``start``, which may lie outside; 0 where the volume has none."""
    part = volume
    padding: list[int] = []
    for axis, (first, side) in enumerate(zip(start, size, strict=True)):
        n = volume.shape[1 + axis]
        low, high = min(max(first, 0), n), min(max(first + side, 0), n)
        part = part.narrow(1 + axis, low, high - low)
        padding = [low - first, first + side - high, *padding]
    return functional.pad(part, padding)


def _start(size: int, side: int, off_centre: float | None, seed: torch.Generator) -> int:
    if size <= side:
        return -int(torch.randint(side - size + 1, (), generator=seed))
    low, high = 0, size - side
    if off_centre is not None:
        middle, away = size // 2, int(off_centre * side)
        first = middle - side // 2
        low = max(low, first - away, middle - side + 1)
        high = max(low, min(high, first + away, middle))
    return low + int(torch.randint(high - low + 1, (), generator=seed))


def _turned(volume: Tensor, start: Sequence[int], size: Sequence[int], turn: Tensor, smooth: int) -> Tensor:
    """The box turned about its middle."""
    turn = turn.to(volume)
    steps = [torch.arange(side, device=volume.device, dtype=volume.dtype) - (side - 1) / 2 for side in size]
    place = torch.stack(torch.meshgrid(*steps, indexing="ij"), dim=-1) @ turn.T
    middle = torch.tensor([s + (side - 1) / 2 for s, side in zip(start, size, strict=True)]).to(volume)
    # grid_sample wants (x, y, z), -1 and 1 at the outer edges of the first and last voxel.
    sizes = torch.tensor(volume.shape[1:]).to(volume)
    grid = (2 * (place + middle) + 1) / sizes - 1
    grid = grid.flip(-1)[None]

    def sampled(part: Tensor, mode: str) -> Tensor:
        return functional.grid_sample(part[None], grid, mode=mode, padding_mode="zeros", align_corners=False)[0]

    return torch.cat([sampled(volume[:smooth], "bilinear"), sampled(volume[smooth:], "nearest")])


def rotation_matrix(axis: Tensor, angle: float) -> Tensor:
    """Rodrigues' formula: the rotation by ``angle`` radians about ``axis``; 3 x 3, (z, y, x)."""
    z, y, x = (axis / axis.norm()).tolist()
    across = torch.tensor([[0.0, -x, y], [x, 0.0, -z], [-y, z, 0.0]])
    return torch.eye(3) + math.sin(angle) * across + (1 - math.cos(angle)) * across @ across
