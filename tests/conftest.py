"""Fixtures that the whole suite shares, and the lane of tests that repeat (``soak``)."""

import functools
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from xdist.scheduler import LoadScopeScheduling

from tests.support import REPOSITORY
from tests.support.servers import s3_server

# As a local cluster sets it for its driver: Numba refuses another number once a test (of pymatting) has its threads.
os.environ.setdefault("NUMBA_NUM_THREADS", "1")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("soak")
    group.addoption("--soak", type=float, default=1.0, metavar="N", help="scales the repetitions of `-m soak`")
    seed = os.environ.get("RAYMAT_SEED", "0")
    group.addoption("--seed", default=seed, help="of what tests draw at random (RAYMAT_SEED; 0)")


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Two processes for a whole lane: tests on the session's Ray, most of which wait for its processes, and all others.

    None where files are named, as their start would take longer than the tests.
    """
    return 2 if config.args == config.getini("testpaths") else 0


def pytest_report_header(config: pytest.Config) -> str:
    return f"seed: {config.option.seed} (--seed), soak: {config.option.soak:g} (--soak)"


@functools.cache
def _kind(file: str) -> int:
    """Files in the order in which they are dealt: on the session's cluster, on Rays of their own, slow ones, others."""
    text = (REPOSITORY / file).read_text()
    words = r"\bray_cluster\b", r"\bmark\.ray\b", r"\bmark\.slow\b"
    return next((number for number, word in enumerate(words) if re.search(word, text)), len(words))


class RayApart(LoadScopeScheduling):
    """Files on the session's cluster go to one process, which has no other; whoever is idle takes the next file."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return file if _kind(file) else "ray_cluster"


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> RayApart:
    """How tests are dealt to the processes: in the order of ``pytest_collection_modifyitems``."""
    config.option.loadscopereorder = False
    return RayApart(config, log)


@pytest.hookimpl(tryfirst=True)  # before tests are chosen by their marks
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests of the soak lane run only where it is asked for. Long files are first, so that none is left at the end."""
    for item in items:
        if "ray_cluster" in getattr(item, "fixturenames", ()):
            item.add_marker("ray")
    items.sort(key=lambda item: _kind(item.nodeid.partition("::")[0]))
    if "soak" in config.option.markexpr:
        return
    soak = [item for item in items if item.get_closest_marker("soak")]
    items[:] = [item for item in items if not item.get_closest_marker("soak")]
    config.hook.pytest_deselected(items=soak)


@pytest.fixture(scope="session")
def seed(request: pytest.FixtureRequest) -> str:
    """Names what is drawn at random; a test that fails can be repeated with it."""
    return request.config.option.seed


@pytest.fixture(scope="session")
def soaked(request: pytest.FixtureRequest) -> Callable[[int], int]:
    """How many repetitions are asked for of how many one soak has."""
    return lambda repetitions: max(1, round(repetitions * request.config.option.soak))


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
        environment.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "1")  # trainings here take seconds
        environment.setenv("RAY_metrics_report_interval_ms", "1000")
        with connected(num_cpus=2):
            yield ray


@pytest.fixture(scope="session")
def new_runs(tmp_path_factory) -> Callable[[Path], str]:
    """Makes an empty MLflow store in a folder, from one that is migrated already, and gives its URI.

    MLflow takes seconds for the migrations of a new store. That raymat makes one itself is in `test_tracking.py`.
    """
    template = tmp_path_factory.mktemp("mlflow") / "empty.db"

    def make(folder: Path) -> str:
        from mlflow.tracking import MlflowClient

        if not template.is_file():
            MlflowClient(tracking_uri=f"sqlite:///{template}").search_experiments()
        shutil.copy(template, Path(folder) / "mlflow.db")
        return f"sqlite:///{folder}/mlflow.db"

    return make


@pytest.fixture(scope="session")
def s3(tmp_path_factory):
    """An S3 server for all tests of the session."""
    with s3_server(tmp_path_factory.mktemp("s3") / "requests.log") as server:
        yield server
