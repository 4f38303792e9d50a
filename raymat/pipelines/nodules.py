"""A dataset's nodules as a work list: what the commands that measure built nodules begin with."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from raymat.engine.sharing import shared
from raymat.engine.stages import READ
from raymat.guard import guarded
from raymat.learning import Data
from raymat.nodule import Nodule

SHARED = "nodules"  # what the workers share them as


def work_rows(data: Data, positions: Iterable[int], **more: object) -> list[dict]:
    """Rows of a work list for nodules by their position; their keys sort in this order."""
    return [
        {
            "nodule_id": data.nodules.ids[position],
            "patient_id": data.patients[position],
            "source": data.path,
            "key": "-".join([*(f"{name}-{value}" for name, value in more.items()), f"{position:08d}"]),
            "position": position,
            **more,
        }
        for position in positions
    ]


def read_nodule(session: str, row: dict) -> Nodule:
    """The nodule of a row, without its outcome; with the one that it has failed where it cannot be read."""
    start = Nodule(row["nodule_id"], row["patient_id"], row["source"], key=row["key"])

    def work(_: Nodule) -> Nodule:
        return replace(shared(session, SHARED)[row["position"]], outcome=None, key=row["key"])

    return guarded(READ, start, work)
