"""A matte of any grid comes to its nodule's; one that lies elsewhere, or is none, is named with what to do."""

from __future__ import annotations

from dataclasses import replace

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from raymat.benchmark.matte import read_matte
from raymat.nodule import InputError
from raymat.volume import nodule_grid
from tests.support.entries import write_matte
from tests.support.kinds import nodule_of_kind

BOX = (slice(2, 14), slice(4, 20), slice(4, 20))


@pytest.fixture(scope="module")
def nodule():
    return nodule_of_kind(0, "calibrated", shape=(16, 24, 24))


@pytest.fixture(scope="module")
def cube():
    return nodule_of_kind(0, "calibrated", shape=(24, 24, 24))


def read(path, nodule, box=BOX):
    return read_matte(path, nodule_grid(nodule, nodule.image), box)


@pytest.mark.parametrize("ending", ["nii.gz", "nii", "nrrd", "mha"])
def test_on_the_nodules_grid_it_stays_as_it_is(nodule, tmp_path, ending):
    alpha, note = read(write_matte(tmp_path / f"a.{ending}", nodule.alpha, nodule), nodule)
    assert note == ""
    assert (alpha == nodule.alpha[BOX]).all()


def test_bytes_of_0_and_1_are_a_matte(nodule, tmp_path):
    alpha, _ = read(write_matte(tmp_path / "a.nrrd", nodule.readers[0], nodule), nodule)
    assert (alpha == nodule.readers[0][BOX]).all()


def test_an_order_of_axes_that_its_header_tells_is_no_other_place(nodule, tmp_path):
    """As nibabel's canonical images have it: axes flipped and swapped, of voxels and header alike."""
    path = write_matte(tmp_path / "a.nii.gz", nodule.alpha, nodule)
    nibabel.save(nibabel.as_closest_canonical(nibabel.load(path)), tmp_path / "canonical.nii.gz")
    swapped = sitk.PermuteAxes(sitk.ReadImage(str(path)), [2, 0, 1])
    sitk.WriteImage(sitk.Flip(swapped, [True, False, True]), str(tmp_path / "swapped.nrrd"))
    for name in ("canonical.nii.gz", "swapped.nrrd"):
        alpha, note = read(tmp_path / name, nodule)
        assert note == ""
        assert (alpha == nodule.alpha[BOX]).all()


def test_a_part_of_the_grid_comes_to_its_place_and_the_rest_is_0(nodule, tmp_path):
    origin = nodule_grid(nodule, nodule.image).to_patient([4, 6, 6])
    path = write_matte(tmp_path / "a.nii.gz", nodule.alpha[4:12, 6:18, 6:18], nodule, origin=origin)
    alpha, note = read(path, nodule)
    inside = np.zeros(nodule.alpha.shape)
    inside[4:12, 6:18, 6:18] = nodule.alpha[4:12, 6:18, 6:18]
    assert alpha == pytest.approx(inside[BOX], abs=1e-5)
    assert (
        note == "resampled from 8 x 12 x 12 voxels of 0.5 x 0.5 x 0.5 mm (z, y, x); it covers 38 % of the judged box, "
        "alpha is 0 beyond"
    )


def test_a_linear_alpha_stays_linear_on_coarser_and_finer_grids(nodule, tmp_path):
    grid = nodule_grid(nodule, nodule.image)
    whole = grid.to_patient(np.moveaxis(np.indices(grid.shape), 0, -1))[..., 2]
    low, high = whole.min() - 30, whole.max() + 30
    for factor in (0.4, 0.5, 1.7, 3):
        shape = [int(n / factor) + 8 for n in grid.shape]
        origin = grid.to_patient([-2 * factor, -2 * factor, -2 * factor])
        spacing = [factor * s for s in grid.spacing]
        x = origin[2] + np.arange(shape[2]) * spacing[2]
        ramp = np.broadcast_to((x - low) / (high - low), shape).astype(np.float32)
        path = write_matte(tmp_path / "a.nrrd", ramp.copy(), nodule, origin=origin, spacing=spacing)
        alpha, note = read(path, nodule)
        assert note.startswith("resampled")
        assert "covers" not in note
        assert alpha == pytest.approx(((whole - low) / (high - low))[BOX], abs=1e-4)


def test_on_a_finer_grid_the_mean_of_the_parts_of_a_voxel_counts(nodule, tmp_path):
    """A voxel half of whose parts are lesion has alpha one half, wherever the parts lie."""
    grid = nodule_grid(nodule, nodule.image)
    fine = np.zeros([2 * n for n in grid.shape], np.float32)
    fine[..., ::2] = 1
    path = write_matte(tmp_path / "a.nrrd", fine, nodule, origin=grid.to_patient([-0.25] * 3), spacing=[0.25] * 3)
    alpha, _ = read(path, nodule)
    assert alpha == pytest.approx(0.5)


