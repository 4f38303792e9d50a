"""A source whose nodules are seen by all of their readers but one, who judges the mattes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace

from raymat.nodule import InputError, Nodule, NoduleExcluded
from raymat.sources import NoduleRef, Source, digest

READERS = 4


@dataclass(frozen=True)
class LeftOutSource:
    """Every nodule of four readers four times, each time without one of them.

    The mask of the reader who is left out stands in for the nodule's true alpha: it goes to the working grid with the
    image and is seen by nothing that crops, makes the trimap, solves or scores.

    Attributes
    ----------
    source : where the nodules come from
    depends : text of what else the measurement of a nodule depends on; a change of it repeats the measurement
    nodules : number of nodules, drawn by a digest of their ids; all where None. A larger number has those of a
        smaller one among them.
    """

    source: Source
    depends: str = ""
    nodules: int | None = None

    @property
    def remote(self) -> bool:
        """Whether the images lie in an object store."""
        return self.source.remote

    def plan(self) -> Iterator[NoduleRef]:
        """One reference per nodule and reader left out; one for a nodule that cannot be read, as the build records it.

        Raises
        ------
        InputError
            The source cannot be used, or no nodule has four readers.
        """
        refs = [ref for ref in self.source.plan() if ref.problem or ref.readers == READERS]
        if not refs:
            raise InputError(
                f"no nodule here was marked by {READERS} readers: leaving one out needs four of them (a given trimap "
                "has none)"
            )
        if self.nodules is not None:
            drawn = sorted(refs, key=lambda ref: hashlib.blake2b(ref.nodule_id.encode()).hexdigest())
            chosen = {ref.nodule_id for ref in drawn[: self.nodules]}
            refs = [ref for ref in refs if ref.nodule_id in chosen]
        for ref in refs:
            for reader in range(READERS if not ref.problem else 0):
                yield replace(
                    ref,
                    nodule_id=f"{ref.nodule_id}-without-{reader + 1}",
                    readers=READERS - 1,
                    fingerprint=digest(ref.fingerprint, reader, self.depends),
                    location=json.dumps({"reader": reader, "ref": vars(ref) | {"notes": list(ref.notes)}}),
                )
            if ref.problem:
                yield ref

    def read(self, ref: NoduleRef) -> Nodule:
        """The nodule on the scanner's grid with three readers, the mask of the fourth as its ``true_membership``.

        Raises
        ------
        InputError
            The nodule cannot be read.
        NoduleExcluded
            It has not four readers after all.
        """
        location = json.loads(ref.location)
        whole, reader = NoduleRef(**location["ref"]), location["reader"]
        nodule = self.source.read(whole)
        if len(nodule.readers) != READERS:
            raise NoduleExcluded(f"{len(nodule.readers)} readers' masks, not {READERS}")
        others = [mask for number, mask in enumerate(nodule.readers) if number != reader]
        return replace(
            nodule,
            nodule_id=ref.nodule_id,
            readers=others,
            true_membership=(nodule.readers[reader] != 0).astype("float32"),
            metadata={**nodule.metadata, "nodule": whole.nodule_id, "left_out": reader + 1},
        )
