"""The build on Ray Data beside a plain `multiprocessing` loop over the same functions on the same real nodules.

    python -m benchmarks.pipeline --nodules 100 --rounds 3

Both ways read and prepare, solve, score and commit crops of lidc-voi (from RAYMAT_TEST_DATA, else ../shared/data) on as
many processes as there are CPUs, one thread each, each run in a process of its own, plain and Ray in turn. Ray gives
its workers a low priority (nice 15); those of the plain loop get the same, or other work would slow Ray's alone. Some
nodules before those that count warm the workers up, some after them keep every stage full to the end of the count, so
that the time is that of `--nodules` commits of a running build; the start is shown apart, as the time to the first
commit. Processor seconds are of all processes of the run: on a machine that does other work they say more than the
clock.

`--empty` takes a few readers' masks too many (all nodules are excluded unread), so that what is left is the pipeline.
`--apart` gives the stages processes of their own, as a cluster of 8 CPUs and more has them.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from raymat.engine.cluster import Pools, connected, thread_environment
from raymat.nodule import Nodule, to_table
from raymat.pipelines.build import Build, build
from raymat.sources import NoduleRef, Source
from raymat.sources.cases import CasesSource
from raymat.steps import BuildParameters, read_and_prepare, score, solve
from raymat.store import Store

WARM, AFTER = 10, 10
NICE = 15


@dataclass(frozen=True)
class Sample:
    """``count`` nodules of a source, spread evenly over it."""

    source: Source
    count: int

    remote = False

    def plan(self) -> Iterator[NoduleRef]:
        refs = [ref for ref in self.source.plan() if not ref.problem]
        step = max(1, len(refs) // self.count)
        yield from refs[: step * self.count : step]

    def read(self, ref: NoduleRef) -> Nodule:
        return self.source.read(ref)


def one(job: tuple[Store, Source, NoduleRef, BuildParameters]) -> None:
    """A nodule's whole way, as a loop would write it."""
    store, source, ref, parameters = job
    nodule = score(solve(read_and_prepare(source, ref, parameters), parameters), parameters)
    store.commit(to_table([nodule]))


def plain(store: Store, source: Sample, parameters: BuildParameters, note) -> None:
    with multiprocessing.get_context("spawn").Pool(os.cpu_count(), os.nice, (NICE,)) as pool:
        jobs = [(store, source.source, ref, parameters) for ref in source.plan()]
        for _ in pool.imap_unordered(one, jobs):
            note(1)
        pool.close()
        pool.join()


def on_ray(store: Store, source: Sample, parameters: BuildParameters, note, apart: bool = False) -> None:
    done, pools = 0, Pools(apart=apart)

    def progress(counts, seconds, finished) -> None:
        nonlocal done
        note(sum(counts.values()) - done)
        done = sum(counts.values())

    with connected(num_cpus=os.cpu_count()):
        build(Build(store, source, parameters, pools), say=lambda line: None, on_progress=progress)


WAYS = {"plain": plain, "ray": on_ray}


def processor_seconds() -> tuple[float, float]:
    """Of this process and all below it, and of this process alone (Linux)."""
    tick = os.sysconf("SC_CLK_TCK")
    parent, used = {}, {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        pid = int(stat.parent.name)
        # Those of ended children that were waited for are in the parent's own account.
        parent[pid], used[pid] = int(fields[1]), sum(map(int, fields[11:15])) / tick

    def below(pid: int) -> bool:
        while pid in parent:
            if pid == os.getpid():
                return True
            pid = parent[pid]
        return False

    return sum(seconds for pid, seconds in used.items() if below(pid)), used[os.getpid()]


def run(way: str, table: str, nodules: int, empty: bool, apart: bool = False) -> dict:
    """Seconds, processor seconds and the time to the first commit of one run."""
    os.environ.update(thread_environment(1))
    begun, done, first, marks = time.monotonic(), 0, 0.0, []

    def note(count: int) -> None:
        nonlocal done, first
        first = first or time.monotonic() - begun
        for _ in range(count):
            done += 1
            if done in (WARM, WARM + nodules):
                marks.append((time.monotonic(), *processor_seconds()))

    parameters = BuildParameters(min_readers=99 if empty else 1)
    with tempfile.TemporaryDirectory() as folder:
        store = Store.create(Path(folder) / "dataset")
        more = {"apart": True} if apart else {}
        WAYS[way](store, Sample(CasesSource(table), WARM + nodules + AFTER), parameters, note, **more)
        size = store.size_bytes() / (WARM + nodules + AFTER)
    names = ("seconds", "processor", "driver")
    return {"first": first, "bytes": size} | dict(zip(names, (b - a for a, b in zip(*marks, strict=True)), strict=True))


def main() -> None:
    command = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    command.add_argument("--nodules", type=int, default=100)
    command.add_argument("--rounds", type=int, default=3)
    command.add_argument("--empty", action="store_true", help="no work in the nodules: the pipeline alone")
    command.add_argument("--apart", action="store_true", help="the stages in processes of their own")
    command.add_argument("--run", choices=WAYS, help=argparse.SUPPRESS)
    options = command.parse_args()
    data = Path(os.environ.get("RAYMAT_TEST_DATA") or Path(__file__).parents[2] / "shared" / "data")
    table = data / "lidc-voi" / "cases.csv"
    if not table.is_file():
        sys.exit(f"no real images in {data}; name their folder in RAYMAT_TEST_DATA")
    if options.run:
        print("measured " + json.dumps(run(options.run, str(table), options.nodules, options.empty, options.apart)))
        return
    print("| round | way | first commit after s | s | processor s | nodules per second |")
    print("| --- | --- | --- | --- | --- | --- |")
    found: dict[str, list[dict]] = {way: [] for way in WAYS}
    for number in range(1, options.rounds + 1):
        for way in WAYS:
            again = [sys.executable, "-m", "benchmarks.pipeline", "--run", way, "--nodules", str(options.nodules)]
            again += ["--empty"] * options.empty + ["--apart"] * (options.apart and way == "ray")
            done = subprocess.run(again, capture_output=True, text=True, check=False)
            if done.returncode:
                sys.exit(done.stdout + done.stderr)
            row = json.loads(done.stdout.split("measured ")[1])
            found[way].append(row)
            rate = options.nodules / row["seconds"]
            cells = f"{row['first']:.1f} | {row['seconds']:.1f} | {row['processor']:.1f} | {rate:.2f}"
            print(f"| {number} | {way} | {cells} |", flush=True)
    for what in ("seconds", "processor"):
        medians = {way: statistics.median(row[what] for row in rows) for way, rows in found.items()}
        ratio = medians["ray"] / medians["plain"]
        print(f"\n{what}: plain {medians['plain']:.1f}, Ray {medians['ray']:.1f}: {100 * (ratio - 1):+.1f} %")
    driver = statistics.median(row["driver"] for row in found["ray"]) / options.nodules
    print(f"\nRay's driver: {1000 * driver:.1f} ms of processor a nodule")


if __name__ == "__main__":
    main()
