"""Servers in processes of their own, reached over loopback."""

from __future__ import annotations

import contextlib
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow.fs as pafs
import pytest


def free_port() -> int:
    """A port that no other process listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return listening.getsockname()[1]


@dataclass
class S3Server:
    """A running S3 server, its credentials, and the log of its requests."""

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


@contextlib.contextmanager
def s3_server(log: Path) -> Iterator[S3Server]:
    """moto's S3 server runs; its address and credentials are in the environment."""
    port, secret = free_port(), secrets.token_hex(20)
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
            yield S3Server(process, f"http://127.0.0.1:{port}", secret, log)
        finally:
            process.kill()
            process.wait()
