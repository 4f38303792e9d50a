"""Made what lies here, with the raymat of format 2 (see README.md): ``python make.py CASES`` in an empty folder.

CASES is a copy of ``../format-1/cases``.
"""

import os
import sys
from functools import partial
from pathlib import Path

from raymat.cli import main
from raymat.pictures import figure
from raymat.review.decisions import Decision, Decisions, mattes_of
from raymat.store import Store

figure.png_bytes = partial(figure.png_bytes, dpi=12)  # nobody looks at them

from raymat.release.freeze import ReleaseRequest, release  # noqa: E402  (takes the smaller pictures)

CHANGED_NS = 1_700_000_000 * 10**9  # the files' time of change, part of what a nodule's key is made of


def decide(store: Store, nodule_id: str, action: str, method: str | None, at: int) -> None:
    """A decision as the review page sends it."""
    rows = {row["nodule_id"]: row for row in store.outcomes().to_pylist()}
    Decisions(store).record(
        Decision(f"decision-{at}", nodule_id, mattes_of(rows[nodule_id]), "Ada", action, method, at)
    )


if __name__ == "__main__":
    cases = Path(sys.argv[1])
    for path in cases.iterdir():
        os.utime(path, ns=(CHANGED_NS, CHANGED_NS))
    build = ["build", "--cases", str(cases / "cases.csv"), "-o", "dataset", "--methods", "cf,knn,cf+,knn+"]
    build += ["--min-readers", "2", "--crop-px", "13", "--pad-slices", "2", "--spacing-mm", "1", "--workers", "1"]
    status = main([*build, "--no-tracking"])
    if status:
        sys.exit(status)
    dataset = Store.open("dataset")
    dataset.delete("contact_sheet.png")  # as large as all the rest
    decide(dataset, "case0", "choose", "knn+", 1)
    decide(dataset, "case1", "reject", None, 2)
    release(ReleaseRequest("dataset", "release", "1.0"))
