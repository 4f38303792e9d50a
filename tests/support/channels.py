"""Nodules of CT and PET."""

from __future__ import annotations

from dataclasses import replace

from raymat.nodule import Channel, Nodule
from tests.support.nodules import small_nodule

CHANNELS = (("CT", -1000.0, 400.0), ("PET", 0.0, 10.0))


def two_channel_nodule(number: int = 0) -> Nodule:
    """A small nodule whose uptake is ten where its membership is one."""
    nodule = small_nodule(number)
    about = {"image_channel": {"name": "CT", "intensity_range": [-1000.0, 400.0]}}
    pet = Channel("PET", 10 * nodule.true_membership, 0.0, 10.0)
    return replace(nodule, channels=[pet], metadata=nodule.metadata | about)
