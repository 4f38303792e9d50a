"""A build from and to an object store that answers late, beside one that answers at once.

    python -m benchmarks.latency --nodules 40 --milliseconds 200

Real crops of lidc-voi (RAYMAT_TEST_DATA, else ../shared/data) lie in a bucket of moto's S3 server on this machine,
which waits before it answers each request. Both builds run in turn, each in a process of its own, on two workers; the
time is that from the first commit to the last.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import secrets
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow.fs as pafs

from raymat.engine.cluster import Pools
from raymat.pipelines.build import Build, build
from raymat.sources.cases import CasesSource
from raymat.steps import BuildParameters
from raymat.store import Store

BUCKET = "latency"


def serve(port: int, seconds: float) -> None:
    """moto's server, each answer late by a number of seconds; does not return."""
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import run_simple

    application = DomainDispatcherApplication(create_backend_app)

    def late(environ, start_response):
        time.sleep(seconds)
        return application(environ, start_response)

    run_simple("127.0.0.1", port, late, threaded=True)


def fill(table: Path, count: int) -> str:
    """Copy cases spread evenly over a table, with their files, into the bucket; the URI of the new table."""
    rows = list(csv.DictReader(table.open()))
    rows = rows[:: max(1, len(rows) // count)][:count]
    store = pafs.S3FileSystem(
        endpoint_override=os.environ["AWS_ENDPOINT_URL"].removeprefix("http://"),
        scheme="http",
        region="us-east-1",
        allow_bucket_creation=True,
    )
    store.create_dir(BUCKET)
    for row in rows:
        for name in (row["image"], *row["masks"].split(";")):
            with store.open_output_stream(f"{BUCKET}/in/{name}", compression=None) as out:
                out.write((table.parent / name).read_bytes())
    with tempfile.NamedTemporaryFile("w+", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
        file.flush()
        with store.open_output_stream(f"{BUCKET}/in/cases.csv") as out:
            out.write(Path(file.name).read_bytes())
    return f"s3://{BUCKET}/in/cases.csv"


def run(table: Path, count: int, seconds: float) -> dict[str, float]:
    """Seconds from the first commit to the last, and nodules."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ |= {"AWS_ACCESS_KEY_ID": "raymat", "AWS_SECRET_ACCESS_KEY": secrets.token_hex(20)}
    os.environ |= {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}
    late = [sys.executable, "-m", "benchmarks.latency", "--serve", str(port), "--milliseconds", str(1_000 * seconds)]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    server = subprocess.Popen(late, **quiet)
    try:
        for _ in range(600):
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                time.sleep(0.1)
        source = CasesSource(fill(table, count))
        store = Store.create(f"s3://{BUCKET}/out")
        result = build(Build(store, source, BuildParameters(min_readers=1), Pools(workers=2)), lambda line: None)
        if result.counts["failed"]:
            raise SystemExit(f"{result.counts['failed']} nodules failed")
        times = sorted(info.mtime_ns / 1e9 for info in store._find("nodules") if info.size)
        return {"seconds": times[-1] - times[0], "nodules": len(times)}
    finally:
        server.kill()
        server.wait()


def main() -> None:
    command = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    command.add_argument("--nodules", type=int, default=40)
    command.add_argument("--milliseconds", type=float, default=200.0)
    command.add_argument("--rounds", type=int, default=2)
    command.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    command.add_argument("--run", action="store_true", help=argparse.SUPPRESS)
    options = command.parse_args()
    if options.serve:
        serve(options.serve, options.milliseconds / 1_000)
    data = Path(os.environ.get("RAYMAT_TEST_DATA") or Path(__file__).parents[2] / "shared" / "data")
    table = data / "lidc-voi" / "cases.csv"
    if not table.is_file():
        sys.exit(f"no real images in {data}; name their folder in RAYMAT_TEST_DATA")
    if options.run:
        print("measured " + json.dumps(run(table, options.nodules, options.milliseconds / 1_000)))
        return
    found: dict[float, list[float]] = {0.0: [], options.milliseconds: []}
    for _ in range(options.rounds):
        for wait, seconds in found.items():
            again = [sys.executable, "-m", "benchmarks.latency", "--run", "--nodules", str(options.nodules)]
            done = subprocess.run([*again, "--milliseconds", str(wait)], capture_output=True, text=True, check=False)
            if done.returncode:
                sys.exit(done.stdout + done.stderr)
            row = json.loads(done.stdout.split("measured ")[1])
            seconds.append(row["seconds"])
            print(f"{wait:g} ms: {row['nodules']} nodules in {row['seconds']:.1f} s", flush=True)
    at_once, late = (statistics.median(seconds) for seconds in found.values())
    print(f"throughput {100 * (at_once / late - 1):+.1f} % with {options.milliseconds:g} ms for each request")


if __name__ == "__main__":
    main()
