"""What others could reach, read or bring in."""

import os
import stat
from pathlib import Path

import psutil
import pytest


def listening(process: psutil.Process) -> set[str]:
    """Addresses on which a process and all its descendants listen."""
    found = set()
    for member in [process, *process.children(recursive=True)]:
        for connection in member.net_connections("inet"):
            if connection.status == psutil.CONN_LISTEN:
                found.add(connection.laddr.ip)
    return found


@pytest.mark.ray
def test_a_local_cluster_listens_on_loopback_alone(ray_cluster):
    @ray_cluster.remote
    def work() -> int:
        return os.getpid()

    assert ray_cluster.get(work.remote()) != os.getpid()
    assert listening(psutil.Process()) <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}


@pytest.mark.ray
def test_the_token_of_a_local_cluster_is_its_owners_alone(ray_cluster):
    token = Path.home() / ".ray" / "auth_token"
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
