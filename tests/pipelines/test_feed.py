"""What feeds a training: how far ahead of it batches are made."""

import time
import uuid
from itertools import islice

import numpy as np
import pytest
import ray
import torch

from raymat.network.augmentation import Augmentation
from raymat.network.model import ModelConfig
from raymat.network.recipe import Recipe
from raymat.pipelines import feed

pytestmark = [pytest.mark.ray]

RECIPE = Recipe(ModelConfig(width=2, levels=2, blocks=1), Augmentation((16, 16, 16)), epochs=20, batch=2)


def test_batches_are_made_ahead_of_the_step_but_not_without_end(ray_cluster, monkeypatch, tmp_path):
    make = feed._batch

    def counted(recipe, epoch, records):
        read = make(recipe, epoch, records)

        def count():
            (tmp_path / uuid.uuid4().hex).touch()
            yield from read()

        return count

    monkeypatch.setattr(feed, "_batch", counted)
    monkeypatch.setattr(feed.OnCpus, "seconds", 0.02)
    masks = np.zeros((20, 20, 20), np.uint8)
    smooth = np.zeros((20, 20, 20), np.float16)
    records = [ray.put({"image": smooth, "alpha": smooth, "union": masks, "overlap": masks}) for _ in range(20)]
    batches = feed.stream(records, RECIPE, rank=0, workers=1, first_step=0, device=torch.device("cpu"))

    def made_in_the_end() -> int:
        made, before = len(list(tmp_path.iterdir())), -1
        while made != before:
            time.sleep(1)
            made, before = len(list(tmp_path.iterdir())), made
        return made

    first = next(batches)
    assert first.shape == (2, 5, 16, 16, 16)
    ahead = made_in_the_end()
    assert 2 <= ahead <= feed.READY + 8
    list(islice(batches, 30))
    assert 31 <= made_in_the_end() <= 31 + ahead
    batches.close()
