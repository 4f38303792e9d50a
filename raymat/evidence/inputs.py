"""The fourteen inputs whose diagnoses are compared (paper, section 6.1): their names and kinds."""

from __future__ import annotations

from raymat.matting import METHODS

IMAGE, MEAN, RANDOM, OVERLAP, UNION, CHOSEN = "image", "mean", "random", "overlap", "union", "chosen"
INPUTS = (IMAGE, MEAN, RANDOM, OVERLAP, UNION, *METHODS, CHOSEN)

MASKS = "masks"
KIND_OF = {
    IMAGE: "image",
    **dict.fromkeys((MEAN, RANDOM, OVERLAP, UNION), MASKS),
    **{method: "mattes +" if method.endswith("+") else "mattes" for method in METHODS},
    CHOSEN: "chosen",
}
KINDS = tuple(dict.fromkeys(KIND_OF.values()))
