"""Eq. 5 and 6 against the same equations in plain NumPy, and what they promise."""

import numpy as np
import pytest
import torch

from raymat.network.losses import matting_losses
from raymat.network.model import Prediction

SHAPE = (2, 1, 5, 6, 7)


def a_batch(seed=0):
    """Prediction (logits, logits, alpha) and ground truth (alpha, union, overlap, scanned), float64 arrays."""
    rng = np.random.default_rng(seed)
    union = (rng.random(SHAPE) < 0.5).astype(float)
    overlap = union * (rng.random(SHAPE) < 0.5)
    scanned = np.ones(SHAPE)
    scanned[0, :, 3:], scanned[1, :, :, :, 0] = 0, 0
    return (rng.normal(0, 3, SHAPE), rng.normal(0, 3, SHAPE), rng.random(SHAPE)), (
        rng.random(SHAPE),
        union,
        overlap,
        scanned,
    )


def in_numpy(prediction, truth, alpha_weight, gradient_weight) -> dict[str, float]:
    """The paper's equations, voxel by voxel."""
    union_logit, overlap_logit, predicted = prediction
    alpha, union, overlap, scanned = truth
    terms = []
    for b in range(SHAPE[0]):
        cross_entropy = l_alpha = l_gradient = 0.0
        for index in np.argwhere(scanned[b, 0]):
            at = (b, 0, *index)
            for logit, mask in ((union_logit, union), (overlap_logit, overlap)):
                p = 1 / (1 + np.exp(-logit[at]))
                cross_entropy -= mask[at] * np.log(p) + (1 - mask[at]) * np.log(1 - p)
            weight = 1 + union[at]
            l_alpha += weight * abs(predicted[at] - alpha[at])
            for axis in range(3):
                step = list(at)
                step[2 + axis] += 1
                step = tuple(step)
                if step[2 + axis] < SHAPE[2 + axis] and scanned[step]:
                    l_gradient += weight * abs((predicted[step] - predicted[at]) - (alpha[step] - alpha[at]))
        n = scanned[b].sum()
        terms.append((cross_entropy / n, l_alpha / n, l_gradient / n))
    mask, l_alpha, l_gradient = np.mean(terms, axis=0)
    total = mask + alpha_weight * l_alpha + gradient_weight * l_gradient
    return {"total": total, "mask": mask, "alpha": l_alpha, "gradient": l_gradient}


def tensors(arrays, dtype=torch.float32):
    return [torch.tensor(array, dtype=dtype) for array in arrays]


@pytest.mark.parametrize("weights", [(10.0, 10.0), (1.0, 0.0), (0.0, 3.0)])
def test_the_losses_are_the_equations(weights):
    prediction, truth = a_batch()
    losses = matting_losses(Prediction(*tensors(prediction)), *tensors(truth), *weights)
    for name, value in in_numpy(prediction, truth, *weights).items():
        assert getattr(losses, name).item() == pytest.approx(value, rel=1e-5), name


def test_under_mixed_precision_they_are_computed_in_float32():
    prediction, truth = a_batch(1)
    half = Prediction(*tensors(prediction, torch.bfloat16))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = matting_losses(half, *tensors(truth))
    expected = in_numpy([p.double().numpy() for p in half], truth, 10.0, 10.0)
    for name, value in expected.items():
        loss = getattr(losses, name)
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(value, rel=1e-5), name


def test_no_loss_at_the_truth_but_that_of_the_masks():
    _, truth = a_batch()
    alpha, union, overlap, scanned = tensors(truth)
    sure = Prediction(100 * (union - 0.5), 100 * (overlap - 0.5), alpha)
    assert matting_losses(sure, alpha, union, overlap, scanned).total.item() == pytest.approx(0.0, abs=1e-6)


def test_what_is_not_scanned_has_no_part_in_them():
    prediction, truth = a_batch()
    alpha, union, overlap, scanned = tensors(truth)
    beyond = scanned == 0
    there = tensors(prediction)
    before = matting_losses(Prediction(*there), alpha, union, overlap, scanned)
    after = matting_losses(Prediction(*(torch.where(beyond, 0.9, p) for p in there)), alpha, union, overlap, scanned)
    assert torch.equal(torch.stack(before), torch.stack(after))


def test_a_batch_has_the_mean_loss_of_its_volumes():
    prediction, truth = a_batch()
    whole = matting_losses(Prediction(*tensors(prediction)), *tensors(truth)).total
    parts = [
        matting_losses(
            Prediction(*(p[b : b + 1] for p in tensors(prediction))), *(t[b : b + 1] for t in tensors(truth))
        )
        for b in range(2)
    ]
    assert whole.item() == pytest.approx(np.mean([part.total.item() for part in parts]), rel=1e-6)
