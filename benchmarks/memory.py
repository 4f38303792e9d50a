"""Peak memory of each stage of the build on the largest nodules, each stage in a process of its own.

    python benchmarks/memory.py            # the largest of lidc-voi and of the phantoms

Real crops are looked for in the folder that RAYMAT_TEST_DATA names, else in ../shared/data. A stage gets the nodule as
an Arrow table and gives one back, as on a cluster, so that the copies between stages count.
"""

import argparse
import os
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pyarrow as pa

from raymat.nodule import from_table, to_table
from raymat.sources.cases import CasesSource
from raymat.sources.phantom import PhantomSource
from raymat.steps import BuildParameters, read_and_prepare, score, solve
from raymat.store import Store

PARAMETERS = BuildParameters(min_readers=1)


def read(source, ref) -> pa.Table:
    return to_table([read_and_prepare(source, ref, PARAMETERS)])


def solve_table(table: pa.Table) -> pa.Table:
    return to_table([solve(from_table(table, copy=False)[0], PARAMETERS)])


def score_table(table: pa.Table) -> pa.Table:
    return to_table([score(from_table(table, copy=False)[0], PARAMETERS)])


def commit(table: pa.Table) -> pa.Table:
    with tempfile.TemporaryDirectory() as folder:
        return Store.create(Path(folder) / "dataset").commit(table)


def measured(stage, *arguments) -> tuple[pa.Table, float]:
    """The stage's result and the peak resident memory, in GiB, of the process that ran it (Linux)."""
    result = stage(*arguments)
    # getrusage would count the parent's memory at the time of the fork.
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return result, int(peak.split()[1]) / 2**20


def in_own_process(stage, *arguments) -> tuple[pa.Table, float]:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(measured, stage, *arguments).result()


def largest(source):
    """The nodule of the source with the most unknown voxels."""
    refs = [ref for ref in source.plan() if not ref.problem]
    return max(refs, key=lambda ref: unknown_voxels(source, ref))


def unknown_voxels(source, ref) -> int:
    nodule = read_and_prepare(source, ref, PARAMETERS)
    return 0 if nodule.trimap is None else int((nodule.trimap == 128).sum())


def main() -> None:
    command = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    command.add_argument("--phantoms", type=int, default=40, help="phantoms to choose the largest from")
    options = command.parse_args()
    here = Path(__file__).parents[1]
    data = Path(os.environ.get("RAYMAT_TEST_DATA") or here.parent / "shared" / "data")
    with tempfile.TemporaryDirectory() as folder:
        sources = {"phantom": PhantomSource(folder, options.phantoms)}
        if (table := data / "lidc-voi" / "cases.csv").is_file():
            sources["lidc-voi"] = CasesSource(str(table))
        print("| nodule | grid | unknown voxels | read | solve | score | commit, GiB |")
        print("| --- | --- | --- | --- | --- | --- | --- |")
        for name, source in sources.items():
            ref = largest(source)
            peaks = []
            result, peak = in_own_process(read, source, ref)
            peaks.append(peak)
            nodule = from_table(result)[0]
            for stage in (solve_table, score_table, commit):
                result, peak = in_own_process(stage, result)
                peaks.append(peak)
            grid = " x ".join(map(str, nodule.image.shape))
            cells = " | ".join(f"{peak:.2f}" for peak in peaks)
            print(f"| {name} {ref.nodule_id} | {grid} | {(nodule.trimap == 128).sum():,} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
