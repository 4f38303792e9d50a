"""How a classifier is trained: presets ``paper`` and ``small``. The paper names networks and seeds and nothing else."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

from raymat.classification.inputs import CropConfig
from raymat.classification.labels import THRESHOLD
from raymat.classification.networks import FULL, SMALL, STEMS
from raymat.nodule import InputError


@dataclass(frozen=True)
class Recipe:
    """All that decides a classifier, besides data, input, network and seed.

    Attributes
    ----------
    crop : around the nodule
    threshold, margin : of the label, see ``raymat.classification.labels.label_of``
    width, stem : of the networks, see ``raymat.classification.networks.make_network``
    epochs : passes over the training nodules at most
    patience : epochs without a better AUROC on the validation nodules after which a training ends
    batch : nodules per step
    learning_rate : of AdamW, falling to 0 along a cosine
    weight_decay : of AdamW
    rotation : largest angle about a random axis, degrees; flips along every axis go with it
    """

    crop: CropConfig = field(default_factory=CropConfig)
    threshold: float = THRESHOLD
    margin: float = 0.0
    width: float = 1.0
    stem: str = SMALL
    epochs: int = 20
    patience: int = 6
    batch: int = 16
    learning_rate: float = 1e-3
    weight_decay: float = 1e-3
    rotation: float = 30.0

    def __post_init__(self) -> None:
        if min(self.epochs, self.patience) < 1 or self.batch < 2:
            raise InputError(
                f"a training needs 1 epoch, a patience of 1 and a batch of 2 at least, not {self.epochs}, "
                f"{self.patience} and {self.batch}"
            )
        if not self.learning_rate > 0 or self.weight_decay < 0 or self.margin < 0 or self.stem not in STEMS:
            raise InputError(
                f"the learning rate must be above 0, weight decay and margin not below 0, the stem one of "
                f"{', '.join(STEMS)}"
            )

    def to_dict(self) -> dict:
        """As plain values, for the note and for MLflow."""
        crop = {**asdict(self.crop), "intensity_range": list(self.crop.intensity_range)}
        return {**asdict(self), "crop": crop}


PRESETS = {
    "paper": Recipe(
        crop=CropConfig(side=96, spacing_mm=0.5, margin=8),
        stem=FULL,
        epochs=100,
        patience=20,
        batch=32,
        learning_rate=3e-4,
    ),
    # 168 trainings in a few hours of two CPUs.
    "small": Recipe(),
}
