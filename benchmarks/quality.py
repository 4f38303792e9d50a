"""Whether the quality score says what the true error says: on phantoms, whose alpha of either kind is known.

    raymat build --phantoms 200 --seed 1 -o phantoms-1
    python benchmarks/quality.py phantoms-1

Scores are computed again with the current weights. Half of the patients, by a digest of their id, were tuned on; the
figures of the other half are those to believe, and its groups. What the score chooses on real nodules is measured by
`raymat readers`.
"""

from __future__ import annotations

import argparse
import hashlib
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
from scipy import ndimage, stats

import raymat
from raymat import metrics
from raymat.evidence.phantom_accuracy import GROUPS, groups_of, tuned_on
from raymat.matting import METHODS, estimate_alpha
from raymat.methods import CALIBRATED, MEANINGS, PLUS, kind_of
from raymat.nodule import Nodule
from raymat.quality import QualityParameters, combine, score_mattes
from raymat.quality.selection import WEIGHTS

SHIFT_MM = 3.0
SPOILED = ("trimap shifted", "inverted", "noisy", "blocky", "islands", "hole", "of another nodule")
UNKNOWN = 128
RATIO = "chosen MSE over the best of four"


def measure(nodule: Nodule, other: Nodule) -> dict:
    """Terms and true errors of a phantom's mattes, and the terms of its spoiled ones, for each kind.

    Parameters
    ----------
    other : the phantom that lends a matte of the wrong nodule
    """
    unknown = nodule.trimap == UNKNOWN
    rng = np.random.default_rng(int.from_bytes(hashlib.sha256(nodule.nodule_id.encode()).digest()[:4], "little"))
    found: dict = {"nodule_id": nodule.nodule_id, "patient_id": nodule.patient_id, "groups": groups_of(nodule)}
    for kind in MEANINGS:
        truth = nodule.truth(kind) * (nodule.trimap > 0)
        sound = {method: alpha for method, alpha in nodule.mattes.items() if kind_of(method) == kind}
        errors = {
            method: (
                metrics.mse(alpha, truth, unknown),
                metrics.gradient(alpha, truth, unknown) / np.count_nonzero(unknown),
            )
            for method, alpha in sound.items()
        }
        best = min(errors, key=lambda method: errors[method][0])
        wrong = other.truth(kind) * (other.trimap > 0)
        more = {**dict(spoil(nodule, sound[best], wrong, best, rng)), "true": truth}
        plus = PLUS if kind == CALIBRATED else ""
        qualities = score_mattes(
            nodule.image,
            nodule.trimap,
            nodule.readers,
            {**sound, **{f"{name}{plus}": alpha for name, alpha in more.items()}},
            {matte.method: matte.solve.converged for matte in nodule.candidates},
            nodule.spacing,
        )
        terms = {name if name in sound else name.removesuffix(PLUS): found.terms for name, found in qualities.items()}
        everywhere = np.ones(truth.shape, bool)  # some are spoiled outside the unknown region
        all_errors = {name: metrics.mse(alpha, truth, everywhere) for name, alpha in (sound | more).items()}
        found[kind] = {"errors": errors, "terms": terms, "all errors": all_errors}
    return found


def spoil(
    nodule: Nodule, alpha: np.ndarray, other: np.ndarray, method: str, rng: np.random.Generator
) -> Iterator[tuple[str, np.ndarray]]:
    """The matte of a method spoiled in each of ``SPOILED``, (z, y, x); ``other`` is that of another nodule."""
    unknown, region = nodule.trimap == UNKNOWN, nodule.trimap > 0
    direction = rng.normal(size=3)
    shift = SHIFT_MM * direction / np.linalg.norm(direction) / np.asarray(nodule.spacing)
    beside = ndimage.shift(nodule.trimap, np.rint(shift), order=0, cval=0)
    yield "trimap shifted", estimate_alpha(nodule.image, beside, method, spacing=nodule.spacing)[0]
    yield "inverted", np.where(unknown, alpha.max() - alpha, alpha)
    noise = rng.normal(0, 0.2 * alpha.max(), alpha.shape)
    yield "noisy", np.where(unknown, np.clip(alpha + noise, 0, 1), alpha)
    yield "blocky", np.where(unknown, blocks(alpha, nodule.spacing), alpha)
    yield "islands", add_islands(nodule, alpha, rng)
    hole = ball(nodule, ndimage.center_of_mass(region * alpha), max(1.5, 0.35 * radius_mm(alpha, nodule.spacing)))
    yield "hole", np.where(hole, 0, alpha)
    yield "of another nodule", centred_on(other, alpha, ndimage.center_of_mass(region))


