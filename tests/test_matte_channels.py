"""`raymat matte` of several channels and of 2D images: the same alphas as from Python."""

import numpy as np
import pytest
import SimpleITK as sitk

from raymat.cli import main
from raymat.matting import estimate_alpha
from raymat.volume import read_volume, write_volume
from tests.support.cases import GRID, PET_GRID, write_pet_cases
from tests.support.nodules import distances

RANGES = ("--intensity-range", "-1000", "400", "--intensity-range", "0", "12")


def picture(path, array, spacing=(1.0, 1.0)):
    image = sitk.GetImageFromArray(array, isVector=array.ndim > 2)
    image.SetSpacing(spacing[::-1])
    sitk.WriteImage(image, str(path))


@pytest.fixture
def case(tmp_path):
    write_pet_cases(tmp_path, 1)
    trimap = np.where(distances(GRID.shape, (7, 14, 14)) < 7.5, 128, 0).astype(np.uint8)
    trimap[distances(GRID.shape, (7, 14, 14)) < 3.5] = 255
    write_volume(tmp_path / "trimap.nii.gz", trimap, GRID)
    return tmp_path


def matte(folder, *words) -> list[str]:
    return ["matte", *map(str, words), "-o", str(folder / "alpha.nii.gz")]


def test_two_files_are_two_channels_on_the_grid_of_the_first(case, capsys):
    pet = folder_pet(case)
    words = (f"{case / '0.nii.gz'};{pet}", "--trimap", case / "trimap.nii.gz", *RANGES, "--method", "cf+")
    assert main(matte(case, *words)) == 0
    assert "0.pet.nii.gz: resampled to the grid of" in capsys.readouterr().err
    alpha, grid = read_volume(case / "alpha.nii.gz")
    assert grid.placement_difference(GRID) < 1e-3
    # A PET on the lattice of the CT gives the same.
    values = sitk.GetArrayFromImage(sitk.Resample(sitk.ReadImage(str(pet)), sitk.ReadImage(str(case / "0.nii.gz"))))
    image = np.stack([read_volume(case / "0.nii.gz")[0], values], axis=-1)
    expected, _ = estimate_alpha(
        image,
        read_volume(case / "trimap.nii.gz")[0],
        "cf+",
        spacing=GRID.spacing,
        intensity_range=[(-1000, 400), (0, 12)],
        channel_axis=-1,
        epsilon=1e-2,  # a PET of 4 mm is far coarser than the CT
    )
    unknown = read_volume(case / "trimap.nii.gz")[0] == 128
    np.testing.assert_allclose(alpha[unknown], expected[unknown], atol=1e-4)


def folder_pet(case):
    return case / "0.pet.nii.gz"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "2 images and 0 intensity ranges: repeat --intensity-range once"),
        (("--intensity-range", "0", "1"), "2 images and 1 intensity ranges"),
        ((*RANGES, "--channels", "CT,PET", "--calibrate-by", "MR"), "no channel 'MR' to calibrate by"),
    ],
)
def test_what_is_said_of_ranges_that_do_not_fit(case, capsys, words, said):
    given = (f"{case / '0.nii.gz'};{folder_pet(case)}", "--trimap", case / "trimap.nii.gz", *words)
    assert main(matte(case, *given)) == 2
    assert said in capsys.readouterr().err


def test_a_file_that_does_not_cover_the_lesion_is_refused(case, capsys):
    write_volume(case / "half.nii.gz", np.zeros((2, 12, 12), np.float32), PET_GRID.crop((0, 0, 0), (2, 12, 12)))
    given = (f"{case / '0.nii.gz'};{case / 'half.nii.gz'}", "--trimap", case / "trimap.nii.gz", *RANGES)
    assert main(matte(case, *given)) == 2
    assert "half.nii.gz: 2 x 12 x 12 voxels (z, y, x), on another grid than" in capsys.readouterr().err


