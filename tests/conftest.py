"""Fixtures that the whole suite shares."""

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pyarrow.fs as pafs
import pytest

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with real LIDC-IDRI images."""
    folder = Path(os.environ.get("RAYMAT_TEST_DATA") or REPOSITORY.parent / "shared" / "data")
    if not (folder / "lidc-voi" / "cases.csv").is_file():
        pytest.skip(f"no real images in {folder}; name their folder in RAYMAT_TEST_DATA")
    return folder


@pytest.fixture(scope="session")
def ray_cluster():
    """One local Ray of two CPUs for all tests of the session."""
    ray = pytest.importorskip("ray")
    from raymat.pipelines.cluster import connected

    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RAY_metrics_report_interval_ms", "1000")
        with connected(num_cpus=2):
            yield ray


@dataclass
class Server:
    """An S3 server in a process of its own, reached over loopback."""

    process: subprocess.Popen
    endpoint: str
    secret: str
    log: Path

    @property
    def filesystem(self) -> pafs.S3FileSystem:
        return pafs.S3FileSystem(
            endpoint_override=self.endpoint.removeprefix("http://"),
            scheme="http",
            region="us-east-1",
            allow_bucket_creation=True,
        )

    def bucket(self, name: str, folder: Path | None = None) -> str:
        """A new bucket with the files of a folder; its URI."""
        self.filesystem.create_dir(name)
        if folder:
            pafs.copy_files(str(folder), name, pafs.LocalFileSystem(), self.filesystem)
        return f"s3://{name}"

    def stop_answering(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def answer_again(self) -> None:
        self.process.send_signal(signal.SIGCONT)


@pytest.fixture(scope="session")
def s3(tmp_path_factory):
    """moto's S3 server; its address and the credentials stand in the environment while the tests run."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    secret = secrets.token_hex(20)
    log = tmp_path_factory.mktemp("s3") / "requests.log"
    with pytest.MonkeyPatch.context() as environment, open(log, "w") as requests:
        environment.setenv("AWS_ACCESS_KEY_ID", "raymat-tests")
        environment.setenv("AWS_SECRET_ACCESS_KEY", secret)
        environment.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        environment.setenv("RAYMAT_STORE_TIMEOUT", "1")
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=requests)
        try:
            deadline = time.monotonic() + 120
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port), 1).close()
                    break
                except OSError:
                    assert process.poll() is None, log.read_text()
                    assert time.monotonic() < deadline, "the server did not start"
                    time.sleep(0.1)
            yield Server(process, f"http://127.0.0.1:{port}", secret, log)
        finally:
            process.kill()
            process.wait()
