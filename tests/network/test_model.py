"""What the network's wiring promises, on small random networks."""

import pytest
import torch

from raymat.network import model as models
from raymat.network.model import PRESETS, MattingNetwork, ModelConfig, ResBlock, max_pool, normalised
from raymat.nodule import InputError

TINY = ModelConfig(width=4, levels=3, blocks=1)


def network(config: ModelConfig) -> MattingNetwork:
    torch.manual_seed(0)
    return MattingNetwork(config)


@pytest.mark.parametrize("shape", [(8, 8, 8), (4, 12, 20)])
@pytest.mark.parametrize("auxiliary", [True, False])
def test_any_input_that_the_strides_divide_gives_masks_and_matte_of_its_own_size(shape, auxiliary):
    image = torch.rand(2, 1, *shape)
    prediction = network(ModelConfig(4, 3, 1, auxiliary))(image)
    assert all(output.shape == image.shape for output in prediction)
    assert 0 <= prediction.alpha.min() <= prediction.alpha.max() <= 1


def test_a_small_volume_is_never_left_alone_to_torchs_slow_convolution(monkeypatch):
    one, image = network(TINY).double(), torch.rand(1, 1, 8, 8, 12).double()
    sizes = []
    one.unet.register_forward_hook(lambda _, given, found: sizes.append(len(given[0])))
    found = one(image)
    found.alpha.sum().backward()
    monkeypatch.setattr(models, "ALONE", 0)
    other = network(TINY).double()
    other.unet.register_forward_hook(lambda _, given, found: sizes.append(len(given[0])))
    straight = other(image)
    straight.alpha.sum().backward()
    assert sizes == [2, 1]
    for first, second in zip(found, straight, strict=True):
        assert first.shape == image.shape
        torch.testing.assert_close(first, second)
    torch.testing.assert_close([p.grad for p in one.parameters()], [p.grad for p in other.parameters()])


def test_an_input_that_the_strides_do_not_divide_is_refused():
    with pytest.raises(InputError, match="multiple of the network's stride, 4"):
        network(TINY)(torch.rand(1, 1, 8, 8, 10))
    with pytest.raises(InputError, match="2 x 2 x 2"):
        network(ModelConfig(4, 3, 1))(torch.rand(1, 1, 2, 2, 2))


@pytest.mark.parametrize("auxiliary", [True, False])
def test_the_masks_guide_the_matte_unless_they_are_switched_off(auxiliary):
    model = network(ModelConfig(4, 3, 1, auxiliary))
    image = torch.rand(1, 1, 8, 8, 8)
    before = model(image)
    with torch.no_grad():
        model.union.head.bias += 6.0
    after = model(image)
    assert torch.equal(after.overlap, before.overlap)
    assert not torch.equal(after.union, before.union)
    assert torch.equal(after.alpha, before.alpha) is not auxiliary


def test_the_matting_branch_takes_the_masks_before_each_of_its_three_groups():
    model = network(ModelConfig(4, 3, 2))
    assert len(model.matting.groups) == 3
    for group in model.matting.groups:
        assert [isinstance(block, ResBlock) for block in group] == [True, True]
        assert [block.first[0].in_channels for block in group] == [4 + 2, 4]
    without = network(ModelConfig(4, 3, 2, auxiliary=False))
    assert [block.first[0].in_channels for group in without.matting.groups for block in group] == [4] * 6
    assert sum(p.numel() for p in without.union.parameters()) == sum(p.numel() for p in model.union.parameters())


def test_the_matting_loss_reaches_the_mask_branches_through_the_fusion():
    model = network(TINY)
    model(torch.rand(1, 1, 8, 8, 8)).alpha.sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.union.head.parameters())


def test_a_volume_of_a_batch_is_predicted_as_if_it_were_alone():
    model, images = network(TINY), torch.rand(2, 1, 8, 8, 8)
    torch.testing.assert_close(model(images).alpha[1:], model(images[1:]).alpha, rtol=0, atol=1e-6)


def test_pooling_is_that_of_torch():
    x = torch.randn(2, 3, 4, 6, 8)
    assert torch.equal(max_pool(x), torch.nn.functional.max_pool3d(x, 2))


def test_hu_become_0_to_1_and_are_clipped_beyond():
    hu = torch.tensor([-3000.0, -1000.0, -300.0, 400.0, 2000.0])
    torch.testing.assert_close(normalised(hu, ModelConfig()), torch.tensor([0.0, 0.0, 0.5, 1.0, 1.0]))


def test_a_config_survives_a_checkpoint_and_a_strange_one_is_refused():
    for config in PRESETS.values():
        assert ModelConfig.from_dict(config.to_dict()) == config
    with pytest.raises(InputError, match="depths"):
        ModelConfig.from_dict({"depths": 3})
    with pytest.raises(InputError, match="1 or more"):
        ModelConfig(width=0)
