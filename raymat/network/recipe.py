"""How 3DMM is trained: every default with its reason (paper, section 6.2.1), as presets `paper`, `small`, `light`."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, replace

from raymat.methods import ALPHA_KINDS, ANY
from raymat.network.augmentation import Augmentation
from raymat.network.model import PRESETS as MODELS
from raymat.network.model import ModelConfig
from raymat.nodule import InputError

PRECISIONS = ("float32", "bfloat16", "float16")
# Settings that came after the first checkpoints, and what a recipe without them has.
LATER = {"kind": ANY, "average": 0.0}


@dataclass(frozen=True)
class Recipe:
    """All that decides the weights of a training, besides the data.

    Attributes
    ----------
    model, augmentation : the network and what its volumes are put through
    epochs : passes over the training nodules
    batch : volumes per step, over all workers together
    learning_rate : base rate of ADAM; rises from 0 over ``warm_up`` epochs, then falls to 0 along a cosine
    weight_decay : of ADAM
    alpha_weight, gradient_weight : alpha and beta of Eq. 6
    precision : of the network's forward and backward pass; losses are in float32 all the same
    channels_last : memory format of weights and volumes, which tensor cores like better
    compiled : whether the network goes through ``torch.compile``
    seed : of the weights, the order and the augmentation
    kind : of the alpha that is learnt, one of ``raymat.methods.ALPHA_KINDS``; "any" for whichever matte was chosen
    average : decay per step of the moving average of the weights, which is what validates and predicts; 0 for none
    deterministic : refuse what could differ from one run to the next (on a GPU; on CPUs nothing does)
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    augmentation: Augmentation = field(default_factory=Augmentation)
    epochs: int = 300
    batch: int = 16
    learning_rate: float = 3e-4
    warm_up: float = 1.0
    weight_decay: float = 5e-5
    alpha_weight: float = 10.0
    gradient_weight: float = 10.0
    precision: str = "float32"
    channels_last: bool = False
    compiled: bool = False
    seed: int = 0
    kind: str = ANY
    deterministic: bool = False
    average: float = 0.0

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch < 1:
            raise InputError(f"a training needs 1 epoch and a batch of 1 at least, not {self.epochs} and {self.batch}")
        if self.precision not in PRECISIONS:
            raise InputError(f"precision must be one of {', '.join(PRECISIONS)}, not {self.precision!r}")
        if self.kind not in ALPHA_KINDS:
            raise InputError(f"the kind of alpha must be one of {', '.join(ALPHA_KINDS)}, not {self.kind!r}")
        if min(self.alpha_weight, self.gradient_weight, self.weight_decay) < 0 or not self.learning_rate > 0:
            raise InputError("the learning rate must be above 0; weight decay and loss weights must not be below 0")
        if not 0 <= self.average < 1:
            raise InputError(f"the decay of the average of weights must be 0 or more and below 1, not {self.average:g}")
        stride = self.model.stride
        if any(side < 1 or side % stride for side in self.augmentation.crop):
            raise InputError(
                f"a crop of {' x '.join(map(str, self.augmentation.crop))} voxels (z, y, x): every side must be a "
                f"multiple of the network's stride, {stride}"
            )

    def to_dict(self) -> dict:
        """As plain values, for a checkpoint and for MLflow, without what earlier versions did not know (``LATER``)."""
        augmentation = {**asdict(self.augmentation), "crop": list(self.augmentation.crop)}
        values = {**asdict(self), "model": self.model.to_dict(), "augmentation": augmentation}
        return {name: value for name, value in values.items() if name not in LATER or value != LATER[name]}

    @classmethod
    def from_dict(cls, values: dict) -> Recipe:
        """From a checkpoint; raises InputError where it names what this version does not know."""
        unknown = set(values) - {field.name for field in fields(cls)}
        if unknown:
            raise InputError(f"unknown settings of the training: {', '.join(sorted(unknown))}")
        augmentation = {**values["augmentation"], "crop": tuple(values["augmentation"]["crop"])}
        return cls(
            **{**values, "model": ModelConfig.from_dict(values["model"]), "augmentation": Augmentation(**augmentation)}
        )


def preset(name: str, auxiliary: bool = True) -> Recipe:
    """The recipe of that name, with the 3DMM or, without ``auxiliary``, the one whose matte sees no masks."""
    # For an hour of two CPUs without AVX-512 and some 350 nodules: a grid of 1 mm, which shows a nodule whole in an
    # eighth of the voxels, crops that hold it as a prediction's do, and a rate that few steps need.
    small = Recipe(
        model=MODELS["small"],
        augmentation=Augmentation(crop=(32, 32, 32), centred=0.9, off_centre=0.2),
        epochs=16,
        batch=4,
        learning_rate=2e-3,
        channels_last=True,
    )
    # A quarter of the multiply-adds and of the weights: at equal time it sees more than twice as many volumes.
    light = replace(small, model=MODELS["light"], epochs=40)
    recipe = {"paper": Recipe(model=MODELS["paper"]), "small": small, "light": light}[name]
    return replace(recipe, model=replace(recipe.model, auxiliary=auxiliary))