@pytest.fixture
def colours(tmp_path):
    """A disc whose colour, not its brightness, sets it apart, with a trimap that was saved in colour."""
    distance = distances((20, 24), (9, 11))
    alpha = np.clip(6.5 - distance, 0, 1)[..., None]
    image = np.rint(alpha * (200, 60, 90) + (1 - alpha) * (60, 140, 90)).astype(np.uint8)
    trimap = np.where(distance < 3, 255, np.where(distance < 9, 128, 0)).astype(np.uint8)
    picture(tmp_path / "image.png", image)
    picture(tmp_path / "trimap.png", np.repeat(trimap[..., None], 3, axis=2))
    return tmp_path, image, trimap, alpha[..., 0]


@pytest.mark.parametrize("ending", [".png", ".tif", ".nrrd"])
def test_a_colour_image_has_its_matte_as_a_picture(colours, ending):
    folder, image, trimap, truth = colours
    out = folder / f"alpha{ending}"
    words = ["matte", str(folder / "image.png"), "--trimap", str(folder / "trimap.png"), "--method", "cf"]
    assert main([*words, "-o", str(out)]) == 0
    found = sitk.GetArrayFromImage(sitk.ReadImage(str(out)))
    assert found.shape == trimap.shape
    expected, _ = estimate_alpha(image, trimap, "cf", intensity_range=(0, 255), channel_axis=-1)
    scale, step = (255, 0.5 / 255) if ending == ".png" else (1, 1e-6)
    np.testing.assert_allclose(found / scale, expected, atol=step + 1e-6)
    assert np.abs(expected - truth).mean() < 0.02


def test_a_colour_image_needs_a_window_to_be_calibrated_by_and_a_grey_trimap(colours, capsys):
    folder, image, _, _ = colours
    words = ["matte", str(folder / "image.png"), "--trimap", str(folder / "trimap.png"), "-o", str(folder / "a.png")]
    assert main(words) == 2
    assert "a colour image has no HU that could calibrate: choose --method cf" in capsys.readouterr().err
    picture(folder / "trimap.png", image)
    assert main([*words, "--method", "cf"]) == 2
    assert "trimap.png: is coloured" in capsys.readouterr().err


def test_one_slice_of_a_volume_is_solved_in_2d_and_keeps_its_place(case):
    image, trimap = (read_volume(case / name)[0][7:8] for name in ("0.nii.gz", "trimap.nii.gz"))
    grid = GRID.crop((7, 0, 0), image.shape)
    write_volume(case / "slice.nii.gz", image, grid)
    write_volume(case / "of-slice.nii.gz", trimap, grid)
    assert main(matte(case, case / "slice.nii.gz", "--trimap", case / "of-slice.nii.gz")) == 0
    alpha, own = read_volume(case / "alpha.nii.gz")
    assert own.placement_difference(grid) < 1e-3
    expected, _ = estimate_alpha(image[0], trimap[0], "cf+", spacing=GRID.spacing[1:])
    np.testing.assert_array_equal(alpha[0], expected)


def test_readers_of_a_2d_image_make_its_trimap(tmp_path):
    distance = distances((40, 40))
    rng = np.random.default_rng(0)
    picture(
        tmp_path / "image.nrrd", (-850 + 880 * np.clip(9.5 - distance, 0, 1) + rng.normal(0, 20, (40, 40))), (0.7, 0.7)
    )
    for reader, radius in enumerate((8.6, 9.6)):
        picture(tmp_path / f"{reader}.png", (distance < radius).astype(np.uint8), (0.7, 0.7))
    masks = [word for reader in range(2) for word in ("--mask", str(tmp_path / f"{reader}.png"))]
    assert main(["matte", str(tmp_path / "image.nrrd"), *masks, "-o", str(tmp_path / "alpha.tif")]) == 0
    alpha = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "alpha.tif")))
    assert alpha[distance < 6].min() > 0.5
    assert alpha[distance > 14].max() == 0


def test_a_volume_has_no_matte_in_a_picture(case, capsys):
    words = ["matte", str(case / "0.nii.gz"), "--trimap", str(case / "trimap.nii.gz"), "-o", str(case / "a.png")]
    assert main(words) == 2
    assert "is a volume; name a file that ends in one of .nii" in capsys.readouterr().err
