"""The real build over stand-in nodules that take a given time: what it does per second, and what each nodule costs.

    python -m benchmarks.scale --nodules 2000 --seconds 0.2 --workers 16
    python -m benchmarks.scale --nodules 2000 --seconds 0.2 --workers 16 --apart
    python -m benchmarks.scale --nodules 10000 --seconds 0 --workers 2 --commit     # a small record for each
    python -m benchmarks.scale --nodules 100000 --rows       # what the main driver and the ledger take, without workers

A stand-in sleeps in ``read`` and is then excluded, so that what is left is the pipeline; a local Ray is made to have
a CPU for each worker. With ``--commit`` it has a small image and readers instead, and is solved and committed as any
nodule is. The rate is that between the commits of the first and the last nodule: the start of Ray and of the workers
comes before it and is shown apart. *Possible* is workers / seconds. Processor and memory are the driver process's;
requests to the store are those of all processes, counted where ``Store`` makes them.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import ray

from raymat.engine.cluster import Pools, connected
from raymat.engine.ledger import open_ledger
from raymat.nodule import Nodule, NoduleExcluded
from raymat.pipelines.build import Build, IndexWriter, build
from raymat.prepare import PrepareParameters
from raymat.quality import QualityParameters
from raymat.sources import NoduleRef
from raymat.steps import BuildParameters
from raymat.store import OUTCOME, Store

SHAPE = (10, 12, 12)


@dataclass(frozen=True)
class StandIns:
    """``count`` nodules that each take ``seconds`` to read, and are excluded then."""

    count: int
    seconds: float

    remote = False

    def plan(self) -> Iterator[NoduleRef]:
        for number in range(self.count):
            yield NoduleRef(f"n{number:07d}", f"p{number // 2:07d}", "cases", 4, str(number), "{}")

    def read(self, ref: NoduleRef) -> Nodule:
        time.sleep(self.seconds)
        raise NoduleExcluded(f"a stand-in, read by process {os.getpid()}")


@dataclass(frozen=True)
class Balls(StandIns):
    """``count`` small nodules: a soft ball and four readers, on the grid that the build works on."""

    def read(self, ref: NoduleRef) -> Nodule:
        time.sleep(self.seconds)
        rng = np.random.default_rng(int(ref.fingerprint))
        distance = np.sqrt(sum((axis - n / 2) ** 2 for axis, n in zip(np.indices(SHAPE), SHAPE, strict=True)))
        alpha = np.clip(3.5 - distance, 0, 1).astype(np.float32)
        return Nodule(
            ref.nodule_id,
            ref.patient_id,
            ref.source,
            image=(-850 + 880 * alpha + rng.normal(0, 20, SHAPE)).astype(np.float32),
            spacing=(1.0, 1.0, 1.0),
            origin=(0.0, 0.0, 0.0),
            direction=np.eye(3),
            readers=[(distance < 3 + step).astype(np.uint8) for step in (-0.4, -0.2, 0.2, 0.4)],
        )


@dataclass
class Counting(Store):
    """A store that counts its requests, one byte for each in a file that all processes append to."""

    record: str = ""

    def _count(self) -> None:
        with open(self.record, "ab", buffering=0) as file:
            file.write(b".")


def _counted(name: str):
    plain = getattr(Store, name)

    def request(self, *arguments, **named):
        self._count()
        return plain(self, *arguments, **named)

    return request


for _name in ("exists", "read", "write", "delete", "read_table", "_find"):
    setattr(Counting, _name, _counted(_name))


def commit_times(store: Store) -> list[float]:
    """When each file of nodules was written, s."""
    root = Path(store.root)
    return sorted((root / name).stat().st_mtime_ns / 1e9 for name in store.listing("nodules"))


def full_rate(store: Store) -> float:
    """Nodules per second from the first nodule of the last worker to come, to the end; NaN if not reported."""
    root, first, times = Path(store.root), {}, []
    for row in store.outcomes(["reason", "shard"]).to_pylist():
        written = (root / row["shard"]).stat().st_mtime_ns / 1e9
        worker = (row["reason"] or "").rpartition(" ")[2]
        first[worker] = min(first.get(worker, written), written)
        times.append(written)
    begun = max(first.values())
    return sum(at > begun for at in times) / (max(times) - begun) if len(first) > 1 else float("nan")


def measure(options: argparse.Namespace) -> dict[str, float]:
    """One build's figures."""
    source = (Balls if options.commit else StandIns)(options.nodules, options.seconds)
    grid = PrepareParameters(crop_px=SHAPE[1], spacing_mm=1.0, pad_slices=1)
    parameters = BuildParameters(prepare=grid, quality=QualityParameters(floor=0.0))
    if options.methods:
        parameters = replace(parameters, matting=replace(parameters.matting, methods=tuple(options.methods.split(","))))
    pools = Pools(workers=options.workers, cpus=0.9, memory_gib=0.05, apart=options.apart)
    memory, used, process = [], [], psutil.Process()

    def look(counts, seconds, finished) -> None:
        memory.append(process.memory_info().rss / 2**20)
        used.append((time.process_time(), sum(counts.values())))

    with tempfile.TemporaryDirectory() as folder, connected(num_cpus=options.workers + 1):
        plain = Store.create(Path(folder) / "dataset")
        store = Counting(plain.filesystem, plain.root, f"{folder}/requests")
        begun, before = time.time(), time.process_time()
        result = build(Build(store, source, parameters, pools), lambda line: None, look)
        whole = time.process_time() - before
        times = commit_times(plain)
        full = full_rate(plain)
        requests = os.path.getsize(store.record)
        again = time.monotonic()
        build(Build(plain, source, parameters, pools), lambda line: None)
        again = time.monotonic() - again
    per_file = options.nodules / len(times)
    rate = per_file * (len(times) - 1) / max(times[-1] - times[0], 1e-9)
    possible = options.workers / options.seconds if options.seconds else float("nan")
    half = len(memory) // 2
    begun_used = next(entry for entry in used if entry[1])
    return {
        "nodules per second": rate,
        "share of the possible": rate / possible,
        "all workers up": full,
        "share of the possible ": full / possible,
        "first commit after s": times[0] - begun,
        "seconds in all": result.seconds,
        "driver ms per nodule": 1_000 * (used[-1][0] - begun_used[0]) / (used[-1][1] - begun_used[1]),
        "driver s before that": whole - (used[-1][0] - begun_used[0]),
        "driver MiB at half": memory[half],
        "driver MiB at the end": memory[-1],
        "driver MiB at most": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10,
        "requests per nodule": requests / options.nodules,
        "nothing to do s": again,
    }


