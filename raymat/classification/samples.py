"""A nodule as the trials read it: its crops, a column an input, its rating and its size; and which have a label."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd
import pyarrow as pa

from raymat.classification.inputs import crops_of, random_reader, size_of
from raymat.classification.labels import label_of, malignancy_ratings
from raymat.classification.recipe import Recipe
from raymat.evidence.inputs import FURTHER, OF_NAME
from raymat.nodule import InputError, Nodule
from raymat.splits import PARTS

FEWEST_OF_A_CLASS = 2  # in each part: one of each says nothing of an area
HELD = "inputs"  # the column that names those of a nodule
STORED = tuple(name for name, given in OF_NAME.items() if given.voxels)
FACTS = ("nodule_id", "patient_id", "rating", "volume_mm3", "diameter_mm", HELD)
SAMPLE = pa.schema(
    [
        ("nodule_id", pa.string()),
        ("patient_id", pa.string()),
        ("rating", pa.float64()),
        ("volume_mm3", pa.float64()),
        ("diameter_mm", pa.float64()),
        (HELD, pa.list_(pa.string())),
        *((name, pa.large_binary()) for name in STORED),
        ("readers", pa.list_(pa.large_binary())),
    ]
)


def sample_of(nodule: Nodule, recipe: Recipe) -> dict:
    """A nodule's row of ``SAMPLE``: crops as float16 bytes, its mean rating (NaN for none) and size."""
    crops = crops_of(nodule, recipe.crop)
    ratings = malignancy_ratings(nodule)
    volume, diameter = size_of(nodule)
    row = {name: crops[name].tobytes() if name in crops else None for name in STORED}
    return row | {
        "nodule_id": nodule.nodule_id,
        "patient_id": nodule.patient_id,
        "rating": float(np.mean(ratings)) if ratings else float("nan"),
        "volume_mm3": volume,
        "diameter_mm": diameter,
        HELD: [name for name in STORED if name in crops],
        "readers": [crop.tobytes() for crop in crops["readers"]],
    }


def column_of(name: str) -> str:
    """The column of ``SAMPLE`` that an input is read from."""
    return name if name in STORED else "readers"


def read_crops(tables: Iterable[pa.Table], name: str, seed: int, side: int, wanted: Sequence[str]) -> np.ndarray:
    """One input of the nodules wanted, in that order; float16 (n, side, side, side).

    Parameters
    ----------
    tables : ``nodule_id`` and ``column_of`` the input, of rows of ``SAMPLE``
    name, seed : the input; the seed draws the reader of one that is drawn
    side : of the stored crops, voxels
    wanted : ids

    Raises
    ------
    InputError
        A nodule has no such matte.
    """
    column = column_of(name)
    found: dict[str, np.ndarray] = {}
    needed = set(wanted)
    for table in tables:
        for row in table.to_pylist():
            nodule_id, data = row["nodule_id"], row[column]
            if nodule_id not in needed:
                continue
            if column == "readers":
                data = data[random_reader(nodule_id, len(data), seed)]
            if data is None:
                raise no_matte(nodule_id, name)
            found[nodule_id] = np.frombuffer(data, np.float16).reshape((side,) * 3)
    return np.stack([found[nodule_id] for nodule_id in wanted])


def no_matte(nodule_id: str, name: str) -> InputError:
    """What is said where an input is to be made of a matte that a nodule has not."""
    if name in FURTHER:
        return InputError(f"{nodule_id}: has no {name}; leave that input out (--inputs)")
    return InputError(
        f"{nodule_id}: has no matte {name}; leave that input out (--inputs), or build the dataset with all methods (a "
        "release holds the best matte of each kind alone)"
    )


def refuse_missing(nodules: pd.DataFrame, inputs: Sequence[str]) -> None:
    """Raise InputError where a nodule has not the matte that an input is made of."""
    for name in inputs:
        if name in STORED:
            lacking = nodules[[name not in held for held in nodules[HELD]]]
            if len(lacking):
                raise no_matte(lacking["nodule_id"].iloc[0], name)


def labelled(facts: pd.DataFrame, recipe: Recipe, parts: Mapping[int, Mapping[str, str]], dataset: str) -> pd.DataFrame:
    """The nodules that have a label, with it.

    Parameters
    ----------
    facts : ``FACTS`` of all nodules
    recipe : threshold and margin of the label
    parts : split to patient to part, one of ``raymat.splits.PARTS``
    dataset : what errors call it

    Raises
    ------
    InputError
        No classifier can be trained or tested on them: no ratings, one class only, or too few of one in a part.
    """
    if not np.isfinite(facts["rating"]).any():
        raise InputError(
            f"{dataset}: none of its {len(facts)} nodules has the readers' ratings of malignancy "
            "(`ratings` of LIDC-IDRI, or a column `malignancy` of the case table, one number per reader, between ;)"
        )
    labels = [label_of(rating, recipe.threshold, recipe.margin) for rating in facts["rating"]]
    nodules = facts.assign(label=np.array(labels, float)).dropna(subset="label")
    nodules["label"] = nodules["label"].astype(int)
    one = "benign and none malignant" if not nodules["label"].any() else "malignant and none benign"
    if nodules["label"].nunique() < 2:
        raise InputError(
            f"{dataset}: {len(nodules)} of its nodules are {one} by a mean rating of malignancy against "
            f"{recipe.threshold:g} (margin {recipe.margin:g}): one class only. Choose another --threshold or "
            "a dataset with both"
        )
    for split, of in parts.items():
        part = nodules["patient_id"].map(of)
        for name in PARTS:
            counts = nodules[part == name]["label"].value_counts()
            if min(counts.get(0, 0), counts.get(1, 0)) < FEWEST_OF_A_CLASS:
                raise InputError(
                    f"{dataset}: too few patients: the {name} part of split {split} has {counts.get(0, 0)} "
                    f"benign and {counts.get(1, 0)} malignant nodules, and needs {FEWEST_OF_A_CLASS} of each at least. "
                    "Build a larger dataset, or choose another --threshold or --splits"
                )
    return nodules.reset_index(drop=True)


def balance(nodules: pd.DataFrame, parts: Mapping[int, Mapping[str, str]]) -> str:
    """How many nodules of each class there are, and in which part."""
    lines = [
        f"{len(nodules)} nodules of {nodules['patient_id'].nunique()} patients: "
        f"{int(nodules['label'].sum())} malignant, {int((nodules['label'] == 0).sum())} benign"
    ]
    for split, of in parts.items():
        part = nodules["patient_id"].map(of)
        each = ", ".join(f"{name} {int((part == name).sum())}" for name in PARTS)
        lines.append(f"split {split} by patient: {each}; the rarer class is weighted up in training")
    return "\n".join(lines)
