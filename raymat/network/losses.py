"""The losses of 3DMM (paper, section 5.2, Eq. 5 and 6), in float32 whatever the network ran in."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from raymat.network.model import Prediction


class Losses(NamedTuple):
    """The terms of Eq. 5 and their sum of Eq. 6, scalars."""

    total: Tensor
    mask: Tensor
    alpha: Tensor
    gradient: Tensor


def matting_losses(
    prediction: Prediction,
    alpha: Tensor,
    union: Tensor,
    overlap: Tensor,
    scanned: Tensor,
    alpha_weight: float = 10.0,
    gradient_weight: float = 10.0,
) -> Losses:
    """Eq. 5 and 6.

        L_mask  = CE(overlap) + CE(union)
        L_alpha = 1/N sum_i (1 + M_union(i)) |a~_i - a_i|
        L_grad  = 1/N sum_i (1 + M_union(i)) |grad a~_i - grad a_i|_1
        L_total = L_mask + alpha L_alpha + beta L_grad

    The gradient is the difference to the next voxel along z, y and x, none at the last; its 1-norm is the sum of the
    three. The mean is taken of each volume's voxels that the scan has (``scanned``), then of the volumes, so that a
    batch has one loss however it is dealt out to workers. Air that fills a small crop up to the network's input is no
    part of the matte: neither it nor a difference across its edge counts.

    Parameters
    ----------
    prediction : of the network
    alpha, union, overlap, scanned : (batch, 1, z, y, x), 0 to 1; the last three are masks
    alpha_weight, gradient_weight : alpha and beta of Eq. 6
    """
    device = alpha.device.type
    with torch.autocast(device, enabled=False):
        predicted, union_logit, overlap_logit = (
            p.float() for p in (prediction.alpha, prediction.union, prediction.overlap)
        )
        alpha, union, overlap, scanned = (t.float() for t in (alpha, union, overlap, scanned))

        def mean(values: Tensor) -> Tensor:
            return ((values * scanned).flatten(1).sum(1) / scanned.flatten(1).sum(1)).mean()

        weight = 1.0 + union
        mask = mean(
            functional.binary_cross_entropy_with_logits(overlap_logit, overlap, reduction="none")
            + functional.binary_cross_entropy_with_logits(union_logit, union, reduction="none")
        )
        difference = predicted - alpha
        slope = sum(_steps(difference, scanned, axis).abs() for axis in (2, 3, 4))
        l_alpha, l_gradient = mean(weight * difference.abs()), mean(weight * slope)
        return Losses(mask + alpha_weight * l_alpha + gradient_weight * l_gradient, mask, l_alpha, l_gradient)


def _steps(values: Tensor, scanned: Tensor, axis: int) -> Tensor:
    """Differences to the next voxel along an axis; 0 at the last one and across the scan's edge."""
    size = values.shape[axis]
    step = values.narrow(axis, 1, size - 1) - values.narrow(axis, 0, size - 1)
    step = step * scanned.narrow(axis, 1, size - 1) * scanned.narrow(axis, 0, size - 1)
    return torch.cat([step, torch.zeros_like(values.narrow(axis, 0, 1))], dim=axis)
