"""Fixtures that the whole suite shares."""

import os
from pathlib import Path

import pytest

from tests.support import REPOSITORY
from tests.support.servers import s3_server


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with real LIDC-IDRI images."""
    folder = Path(os.environ.get("RAYMAT_TEST_DATA") or REPOSITORY.parent / "shared" / "data")
    if not (folder / "lidc-voi" / "cases.csv").is_file():
        pytest.skip(f"no real images in {folder}; name their folder in RAYMAT_TEST_DATA")
    return folder


@pytest.fixture(scope="session")
def ray_cluster():
    """One local Ray of two CPUs for all tests of the session that do it no harm."""
    ray = pytest.importorskip("ray")
    from raymat.engine.cluster import connected

    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RAY_metrics_report_interval_ms", "1000")
        with connected(num_cpus=2):
            yield ray


@pytest.fixture(scope="session")
def s3(tmp_path_factory):
    """An S3 server for all tests of the session."""
    with s3_server(tmp_path_factory.mktemp("s3") / "requests.log") as server:
        yield server
