"""What is distributed: the wheel, made from the source distribution, installed and run outside the repository."""

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import raymat
from raymat.nodule import ACCEPTED
from tests.support import REPOSITORY, lines_of_ray
from tests.support.harm import without_cluster

pytestmark = [pytest.mark.ray, pytest.mark.slow]

# What the distributions are made from; what an earlier build left in the repository is none of it.
SOURCES = ("pyproject.toml", "MANIFEST.in", "README.md", "CHANGELOG.md", "CITATION.cff", "LICENSE", "NOTICE")


@pytest.fixture(scope="module")
def distributions(tmp_path_factory) -> tuple[Path, Path]:
    """The wheel and the source distribution."""
    folder = tmp_path_factory.mktemp("wheel")
    for package in ("raymat", "tests"):
        shutil.copytree(REPOSITORY / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in SOURCES:
        shutil.copy(REPOSITORY / name, folder)
    ran([sys.executable, "-m", "build", "--no-isolation", "--outdir", "dist", "."], folder)
    (wheel,), (source,) = (folder / "dist").glob("*.whl"), (folder / "dist").glob("*.tar.gz")
    return wheel, source


def ran(command: list[str | Path], folder: Path, **variables: str) -> str:
    """All that a command says that is run in a folder, without the repository on its path, and that must end well."""
    environment = without_cluster() | variables
    if "PYTHONPATH" not in variables:
        environment.pop("PYTHONPATH", None)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    done = subprocess.run(command, cwd=folder, env=environment, timeout=300, check=False, **pipes)
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_the_wheel_holds_the_package_and_the_source_distribution_what_makes_it(distributions):
    wheel, source = distributions
    with zipfile.ZipFile(wheel) as archive:
        inside = set(archive.namelist())
    package = {str(path.relative_to(REPOSITORY)) for path in (REPOSITORY / "raymat").rglob("*") if path.is_file()}
    package = {name for name in package if "__pycache__" not in name}
    assert {"raymat/py.typed", "raymat/review/page/index.html", "raymat/review/page/review.js"} <= package
    about = f"raymat-{raymat.__version__}.dist-info"
    beside = {name for name in inside if name.startswith(about)}
    assert inside - beside == package
    assert {f"{about}/licenses/LICENSE", f"{about}/licenses/NOTICE"} <= beside
    with tarfile.open(source) as archive:
        names = {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}
    assert names >= {*package, *SOURCES}
    assert not [name for name in names if name.startswith("tests")]


def take_machine_code(target: Path) -> None:
    """Let an installed package have what Numba has made of the repository's own: to make it again takes 20 s.

    Numba looks at time and size of a source, and at the bytecode of each function.
    """
    for source in (REPOSITORY / "raymat").rglob("*.py"):
        shutil.copystat(source, target / source.relative_to(REPOSITORY))
    for code in (REPOSITORY / "raymat").rglob("*.nb[ci]"):
        there = target / code.relative_to(REPOSITORY)
        there.parent.mkdir(exist_ok=True)
        shutil.copy(code, there)


def test_the_demo_runs_from_the_wheel_away_from_the_repository(distributions, tmp_path):
    wheel, _ = distributions
    target, folder = tmp_path / "installed", tmp_path / "elsewhere"
    folder.mkdir()
    options = ("--no-deps", "--no-compile", "--target")
    ran([sys.executable, "-m", "pip", "install", "-q", *options, str(target), str(wheel)], folder)
    take_machine_code(target)
    alone = {"PYTHONPATH": str(target)}
    where = ran([sys.executable, "-c", "import raymat; print(raymat.__file__)"], folder, **alone)
    assert Path(where.strip()) == target / "raymat" / "__init__.py"
    said = ran([target / "bin" / "raymat", "demo", "-n", "1", "--no-tracking"], folder, **alone)
    assert "review         raymat review raymat-demo" in said
    assert lines_of_ray(said) == []
    (nodule,) = raymat.load(folder / "raymat-demo", outcomes=(ACCEPTED, "rejected"))
    assert nodule.source == "phantoms"
    assert len(nodule.candidates) == 8
