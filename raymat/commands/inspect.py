"""``raymat inspect``: the outcomes and methods of a dataset."""

from __future__ import annotations

import argparse
import json

HELP = "print the outcomes and methods of a dataset"


def add_arguments(command: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The arguments of ``raymat inspect``."""
    command.add_argument("dataset", help="folder or URI of a dataset")
    command.add_argument("--json", action="store_true", help="print a JSON object")
    command.set_defaults(run=run)
    return command


def run(options: argparse.Namespace) -> int:
    """``raymat inspect``."""
    import pyarrow.compute as pc

    from raymat.nodule import ACCEPTED, OUTCOMES
    from raymat.store import Store, counts

    store = Store.open(options.dataset)
    rows = store.outcomes(("nodule_id", "patient_id", "outcome", "method", "stage", "reason", "notes", "shape"))
    planned = store.manifest(["nodule_id"]).num_rows
    of = counts(rows["outcome"])
    chosen = counts(rows.filter(pc.equal(rows["outcome"], ACCEPTED))["method"])
    report = {
        "dataset": options.dataset,
        "planned": planned,
        "not_yet_built": planned - rows.num_rows,
        "outcomes": {name: of[name] for name in OUTCOMES},
        "methods": dict(chosen.most_common()),
        "bytes": store.size_bytes(),
    }
    nodules = (row for batch in rows.to_batches(max_chunksize=1_000) for row in batch.to_pylist())
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
    print("chosen   " + (", ".join(f"{method} {n}" for method, n in chosen.most_common()) or "none"))
    print(f"on disk  {report['bytes'] / 1e6:.1f} MB")
    for row in nodules:
        text = row["method"] or ""
        shape = "x".join(map(str, row["shape"])) if row["shape"] else ""
        columns = f"{row['nodule_id']:<23} {row['outcome']:<9} {text:<5} {shape:<13}"
        print(f"  {columns} {row['reason'] or ''}".rstrip())
    return 0
