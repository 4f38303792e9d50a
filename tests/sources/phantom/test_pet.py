"""PET-CT phantoms: what the PET shows of the lesion, what collapsed lung hides, and the case table."""

import csv

import numpy as np
import pytest

from raymat.cli import main
from raymat.nodule import InputError
from raymat.sources.cases import CasesSource
from raymat.sources.phantom.pet import PET_MM, choose_solid, is_solid, pet_ct_of, write_pet_cts
from raymat.volume import read_volume

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cases():
    return choose_solid(2, 0)


@pytest.fixture(scope="module")
def free(cases):
    return pet_ct_of(cases[0], 0)


def test_only_solid_lesions_are_drawn(cases):
    assert len(cases) == 2
    assert all(map(is_solid, cases))


def test_the_lesion_is_hot_and_spills_out_of_its_border(cases, free):
    drawn = free
    assert drawn.pet.dtype == np.float32
    assert drawn.pet.min() >= 0
    spacing = np.array(cases[0].spacing)
    centre = np.argwhere(drawn.membership > 0.5).mean(axis=0) * spacing
    at = np.moveaxis(np.indices(drawn.pet.shape), 0, -1) * PET_MM + np.array(drawn.pet_offset)
    distance = np.linalg.norm(at - centre, axis=-1)
    hottest = np.unravel_index(drawn.pet.argmax(), drawn.pet.shape)
    assert distance[hottest] < 10
    # Blur and breathing take from the lesion's uptake, and give to what lies around it.
    assert 1.5 < drawn.pet.max() < 1.2 * drawn.parameters["lesion_suv"]
    far = drawn.pet[distance > 40].mean()
    radius = (0.75 / np.pi * (drawn.membership > 0.5).sum() * spacing.prod()) ** (1 / 3)
    ring = drawn.pet[(distance > radius + 2) & (distance < radius + 5)].mean()
    assert ring > 1.3 * far


def test_collapsed_lung_is_as_dense_as_the_lesion_and_not_hot(cases, free):
    collapsed = pet_ct_of(cases[0], 0, collapsed=True)
    np.testing.assert_array_equal(free.membership, collapsed.membership)
    more = (collapsed.image.astype(float) - free.image > 400) & (free.membership < 0.01)
    assert more.sum() * np.prod(cases[0].spacing) > 3000  # mm3
    assert abs(np.median(collapsed.image[more]) - 35) < 60
    assert collapsed.pet.max() < 1.3 * free.pet.max()


def test_the_same_seed_draws_the_same(cases, free):
    again = pet_ct_of(cases[0], 0)
    np.testing.assert_array_equal(free.pet, again.pet)
    np.testing.assert_array_equal(free.image, again.image)


def test_the_case_table_reads_as_any_other(tmp_path, capsys):
    assert main(["phantom", "--pet", "-o", str(tmp_path), "-n", "2"]) == 0
    assert "--channels CT,PET" in capsys.readouterr().out
    table = tmp_path / "cases.csv"
    with open(table, newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["collapsed"] for row in rows] == ["no", "yes"]
    for ref, row in zip(CasesSource(str(table)).plan(), rows, strict=True):
        nodule = CasesSource(str(table)).read(ref)
        (pet,) = nodule.channels
        assert pet.spacing == pytest.approx((PET_MM,) * 3)
        assert len(nodule.readers) == 4
        assert len(nodule.ratings["malignancy"]) == 4
        truth, _ = read_volume(tmp_path / row["membership"])
        assert truth.shape == nodule.image.shape
        # The PET covers the scan.
        span = np.array(pet.origin) + PET_MM * (np.array(pet.image.shape) - 1)
        assert (np.array(pet.origin) < nodule.origin).all()
        assert (span > np.array(nodule.origin) + (np.array(nodule.image.shape) - 1) * nodule.spacing).all()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.nii.gz")}
    write_pet_cts(tmp_path, 2)
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.nii.gz")}
    record = next(tmp_path.rglob("phantom.json"))
    record.write_text(record.read_text().replace('"seed": 0', '"seed": 1'))
    with pytest.raises(InputError, match="holds another phantom"):
        write_pet_cts(tmp_path, 2)
