"""Small cases, and what an undisturbed build makes of them."""

import pytest

from tests.support.cases import arrays_without_ray, write_cases


@pytest.fixture(scope="session")
def cases(tmp_path_factory) -> tuple[str, dict]:
    """A table of 20 small nodules and their arrays, from a plain loop."""
    table = write_cases(tmp_path_factory.mktemp("cases"), 20)
    return table, arrays_without_ray(table)


@pytest.fixture
def address(ray_cluster) -> str:
    """Where the session's cluster is found by commands in processes of their own."""
    return ray_cluster.get_runtime_context().gcs_address
