"""A dataset's accepted nodules frozen into a release."""

from __future__ import annotations

import datetime
import hashlib
import json
import math
import platform
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version as installed

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raymat.folder import Folder
from raymat.lock import NAME, held
from raymat.measures.table import distribution_rows, stored_measures
from raymat.methods import SOLVERS
from raymat.nodule import ACCEPTED, REJECTED, InputError, Nodule, required
from raymat.pictures.charts import release_histograms
from raymat.pictures.figure import png_bytes
from raymat.pictures.sheet import contact_sheet
from raymat.prepare import PREPARE_VERSION
from raymat.release.datasheet import datasheet, ratings
from raymat.release.record import (
    FORMAT,
    FORMAT_VERSION,
    INDEX,
    INDEX_FILE,
    LEFT_OUT,
    NO_PART,
    NOTE,
    RECORD,
    SUMS,
    UNFINISHED,
    Release,
    ReleaseFolder,
    record_digests,
    record_of,
    released,
    schema_of_record,
)
from raymat.review.decisions import RULE, Decision, Decisions, Verdict, no_longer, refuse_unscored, verdict
from raymat.sources import digest
from raymat.sources.kinds import KINDS
from raymat.splits import FEWEST, PARTS, REPETITIONS, split_patients
from raymat.store import PARAMETERS, Store
from raymat.version import __version__
from raymat.volume import nodule_grid
from raymat.words import counted

OTHERS = (
    "A decision is on the chosen matte, of the release's kind of alpha. Of the other kind the matte of the highest "
    "score is kept beside it, even below the floor."
)
REVIEWED_ONLY = "Nodules that no person decided on are left out."
NODULES_PER_FILE = 32
SHEET_NODULES = 24
NOT_RECORDED = "not recorded: built by an earlier raymat; build again to record them"
PACKAGES = ("numpy", "scipy", "numba", "pyarrow", "SimpleITK", "pydicom", "pylidc", "ray")


@dataclass(frozen=True)
class ReleaseRequest:
    """What to release, as what, and under which terms.

    Attributes
    ----------
    dataset : folder or URI of a built dataset
    out : folder or URI of the release, new or empty
    version : "1.0"
    reviewed_only : leave out nodules that no person decided on
    drop_stale : leave decisions aside that no longer fit the dataset, instead of refusing
    licence, citation : of the source; those of LIDC-IDRI where the source is that or phantoms drawn from it
    """

    dataset: str
    out: str
    version: str
    reviewed_only: bool = False
    drop_stale: bool = False
    licence: str | None = None
    citation: str | None = None


def release(request: ReleaseRequest, say: Callable[[str], None] = print) -> str:
    """Freeze a dataset's accepted nodules. Returns the release's digest.

    Raises
    ------
    InputError
        The dataset is not fully built or is one of predictions, decisions no longer fit it, no nodule is accepted,
        ``out`` holds something, or another release is being written there.
    """
    store = Store.open(request.dataset)
    rows = store.outcomes().to_pylist()
    planned = store.manifest(["nodule_id"]).num_rows
    if planned > len(rows):
        raise InputError(f"{request.dataset}: {planned - len(rows)} of {planned} nodules are not built yet")
    refuse_unscored(request.dataset, rows)
    decisions, old = _fitting(Decisions(store).current(), rows)
    if old and not request.drop_stale:
        named = "; ".join(f"{nodule_id}: {why}" for nodule_id, why in sorted(old.items())[:5])
        raise InputError(
            f"{request.dataset}: decisions on {counted(len(old), 'nodule')} no longer fit the dataset ({named}"
            f"{'; ...' if len(old) > 5 else ''}); review them again, or leave these decisions aside with --drop-stale"
        )
    verdicts = {row["nodule_id"]: _verdict(row, decisions.get(row["nodule_id"], {}), request) for row in rows}
    if not any(found.outcome == ACCEPTED for found in verdicts.values()):
        raise InputError(f"{request.dataset}: no nodule is accepted, there is nothing to release")
    out = ReleaseFolder.at(request.out)
    _refuse_taken(request.out, out)
    with held(out):
        _refuse_taken(request.out, out)  # by one that came to its end meanwhile
        _clear(out)
        index = _write_nodules(store, out, rows, verdicts, say)
        note = _note(store, request, rows, index, verdicts, old)
        return _write_about(out, note, index, rows, verdicts, _measured(store, rows, index))


