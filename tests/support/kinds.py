"""Nodules whose best mattes of the two kinds of alpha differ, and are the truth of their kind."""

from __future__ import annotations

from dataclasses import replace

from raymat.methods import CALIBRATED, MEMBERSHIP
from raymat.nodule import Nodule
from tests.support.nodules import draw_nodule, write_dataset

METHODS = ("cf+", "knn+", "cf", "knn")
BEST = {CALIBRATED: "cf+", MEMBERSHIP: "cf"}  # those of the highest score


def nodule_of_kind(number: int, kind: str, **how) -> Nodule:
    """A small nodule of ground glass, all of it lesion and of half its density, in a dataset of that kind.

    Where that is "any" the calibrated matte is the chosen one.
    """
    how = {"shape": (16, 24, 24), "edge": 3.0, "readers": (-0.8, 0.9), "per_patient": 1} | how
    drawn = draw_nodule(number, methods=METHODS, **how)
    for matte in drawn.candidates:
        if matte.kind == CALIBRATED:
            matte.alpha = matte.alpha / 2
    truths = {f"true_{name}": drawn.mattes[method] for name, method in BEST.items()}
    return replace(drawn, kind=kind, method=BEST.get(kind, "cf+"), source="phantoms", **truths)


def write_nodules_of_kind(folder, kind: str, count: int) -> str:
    """A dataset of such nodules, one per patient; its folder."""
    write_dataset(folder, [nodule_of_kind(number, kind) for number in range(count)])
    return str(folder)
