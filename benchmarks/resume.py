"""Start and end of a build over many committed nodules: seconds and the driver's peak memory, in a process each.

    python -m benchmarks.resume --nodules 100000

Makes a case table of that many nodules (its rows name the same small files) and a dataset in which all but a hundred
are committed, each with tiny arrays and an index row of full size: eight solves. Then it measures, each in a fresh
process, what the driver of a resumed build does before Ray starts (`plan`, its MLflow run included), what it does after
the last commit (`end`: superseded files, index, outcomes, contact sheet, summary, MLflow run), and `raymat inspect`.
The peak includes what the process is before it does anything (`nothing`): Python, Arrow, Ray, MLflow, the solvers'
libraries.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from raymat.experiment import BUILD, Facts, Output, experiment
from raymat.methods import METHODS, SolveInfo
from raymat.nodule import Matte, Nodule, to_table
from raymat.pipelines.build import Result, nodules_per_shard, plan_build
from raymat.pipelines.build_job import SHEET_NODULES, draw_contact_sheet, exit_status, log_outcomes, summary
from raymat.sources import NoduleRef
from raymat.sources.cases import CasesSource
from raymat.steps import BuildParameters
from raymat.store import BRIEF, OUTCOME, Store, as_parquet, outcome_row, shard_name
from raymat.tracking import Run
from raymat.volume import Grid, write_volume

PARAMETERS = BuildParameters(min_readers=1)
SHAPE = (6, 8, 8)
TO_DO = 100


def make_table(folder: Path, count: int) -> Path:
    """A case table of ``count`` rows over one small image and two masks."""
    folder.mkdir()
    grid = Grid(SHAPE, (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), np.eye(3))
    write_volume(folder / "image.nii.gz", np.zeros(SHAPE, np.float32), grid)
    for reader in "ab":
        write_volume(folder / f"{reader}.nii.gz", np.ones(SHAPE, np.uint8), grid)
    with open(folder / "cases.csv", "w") as file:
        file.write("case_id,patient_id,image,masks,malignancy\n")
        for i in range(count):
            file.write(f"case-{i:08d},patient-{i // 2:08d},image.nii.gz,a.nii.gz;b.nii.gz,3\n")
    return folder / "cases.csv"


def committed(refs: Iterator[NoduleRef], store: Store, count: int) -> None:
    """Commit the first ``count`` nodules: shards as a whole build writes them, and an index of full-sized rows."""
    rng = np.random.default_rng(0)
    array = rng.random(SHAPE).astype(np.float32)
    trimap = np.full(SHAPE, 128, np.uint8)
    mattes = [
        Matte(method, array, SolveInfo(40, 1e-6, True, 0.5, 15_000, "cg jacobi"), score=0.7) for method in METHODS
    ]
    like = Nodule(
        "",
        "",
        "cases",
        image=array,
        spacing=(0.5, 0.5, 0.5),
        origin=(0.0, 0.0, 0.0),
        direction=np.eye(3),
        readers=[trimap, trimap],
        trimap=trimap,
        candidates=mattes,
        method="cf+",
        outcome="accepted",
    )
    size = nodules_per_shard(count)
    row = outcome_row(like) | {"notes": ["padded with air below z = -120 mm: 3 slices"]}
    shard, rows, done = [], [], 0

    def flush() -> None:
        nonlocal done
        keys = [nodule.key for nodule in shard]
        name = shard_name(keys)
        # Not `commit`, which waits for the disk with every file; and only the contact sheet's are ever opened.
        path = Path(store.path(name))
        path.parent.mkdir(parents=True, exist_ok=True)
        drawn = any(number % (count // SHEET_NODULES) == 0 for number in range(done, done + len(shard)))
        path.write_bytes(as_parquet(to_table(shard), row_group_size=1) if drawn else b"a committed shard")
        rows.extend(
            row | {"nodule_id": n.nodule_id, "patient_id": n.patient_id, "key": n.key, "shard": name} for n in shard
        )
        done += len(shard)
        shard.clear()
        if len(rows) >= 5_000:
            store.add_to_index(pa.Table.from_pylist(rows, schema=OUTCOME))
            rows.clear()

    for _, ref in zip(range(count), refs, strict=False):
        shard.append(replace(like, nodule_id=ref.nodule_id, patient_id=ref.patient_id, key=PARAMETERS.key(ref)))
        if len(shard) == size:
            flush()
    if shard:
        flush()
    if rows:
        store.add_to_index(pa.Table.from_pylist(rows, schema=OUTCOME))


def plan(folder: Path) -> None:
    Run(f"sqlite:///{folder}/mlflow.db", "benchmark", {})
    planned = plan_build(Store.create(folder / "dataset"), CasesSource(str(folder / "cases" / "cases.csv")), PARAMETERS)
    assert planned.to_do == TO_DO, planned


def end(folder: Path) -> None:
    store = Store.create(folder / "dataset")
    planned = plan_build(store, CasesSource(str(folder / "cases" / "first.csv")), PARAMETERS)
    assert planned.to_do == 0, planned
    store.remove_superseded()
    store.compact_index()
    result = Result(planned, store.outcomes(BRIEF), 1.0)
    output = Output(str(folder / "dataset"), f"sqlite:///{folder}/mlflow.db")
    with experiment(BUILD, output, Facts({}), files=store) as work:
        draw_contact_sheet(work, store, result)
        log_outcomes(work, store, result)
    print(summary(result))
    assert exit_status(result) == 0


def inspect(folder: Path) -> None:
    from raymat.cli import main

    with contextlib.redirect_stdout(io.StringIO()) as said:
        assert main(["inspect", str(folder / "dataset")]) == 0
    assert said.getvalue().count("accepted") > 1


def nothing(folder: Path) -> None:
    pass


STEPS = {"nothing": nothing, "plan": plan, "end": end, "inspect": inspect}


def main() -> None:
    command = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    command.add_argument("--nodules", type=int, default=100_000)
    command.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    command.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = command.parse_args()
    if options.step:
        begun, used = time.monotonic(), time.process_time()
        STEPS[options.step](options.folder)
        seconds, cpu = time.monotonic() - begun, time.process_time() - used
        # getrusage would count the parent's memory at the time of the fork (Linux).
        status = Path("/proc/self/status").read_text()
        peak = int(status.split("VmHWM:")[1].split()[0]) / 1024
        print(f"measured {seconds:.1f} {cpu:.1f} {peak:.0f}")
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        table = make_table(folder / "cases", options.nodules + TO_DO)
        lines = table.read_text().splitlines(keepends=True)
        (folder / "cases" / "first.csv").write_text("".join(lines[:-TO_DO]))
        store = Store.create(folder / "dataset")
        committed(CasesSource(str(table)).plan(), store, options.nodules)
        print(f"{options.nodules:,} committed nodules in {len(store.listing('nodules')):,} files, {TO_DO} to do\n")
        print("| step | seconds | of processor | peak MiB |\n| --- | --- | --- | --- |")
        for step in STEPS:
            arguments = [sys.executable, "-m", "benchmarks.resume", "--step", step, "--folder", name]
            done = subprocess.run(arguments, capture_output=True, text=True, check=False, env=os.environ)
            if done.returncode:
                sys.exit(done.stdout + done.stderr)
            seconds, cpu, peak = done.stdout.split("measured ")[1].split()
            print(f"| {step} | {seconds} | {cpu} | {peak} |", flush=True)


if __name__ == "__main__":
    main()
