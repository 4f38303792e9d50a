"""The weights that come with the package are those of their model card."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch

from raymat.commands.predict import weights_of
from raymat.methods import CALIBRATED
from raymat.network.inference import Ensemble
from raymat.network.shipped import SHIPPED, in_half_precision, shipped_weights
from raymat.network.training import begin, read_checkpoint, save_weights
from tests.support.networks import small_recipe

CARD = Path(__file__).parents[2] / "docs" / "results" / "model-card.md"


def test_the_card_is_that_of_the_file():
    content = Path(shipped_weights()).read_bytes()
    card = CARD.read_text()
    assert hashlib.sha256(content).hexdigest() in card
    assert f"{len(content):,} bytes" in card
    assert len(content) < 8e6
    found = read_checkpoint(shipped_weights())
    assert f"{sum(part.numel() for part in found['model'].values()):,} weights" in card
    assert found["recipe"]["kind"] == CALIBRATED
    assert f"{len(found['patients'])} patients" in card
    assert weights_of([SHIPPED]) == [shipped_weights()]


def test_a_bright_ball_in_lung_is_a_lesion_and_lung_is_none():
    ensemble = Ensemble([shipped_weights()])
    distance = np.linalg.norm(np.indices((32,) * 3) - 15.5, axis=0)
    noise = np.random.default_rng(0).normal(0, 25, distance.shape)
    ball = np.clip(6 - distance, 0, 1)
    found = ensemble.predict((-850 + 880 * ball + noise).astype(np.float32))
    assert found.alpha[distance < 4].min() > 0.6
    assert found.alpha[distance > 9].max() < 0.1
    assert found.alpha.sum() == pytest.approx(ball.sum(), rel=0.15)
    assert ensemble.predict((-850 + noise).astype(np.float32)).alpha.max() < 0.1


def test_half_precision_moves_alpha_by_less_than_a_hundredth(tmp_path):
    save_weights(begin(small_recipe(), 1, torch.device("cpu")), tmp_path / "whole.pt", ["p"])
    (tmp_path / "half.pt").write_bytes(in_half_precision((tmp_path / "whole.pt").read_bytes()))
    assert (tmp_path / "half.pt").stat().st_size < 0.7 * (tmp_path / "whole.pt").stat().st_size
    image = np.random.default_rng(0).normal(-500, 300, (8, 8, 8)).astype(np.float32)
    whole, half = (Ensemble([str(tmp_path / name)]).predict(image).alpha for name in ("whole.pt", "half.pt"))
    assert 0 < np.abs(whole - half).max() < 0.01
    assert read_checkpoint(tmp_path / "half.pt")["patients"] == ["p"]
