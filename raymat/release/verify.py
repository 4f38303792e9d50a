"""Whether a release is as it was, and what two of them have in common."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from raymat.methods import kind_of
from raymat.nodule import InputError
from raymat.release.record import DIGESTS, NO_PART, OTHER, SUMS, Release, ReleaseFolder, record_digests


@dataclass(frozen=True)
class Verification:
    """What the recomputed digests say.

    Attributes
    ----------
    digest : the release's
    files, nodules : how many were looked at
    problems : what is not as it was, a line each; empty for a sound release
    """

    digest: str
    files: int
    nodules: int
    problems: list[str]


def verify(path: str | Path, digest: str | None = None) -> Verification:
    """Recompute every digest of a release: of its files, and of the arrays of its nodules against the index.

    Parameters
    ----------
    digest : the release's digest as it was published; without it a release that was rewritten with all its digests
        cannot be distinguished from another release

    Raises
    ------
    InputError
        There is no release at ``path``.
    """
    place = ReleaseFolder.at(path)
    if not place.exists(SUMS):
        raise InputError(f"{path}: no release here ({SUMS} is missing)")
    sums = place.read(SUMS)
    actual = hashlib.sha256(sums).hexdigest()
    problems = [] if digest in (None, actual) else [f"{SUMS}: the release's digest is {actual}, not {digest}"]
    lines = [line.split("  ", 1) for line in sums.decode(errors="replace").splitlines() if "  " in line]
    expected = {name: checksum for checksum, name in lines}
    present = {name for name in place.listing("") if name not in NO_PART}
    problems += [f"{name}: missing" for name in sorted(set(expected) - present)]
    problems += [f"{name}: does not belong to the release" for name in sorted(present - set(expected))]
    for name in sorted(present & set(expected)):
        if hashlib.sha256(place.read(name)).hexdigest() != expected[name]:
            problems.append(f"{name}: changed since the release")
    nodules = 0
    try:
        for row in Release.open(path).index:
            nodules += 1
            record = place.read_table(row["file"], row_group=row["row"]).to_pylist()[0]
            try:
                again = record_digests(record)
            except TypeError as error:  # null where there has to be a value
                problems.append(f"{row['nodule_id']}: damaged ({error})")
                continue
            wrong = [part for part in DIGESTS if again[f"{part}_digest"] != row[f"{part}_digest"]]
            if record["nodule_id"] != row["nodule_id"] or wrong:
                problems.append(f"{row['nodule_id']}: {', '.join(wrong) or 'record'} not as the index says")
    except InputError as error:
        problems.append(str(error))
    return Verification(actual, len(expected), nodules, problems)


@dataclass(frozen=True)
class Difference:
    """What became of the nodules from one release to another.

    Attributes
    ----------
    kinds : of alpha, before and after
    others : whether the mattes of the other kind were compared, too; releases before format 3 have none
    added, removed : nodule ids
    changed : nodule id to what of it changed, in words
    same : how many are equal
    """

    kinds: tuple[str, str]
    others: bool
    added: list[str]
    removed: list[str]
    changed: dict[str, str]
    same: int


def compare(before: Release, after: Release) -> Difference:
    """Nodules added, removed and changed, by the digests in the two indexes; no array is read."""
    old, new = ({row["nodule_id"]: row for row in side.index} for side in (before, after))
    others = all(row["kind"] for side in (old, new) for row in side.values())
    changed = {}
    for nodule_id in sorted(old.keys() & new.keys()):
        a, b = old[nodule_id], new[nodule_id]
        parts = [part for part in ("image", "readers", "trimap") if a[f"{part}_digest"] != b[f"{part}_digest"]]
        parts += _mattes_changed(a, b, others)
        if parts:
            changed[nodule_id] = ", ".join(parts)
    return Difference(
        (before.kind(), after.kind()),
        others,
        sorted(new.keys() - old.keys()),
        sorted(old.keys() - new.keys()),
        changed,
        len(old.keys() & new.keys()) - len(changed),
    )


def _mattes_changed(before: Mapping, after: Mapping, others: bool) -> list[str]:
    """What changed of a nodule's mattes: the chosen method, then the matte of each kind, chosen or not."""
    chosen = (before["method"], after["method"])
    changed = [f"method {chosen[0]} -> {chosen[1]}"] if chosen[0] != chosen[1] else []
    old, new = _mattes(before), _mattes(after)
    for kind in sorted(old.keys() | new.keys()):
        a, b = old.get(kind), new.get(kind)
        if a == b or (None in (a, b) and not others):
            continue
        methods = (a[0] if a else "none", b[0] if b else "none")
        if methods[0] == methods[1]:
            changed.append(f"{kind} alpha")
        elif methods != chosen:
            changed.append(f"{kind} {methods[0]} -> {methods[1]}")
    return changed


def _mattes(row: Mapping) -> dict[str, tuple[str, str]]:
    """Kind to method and digest of the mattes of a row of ``INDEX``."""
    starts = [start for start in ("", OTHER) if row[f"{start}method"]]
    return {kind_of(row[f"{s}method"]): (row[f"{s}method"], row[f"{s}alpha_digest"]) for s in starts}