def blocks(alpha: np.ndarray, spacing, side_mm: float = 2.0) -> np.ndarray:
    """Means over cubes of two millimetres."""
    sides = [max(2, round(side_mm / s)) for s in spacing]
    index = sum((np.indices(alpha.shape)[a] // sides[a]) * 10_000 ** (2 - a) for a in range(3))
    labels = np.unique(index, return_inverse=True)[1].ravel()
    means = np.bincount(labels, alpha.ravel()) / np.bincount(labels)
    return means[labels].reshape(alpha.shape).astype(np.float32)


def add_islands(nodule: Nodule, alpha: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Three balls of 1 mm put into the unknown region where there is no lesion."""
    free = np.argwhere((nodule.trimap == UNKNOWN) & (ndimage.maximum_filter(alpha, 5) < 0.1))
    spoiled = alpha.copy()
    for place in free[rng.choice(len(free), min(3, len(free)), replace=False)] if len(free) else []:
        spoiled[ball(nodule, place, 1.0)] = 0.9 * alpha.max()
    return spoiled


def ball(nodule: Nodule, centre, radius: float) -> np.ndarray:
    grid = np.indices(nodule.image.shape)
    return sum(((g - c) * s) ** 2 for g, c, s in zip(grid, centre, nodule.spacing, strict=True)) <= radius**2


def radius_mm(alpha: np.ndarray, spacing) -> float:
    return float((0.75 / np.pi * alpha.sum(dtype=np.float64) * np.prod(spacing)) ** (1 / 3))


def centred_on(other: np.ndarray, alpha: np.ndarray, centre) -> np.ndarray:
    """Another nodule's matte, moved to this one's centre."""
    moved = np.zeros_like(alpha)
    shift = np.rint(np.asarray(centre) - ndimage.center_of_mass(other)).astype(int)
    at = np.argwhere(other > 0)
    to = at + shift
    inside = ((to >= 0) & (to < alpha.shape)).all(axis=1)
    moved[tuple(to[inside].T)] = other[tuple(at[inside].T)]
    return moved


def figures(rows: list[Mapping], kind: str, parameters: QualityParameters) -> dict[str, float]:
    """What the scores of a kind are worth: how they rank, what they choose, what they reject."""
    found = defaultdict(list)
    for row in (one[kind] for one in rows):
        score = {
            name: combine(terms, parameters) if set(terms) - {"finite", "lesion"} else 0.0
            for name, terms in row["terms"].items()
        }
        methods = [method for method in METHODS if method in row["errors"]]
        s = [score[method] for method in methods]
        mse, grad = (np.array([row["errors"][method][k] for method in methods]) for k in (0, 1))
        found["rank correlation with MSE"].append(spearman(s, -mse))
        found["rank correlation with gradient error"].append(spearman(s, -grad))
        every = [name for name in row["all errors"] if name != "true"]
        errors = [-row["all errors"][name] for name in every]
        found["rank correlation with MSE, spoiled ones too"].append(spearman([score[name] for name in every], errors))
        found[RATIO].append(mse[int(np.argmax(s))] / mse.min())
        found["sound kept"].append(score[methods[int(np.argmin(mse))]] >= parameters.floor)
        found["truth kept"].append(score["true"] >= parameters.floor)
        for name in SPOILED:
            found[f"rejected: {name}"].append(score[name] < parameters.floor)
            found[f"below the chosen: {name}"].append(score[name] < max(s))
            found["spoiled rejected"].append(score[name] < parameters.floor)
    share = ("rejected", "kept", "below")
    table = {
        name: float(np.mean(values) if any(word in name for word in share) else np.nanmedian(values))
        for name, values in found.items()
    }
    return table | {f"{RATIO}, mean": float(np.mean(found[RATIO]))}


def spearman(a, b) -> float:
    """The rank correlation; numbers that agree in three digits are equal, as those of the twins CF and LB."""
    a, b = ([float(f"{value:.3g}") for value in values] for values in (a, b))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # constant input: no rank, no number
        return float(stats.spearmanr(a, b).statistic)


def each_term(rows: list[Mapping], kind: str) -> dict[str, float]:
    """Median rank correlation of each term alone with MSE, over the phantoms where it differs between mattes."""

    def of_one(row: Mapping, name: str) -> float:
        errors = row[kind]["errors"]
        return spearman([row[kind]["terms"][m].get(name, 0.0) for m in errors], [-e[0] for e in errors.values()])

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a term that never differs
        return {name: float(np.nanmedian([of_one(row, name) for row in rows])) for name in WEIGHTS}


def measure_one(dataset: str, position: int) -> dict:
    """``measure`` for the phantom at a position, the one before it lending the wrong matte."""
    nodules = raymat.load(dataset, outcomes=("accepted", "rejected"))
    return measure(nodules[position], nodules[position - 1])


def report(rows: list[Mapping], parameters: QualityParameters | None = None) -> None:
    parameters = parameters or QualityParameters()
    unseen = [row for row in rows if not tuned_on(row["patient_id"])]
    parts = {"tuned on": [row for row in rows if tuned_on(row["patient_id"])], "other patients": unseen}
    parts |= {f"of these, {group}": [row for row in unseen if group in row["groups"]] for group in GROUPS}
    parts = {name: part for name, part in parts.items() if part}
    for kind in MEANINGS:
        print(f"\n| {kind} | {' | '.join(f'{name} ({len(part)})' for name, part in parts.items())} |")
        print(f"| --- |{' --- |' * len(parts)}")
        columns = [figures(part, kind, parameters) for part in parts.values()]
        for name in columns[0]:
            print(f"| {name} | {' | '.join(f'{column[name]:.3f}' for column in columns)} |")
        print("\n| term | weight | rank correlation with MSE, all |\n| --- | --- | --- |")
        for name, value in each_term(rows, kind).items():
            print(f"| {name} | {WEIGHTS[name]} | {value:.2f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset")
    parser.add_argument("--workers", type=int, default=1, help="processes (default: %(default)s)")
    options = parser.parse_args()
    nodules = raymat.load(options.dataset, outcomes=("accepted", "rejected"))
    with ProcessPoolExecutor(options.workers, get_context("spawn")) as pool:
        report(list(pool.map(measure_one, [options.dataset] * len(nodules), range(len(nodules)))))


if __name__ == "__main__":
    main()
