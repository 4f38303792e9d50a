"""Where nodules come from, of whatever kind (``raymat.sources.kinds``): one interface for all.

A source *plans* (one small reference per nodule, no pixels read) and *reads* (one reference to one ``Nodule`` on the
scanner's own grid). It is a small picklable object: plans are made where the build is started, reads happen on workers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from raymat.words import bounded, utf8

if TYPE_CHECKING:
    from raymat.nodule import Nodule


@dataclass(frozen=True)
class NoduleRef:
    """What the manifest holds of a nodule.

    Attributes
    ----------
    nodule_id : unique within the source
    patient_id : str
    source : the name of its kind, one of ``raymat.sources.kinds.KINDS``
    readers : how many readers' masks it has; -1 where a trimap is given instead
    fingerprint : digest of everything ``read`` will use (paths, sizes, times of change, annotation ids)
    location : JSON, what ``read`` needs to find it
    problem : why it cannot be read, where planning has seen that already; empty where all is well
    notes : what a user should know about it whatever becomes of it
    """

    nodule_id: str
    patient_id: str
    source: str
    readers: int
    fingerprint: str
    location: str
    problem: str = ""
    notes: Sequence[str] = ()

    def __post_init__(self) -> None:
        for name in ("nodule_id", "patient_id", "problem"):
            object.__setattr__(self, name, utf8(getattr(self, name)))
        object.__setattr__(self, "notes", [bounded(note) for note in self.notes])


class Source(Protocol):
    """A source of nodules.

    Attributes
    ----------
    remote : whether its images lie in an object store
    """

    @property
    def remote(self) -> bool:
        """Whether the images lie in an object store."""

    def plan(self) -> Iterator[NoduleRef]:
        """Every nodule of the source, in a fixed order, each id once.

        Raises
        ------
        InputError
            The source as a whole cannot be used (no such folder, no series in it, columns missing).
        """

    def read(self, ref: NoduleRef) -> Nodule:
        """The nodule's image, readers' masks (or trimap) and placement on the scanner's grid.

        Raises
        ------
        InputError
            This nodule cannot be read; the message names the file and says what to do.
        NoduleExcluded
            The nodule is left out by a rule.
        """


def digest(*parts: object) -> str:
    """A short hexadecimal digest of the parts' text; equal for equal parts in every process."""
    text = "\x1f".join(str(part) for part in parts)
    # A path may hold bytes that are no UTF-8.
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
