"""``raymat.load``: a built dataset or a release as one indexable collection of nodules."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol, overload

import pyarrow as pa
import pyarrow.compute as pc

from raymat.calibration import LUNG_WINDOW, HUWindow
from raymat.errors import InputError, missing_packages_named
from raymat.folder import Folder
from raymat.nodule import ACCEPTED, OUTCOMES, Nodule
from raymat.places import open_filesystem
from raymat.release.record import Release, is_release
from raymat.splits import PARTS, REPETITIONS
from raymat.store import PARAMETERS, Store


class Reader(Protocol):
    """Reads the nodules of a dataset or release by their position in it."""

    def __call__(self, position: int) -> Nodule:
        """The nodule."""

    def metadata(self, position: int) -> dict[str, object]:
        """What ``Nodule.metadata`` holds, no array read."""

    def kind(self) -> str:
        """What alpha means in the chosen mattes."""


class Nodules(Sequence[Nodule]):
    """Nodules that are read when they are asked for, one in memory at a time.

    ``len(nodules)``, ``nodules[3]``, ``nodules["LIDC-IDRI-0001-N1"]``, ``nodules[:10]`` and iteration; ``next`` resumes
    where it was. It is picklable, so that workers can have it.

    Attributes
    ----------
    ids : the nodules' ids, in order
    """

    def __init__(
        self,
        ids: Sequence[str],
        reader: Reader,
        positions: Sequence[int],
        parts: Sequence[dict[str, str]] | None = None,
    ) -> None:
        self.ids = list(ids)
        self._reader, self._positions, self._parts = reader, list(positions), parts
        self._place: dict[str, int] | None = None
        self._next = 0

    def __len__(self) -> int:
        return len(self.ids)

    @overload
    def __getitem__(self, which: int | str) -> Nodule: ...

    @overload
    def __getitem__(self, which: slice) -> Nodules: ...

    def __getitem__(self, which: int | str | slice) -> Nodule | Nodules:
        """The nodule at a position or of an id; of a slice a smaller collection, nothing read.

        Raises
        ------
        IndexError, KeyError
            There is no such position or id.
        InputError
            The nodule cannot be read.
        """
        if isinstance(which, slice):
            return self._subset(range(len(self))[which])
        if isinstance(which, str):
            which = self._position(which)
        return self._reader(self._positions[which])

    def __iter__(self) -> Iterator[Nodule]:
        return (self._reader(position) for position in self._positions)

    def __next__(self) -> Nodule:
        if self._next == len(self):
            raise StopIteration
        self._next += 1
        return self[self._next - 1]

    def __contains__(self, nodule_id: object) -> bool:
        return isinstance(nodule_id, str) and nodule_id in self._places()

    def metadata(self, nodule_id: str) -> dict[str, object]:
        """``Nodule.metadata`` of the nodule of that id, whose arrays are not read.

        Raises
        ------
        KeyError
            There is no such id.
        InputError
            It cannot be read.
        """
        return self._reader.metadata(self._positions[self._position(nodule_id)])

    @property
    def kind(self) -> str:
        """What ``Nodule.alpha`` means: "calibrated", "membership", or "any" (that of ``Nodule.method``)."""
        return self._reader.kind()

    def split(self, number: int, part: str) -> Nodules:
        """A release's nodules of one part ("training", "validation", "test") of one of its four splits, 0 to 3.

        Raises
        ------
        InputError
            No such split or part, or the dataset is no release.
        """
        if self._parts is None:
            raise InputError("a dataset that is not a release has no splits: make one with `raymat release`")
        if number not in range(REPETITIONS) or part not in PARTS:
            raise InputError(
                f"no part {part!r} of split {number}; splits are 0 to {REPETITIONS - 1}, parts {', '.join(PARTS)}"
            )
        chosen = self._parts[number]
        return self._subset([place for place, nodule_id in enumerate(self.ids) if chosen[nodule_id] == part])

    def torch(self, transform: Callable[[Nodule], object] | None = None):
        """A ``torch.utils.data.Dataset`` of these nodules; see ``raymat.adapters.torch.torch_dataset``.

        Raises
        ------
        MissingPackage
            torch is not installed.
        """
        with missing_packages_named():
            from raymat.adapters.torch import torch_dataset

        return torch_dataset(self, transform)

    def ray(self):
        """A ``ray.data.Dataset`` of these nodules; see ``raymat.adapters.ray.ray_dataset``.

        Raises
        ------
        MissingPackage
            Ray is not installed.
        """
        with missing_packages_named():
            from raymat.adapters.ray import ray_dataset

        return ray_dataset(self)

    def _subset(self, places: Sequence[int]) -> Nodules:
        return Nodules(
            [self.ids[place] for place in places],
            self._reader,
            [self._positions[place] for place in places],
            self._parts,
        )

    def _places(self) -> dict[str, int]:
        if self._place is None:
            self._place = {nodule_id: place for place, nodule_id in enumerate(self.ids)}
        return self._place

    def _position(self, nodule_id: str) -> int:
        if nodule_id not in self._places():
            raise KeyError(f"no nodule {nodule_id}")
        return self._places()[nodule_id]


def load(path: str | Path, outcomes: Sequence[str] = (ACCEPTED,)) -> Nodules:
    """The nodules of a built dataset, in the order of its manifest, or of a release.

    Parameters
    ----------
    path : folder or URI of a built dataset or a release
    outcomes : which nodules of a built dataset; ``("accepted", "rejected")`` for all that have mattes. A release has
        accepted ones alone.

    Returns
    -------
    Nodules
        of ``Nodule`` with ``nodule_id, patient_id, image, spacing, origin, direction, readers, trimap, mattes, method,
        scores, alpha, membership, calibrated``; arrays (z, y, x), image in HU, spacing and origin in mm. Those of a
        release have the chosen matte and the best one of the other kind.

    Raises
    ------
    InputError
        There is neither at ``path``, or an unknown outcome is asked for.
    """
    unknown = set(outcomes) - set(OUTCOMES)
    if unknown:
        raise InputError(f"no such outcome: {', '.join(sorted(unknown))} (there are {', '.join(OUTCOMES)})")
    if is_release(*open_filesystem(path)):
        release = Release.open(path)
        ids = [row["nodule_id"] for row in release.index] if ACCEPTED in outcomes else []
        parts = [{row["nodule_id"]: row[f"split_{n}"] for row in release.index} for n in range(REPETITIONS)]
        return Nodules(ids, release, range(len(ids)), parts)
    store = Store.open(path)
    rows = store.outcomes(["nodule_id", "key", "shard", "outcome"])
    rows = rows.filter(pc.is_in(rows["outcome"], pa.array(list(outcomes))))
    return Nodules(rows["nodule_id"].to_pylist(), Committed(store, rows), range(rows.num_rows))


def window_of(path: str | Path) -> HUWindow:
    """The window that a dataset's or release's mattes were calibrated by; the lung window where none is recorded.

    That is so for predictions.

    Raises
    ------
    InputError
        The file of the parameters is damaged.
    """
    if is_release(*open_filesystem(path)):
        parameters = Release.open(path).place.note().get("parameters", {})
    else:
        folder = Folder.at(path)
        parameters = folder.read_json(PARAMETERS).get("parameters", {}) if folder.exists(PARAMETERS) else {}
    matting = parameters.get("matting", {})
    level, width = (
        float(matting.get(name, default))
        for name, default in (("window_level", LUNG_WINDOW.level), ("window_width", LUNG_WINDOW.width))
    )
    return HUWindow(level, width)


class Committed:
    """Reads the nodules of a built dataset by their position among its rows."""

    def __init__(self, store: Store, rows: pa.Table) -> None:
        self.store, self.rows = store, rows

    def __call__(self, position: int) -> Nodule:
        """The nodule of a row."""
        return self.store.read_committed(self.rows["key"][position].as_py(), self.rows["shard"][position].as_py())

    def kind(self) -> str:
        """What alpha means in the dataset."""
        return self.store.kind()

    def metadata(self, position: int) -> dict[str, object]:
        """The metadata of a row's nodule."""
        key, shard = self.rows["key"][position].as_py(), self.rows["shard"][position].as_py()
        rows = self.store.read_table(shard, ["key", "metadata"]).to_pylist()
        try:
            found: dict[str, object] = json.loads(next(row["metadata"] or "{}" for row in rows if row["key"] == key))
        except (StopIteration, ValueError, TypeError, RecursionError) as error:
            raise InputError(
                f"{self.store.path(shard)}: the metadata of {key} cannot be read; delete the file and build again"
            ) from error
        return found
