"""The accepted nodules of a dataset or a release, as what networks learn from and are tested on."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from raymat.loading import Nodules, load
from raymat.nodule import ACCEPTED, IMAGE_CHANNEL, InputError
from raymat.places import open_filesystem
from raymat.release.record import DIGESTS, Release, is_release
from raymat.sources import digest
from raymat.splits import REPETITIONS, Split, split_patients
from raymat.store import Store


@dataclass(frozen=True)
class Data:
    """The accepted nodules that a network learns from.

    Attributes
    ----------
    path : of the dataset or release
    nodules : read by their position when they are asked for
    patients : the patient of each
    kind : what alpha means in their chosen mattes, one of ``raymat.methods.ALPHA_KINDS``
    recorded : the repeated splits that a release was published with, patient to part; None for a dataset
    digest : of all of them, in whatever order
    order : of all of them in their order, in which batches are drawn
    """

    path: str
    nodules: Nodules
    patients: list[str]
    kind: str
    recorded: list[dict[str, str]] | None
    digest: str
    order: str

    @classmethod
    def open(cls, path: str) -> Data:
        """Raises InputError where there is neither a dataset nor a release."""
        nodules = load(path)
        if is_release(*open_filesystem(path)):
            rows = Release.open(path).index
            recorded = [{row["patient_id"]: row[f"split_{n}"] for row in rows} for n in range(REPETITIONS)]
            digests = (row[f"{name}_digest"] for row in rows for name in DIGESTS)
            keys = [known for known in digests if known]
        else:
            rows = Store.open(path).outcomes(["patient_id", "key", "outcome"]).to_pylist()
            rows = [row for row in rows if row["outcome"] == ACCEPTED]
            recorded, keys = None, [row["key"] for row in rows]
        patients = [row["patient_id"] for row in rows]
        return cls(path, nodules, patients, nodules.kind, recorded, digest(*sorted(keys)), digest(*keys))

    def channels(self) -> tuple[tuple[str, float, float], ...]:
        """Name and range of intensities of each channel, the image first; empty where the nodules have one.

        Raises
        ------
        InputError
            The first nodule cannot be read.
        """
        # Those of one dataset have the same channels.
        if not self.nodules.ids or IMAGE_CHANNEL not in self.nodules.metadata(self.nodules.ids[0]):
            return ()
        return tuple((channel.name, channel.low, channel.high) for channel in self.nodules[0].all_channels)

    def split(self, repetition: int) -> Split:
        """A release's own split, else the one that is drawn.

        Raises
        ------
        InputError
            A part would be empty, or the release has no such split.
        """
        if self.recorded is not None and repetition >= len(self.recorded):
            raise InputError(
                f"{self.path}: no split {repetition}; a release has those it was published with, 0 to "
                f"{len(self.recorded) - 1}"
            )
        try:
            drawn = split_patients(self.patients, repetition)
        except InputError as error:
            raise InputError(f"{self.path}: {error}") from None
        return Split.of_parts(self.recorded[repetition]) if self.recorded else drawn

    def of(self, patients: Collection[str]) -> list[int]:
        """Positions of those patients' nodules."""
        chosen = set(patients)
        return [place for place, patient in enumerate(self.patients) if patient in chosen]
