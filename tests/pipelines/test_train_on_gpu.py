"""Ray Train with NCCL on one GPU."""

import json

import pytest
import torch

from raymat.experiment import Output
from raymat.network.training import load_model
from raymat.pipelines.train import TrainJob, train
from tests.support import quiet
from tests.support.networks import learning_recipe
from tests.support.nodules import write_small_nodules

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that torch can use"),
]


def test_two_trainings_end_with_the_same_bits(ray_cluster, tmp_path):
    data = write_small_nodules(tmp_path / "data", 8)
    recipe = learning_recipe(epochs=4, deterministic=True, precision="bfloat16")
    weights = []
    for name in ("a", "b"):
        out = tmp_path / name
        train(TrainJob(data, Output(str(out)), recipe, splits=(0,), gpu=True), say=quiet)
        weights.append(list(load_model(out / "split-0" / "weights.pt")[0].state_dict().values()))
        assert json.loads((out / "split-0" / "result.json").read_text())["sad"] > 0
    assert all(torch.equal(one, other) for one, other in zip(*weights, strict=True))
