"""3DMM on a GPU: what a CPU gives, and the same twice."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from raymat.network.augmentation import Augmentation
from raymat.network.inference import Ensemble
from raymat.network.model import ModelConfig
from raymat.network.recipe import Recipe
from raymat.network.training import begin, losses_of, predict, restore, save, save_weights, train_step

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that torch can use"),
]

CPU, GPU = torch.device("cpu"), torch.device("cuda")
RECIPE = Recipe(
    ModelConfig(width=8, levels=3, blocks=1),
    Augmentation((16, 16, 16)),
    epochs=3,
    batch=2,
    learning_rate=1e-2,
    warm_up=0.0,
)


@pytest.fixture(autouse=True)
def whole_float32():
    """TensorFloat-32 off: it rounds to ten bits."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before
    torch.use_deterministic_algorithms(False)


def batches(count: int) -> torch.Tensor:
    """A bright ball, its blurred matte and two masks, in noise."""
    places = torch.stack(torch.meshgrid(*[torch.arange(16.0)] * 3, indexing="ij"))
    radius = (places - 7.5).norm(dim=0)
    alpha = torch.sigmoid(5 - radius)
    noise = torch.rand(count, 2, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    truth = torch.stack([alpha, (radius < 6).float(), (radius < 4).float(), torch.ones_like(alpha)])
    image = 0.1 + 0.5 * alpha + 0.1 * noise
    return torch.cat([image[:, :, None], truth.expand(count, 2, *truth.shape)], dim=2)


def gradient(recipe: Recipe, batch: torch.Tensor, device: torch.device) -> tuple[float, torch.Tensor]:
    state = begin(recipe, 10, device)
    batch = batch.to(device)
    losses = losses_of(predict(state.model, batch[:, :1], recipe.precision), batch, recipe)
    losses.total.backward()
    return losses.total.item(), torch.cat([p.grad.flatten() for p in state.model.parameters()]).cpu()


def test_loss_and_gradient_are_those_of_a_cpu():
    (batch,) = batches(1)
    for recipe in (RECIPE, replace(RECIPE, channels_last=True)):
        (here, mine), (there, theirs) = (gradient(recipe, batch, device) for device in (CPU, GPU))
        assert there == pytest.approx(here, rel=1e-5)
        torch.testing.assert_close(theirs, mine, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_every_precision_and_memory_format_learns(precision, channels_last):
    recipe = replace(RECIPE, precision=precision, channels_last=channels_last)
    (batch,) = batches(1).to(GPU)
    state = begin(recipe, 100, GPU)
    losses = [train_step(state, state.model, batch).total.item() for _ in range(30)]
    assert losses[-1] < 0.5 * losses[0]


def test_a_compiled_network_has_the_loss_of_the_plain_one():
    (batch,) = batches(1).to(GPU)
    plain, compiled = begin(RECIPE, 10, GPU), begin(RECIPE, 10, GPU)
    network = torch.compile(compiled.model)
    for _ in range(3):
        expected = train_step(plain, plain.model, batch).total.item()
        assert train_step(compiled, network, batch).total.item() == pytest.approx(expected, rel=1e-3)


def test_a_deterministic_training_resumes_to_the_same_bits(tmp_path):
    recipe = replace(RECIPE, deterministic=True, precision="bfloat16", channels_last=True)
    first, second, third = batches(3).to(GPU)
    through = begin(recipe, 2, GPU)
    for batch in (first, second):
        train_step(through, through.model, batch)
    save(through, tmp_path / "state.pt")
    train_step(through, through.model, third)
    for _ in range(2):
        resumed = begin(recipe, 2, GPU)
        restore(resumed, tmp_path / "state.pt")
        train_step(resumed, resumed.model, third)
        for mine, theirs in zip(resumed.model.parameters(), through.model.parameters(), strict=True):
            assert torch.equal(mine, theirs)


def test_an_ensemble_predicts_what_it_predicts_on_a_cpu(tmp_path):
    paths = []
    for seed in range(2):
        save_weights(begin(replace(RECIPE, seed=seed), 1, CPU), tmp_path / f"{seed}.pt")
        paths.append(str(tmp_path / f"{seed}.pt"))
    image = np.random.default_rng(0).uniform(-1000, 400, (20, 30, 17)).astype(np.float32)
    here, there = (Ensemble(paths, device).predict(image, flips=True) for device in (CPU, GPU))
    for part in ("alpha", "union", "overlap", "spread"):
        np.testing.assert_allclose(getattr(there, part), getattr(here, part), atol=1e-4)
