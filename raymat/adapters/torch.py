"""Nodules as a dataset of torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from raymat.methods import MEANINGS
from raymat.nodule import Nodule, required


def torch_dataset(
    nodules: Sequence[Nodule], transform: Callable[[Nodule], object] | None = None
) -> torch.utils.data.Dataset:
    """Nodules as a map-style ``torch.utils.data.Dataset``, each read when it is asked for.

    Parameters
    ----------
    nodules : an indexable collection, as of ``raymat.load``
    transform : nodule to sample; ``tensors`` where None. Crops differ in size: a loader of batches needs a transform
        that brings them to one, or a ``collate_fn``.
    """
    return _TorchNodules(nodules, transform or tensors)


def tensors(nodule: Nodule) -> dict[str, object]:
    """A nodule as tensors.

    ``image`` (HU) and ``alpha`` float32 (z, y, x), ``trimap`` uint8 (z, y, x), ``readers`` uint8 (readers, z, y, x),
    ``spacing`` (z, y, x) mm, and ``nodule_id``, ``patient_id``, ``method``, ``kind``. ``membership`` and ``calibrated``
    float32 (z, y, x) are there for a nodule that has such a matte: torch's ``default_collate`` refuses None. Of several
    channels ``channels`` float32 (channels, z, y, x) has all, the image first, ``channel_names`` their names.
    """
    image = required(nodule.image, nodule, "image")
    readers = np.stack(nodule.readers) if nodule.readers else np.zeros((0, *image.shape), np.uint8)
    sample: dict[str, object] = {
        "nodule_id": nodule.nodule_id,
        "patient_id": nodule.patient_id,
        "method": nodule.method,
        "kind": nodule.kind,
        "image": torch.from_numpy(image),
        "alpha": torch.from_numpy(nodule.alpha),
        "trimap": torch.from_numpy(nodule.trimap),
        "readers": torch.from_numpy(readers),
        "spacing": torch.tensor(nodule.spacing),
    }
    if nodule.channels:
        sample["channels"] = torch.from_numpy(np.stack([channel.image for channel in nodule.all_channels]))
        sample["channel_names"] = [channel.name for channel in nodule.all_channels]
    # Copies: what changes ``alpha`` in place changes neither of them.
    return sample | {kind: torch.tensor(matte.alpha) for kind in MEANINGS if (matte := nodule.best(kind))}


class _TorchNodules(torch.utils.data.Dataset):
    def __init__(self, nodules: Sequence[Nodule], transform: Callable[[Nodule], object]) -> None:
        self.nodules, self.transform = nodules, transform

    def __len__(self) -> int:
        return len(self.nodules)

    def __getitem__(self, which: int) -> object:
        return self.transform(self.nodules[which])
