"""The main job on real CT and on phantoms, from the files on disk to the dataset."""

import os
import re
import subprocess
import sys

import numpy as np
import pytest

import raymat
from raymat.matting import METHODS
from raymat.pipelines.build import Build, build
from raymat.sources.lidc import LidcSource
from raymat.sources.phantom import PhantomSource
from raymat.steps import BuildParameters, MattingParameters
from raymat.store import Store
from raymat.volume import Grid
from tests.support import REPOSITORY, lines_of_ray, quiet
from tests.support.cases import OPTIONS, first_cases
from tests.support.harm import without_cluster

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.mark.data
def test_lidc_dicom_becomes_mattes_at_their_place_in_the_patient(ray_cluster, real_data, tmp_path):
    source = LidcSource(str(real_data / "lidc-dicom"))
    store = Store.create(tmp_path / "dataset")
    result = build(Build(store, source, BuildParameters()), say=quiet)
    rows = {row["nodule_id"]: row for row in result.outcomes.to_pylist()}
    assert rows.pop("LIDC-IDRI-0003-N1")["outcome"] == "excluded"
    assert set(rows) == {"LIDC-IDRI-0001-N1", *(f"LIDC-IDRI-0003-N{i}" for i in (2, 3, 4))}
    nodules = {n.nodule_id: n for n in raymat.load(store.root, outcomes=("accepted", "rejected"))}
    assert set(nodules) == set(rows)
    raw = {ref.nodule_id: source.read(ref) for ref in source.plan() if ref.nodule_id in nodules}
    for name, nodule in nodules.items():
        assert set(nodule.mattes) == set(METHODS)
        assert nodule.spacing == (0.5, 0.5, 0.5)
        np.testing.assert_allclose(centre(nodule), centre(raw[name]), atol=0.5)


def centre(nodule) -> np.ndarray:
    """Where the readers' masks have their centre, patient coordinates (z, y, x), mm."""
    grid = Grid(nodule.image.shape, nodule.spacing, nodule.origin, nodule.direction)
    return grid.to_patient(np.argwhere(np.sum(nodule.readers, axis=0) > 0).mean(axis=0))


def test_on_phantoms_the_mattes_are_nearer_to_the_truth_than_the_readers_mean(ray_cluster, tmp_path):
    store, methods = Store.create(tmp_path / "dataset"), ("cf", "lb", "if")
    parameters = BuildParameters(matting=MattingParameters(methods=methods))
    build(Build(store, PhantomSource(str(tmp_path / "scans"), 8, seed=3), parameters), say=quiet)
    better = dict.fromkeys(methods, 0)
    nodules = list(raymat.load(store.root, outcomes=("accepted", "rejected")))
    assert len(nodules) == 8
    for nodule in nodules:
        unknown = nodule.trimap == 128
        truth = nodule.true_membership[unknown]
        of_mean = np.abs(np.mean(nodule.readers, axis=0)[unknown] - truth).mean()
        for method, alpha in nodule.mattes.items():
            better[method] += np.abs(alpha[unknown] - truth).mean() < of_mean
    assert min(better.values()) >= 7, better


def said_by(*arguments: str) -> str:
    """All output of `raymat build` in a process of its own with its own local Ray, which has to succeed."""
    command = [sys.executable, "-m", "raymat", "build", *arguments, "--no-tracking"]
    path = os.pathsep.join(filter(None, (str(REPOSITORY), os.environ.get("PYTHONPATH"))))
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    done = subprocess.run(command, env=without_cluster() | {"PYTHONPATH": path}, timeout=300, check=False, **pipes)
    assert done.returncode == 0, done.stdout
    return done.stdout


# In plain pytest the demo that runs from the wheel is such a build.
@pytest.mark.soak
@pytest.mark.parametrize("apart", [[], ["--apart"]], ids=["together", "apart"])
def test_a_build_of_one_nodule_says_nothing_of_ray(cases, tmp_path, apart):
    table = first_cases(cases[0], 1)
    said = said_by("--cases", table, "-o", str(tmp_path / "dataset"), *OPTIONS, *apart)
    assert re.search(r"^accepted +1$", said, re.MULTILINE), said
    assert lines_of_ray(said) == []


@pytest.mark.soak
@pytest.mark.data
def test_a_build_of_one_real_nodule_says_nothing_of_ray(real_data, tmp_path):
    said = said_by("--lidc", str(real_data / "lidc-dicom" / "LIDC-IDRI-0001"), "-o", str(tmp_path / "dataset"))
    assert "1/1 nodules" in said
    assert lines_of_ray(said) == []