def rows_per_second(count: int) -> dict[str, float]:
    """What the main driver does with outcome rows, and the ledger with calls, each on its own."""
    row = {"nodule_id": "LIDC-IDRI-0001-N1", "patient_id": "LIDC-IDRI-0001", "outcome": "accepted", "method": "cf+"}
    row |= {"shape": [100, 120, 120], "notes": [], "shard": "nodules/ab/" + 32 * "a" + ".parquet"}
    solve = {"method": "cf", "seconds": 0.1, "iterations": 100, "converged": True, "unknowns": 9_000, "score": 0.5}
    rows = [row | {"key": f"{number:032x}", "solves": [solve] * 8} for number in range(32)]
    block = pa.Table.from_pylist(rows, schema=OUTCOME)
    with tempfile.TemporaryDirectory() as folder:
        index, used = IndexWriter(Store.create(folder)), time.process_time()
        for _ in range(count // 32):
            index.add(block)
            block["outcome"].to_pylist()
        index.flush()
        used = time.process_time() - used
    with connected(num_cpus=1):
        ledger = open_ledger("benchmark", {})
        ray.get(ledger.begin.remote("first"))
        begun = time.monotonic()
        calls = [ledger.begin.remote(f"batch {number}") for number in range(2_000)]
        calls += [ledger.report.remote(f"batch {number}", block) for number in range(2_000)]
        ray.get(calls)
        seconds = time.monotonic() - begun
    return {"main driver ms per nodule": 1_000 * used / count, "ledger calls per second": 4_000 / seconds}


def main() -> None:
    command = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    command.add_argument("--nodules", type=int, default=2_000)
    command.add_argument("--seconds", type=float, default=0.2, help="of each nodule (default: %(default)s)")
    command.add_argument("--workers", type=int, default=16)
    command.add_argument("--apart", action="store_true", help="scoring and committing in workers of their own")
    command.add_argument("--commit", action="store_true", help="small nodules with mattes instead of excluded ones")
    command.add_argument("--methods", help="with --commit, solvers by comma (default: all eight)")
    command.add_argument(
        "--rows", action="store_true", help="what the main driver and the ledger take, without workers"
    )
    command.add_argument("--json", action="store_true")
    options = command.parse_args()
    found = rows_per_second(options.nodules) if options.rows else measure(options)
    if options.json:
        print(json.dumps(found))
        return
    for name, value in found.items():
        print(f"{name:<24}{value:10.3f}")


if __name__ == "__main__":
    main()
