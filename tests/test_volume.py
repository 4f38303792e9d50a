"""A volume and where it lies in the patient."""

import numpy as np
import pytest
import SimpleITK as sitk
from scipy.spatial.transform import Rotation

from raymat.nodule import InputError
from raymat.volume import Grid, grid_of, read_volume, to_sitk, write_volume

OBLIQUE = Grid(
    (5, 6, 7), (2.0, 0.6, 0.7), (-120.0, 33.0, 48.5), Rotation.from_euler("xyz", (0.3, -0.2, 0.5)).as_matrix()
)


@pytest.mark.parametrize("direction", [np.eye(3), np.diag([1.0, -1.0, -1.0]), OBLIQUE.direction])
def test_patient_coordinates_are_simpleitks(direction):
    grid = Grid(OBLIQUE.shape, OBLIQUE.spacing, OBLIQUE.origin, direction)
    image = to_sitk(np.zeros(grid.shape, np.float32), grid)
    index = (3, 1, 4)
    np.testing.assert_allclose(grid.to_patient(index), image.TransformIndexToPhysicalPoint(index[::-1])[::-1])


@pytest.mark.parametrize("ending", ["nii.gz", "nrrd", "mha"])
def test_files_keep_values_and_place(tmp_path, ending):
    values = np.random.default_rng(0).normal(size=OBLIQUE.shape).astype(np.float32)
    write_volume(tmp_path / f"a.{ending}", values, OBLIQUE)
    array, grid = read_volume(tmp_path / f"a.{ending}")
    np.testing.assert_array_equal(array, values)
    assert grid.placement_difference(OBLIQUE) < 1e-3


def test_a_crop_keeps_its_place():
    crop = OBLIQUE.crop((1, -2, 3), (2, 9, 2))
    np.testing.assert_allclose(crop.to_patient((1, 3, 1)), OBLIQUE.to_patient((2, 1, 4)))


def test_placement_difference_is_the_farthest_corner():
    moved = Grid(OBLIQUE.shape, (2.0, 0.6, 0.71), OBLIQUE.origin, OBLIQUE.direction)
    assert OBLIQUE.placement_difference(moved) == pytest.approx(0.06)


def test_grid_of_simpleitks_image():
    image = sitk.Image((7, 6, 5), sitk.sitkInt16)
    image.SetSpacing((0.7, 0.6, 2.0))
    image.SetOrigin((1.0, 2.0, 3.0))
    grid = grid_of(image)
    assert grid.shape == (5, 6, 7)
    assert grid.spacing == (2.0, 0.6, 0.7)
    assert grid.origin == (3.0, 2.0, 1.0)


def test_files_that_cannot_be_read_or_written(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_volume(tmp_path / "gone.nii.gz")
    (tmp_path / "text.nii.gz").write_text("no image")
    with pytest.raises(InputError, match=r"text\.nii\.gz"):
        read_volume(tmp_path / "text.nii.gz")
    with pytest.raises(InputError, match="cannot be written"):
        write_volume(tmp_path / "a.unknown", np.zeros(OBLIQUE.shape, np.float32), OBLIQUE)


@pytest.mark.parametrize(("ending", "field"), [("mhd", "ElementDataFile = "), ("nhdr", "data file: ")])
@pytest.mark.parametrize("listed", [False, True])
def test_a_header_names_no_voxels_out_of_its_folder(tmp_path, ending, field, listed):
    inside = tmp_path / "inside"
    inside.mkdir()
    header = inside / f"a.{ending}"
    write_volume(header, np.ones(OBLIQUE.shape, np.float32), OBLIQUE)
    (raw,) = [file for file in inside.iterdir() if file != header]
    read_volume(header)
    secret = tmp_path / "secret"
    secret.write_bytes(raw.read_bytes())
    lines = [line for line in header.read_text().splitlines() if not line.startswith(field.split()[0])]
    for name in ("../secret", str(secret)):
        named = [field + "LIST", name] if listed else [field + name]
        header.write_text("\n".join([*lines, *named]) + "\n")
        with pytest.raises(InputError, match="out of its folder"):
            read_volume(header)


@pytest.mark.parametrize("length", [0, 3, 100, 227, 347, 348, 352, 400])
def test_a_nifti_file_cut_anywhere_is_an_error_that_names_it(tmp_path, length):
    path = tmp_path / "a.nii"
    write_volume(path, np.ones(OBLIQUE.shape, np.float32), OBLIQUE)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(InputError, match=r"a\.nii"):
        read_volume(path)
