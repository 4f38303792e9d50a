import pytest

from raymat.sources.phantom import choose, write_phantoms

COUNT = 4
SEED = 5


@pytest.fixture(scope="session")
def cases():
    return choose(COUNT, SEED)


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """Phantoms on disk; tests only read them."""
    out = tmp_path_factory.mktemp("phantoms")
    write_phantoms(out, COUNT, SEED)
    return out
