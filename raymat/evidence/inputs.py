"""The inputs whose diagnoses are compared (paper, section 6.1): what each is, in one place.

The masks are what the readers drew: their mean, one of them at random, their overlap, their union. The mattes are those
of all methods, the chosen one, and the best one of each kind of alpha, of which the dataset's own kind is the chosen
one. None knows of another.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from raymat.methods import ANY, CALIBRATED, MEMBERSHIP, METHODS, is_calibrated
from raymat.nodule import Nodule, required

IMAGE, MEAN, RANDOM, OVERLAP, UNION, CHOSEN = "image", "mean", "random", "overlap", "union", "chosen"
# Of nodules with several channels: those beside the image, the second and third channel.
FURTHER = ("channel-2", "channel-3")
MASKS = "masks"
WINNERS = "chosen"  # the kind of the chosen matte, and of the best ones
# Kinds of inputs and their colours in figures, in the order of the tables.
KIND_COLOURS = {
    "image": "#6b7280",
    MASKS: "#d1a13a",
    "mattes": "#e08d79",
    "mattes +": "#c8553d",
    WINNERS: "#7a1f2b",
}


@dataclass(frozen=True)
class Input:
    """One of the inputs.

    Attributes
    ----------
    kind : one of ``KIND_COLOURS``
    voxels : the nodule to an array (z, y, x) on its grid; None where the nodule has none. Without such a function the
        input is one of the readers' masks, which each trial draws by its seed.
    hu : whether the array is in HU, or in the unit of a channel; it is then scaled to 0 to 1 and continued with the low
        end of that range, as others are with 0
    channel : of an image, which of the nodule's
    """

    kind: str
    voxels: Callable[[Nodule], np.ndarray | None] | None = None
    hu: bool = False
    channel: int = 0

    def range_of(self, nodule: Nodule, of_hu: tuple[float, float]) -> tuple[float, float]:
        """What becomes 0 and 1 of an image: of several channels the channel's own range, else that of HU."""
        return nodule.all_channels[self.channel].intensity_range if nodule.channels else of_hu


def _channel(number: int, nodule: Nodule) -> np.ndarray | None:
    channels = nodule.all_channels
    return channels[number].image if number < len(channels) else None


def _masks(nodule: Nodule) -> np.ndarray:
    return np.stack(nodule.readers) != 0


def _matte(method: str, nodule: Nodule) -> np.ndarray | None:
    return nodule.mattes.get(method)


OF_NAME: dict[str, Input] = {
    IMAGE: Input("image", lambda nodule: required(nodule.image, nodule, "image"), hu=True),
    **{name: Input("image", partial(_channel, n), hu=True, channel=n) for n, name in enumerate(FURTHER, start=1)},
    MEAN: Input(MASKS, lambda nodule: _masks(nodule).mean(axis=0)),
    RANDOM: Input(MASKS),
    OVERLAP: Input(MASKS, lambda nodule: np.asarray(_masks(nodule).all(axis=0))),
    UNION: Input(MASKS, lambda nodule: np.asarray(_masks(nodule).any(axis=0))),
    **{name: Input("mattes +" if is_calibrated(name) else "mattes", partial(_matte, name)) for name in METHODS},
    CHOSEN: Input(WINNERS, lambda nodule: nodule.alpha),
    MEMBERSHIP: Input(WINNERS, lambda nodule: nodule.membership),
    CALIBRATED: Input(WINNERS, lambda nodule: nodule.calibrated),
}
INPUTS = tuple(OF_NAME)
KIND_OF = {name: given.kind for name, given in OF_NAME.items()}
# The row of each input in the table by kind, in the order of the rows. Each winner has its own: a mean of membership
# and calibrated mattes would be of neither; and so have the channels of the image.
ROW_OF = {name: name if kind == WINNERS or name in FURTHER else kind for name, kind in KIND_OF.items()}


def inputs_of(kind: str, channels: int = 1) -> tuple[str, ...]:
    """The inputs that are told apart in a dataset of that kind of alpha: its own best matte is the chosen one.

    Of the further channels those that nodules with that number of channels have.
    """
    lacking = FURTHER[channels - 1 :]
    return tuple(name for name in INPUTS if name != kind and name not in lacking)


def chosen_in_words(kind: str) -> str:
    """What the chosen matte of a dataset of that kind of alpha is."""
    return f"`{CHOSEN}` is the best {'' if kind == ANY else f'{kind} '}matte by its quality score"
