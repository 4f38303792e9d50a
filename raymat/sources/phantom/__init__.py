"""CT phantoms of known alpha, drawn from contours and ratings of LIDC-IDRI's readers: docs/explanation/phantoms.md."""

from raymat.sources.phantom.choice import Case, choose
from raymat.sources.phantom.draw import Phantom, draw_phantom
from raymat.sources.phantom.pet import write_pet_cts
from raymat.sources.phantom.retest_source import RetestSource, is_retest_folder, write_retests
from raymat.sources.phantom.source import (
    VERSION,
    PhantomSource,
    is_phantom_folder,
    phantom_of,
    write_phantom,
    write_phantoms,
)

__all__ = [
    "VERSION",
    "Case",
    "Phantom",
    "PhantomSource",
    "RetestSource",
    "choose",
    "draw_phantom",
    "is_phantom_folder",
    "is_retest_folder",
    "phantom_of",
    "write_pet_cts",
    "write_phantom",
    "write_phantoms",
    "write_retests",
]
