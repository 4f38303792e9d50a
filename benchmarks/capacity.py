"""What a build of many nodules takes: wall time, stragglers, store operations, driver memory and price.

    python -m benchmarks.capacity --measure 40              # costs of real crops on this machine, then the table
    python -m benchmarks.capacity --costs costs.json        # the table from costs measured before

Measured are, for each nodule of a sample of lidc-voi (RAYMAT_TEST_DATA, else ../shared/data), the processor seconds to
read and prepare, solve, score and commit it, and the bytes it commits. Everything else is an assumption, printed with
the table and set by an option: what a node has and costs, what a request costs, what the driver spends per nodule.

The model. Workers, as many per node as `raymat.engine.cluster.Pools` gives it, take nodules in batches; what a nodule
costs is as in the sample. The wall time of the work is the largest of four: all work over all workers; the drivers'
seconds per nodule over the number of drivers (one for 400 workers); the main driver's seconds per nodule, which takes
in all outcome rows; the store's writes over the rate that one prefix takes. To that come the plan and the end, in the
main driver alone, the start of the nodes, and the tail: once the work list is empty a build waits for the longest of
the nodules that are being solved. Nodes are there from their start to the end of the tail: they come when the plan is
made, and go after the last nodule, so that *busy* is the share of that time in which the workers work.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from raymat.engine.cluster import Pools
from raymat.nodule import to_table
from raymat.pipelines.build import INDEX_ROWS, nodules_per_shard
from raymat.sources.cases import CasesSource
from raymat.steps import BuildParameters, read_and_prepare, score, solve
from raymat.store import PART_ROWS, Store

STAGES = ("read", "solve", "score", "commit")
SIZES = {"LIDC-IDRI": 2_600, "200,000": 200_000, "10 million": 10_000_000}
NODES = (1, 10, 100, 1_000)
WORK_ROWS = 256  # of a part of the work list
PART_BYTES = 10 << 20  # beyond which an upload goes in parts


@dataclass(frozen=True)
class Assumptions:
    """What is not measured here.

    Attributes
    ----------
    cpus, memory_gib : of a node (vCPUs; AWS's m7i.4xlarge)
    node_price : USD an hour (spot, a third of on demand)
    head_price : USD an hour, on demand, of the head node
    speed : how fast a vCPU of it solves, beside this machine's
    start_s : until a node has been started and its workers have imported everything
    driver_ms : processor time of a driver per nodule (benchmarks/scale.py prints it, with batches of 12 on average)
    main_ms : of the main driver per nodule, where others drive the workers: it takes in outcome rows and writes the
        index (benchmarks/scale.py --rows)
    plan_ms, end_ms : of the main driver per nodule, before and after the work (benchmarks/resume.py)
    row_bytes, base_mib : of the driver: a nodule's part of its tables at their largest, and what it is before
        (benchmarks/resume.py at two sizes)
    input_files : objects read a nodule (a scan's slices, or an image and its masks)
    put_price, get_price : USD a thousand requests (S3 Standard, us-east-1)
    store_price : USD a GB and month
    put_rate : writes per second that one prefix of a bucket takes
    prefixes : into how many the store has split the 256 that nodules are written to
    """

    cpus: int = 16
    memory_gib: float = 60.0
    node_price: float = 0.27
    head_price: float = 0.20
    speed: float = 1.0
    start_s: float = 180.0
    driver_ms: float = 1.0
    main_ms: float = 0.05
    plan_ms: float = 0.1
    end_ms: float = 0.12
    row_bytes: float = 1_400.0
    base_mib: float = 350.0
    input_files: float = 25.0
    put_price: float = 0.005
    get_price: float = 0.0004
    store_price: float = 0.023
    put_rate: float = 3_500.0
    prefixes: int = 4


def measure(count: int) -> dict[str, list[float]]:
    """Processor seconds of each stage and committed bytes, for ``count`` nodules spread over lidc-voi."""
    data = Path(os.environ.get("RAYMAT_TEST_DATA") or Path(__file__).parents[2] / "shared" / "data")
    table = data / "lidc-voi" / "cases.csv"
    if not table.is_file():
        sys.exit(f"no real images in {data}; name their folder in RAYMAT_TEST_DATA")
    source, parameters = CasesSource(str(table)), BuildParameters(min_readers=1)
    refs = list(source.plan())
    refs = refs[:: max(1, len(refs) // count)][:count]
    found: dict[str, list[float]] = {name: [] for name in (*STAGES, "bytes")}
    with tempfile.TemporaryDirectory() as folder:
        store = Store.create(Path(folder) / "dataset")
        # The first nodule pays for imports and compiled loops.
        for number, ref in enumerate([refs[0], *refs]):
            marks = [time.process_time()]
            nodule = read_and_prepare(source, ref, parameters)
            marks.append(time.process_time())
            nodule = solve(nodule, parameters)
            marks.append(time.process_time())
            nodule = score(nodule, parameters)
            marks.append(time.process_time())
            rows = store.commit(to_table([nodule]))
            marks.append(time.process_time())
            if number:
                for name, seconds in zip(STAGES, np.diff(marks), strict=True):
                    found[name].append(round(float(seconds), 4))
                found["bytes"].append(len(store.read(rows["shard"][0].as_py())))
    return found


def requests(nodules: int, given: Assumptions, shard_bytes: float) -> tuple[float, float]:
    """Requests that write or list, and that read or look, of one undisturbed build from and to an object store."""
    shard = nodules_per_shard(nodules)
    shards = math.ceil(nodules / shard)
    puts_per_shard = 1 if shard_bytes <= PART_BYTES else 2 + math.ceil(shard_bytes / PART_BYTES)
    parts = math.ceil(nodules / PART_ROWS)
    index = math.ceil(nodules / INDEX_ROWS)
    lists = math.ceil(nodules * given.input_files / 1_000) + 4 * math.ceil(shards / 1_000)
    writes = shards * puts_per_shard + 2 * parts + index + math.ceil(nodules / WORK_ROWS) + lists
    # Planning looks at each file; reading looks, opens and gets it. The work list, manifest and index come back once.
    reads = nodules * given.input_files * 4 + 3 * (math.ceil(nodules / WORK_ROWS) + 4 * parts + 2 * index)
    return writes, reads


def estimate(nodules: int, nodes: int, costs: dict[str, list[float]], given: Assumptions) -> dict[str, float | str]:
    """The model's figures for a number of nodules on a number of nodes."""
    rng = np.random.default_rng(0)
    seconds = np.sum([costs[stage] for stage in STAGES], axis=0) / given.speed
    # Of a node's vCPUs the solvers get what the other stages leave, which work beside them on the same ones.
    pools = Pools().sized(given.cpus * nodes, given.memory_gib * nodes)
    busy = min(pools.workers, nodules)
    work = nodules * seconds.mean() / busy
    drivers = nodules * given.driver_ms / 1_000 / pools.pipelines
    main = nodules * given.main_ms / 1_000 if pools.pipelines > 1 else 0.0
    shard_bytes = float(np.mean(costs["bytes"])) * nodules_per_shard(nodules)
    writes, reads = requests(nodules, given, shard_bytes)
    store = writes / given.put_rate / given.prefixes
    limits = {"workers": work, "drivers": drivers, "main driver": main, "store": store}
    wall = max(limits.values())
    # Mean of the longest of those still under way, each caught somewhere on its way.
    draws = rng.choice(seconds, (200, min(busy, 4_000))) * rng.random((200, min(busy, 4_000)))
    tail = float(draws.max(axis=1).mean())
    there = given.start_s + wall + tail
    total = there + nodules * (given.plan_ms + given.end_ms) / 1_000
    price = (nodes * given.node_price * there + given.head_price * total) / 3_600
    return {
        "nodules": nodules,
        "nodes": nodes,
        "workers": busy,
        "drivers": pools.pipelines,
        "hours": total / 3_600,
        "limit": max(limits, key=limits.get),
        "busy": nodules * seconds.mean() / busy / there,
        "started": nodules * seconds.mean() / busy / (wall + tail),
        "tail": tail,
        "writes": writes,
        "reads": reads,
        "driver_gib": (given.base_mib * 2**20 + nodules * given.row_bytes) / 2**30,
        "committed_gb": nodules * float(np.mean(costs["bytes"])) / 1e9,
        "compute": price,
        "requests": (writes * given.put_price + reads * given.get_price) / 1_000,
    }


def main() -> None:
    command = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    where = command.add_mutually_exclusive_group(required=True)
    where.add_argument("--measure", type=int, metavar="N", help="nodules of the sample")
    where.add_argument("--costs", type=Path, help="costs that --save kept")
    command.add_argument("--save", type=Path, help="keep the measured costs")
    for name, value in vars(Assumptions()).items():
        command.add_argument(
            f"--{name.replace('_', '-')}", type=type(value), default=value, help="default: %(default)s"
        )
    options = command.parse_args()
    costs = measure(options.measure) if options.measure else json.loads(options.costs.read_text())
    if options.save:
        options.save.write_text(json.dumps(costs))
    given = Assumptions(**{name: getattr(options, name) for name in vars(Assumptions())})
    print(f"Measured on {len(costs['solve'])} nodules, processor seconds per nodule (mean, median, longest):")
    for stage in STAGES:
        values = np.array(costs[stage])
        print(f"{stage} {values.mean():.2f}, {np.median(values):.2f}, {values.max():.2f}; ", end="")
    print(f"committed {np.mean(costs['bytes']) / 1e6:.2f} MB")
    print("Assumed: " + ", ".join(f"{name} {value:g}" for name, value in vars(given).items()) + "\n")
    columns = "nodules | nodes | workers | drivers | hours | limited by | busy | busy once started | "
    columns += "tail s | writes, lists | reads | "
    columns += "driver GiB | committed GB | compute USD | requests USD | storage USD a month"
    print(f"| {columns} |\n|{' --- |' * (columns.count('|') + 1)}")
    for name, nodules in SIZES.items():
        for nodes in NODES:
            row = estimate(nodules, nodes, costs, given)
            cells = [
                name,
                f"{nodes:,}",
                f"{row['workers']:,}",
                f"{row['drivers']:,}",
                f"{row['hours']:.2f}",
                row["limit"],
            ]
            cells += [
                f"{100 * row['busy']:.0f} %",
                f"{100 * row['started']:.0f} %",
                f"{row['tail']:.0f}",
                f"{row['writes']:,}",
                f"{row['reads']:,.0f}",
            ]
            cells += [f"{row['driver_gib']:.1f}", f"{row['committed_gb']:,.0f}", f"{row['compute']:,.2f}"]
            cells += [f"{row['requests']:,.2f}", f"{row['committed_gb'] * given.store_price:,.2f}"]
            print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
