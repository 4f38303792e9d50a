"""`raymat predict` for networks of several channels: one volume per channel, on whatever grid each has."""

import json
from dataclasses import replace

import numpy as np
import pytest

import raymat
from raymat.cli import main
from raymat.methods import MEMBERSHIP
from raymat.volume import write_volume
from tests.support.cases import GRID, PET_GRID, write_pet_cases
from tests.support.channels import CHANNELS
from tests.support.networks import small_recipe, write_weights


@pytest.fixture
def scans(tmp_path):
    """CT and PET of one patient, weights of a network of both, and the centre (x, y, z) of the lesion."""
    write_pet_cases(tmp_path, 1)
    recipe = small_recipe((8, 16, 16), kind=MEMBERSHIP)
    recipe = replace(recipe, model=replace(recipe.model, channels=CHANNELS, spacing_mm=1.0))
    z, y, x = GRID.to_patient((7, 14, 14))
    return tmp_path, write_weights(tmp_path, recipe=recipe), tuple(map(str, (x, y, z)))


def predict(folder, weights, *words) -> int:
    given = ("--refine", "none", "--no-tracking", "--format", "none", "-o", str(folder / "out"))
    return main(["predict", *map(str, words), "--model", weights, *given])


def test_volumes_of_both_channels_are_read_onto_the_networks_grid(scans):
    folder, weights, centre = scans
    images = f"{folder / '0.nii.gz'};{folder / '0.pet.nii.gz'}"
    assert predict(folder, weights, "--image", images, "--center", *centre) == 0
    (nodule,) = raymat.load(folder / "out")
    assert [channel.name for channel in nodule.all_channels] == ["CT", "PET"]
    assert nodule.image.shape == nodule.channels[0].image.shape == (8, 16, 16)
    # Hot in the middle, and of the file's own values.
    assert nodule.channels[0].image[3:5, 7:9, 7:9].min() > 0.8 * nodule.channels[0].image.max() > 6


def test_a_table_names_them_as_a_case_table_does(scans):
    folder, weights, (x, y, z) = scans
    (folder / "t.csv").write_text(
        "case_id,image,coordX,coordY,coordZ\n"
        f"both,0.nii.gz;0.pet.nii.gz,{x},{y},{z}\n"
        f"one,0.nii.gz,{x},{y},{z}\n"
        f"gone,0.nii.gz;none.nii.gz,{x},{y},{z}\n"
    )
    assert predict(folder, weights, "--cases", folder / "t.csv") == 1
    found = {n.nodule_id: n for n in raymat.load(folder / "out", outcomes=("accepted", "failed"))}
    assert found["both"].outcome == "accepted"
    assert "1 image, but the network takes CT, PET: name one volume per channel" in found["one"].reason
    assert "none.nii.gz: no such file" in found["gone"].reason


def test_a_pet_that_ends_beside_the_lesion_is_refused(scans):
    folder, weights, centre = scans
    write_volume(folder / "half.nii.gz", np.zeros((4, 12, 12), np.float32), PET_GRID.crop((0, 0, 0), (4, 12, 12)))
    images = f"{folder / '0.nii.gz'};{folder / 'half.nii.gz'}"
    assert predict(folder, weights, "--image", images, "--center", *centre) == 1
    (nodule,) = raymat.load(folder / "out", outcomes=("failed",))
    assert "half.nii.gz does not cover the lesion's surroundings" in nodule.reason


def test_refinement_sees_both_channels(monkeypatch):
    from raymat.network import refinement

    seen = []

    def estimate_all(image, trimap, methods, **how):
        seen.append((image.shape, how["channel_axis"], json.dumps(how["intensity_range"]), how["parameters"]))
        return {name: (np.zeros(trimap.shape, np.float32), None) for name in methods}

    monkeypatch.setattr(refinement, "estimate_all", estimate_all)
    shape = (8, 16, 16)
    masks = np.zeros(shape, np.float32)
    masks[2:6, 5:11, 5:11] = 0.9
    said = refinement.Predicted(masks, masks, masks, np.zeros(shape, np.float32))
    ranges = [low_high for _, *low_high in CHANNELS]
    refinement.refined(np.zeros((2, *shape), np.float32), said, (1.0, 1.0, 1.0), ("cf", "knn"), ranges)
    assert seen == [((2, *shape), 0, json.dumps(ranges), {"cf": {"epsilon": 1e-2}})]
    refinement.refined(np.zeros(shape, np.float32), said, (1.0, 1.0, 1.0), ("cf",))
    assert seen[1] == (shape, None, "[-1000.0, 400.0]", {})
