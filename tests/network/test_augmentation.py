"""Crops, flips and rotations: what they keep, and that a seed decides them."""

import math

import pytest
import torch

from raymat.network.augmentation import (
    Augmentation,
    augment,
    centre_crop,
    crop,
    cut,
    draw,
    generator,
    reach,
    rotation_matrix,
)


def a_volume(shape=(20, 24, 28)) -> torch.Tensor:
    """Image, alpha, union and a channel that says where there is scan; a ball in the middle."""
    z, y, x = torch.meshgrid(*(torch.arange(n) - (n - 1) / 2 for n in shape), indexing="ij")
    distance = (z**2 + y**2 + x**2).sqrt()
    ball = (distance < 6).float()
    return torch.stack([1 / (1 + distance), (7 - distance).clamp(0, 1), ball, torch.ones(shape)])


def test_the_same_seed_draws_the_same_and_another_draws_another():
    parameters = Augmentation(crop=(16, 16, 16))
    draws = [augment(a_volume(), 2, parameters, generator("run", epoch, 3)) for epoch in (0, 0, 1)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_draws_do_not_touch_torchs_own_generator():
    before = torch.get_rng_state()
    augment(a_volume(), 2, Augmentation(crop=(8, 8, 8)), generator(0))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("rotation", [0.0, 40.0])
def test_masks_stay_masks_and_all_channels_stay_on_one_another(rotation):
    for seed in range(10):
        part = augment(a_volume(), 2, Augmentation(crop=(18, 18, 18), rotation=rotation), generator(seed))
        assert part.shape == (4, 18, 18, 18)
        assert set(part[2].unique().tolist()) <= {0.0, 1.0}
        assert set(part[3].unique().tolist()) <= {0.0, 1.0}
        # alpha is 1 on the ball's surface; the nearest voxel's mask may stand up to a voxel's diagonal beyond it.
        assert part[1][part[2] == 1].min() > 0.1
        assert part[1][part[2] == 0].mean() < 0.1 < 0.9 < part[1][part[2] == 1].mean()


def test_a_ball_keeps_its_size_when_it_is_turned():
    turned = [
        augment(a_volume((28, 28, 28)), 2, Augmentation((28, 28, 28), flips=False, rotation=180.0), generator(seed))
        for seed in range(5)
    ]
    whole = a_volume((28, 28, 28))[1].sum().item()
    assert [part[1].sum().item() for part in turned] == pytest.approx([whole] * 5, rel=0.02)


def test_a_rotation_matrix_is_one():
    turn = rotation_matrix(torch.tensor([1.0, 2.0, -0.5]), 1.1)
    torch.testing.assert_close(turn @ turn.T, torch.eye(3))
    assert torch.linalg.det(turn).item() == pytest.approx(1.0, abs=1e-6)
    assert turn.trace().item() == pytest.approx(1 + 2 * math.cos(1.1), abs=1e-5)
    about_z = rotation_matrix(torch.tensor([1.0, 0.0, 0.0]), math.pi / 2)
    torch.testing.assert_close(
        about_z @ torch.tensor([0.0, 0.0, 1.0]), torch.tensor([0.0, -1.0, 0.0]), atol=1e-6, rtol=0
    )


def test_without_draws_the_crop_is_a_part_of_the_volume():
    volume = a_volume()
    still = Augmentation(crop=(8, 8, 8), flips=False, rotation=0.0)
    part = augment(volume, 2, still, generator(4))
    starts = torch.nonzero(
        volume[0].unfold(0, 8, 1).unfold(1, 8, 1).unfold(2, 8, 1).eq(part[0]).all(-1).all(-1).all(-1)
    )
    assert len(starts) == 1
    z, y, x = starts[0].tolist()
    assert torch.equal(part, volume[:, z : z + 8, y : y + 8, x : x + 8])


def test_centred_crops_hold_the_middle():
    marked = torch.zeros(2, 30, 30, 30)
    marked[:, 15, 15, 15] = 1
    for seed in range(30):
        part = augment(marked, 1, Augmentation((8, 8, 8), centred=1.0, rotation=0.0), generator(seed))
        assert part[0].sum() == 1


@pytest.mark.parametrize(("off_centre", "side"), [(0.0, 8), (0.25, 8), (0.5, 8), (0.25, 7), (0.0, 7)])
def test_the_middle_lies_as_far_off_the_crops_middle_as_it_may(off_centre, side):
    marked = torch.zeros(2, 31, 31, 31)
    marked[:, 15, 15, 15] = 1
    still = Augmentation((side,) * 3, centred=1.0, off_centre=off_centre, flips=False, rotation=0.0)
    places = torch.cat([torch.nonzero(augment(marked, 1, still, generator(seed))[0]) for seed in range(200)])
    assert len(places) == 200
    away = int(off_centre * side)
    assert places.unique().tolist() == list(range(max(0, side // 2 - away), min(side, side // 2 + away + 1)))


def test_a_volume_smaller_than_the_crop_is_filled_up_with_nothing():
    volume = a_volume((6, 24, 28))
    part = centre_crop(volume, (16, 16, 16))
    assert part[3].sum() == 6 * 16 * 16
    assert torch.equal(part[:, 5:11], volume[:, :, 4:20, 6:22])
    for seed in range(5):
        drawn = augment(volume, 2, Augmentation((16, 16, 16), rotation=0.0), generator(seed))
        assert drawn[3].sum() == 6 * 16 * 16
    assert crop(volume, [-2, 0, 0], (3, 4, 4))[3].sum() == 16


@pytest.mark.parametrize("rotation", [0.0, 30.0, 180.0])
@pytest.mark.parametrize("shape", [(40, 44, 48), (6, 44, 12)])
def test_a_crop_is_made_of_what_it_reaches_and_of_nothing_else(shape, rotation):
    volume = a_volume(shape)
    parameters = Augmentation((16, 12, 20), centred=0.5, rotation=rotation)
    for seed in range(20):
        placement = draw(shape, parameters, generator(seed))
        box = reach(placement, parameters.crop, shape)
        part = cut(volume[(slice(None), *box)], 2, placement.within(box), parameters.crop)
        torch.testing.assert_close(part[:2], augment(volume, 2, parameters, generator(seed))[:2], atol=1e-4, rtol=0)
        # Nearest voxels may differ where a sample lies between two.
        assert (part[2:] != augment(volume, 2, parameters, generator(seed))[2:]).float().mean() < 1e-3
    assert all(
        s.stop - s.start < n
        for s, n in zip(
            reach(draw((90,) * 3, parameters, generator(0)), parameters.crop, (90,) * 3), (90,) * 3, strict=True
        )
    )
