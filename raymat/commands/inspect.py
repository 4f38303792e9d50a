"""``raymat inspect``: the outcomes of a dataset, its kind of alpha and the methods chosen."""

from __future__ import annotations

import argparse
import json

HELP = "print the outcomes of a dataset, its kind of alpha and the methods chosen"


def add_arguments(command: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The arguments of ``raymat inspect``."""
    command.add_argument("dataset", help="folder or URI of a dataset")
    command.add_argument("--json", action="store_true", help="print a JSON object")
    command.set_defaults(run=run)
    return command


def run(options: argparse.Namespace) -> int:
    """``raymat inspect``."""
    import pyarrow.compute as pc

    from raymat.measures.table import DISTRIBUTION_HEAD, distribution_rows, stored_measures
    from raymat.methods import MEANINGS
    from raymat.nodule import ACCEPTED, OUTCOMES
    from raymat.sources import digest
    from raymat.store import Store, counts

    store = Store.open(options.dataset)
    listed = ("nodule_id", "patient_id", "outcome", "method", "stage", "reason", "notes", "shape")
    rows = store.outcomes((*listed, "key", "shard"))
    planned = store.manifest(["nodule_id"]).num_rows
    of = counts(rows["outcome"])
    accepted = rows.filter(pc.equal(rows["outcome"], ACCEPTED))
    kind, chosen = store.kind(), counts(accepted["method"])
    others = {other: store.best_methods(other, accepted) for other in MEANINGS if other != kind}
    measured = stored_measures(store, digest(*sorted(accepted["key"].to_pylist())))
    report = {
        "dataset": options.dataset,
        "planned": planned,
        "not_yet_built": planned - rows.num_rows,
        "outcomes": {name: of[name] for name in OUTCOMES},
        "kind": kind,
        "methods": dict(chosen.most_common()),
        "other_methods": {other: dict(best.most_common()) for other, best in others.items() if best},
        "bytes": store.size_bytes(),
    }
    if measured is not None:
        rows_of = (dict(zip(DISTRIBUTION_HEAD, row, strict=True)) for row in distribution_rows(measured))
        report["measures"] = {row.pop("measure"): row for row in rows_of}
    nodules = (row for batch in rows.select(listed).to_batches(max_chunksize=1_000) for row in batch.to_pylist())
    if options.json:
        # Nodule by nodule, as there may be millions.
        print(json.dumps(report, indent=1).removesuffix("\n}") + ',\n "nodules": [')
        for number, row in enumerate(nodules, 1):
            print("  " + json.dumps(row) + ("," if number < rows.num_rows else ""))
        print(" ]\n}")
        return 0
    print(f"{options.dataset}: {planned} nodules, {len(rows['patient_id'].unique())} patients")
    for name in OUTCOMES:
        print(f"  {name:<10}{of[name]:>7}")
    if planned > rows.num_rows:
        print(f"  not built {planned - rows.num_rows:>7}   (run the build again to finish)")
    print(f"kind     {kind}")
    print("chosen   " + (", ".join(f"{method} {n}" for method, n in chosen.most_common()) or "none"))
    for other, best in report["other_methods"].items():
        print(f"  best {other}: " + ", ".join(f"{method} {n}" for method, n in best.items()))
    if measured is not None:
        print(f"measured {measured.num_rows} nodules, 5 to 95 % (median):")
        for words, _, low, _, middle, _, high in distribution_rows(measured):
            print(f"  {words}: {low} to {high} ({middle})")
    print(f"on disk  {report['bytes'] / 1e6:.1f} MB")
    for row in nodules:
        text = row["method"] or ""
        shape = "x".join(map(str, row["shape"])) if row["shape"] else ""
        columns = f"{row['nodule_id']:<23} {row['outcome']:<9} {text:<5} {shape:<13}"
        print(f"  {columns} {row['reason'] or ''}".rstrip())
    return 0