def _measured(store: Store, rows: Sequence[Mapping], index: Sequence[Mapping]) -> list[tuple[str, ...]]:
    """The distributions of the released nodules' measures, where `raymat measure` stored them in the dataset.

    Left out are nodules whose measured matte is not the one in the release.
    """
    keys = sorted(row["key"] for row in rows if row["outcome"] == ACCEPTED)
    table = stored_measures(store, digest(*keys))
    if table is None:
        return []
    mattes = {row["nodule_id"]: (row["method"], row["other_method"]) for row in index}
    measured = table.select(["nodule_id", "matte"]).to_pylist()
    same = [row["matte"] in mattes.get(row["nodule_id"], ()) for row in measured]
    return distribution_rows(table.filter(pa.array(same)))


def _fitting(
    standing: Mapping[str, Mapping[str, Decision]], rows: Sequence[Mapping]
) -> tuple[dict[str, dict[str, Decision]], dict[str, str]]:
    """The decisions that fit the dataset, each judged by itself; and by nodule, why others no longer do."""
    by_id = {row["nodule_id"]: row for row in rows}
    fitting: dict[str, dict[str, Decision]] = {}
    old: dict[str, list[str]] = {}
    for nodule_id, by_reviewer in standing.items():
        for name, decision in by_reviewer.items():
            problem = no_longer(decision, by_id)
            if problem is None:
                fitting.setdefault(nodule_id, {})[name] = decision
            else:
                old.setdefault(nodule_id, []).append(f"{name}'s decision ({decision.label}): {problem}")
    return fitting, {nodule_id: "; ".join(sorted(why)) for nodule_id, why in old.items()}


def _write_nodules(
    store: Store,
    out: ReleaseFolder,
    rows: Sequence[Mapping],
    verdicts: Mapping[str, Verdict],
    say: Callable[[str], None],
) -> list[dict]:
    """Write the accepted nodules and their index, whose rows are returned."""
    taken = [row for row in rows if verdicts[row["nodule_id"]].outcome == ACCEPTED]
    parts = _splits({row["patient_id"] for row in taken})
    index: list[dict] = []
    for start in range(0, len(taken), NODULES_PER_FILE):
        chunk = taken[start : start + NODULES_PER_FILE]
        name = f"nodules/{start // NODULES_PER_FILE:05d}.parquet"
        sink = pa.BufferOutputStream()
        # Those of one dataset have the same channels.
        schema = schema_of_record(store.read_committed(chunk[0]["key"], chunk[0]["shard"]))
        with pq.ParquetWriter(sink, schema, compression="zstd", use_dictionary=False, write_statistics=False) as file:
            for row in chunk:
                found = verdicts[row["nodule_id"]]
                nodule = store.read_committed(row["key"], row["shard"])
                assert found.method is not None  # it is accepted
                nodule_grid(nodule, required(nodule.image, nodule, "image"))  # refuses one without a placement
                nodule = released(nodule, found.method)
                record = record_of(nodule, found.by, found.reviewers)
                file.write_table(pa.Table.from_pylist([record], schema=schema), row_group_size=1)
                splits = {f"split_{n}": part[nodule.patient_id] for n, part in enumerate(parts)}
                index.append(index_row(record, nodule) | splits | {"file": name, "row": len(index) - start})
        out.write(name, sink.getvalue())
        say(f"{len(index)} of {len(taken)} nodules written")
    _write_table(out, INDEX_FILE, pa.Table.from_pylist(index, schema=INDEX))
    return index


