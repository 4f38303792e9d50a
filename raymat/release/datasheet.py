"""The datasheet of a release: what is in it, what is not and why, where it comes from and how to cite it (Markdown)."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from raymat.measures.table import DISTRIBUTION_HEAD
from raymat.methods import ANY, CALIBRATED, MEMBERSHIP, in_order, kind_of
from raymat.splits import PARTS
from raymat.words import counted, dotted, markdown_table

REASONS = 40  # of nodules left out, named one by one; the table has all
MEANING = {
    CALIBRATED: "calibrated: the share of the voxel that belongs to the lesion, times the share of pure lesion tissue "
    "that the lesion's density stands for. It is near 1 inside a solid nodule and, in the default window, about 0.5 in "
    "ground glass of -590 HU. It describes structure and density; its sum is less than the volume",
    MEMBERSHIP: "membership: the share of the voxel that belongs to the lesion, whatever the density of the lesion. It "
    "is 1 inside a nodule of any density, and its sum times the voxel's volume is the volume of the nodule",
}


def datasheet(
    note: Mapping, index: Sequence[Mapping], left_out: Sequence[Mapping], measures: Sequence[Sequence[str]] = ()
) -> str:
    """The datasheet.

    Parameters
    ----------
    note : the release's ``release.json``
    index : rows of ``raymat.release.INDEX``
    left_out : rows of ``raymat.release.LEFT_OUT``
    measures : rows of ``raymat.measures.table.distribution_rows`` of the released nodules; none where not measured
    """
    counts = note["counts"]
    lines = [
        f"# raymat release {note['version']}",
        "",
        f"{counts['nodules']} nodules of {counts['patients']} patients, frozen {note['created']}. Each has its chosen "
        f"3D alpha matte (kind of the release: {note['kind']}) and, if there is one, the best matte of the other kind. "
        f"Source: {note['source']}.",
        "",
        "![Nodules of this release](contact_sheet.png)",
        "",
        "## Licence and citation of the source",
        "",
        note["licence"],
        "",
        note["citation"],
        "",
        "## What alpha means",
        "",
        *_meaning(note["kind"], index),
        "## What was chosen, and how",
        "",
        note["rule"],
        "",
        *_table(("decided by", "nodules"), counts["decided_by"].items()),
        *_methods(counts["methods"], counts["other_methods"]),
        *_scores(index),
        "## What was left out",
        "",
        f"{sum(counts['left_out'].values())} of the dataset's {counts['of_nodules_in_the_dataset']} nodules; all of "
        "them are in `left_out.parquet`.",
        "",
        *_table(("outcome", "nodules"), counts["left_out"].items()),
        *_reasons(left_out),
        *_stale(note["stale_decisions_left_aside"]),
        "## Sizes, spacing, ratings",
        "",
        "![Histograms of diameter, slice spacing, pixel spacing and the readers' ratings](histograms.png)",
        "",
        *_sizes(index),
        *_ratings(index),
        *_measures(measures),
        "## Splits",
        "",
        "Four repeated splits 7:1:2 by patient: no patient's nodules are in two parts of one split. Nodules:",
        "",
        *_table(
            ("split", *PARTS), ((name, *(parts[part] for part in PARTS)) for name, parts in note["splits"].items())
        ),
        "## Files",
        "",
        "`nodules/*.parquet` hold one nodule per row: `image` (HU), `readers`, `trimap` (0 background, 128 unknown, "
        "255 foreground), `alpha` and `other_alpha` (0 to 1), each a struct of bytes, shape (z, y, x) and dtype: "
        '`np.frombuffer(a["data"], a["dtype"]).reshape(a["shape"])`. `spacing`, `origin` (mm) and `direction` (3 x 3, '
        "row by row) are in (z, y, x) order, patient coordinates LPS. `nodules.parquet` is the index, with splits and "
        "digests. `sha256sum -c SHA256SUMS` checks the files, `raymat verify` the arrays as well; the digest of "
        "`SHA256SUMS` is the release's, to be cited with it.",
        "",
        *_channels(note["parameters"]),
        "## Parameters",
        "",
        *_table(("parameter", "value"), dotted(note["parameters"]).items()),
        "## Software",
        "",
        *_table(("package", "version"), note["software"].items()),
    ]
    return "\n".join(lines)


def _channels(parameters: Mapping) -> list[str]:
    """Which images there are of each nodule; nothing of one channel."""
    prepare = parameters.get("prepare") or {}
    channels = prepare.get("channels") if isinstance(prepare, Mapping) else None
    if not channels:
        return []
    named = [f"{channel['name']} ({channel['low']:g} to {channel['high']:g})" for channel in channels]
    return [
        f"Each nodule has {len(named)} images on one grid, with the range of intensities that the solvers take in: "
        f"{', '.join(named)}. `image` is {prepare['calibrate_by']}, which calibrates; `channels` are the others, a "
        "list of structs with `name`, `image`, `low` and `high`.",
        "",
    ]


def _table(head: Sequence[str], rows) -> list[str]:
    rows = list(rows)
    return [markdown_table(head, rows) if rows else "None.", ""]


def _spread(values: Sequence[float]) -> list[str]:
    return [f"{np.percentile(values, q):.2f}" for q in (0, 10, 50, 90, 100)]


def _meaning(kind: str, index: Sequence[Mapping]) -> list[str]:
    if kind == ANY:
        chosen = "`alpha` is of the kind that its `method` has: calibrated where the name ends with +, else membership."
        lines = [chosen, "", *(f"- {meaning[0].upper()}{meaning[1:]}." for meaning in MEANING.values())]
    else:
        other = MEMBERSHIP if kind == CALIBRATED else CALIBRATED
        lines = [f"- `alpha` is {MEANING[kind]}.", f"- `other_alpha` is {MEANING[other]}."]
    without = sum(row["other_method"] is None for row in index)
    return [*lines, "", f"Nodules without `other_alpha`: {without} of {len(index)}.", ""]


def _methods(chosen: Mapping[str, int], other: Mapping[str, int]) -> list[str]:
    rows = [(name, kind_of(name), chosen.get(name, 0), other.get(name, 0)) for name in in_order({*chosen, *other})]
    return _table(("method", "kind", "chosen", "best of the other kind"), rows)


def _scores(index: Sequence[Mapping]) -> list[str]:
    head = ("", "least", "10 %", "median", "90 %", "most")
    named = (("score", "score of the chosen matte"), ("other_score", "score of the matte of the other kind"))
    found = {words: [row[name] for row in index if row[name] is not None] for name, words in named}
    return _table(head, [(words, *_spread(scores)) for words, scores in found.items() if scores])


def _reasons(left_out: Sequence[Mapping]) -> list[str]:
    rows = [(row["nodule_id"], row["outcome"], row["decided_by"], row["reason"] or "") for row in left_out[:REASONS]]
    lines = _table(("nodule", "outcome", "by", "why"), rows) if rows else []
    if len(left_out) > REASONS:
        lines += [f"... and {len(left_out) - REASONS} more.", ""]
    return lines


def _stale(old: Mapping[str, str]) -> list[str]:
    if not old:
        return []
    return [
        "Decisions that were left aside, as they no longer fit the dataset:",
        "",
        *_table(("nodule", ""), old.items()),
    ]


def _sizes(index: Sequence[Mapping]) -> list[str]:
    spacing = [row["scanner_spacing"] for row in index if row["scanner_spacing"]]
    rows = [("diameter of a sphere of the nodule's volume, mm", *_spread([row["diameter_mm"] for row in index]))]
    if spacing:
        rows.append(("scanner's slice spacing, mm", *_spread([s[0] for s in spacing])))
        rows.append(("scanner's pixel spacing, mm", *_spread([s[2] for s in spacing])))
    rows.append(("readers", *_spread([row["readers"] for row in index])))
    said = "The volume is that of the membership matte"
    smaller = sum(MEMBERSHIP not in map(kind_of, (row["method"], row["other_method"] or "")) for row in index)
    if smaller:
        said += f", and of {counted(smaller, 'nodule')} without one the sum of the calibrated matte, which is less"
    return [*_table(("", "least", "10 %", "median", "90 %", "most"), rows), f"{said}.", ""]


def _ratings(index: Sequence[Mapping]) -> list[str]:
    counts = ratings(index)
    values = sorted({value for found in counts.values() for value in found})
    return _table(
        ("rating, all readers", *(str(value) for value in values)),
        [(name, *(found[value] for value in values)) for name, found in counts.items()],
    )


def _measures(rows: Sequence[Sequence[str]]) -> list[str]:
    if not rows:
        return []
    words = "Percentiles over the nodules, as `raymat measure` gives them."
    return ["## Measures", "", words, "", *_table(DISTRIBUTION_HEAD, rows)]


def ratings(index: Sequence[Mapping]) -> dict[str, Counter[int]]:
    """Feature to how often each rating was given, over all readers of all nodules of an index."""
    counts: dict[str, Counter[int]] = {}
    for row in index:
        for name, values in json.loads(row["ratings"]).items():
            counts.setdefault(name, Counter()).update(value for value in values if isinstance(value, int))
    return counts