def test_a_turned_grid_is_resampled_in_the_patient(nodule, tmp_path):
    c, s = np.cos(0.3), np.sin(0.3)
    turn = np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    grid = nodule_grid(nodule, nodule.image)
    middle = grid.to_patient((np.array(grid.shape) - 1) / 2)
    origin = middle - (turn * 0.5) @ (np.array([40, 40, 40]) - 1) / 2
    z, y, x = np.moveaxis(origin + np.indices((40, 40, 40)).reshape(3, -1).T @ (turn * 0.5).T, -1, 0)
    ball = (np.hypot(np.hypot(z - middle[0], y - middle[1]), x - middle[2]) / 10).clip(0, 1).reshape(40, 40, 40)
    path = write_matte(tmp_path / "a.nrrd", ball.astype(np.float32), nodule, origin=origin, direction=turn)
    alpha, _ = read(path, nodule)
    there = grid.to_patient(np.moveaxis(np.indices(grid.shape), 0, -1))
    assert alpha == pytest.approx((np.linalg.norm(there - middle, axis=-1) / 10)[BOX], abs=0.01)


HEADERS = {
    "no placement": (lambda n: {"origin": (0, 0, 0), "spacing": (1, 1, 1)}, "its header has no placement"),
    "RAS": (lambda n: {"origin": np.multiply(n.origin, (1, -1, -1))}, r"lies up to .* mm from it, because x and y"),
    "shifted": (
        lambda n: {"origin": np.add(n.origin, (0, 0, 2))},
        "size of the nodule's crop and lies up to 2 mm from it",
    ),
    "half a voxel": (
        lambda n: {"origin": np.add(n.origin, 0.25)},
        "lies up to 0.433 mm from it; give the file spacing",
    ),
    "turned": (lambda n: {"direction": np.diag([-1, 1, 1])}, "size of the nodule's crop and lies up to"),
    "elsewhere": (lambda n: {"origin": (500, 0, 0), "spacing": (0.7,) * 3}, "and it covers no voxel that is judged"),
}


@pytest.mark.parametrize("mistake", HEADERS)
def test_a_misplaced_matte_is_refused(nodule, tmp_path, mistake):
    header, words = HEADERS[mistake]
    path = write_matte(tmp_path / "a.nii.gz", nodule.alpha, nodule, **header(nodule))
    with pytest.raises(InputError, match=rf"a\.nii\.gz: misplaced: .*{words}"):
        read(path, nodule)


def test_an_affine_of_ones_is_no_placement(nodule, tmp_path):
    """As nibabel.save with np.eye(4) writes it."""
    nibabel.save(nibabel.Nifti1Image(nodule.alpha.T, np.eye(4)), tmp_path / "a.nii.gz")
    with pytest.raises(InputError, match="its header has no placement"):
        read(tmp_path / "a.nii.gz", nodule)


VALUES = {
    "bytes": (lambda a: np.round(255 * a).astype(np.uint8), r"values from 0 to 12\d; alpha is 0 to 1: divide by 255"),
    "HU": (lambda a: (1000 * a - 900).astype(np.int16), "write the matte, not the image"),
    "logits": (lambda a: 8 * a - 4, r"values from -4 to .*sigmoid"),
    "NaN": (lambda a: np.where(a > 0.2, np.nan, a), r"voxels are NaN or infinite"),
    "infinite": (lambda a: np.where(a > 0.2, np.inf, a), r"voxels are NaN or infinite"),
    "four dimensions": (lambda a: np.stack([a, a]), "expected a 3D image of one channel, found 4D"),
    "two dimensions": (lambda a: a[8], "expected a 3D image of one channel, found 2D"),
    "colours": (None, "of 3 channels"),
}


@pytest.mark.parametrize("ending", ["nii.gz", "nrrd"])
@pytest.mark.parametrize("mistake", VALUES)
def test_what_is_no_alpha_is_refused(nodule, tmp_path, mistake, ending):
    change, words = VALUES[mistake]
    alpha = nodule.alpha.astype(np.float32)
    if change is None:
        image = sitk.GetImageFromArray(np.stack([alpha] * 3, axis=-1), isVector=True)
    else:
        image = sitk.GetImageFromArray(np.ascontiguousarray(change(alpha)), isVector=False)
    sitk.WriteImage(image, str(tmp_path / f"a.{ending}"))
    with pytest.raises(InputError, match=rf"a\.{ending.replace('.', '[.]')}: .*{words}"):
        read(tmp_path / f"a.{ending}", nodule)


def test_what_rounding_leaves_beyond_0_and_1_is_cut(nodule, tmp_path):
    path = write_matte(tmp_path / "a.nrrd", (1.001 * nodule.alpha - 0.0004).astype(np.float32), nodule)
    alpha, _ = read(path, nodule)
    assert (alpha.min(), alpha.max()) == (0, pytest.approx(nodule.alpha[BOX].max(), abs=1e-3))


def test_a_file_that_is_cut_off_or_no_volume_is_refused(nodule, tmp_path):
    path = write_matte(tmp_path / "a.nii.gz", nodule.alpha, nodule)
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(InputError, match=r"a\.nii\.gz: truncated or damaged.*a matte is one 3D volume"):
        read(path, nodule)
    (tmp_path / "b.nrrd").write_text("hello")
    with pytest.raises(InputError, match=r"b\.nrrd: SimpleITK cannot read it"):
        read(tmp_path / "b.nrrd", nodule)


def test_a_crop_of_another_scan_with_the_same_size_is_refused(nodule, tmp_path):
    other = replace(nodule, origin=(-400.0, 80.0, 20.0))
    with pytest.raises(InputError, match="misplaced"):
        read(write_matte(tmp_path / "a.nii.gz", other.alpha, other), nodule)
