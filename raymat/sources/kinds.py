"""The kinds of sources: how each is asked for, what it is made of, and whose data it is. One entry each.

A kind's name is that of its option, and what ``NoduleRef.source`` and ``Nodule.source`` say. The parser of the command
line needs the standard library alone: sources are imported when they are opened.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from raymat.errors import InputError

if TYPE_CHECKING:
    from raymat.sources import Source

DEMO_PHANTOMS = 12
LIDC_LICENCE = "CC BY 3.0 (LIDC-IDRI, The Cancer Imaging Archive)"
LIDC_CITATION = (
    "Armato SG III et al., Data From LIDC-IDRI, The Cancer Imaging Archive, 2015, doi:10.7937/K9/TCIA.2015.LO9QL9SX. "
    "Armato SG III et al., Med Phys 38(2):915-931, 2011, doi:10.1118/1.3528204. "
    "Clark K et al., J Digit Imaging 26(6):1045-1057, 2013, doi:10.1007/s10278-013-9622-7."
)


@dataclass(frozen=True)
class Opened:
    """A source that was asked for.

    Attributes
    ----------
    source : the source
    title : what reports call it
    out : where its dataset goes by default
    """

    source: Source
    title: str
    out: str


@dataclass(frozen=True)
class SourceKind:
    """A kind of sources.

    Attributes
    ----------
    metavar, words : of its option on the command line
    open : the options to the source; ``options.NAME`` is what its own option was given
    number : whether its option takes a number, and not a place
    licence, citation : of its data, where they are known
    """

    metavar: str
    words: str
    open: Callable[[Namespace], Opened]
    number: bool = False
    licence: str | None = None
    citation: str | None = None


def _lidc(options: Namespace) -> Opened:
    from raymat.sources.lidc import LidcSource
    from raymat.sources.phantom import PhantomSource, RetestSource, is_phantom_folder, is_retest_folder

    root = _existing(options.lidc)
    if is_phantom_folder(root):
        return Opened(PhantomSource.from_folder(root), f"phantoms in {root}", "raymat-phantoms")
    if is_retest_folder(root):
        return Opened(RetestSource(root), f"second scans of phantoms in {root}", "raymat-retests")
    return Opened(LidcSource(root), f"lidc {root}", "raymat-lidc")


def _cases(options: Namespace) -> Opened:
    from raymat.sources.cases import CasesSource

    table = _existing(options.cases)
    return Opened(CasesSource(table), f"cases {table}", "raymat-cases")


def _phantoms(options: Namespace) -> Opened:
    """Phantoms drawn as they are read: beside the dataset, or on each worker's own disk for an object store."""
    from raymat.places import is_uri
    from raymat.sources.phantom import PhantomSource

    default = "raymat-phantoms"
    n, seed, out = options.phantoms or DEMO_PHANTOMS, options.seed, options.out or default
    beside = f"raymat-phantom-scans-{seed}" if is_uri(out) else f"{out}/scans"
    return Opened(PhantomSource(str(Path(beside).absolute()), n, seed), f"{n} phantoms, seed {seed}", default)


def _existing(place: str) -> str:
    from raymat.places import is_uri, refuse_credentials

    if is_uri(place):
        refuse_credentials(place)
    elif not Path(place).exists():
        raise InputError(f"{place}: no such file or folder")
    return place


KINDS = {
    "lidc": SourceKind(
        "DIR", "DICOM files of LIDC-IDRI, in any folder tree", _lidc, licence=LIDC_LICENCE, citation=LIDC_CITATION
    ),
    "cases": SourceKind("FILE", "CSV or Parquet: case_id, patient_id, image (or several), masks (or trimap)", _cases),
    "phantoms": SourceKind(
        "N",
        "N CT phantoms with a known alpha",
        _phantoms,
        number=True,
        # Contours and ratings are those of LIDC-IDRI's readers, the pixels are drawn.
        licence=f"contours and ratings: {LIDC_LICENCE}; the images are synthetic",
        citation=LIDC_CITATION,
    ),
}
DEFAULT = "phantoms"


def asked_for(options: Namespace) -> str | None:
    """The kind that the options ask for; None where they name none."""
    return next((name for name in KINDS if getattr(options, name)), None)
