"""How far every method is off on the test nodules (paper, section 6.2.2 and Table 1)."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from raymat import metrics
from raymat.arrays import BACKGROUND, box_around
from raymat.matting import LUNG_WINDOW, METHODS
from raymat.methods import ANY, kind_of
from raymat.network.inference import Predicted
from raymat.network.samples import masks_of, target_of
from raymat.nodule import Nodule, required
from raymat.words import markdown_table, plus_minus

METRICS = {"sad": metrics.sad, "mse": metrics.mse, "gradient": metrics.gradient, "connectivity": metrics.connectivity}
TITLES = {"sad": "SAD x 1e-2", "mse": "MSE x 1e3", "gradient": "Grad. x 1e-2", "connectivity": "Conn. x 1e-2"}
CHOSEN, TRUE = "chosen matte", "true alpha"
READERS, RAMP, NOTHING = "readers' mean", "window ramp", "nothing"
# Methods that need nobody to draw a mask first. Alpha 0 everywhere, and what the lung window alone says, are what any
# network has to beat.
AUTOMATIC = (RAMP, NOTHING, "3DMM")
# Rows of a table; the networks come after these.
ORDER = (READERS, *METHODS, RAMP, NOTHING)
# So near to each other in the unknown region that where one made the ground truth the other is no other opinion.
TWINS = {"cf": "lb", "lb": "cf", "cf+": "lb+", "lb+": "cf+"}
BINS = 10


def evaluation_box(nodule: Nodule, window: Sequence[int]) -> tuple[slice, ...]:
    """Where the methods are compared: the network's input in the middle of the crop, wider where the lesion is.

    The solvers know of the trimap's background what it is; of a whole crop the network would be asked for every other
    lesion and vessel in it too, for which there is no ground truth.
    """
    trimap = required(nodule.trimap, nodule, "trimap")
    box = []
    for n, side, lesion in zip(trimap.shape, window, box_around(trimap != BACKGROUND), strict=True):
        start, stop = max(0, (n - side) // 2), min(n, (n - side) // 2 + side)
        box.append(slice(min(start, lesion.start), max(stop, lesion.stop)))
    return tuple(box)


def errors_of(
    nodule: Nodule,
    box: tuple[slice, ...],
    predicted: Mapping[str, Predicted],
    kind: str = ANY,
    refined: Mapping[str, np.ndarray] | None = None,
) -> list[dict]:
    """Errors of every method on a nodule: one row per method, metric and ground truth.

    Parameters
    ----------
    nodule : of the test part, with its candidates
    box : ``evaluation_box``
    predicted : name of a network to what it says within the box
    kind : of the networks' alpha, and so of the ground truth
    refined : name of a row to a network's matte that a solver refined, within the box

    Returns
    -------
    rows of ``nodule_id, truth, method, metric, value``. Against the chosen matte of that kind the method that it was
    made by is left out (Table 1's footnote), and its twin (``TWINS``); the true alpha of a phantom is nobody's.
    """
    mattes = baselines_of(nodule, box)
    for name, prediction in predicted.items():
        mattes |= {name: prediction.alpha, f"{name}, mean of its masks": (prediction.union + prediction.overlap) / 2}
    mattes |= refined or {}
    return [
        {
            "nodule_id": nodule.nodule_id,
            "truth": truth,
            "method": method,
            "metric": name,
            "value": error(alpha, target),
        }
        for truth, (target, made_by) in references_of(nodule, box, kind).items()
        for method, alpha in mattes.items()
        if method not in made_by
        for name, error in METRICS.items()
    ]


def baselines_of(nodule: Nodule, box: tuple[slice, ...]) -> dict[str, np.ndarray]:
    """What is there without a network, within the box: the readers' mean, the nodule's mattes, the window, nothing."""
    image = required(nodule.image, nodule, "image")
    mattes: dict[str, np.ndarray] = {READERS: np.mean(nodule.readers, axis=0)[box]} if nodule.readers else {}
    mattes |= {method: alpha[box] for method, alpha in nodule.mattes.items()}
    mattes[RAMP] = LUNG_WINDOW.alpha(image[box])
    mattes[NOTHING] = np.zeros(mattes[RAMP].shape)
    return mattes


def references_of(nodule: Nodule, box: tuple[slice, ...], kind: str) -> dict[str, tuple[np.ndarray, tuple[str, ...]]]:
    """The ground truths of a kind within the box, each with the methods that are not compared with it.

    Raises
    ------
    InputError
        As ``raymat.network.samples.target_of``.
    """
    chosen = target_of(nodule, kind)
    made_by = tuple(name for name in (chosen.method, TWINS.get(chosen.method)) if name)
    truths: dict[str, tuple[np.ndarray, tuple[str, ...]]] = {CHOSEN: (chosen.alpha[box], made_by)}
    if (true := nodule.truth(kind)) is not None:
        truths[TRUE] = (true[box], ())
    return truths


def masks_score(nodule: Nodule, box: tuple[slice, ...], predicted: Predicted) -> dict[str, dict]:
    """Dice and the counts of a reliability curve for the union and the overlap that a network predicts.

    ``bins`` holds for each tenth of probability its voxels, the sum of their probabilities, and how many are inside.
    """
    scores = {}
    for name, mask, probability in zip(
        ("union", "overlap"), masks_of(nodule), (predicted.union, predicted.overlap), strict=True
    ):
        inside, bin_number = mask[box], np.minimum((probability * BINS).astype(int), BINS - 1).ravel()
        sums = [
            np.bincount(bin_number, weights, BINS)
            for weights in (None, probability.ravel(), inside.ravel().astype(float))
        ]
        scores[name] = {"dice": metrics.dice(probability >= 0.5, inside), "bins": np.array(sums, float).tolist()}
    return scores


def reliability_curve(bins: Iterable[Sequence[Sequence[float]]]) -> tuple[np.ndarray, np.ndarray]:
    """Mean probability and share inside of each tenth that has voxels, summed over nodules."""
    count, probability, inside = np.sum([np.asarray(one) for one in bins], axis=0)
    some = count > 0
    return probability[some] / count[some], inside[some] / count[some]


def summarise(rows: Iterable[Mapping], truth: str, kind: str = ANY) -> dict[str, dict[str, tuple[float, float]]]:
    """Method to metric to mean and ``metrics.spread`` over the splits of the mean over each one's nodules.

    ``rows`` are those of ``errors_of`` with the number of their ``split``; values are scaled as in Table 1. Methods of
    another kind of alpha than the truth's come last.
    """
    values: dict = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for row in rows:
        if row["truth"] == truth:
            values[row["method"]][row["metric"]][row["split"]].append(row["value"])
    table: dict[str, dict[str, tuple[float, float]]] = {}

    def place(name: str) -> tuple[bool, int]:
        return is_other(name, kind), ORDER.index(name) if name in ORDER else len(ORDER)

    for method in sorted(values, key=place):
        by_metric, table[method] = values[method], {}
        for metric, by_split in by_metric.items():
            means = metrics.REPORT_SCALE[metric] * np.array([np.mean(found) for found in by_split.values()])
            table[method][metric] = (float(means.mean()), metrics.spread(means))
    return table


def differences(rows: Sequence[Mapping], truth: str, network: str) -> list[dict]:
    """Each method's errors less the network's on the same nodule, where both have one; rows as those given.

    A solver has no error on the nodules whose ground truth it made, and its mean is that of others than the network's.
    Only these differences compare the two.
    """
    rows = [row for row in rows if row["truth"] == truth]

    def place(row: Mapping) -> tuple:
        return row["split"], row["nodule_id"], row["metric"]

    own = {place(row): row["value"] for row in rows if row["method"] == network}
    others = [row for row in rows if row["method"] != network and place(row) in own]
    return [{**row, "value": row["value"] - own[place(row)]} for row in others]


def nodules_of(rows: Iterable[Mapping], truth: str) -> dict[str, int]:
    """On how many test nodules each method was measured; one of several splits counts in each of them."""
    seen = {(row["method"], row["split"], row["nodule_id"]) for row in rows if row["truth"] == truth}
    return dict(Counter(method for method, _, _ in seen))


def is_automatic(method: str) -> bool:
    """Whether the method needs no mask and no trimap."""
    return method.startswith(AUTOMATIC)


def is_other(method: str, kind: str) -> bool:
    """Whether the alpha of a solver's method is of another kind than this one."""
    return ANY not in (kind, kind_of(method)) and kind_of(method) != kind


def title_of(method: str, kind: str) -> str:
    """A method's name in a table of that kind of alpha, with its own kind where that is another."""
    return f"{method} ({kind_of(method)})" if is_other(method, kind) else method


Table = Mapping[str, Mapping[str, tuple[float, float]]]


def as_markdown(table: Table, nodules: Mapping[str, int], kind: str = ANY) -> str:
    """The table as Markdown, as the paper prints it; ``nodules`` is of ``nodules_of``."""
    return _markdown("method", table, nodules, kind, ".2f")


def differences_as_markdown(rows: Sequence[Mapping], truth: str, network: str, kind: str = ANY) -> str:
    """``differences`` as Markdown: above 0 the network is nearer to the ground truth."""
    less = differences(rows, truth, network)
    return _markdown(f"method less {network}", summarise(less, truth, kind), nodules_of(less, truth), kind, "+.2f")


def _markdown(first: str, table: Table, nodules: Mapping[str, int], kind: str, form: str) -> str:
    lines = []
    for method, errors in table.items():
        numbers = [plus_minus(*errors[metric], form) for metric in TITLES]
        lines.append([title_of(method, kind), "yes" if is_automatic(method) else "no", nodules[method], *numbers])
    return markdown_table((first, "fully automatic", "nodules", *TITLES.values()), lines)
