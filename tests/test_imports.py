"""What is imported for what: the parser needs the standard library alone, reading a dataset numpy and pyarrow too."""

import re
import subprocess
import sys
import tomllib
import typing
from pathlib import Path

import pytest

import raymat
from raymat.errors import MissingPackage, missing_packages_named
from raymat.release.freeze import ReleaseRequest, release
from tests.support import REPOSITORY
from tests.support.nodules import draw_nodule, write_dataset

NUMBERS = range(3)

# Runs the code after it, and prints which packages outside the standard library were imported by it.
COUNTED = """
import sys
before = set(sys.modules)
try:
    {code}
except SystemExit as end:
    assert end.code == 0
after = {{name.partition(".")[0] for name in set(sys.modules) - before}}
print("imported", *sorted(after - sys.stdlib_module_names))
"""

# Makes all packages but three look as if they were not installed.
ALONE = """
import sys

class Refused:
    def find_spec(self, name, path=None, target=None):
        root = name.partition(".")[0]
        # What begins with "_" and is not listed is how this Python was built.
        if root not in {*sys.stdlib_module_names, "raymat", "numpy", "pyarrow"} and not root.startswith("_"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Refused())
"""


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Python in a process of its own, in the repository's folder."""
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> tuple[str, str]:
    """A built dataset, and a release of it."""
    folder = tmp_path_factory.mktemp("imports")
    store = write_dataset(folder / "dataset", [draw_nodule(n) for n in NUMBERS])
    release(ReleaseRequest(store.root, str(folder / "release"), "1.0"), say=lambda _: None)
    return store.root, str(folder / "release")


@pytest.mark.parametrize(
    "code",
    [
        "import raymat; raymat.__version__",
        "from raymat.cli import main; main(['--version'])",
        "from raymat.cli import main; main(['--help'])",
        "from raymat.cli import main; main(['build', '--help'])",
        "from raymat.cli import main; main(['classify', '--help'])",
    ],
)
def test_version_and_help_import_the_standard_library_alone(code):
    ran = python(COUNTED.format(code=code))
    assert ran.stdout.splitlines()[-1] == "imported raymat", ran.stderr


def test_load_is_found_by_name_by_listing_and_by_star():
    assert "load" in dir(raymat)
    assert raymat.load is raymat.loading.load
    names: dict[str, object] = {}
    exec("from raymat import *", names)
    assert names["load"] is raymat.load
    assert typing.get_type_hints(raymat.load)["return"] is raymat.loading.Nodules
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        raymat.lode  # noqa: B018


def test_reading_needs_numpy_and_pyarrow_alone(places):
    code = """
import raymat
for path in sys.argv[1:]:
    nodules = raymat.load(path)
    for nodule in nodules:
        print(nodule.nodule_id, nodule.alpha.shape == nodule.image.shape == nodule.readers[0].shape, nodule.method)
print(sum(len(nodules.split(0, part)) for part in ("training", "validation", "test")))
"""
    ran = python(ALONE + code, *places)
    method = draw_nodule(0).method
    assert ran.stdout.splitlines() == 2 * [f"case-{n:03d} True {method}" for n in NUMBERS] + [str(len(NUMBERS))], ran


def test_commands_that_read_need_numpy_and_pyarrow_alone(places):
    code = """
from raymat.cli import main
dataset, release = sys.argv[1:]
print([main(command) for command in (["inspect", dataset], ["verify", release], ["release-diff", release, release])])
"""
    ran = python(ALONE + code, *places)
    assert ran.stdout.splitlines()[-1:] == ["[0, 0, 0]"], ran.stderr


@pytest.mark.slow
def test_a_prediction_of_one_worker_waits_for_no_library_that_it_does_not_use():
    code = """
import raymat.export.dicom_seg, raymat.network.images, raymat.pictures.sheet, raymat.pipelines.predict
print(sorted({"mlflow", "pylidc", "ray"} & set(sys.modules)))
"""
    ran = python("import sys" + code)
    assert ran.stdout.splitlines()[-1:] == ["[]"], ran.stderr


def test_a_missing_module_is_named_by_its_package_and_one_of_raymat_is_a_fault():
    with pytest.raises(MissingPackage, match="the package scikit-learn is needed"), missing_packages_named():
        raise ModuleNotFoundError("No module named 'sklearn'", name="sklearn.metrics")
    with pytest.raises(ModuleNotFoundError, match=r"raymat\.nothing"), missing_packages_named():
        import raymat.nothing  # noqa: F401


@pytest.mark.parametrize(("view", "package"), [("torch", "torch"), ("ray", "ray")])
def test_a_view_names_the_package_that_is_not_there(places, view, package):
    code = f"""
import raymat
from raymat.errors import MissingPackage
try:
    raymat.load(sys.argv[1]).{view}()
except MissingPackage as error:
    print(error)
"""
    ran = python(ALONE + code, places[1])
    assert ran.stdout.startswith(f"the package {package} is needed and not installed"), ran.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["build", "--phantoms", "1", "-o", "{folder}/out"],
        ["export", "{folder}/release", "-o", "{folder}/out", "--format", "nifti"],
    ],
)
def test_a_command_names_a_requirement_that_is_not_there_in_one_line(places, arguments):
    arguments = [argument.format(folder=Path(places[0]).parent) for argument in arguments]
    ran = python(ALONE + "from raymat.cli import main\nsys.exit(main(sys.argv[1:]))", *arguments)
    assert ran.returncode == 2
    said = re.fullmatch(r"raymat: the package (\S+) is needed and not installed: `pip install raymat` .*\n", ran.stderr)
    assert said, ran.stderr
    requirements = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["dependencies"]
    assert said[1] in {re.match(r"[\w-]+", requirement)[0] for requirement in requirements}
