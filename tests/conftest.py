"""Fixtures that the whole suite shares."""

import os
from pathlib import Path

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

    with connected(num_cpus=2):
        yield ray