def _write_about(
    out: ReleaseFolder,
    note: Mapping,
    index: list[dict],
    rows: Sequence[Mapping],
    verdicts: Mapping[str, Verdict],
    measures: Sequence[Sequence[str]],
) -> str:
    """Write what is said of the nodules, and last the digests, which make the release whole. Returns its digest."""
    left_out = [
        {
            "nodule_id": row["nodule_id"],
            "patient_id": row["patient_id"],
            "outcome": verdicts[row["nodule_id"]].outcome,
            "decided_by": verdicts[row["nodule_id"]].by,
            "reason": verdicts[row["nodule_id"]].reason,
        }
        for row in rows
        if verdicts[row["nodule_id"]].outcome != ACCEPTED
    ]
    _write_table(out, "left_out.parquet", pa.Table.from_pylist(left_out, schema=LEFT_OUT))
    out.write(NOTE, (json.dumps(note, indent=1, ensure_ascii=False) + "\n").encode())
    step = max(1, len(index) // SHEET_NODULES)
    sheet = contact_sheet(Release(out, index).nodules(range(0, len(index), step)[:SHEET_NODULES]))
    out.write("contact_sheet.png", png_bytes(sheet))
    out.write("histograms.png", png_bytes(release_histograms(index, ratings(index))))
    out.write("datasheet.md", datasheet(note, index, left_out, measures).encode())
    names = [name for name in out.listing("") if name not in NO_PART]
    sums = "".join(f"{hashlib.sha256(out.read(name)).hexdigest()}  {name}\n" for name in names)
    out.write(SUMS, sums.encode())
    out.delete(UNFINISHED)
    return hashlib.sha256(sums.encode()).hexdigest()


def _verdict(row: Mapping, decisions: Mapping[str, Decision], request: ReleaseRequest) -> Verdict:
    """The verdict on a nodule; those without mattes keep the outcome of the build."""
    found = verdict(row, decisions)
    if request.reviewed_only and found.by == "score":
        return Verdict(REJECTED, None, "score", (), "no reviewer has decided on it (--reviewed-only)")
    return found


def _splits(patients: set[str]) -> list[dict[str, str]]:
    """Patient to part, for each repeated split; where there are too few to deal out, all are for training."""
    if len(patients) < FEWEST:
        return [dict.fromkeys(patients, PARTS[0])] * REPETITIONS
    return [split_patients(patients, number).parts for number in range(REPETITIONS)]


def index_row(record: Mapping, nodule: Nodule) -> dict:
    """The row of ``INDEX`` of a record and its nodule, its place and splits still missing."""
    alpha = nodule.alpha if nodule.membership is None else nodule.membership
    voxels = float(required(alpha, nodule, "chosen matte").sum(dtype=np.float64))
    mm3 = voxels * float(np.prod(required(nodule.spacing, nodule, "spacing")))
    return {
        **{name: record.get(name) for name in INDEX.names if name in RECORD.names},
        "readers": len(record["readers"]),
        "shape": record["image"]["shape"],
        "scanner_spacing": nodule.metadata.get("scanner_spacing"),
        "diameter_mm": (6.0 * mm3 / math.pi) ** (1.0 / 3.0),
        "ratings": json.dumps(nodule.ratings, sort_keys=True),
        **record_digests(record),
    }


def _note(
    store: Store,
    request: ReleaseRequest,
    rows: Sequence[Mapping],
    index: Sequence[Mapping],
    verdicts: Mapping[str, Verdict],
    old: Mapping[str, str],
) -> dict:
    how = json.loads(store.read(PARAMETERS)) if store.exists(PARAMETERS) else {}
    source = store.manifest(["source"])["source"][0].as_py()
    kind = KINDS.get(source)
    licence, citation = (kind.licence, kind.citation) if kind else (None, None)
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "version": request.version,
        "created": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "source": how.get("source", source),
        "kind": store.kind(),
        "licence": request.licence or licence or "not stated (--licence)",
        "citation": request.citation or citation or "not stated (--citation)",
        "rule": " ".join([RULE, OTHERS, *([REVIEWED_ONLY] if request.reviewed_only else [])]),
        "stale_decisions_left_aside": old,
        "counts": {
            "nodules": len(index),
            "patients": len({row["patient_id"] for row in index}),
            "decided_by": dict(Counter(row["decided_by"] for row in index)),
            "methods": dict(Counter(row["method"] for row in index).most_common()),
            "other_methods": dict(Counter(row["other_method"] for row in index if row["other_method"]).most_common()),
            "left_out": dict(Counter(one.outcome for one in verdicts.values() if one.outcome != ACCEPTED)),
            "of_nodules_in_the_dataset": len(rows),
        },
        "splits": {
            f"split_{n}": {part: sum(row[f"split_{n}"] == part for row in index) for part in PARTS}
            for n in range(REPETITIONS)
        },
        "parameters": how.get("parameters", {"all": NOT_RECORDED}),
        "software": {
            "raymat": __version__,
            "built with raymat": how.get("raymat", "not recorded"),
            "solvers": ", ".join(f"{name} {solver.version}" for name, solver in SOLVERS.items()),
            "prepare": PREPARE_VERSION,
            "python": platform.python_version(),
            **{name: installed(name) for name in PACKAGES},
        },
    }


def _refuse_taken(path: str, out: Folder) -> None:
    """Raise InputError where something lies in the place of a new release that no interrupted one left there."""
    if out.exists(SUMS):
        raise InputError(f"{path}: holds a release already, and releases do not change; name another folder")
    strangers = [name for name in out.listing("") if name != NAME]
    if strangers and not out.exists(UNFINISHED):
        raise InputError(f"{path}: holds {strangers[0]} and no release; name a new or empty folder")


def _clear(out: Folder) -> None:
    """Remove what an interrupted release left, and say that one is being written."""
    for name in out.listing(""):
        if name not in NO_PART:
            out.delete(name)
    out.write(UNFINISHED, b"a release is being written here, or was cut off; it may be started again\n")


def _write_table(out: Folder, name: str, table: pa.Table) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    out.write(name, sink.getvalue())
