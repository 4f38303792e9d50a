"""Several channels from the case table to the record: one grid, one range each, and what is refused."""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import raymat
from raymat.channels import ChannelRange, channel_ranges, resampled, shortfall
from raymat.commands.build import add_arguments
from raymat.commands.build_options import build_parameters
from raymat.errors import InputError
from raymat.export import ExportRequest, export
from raymat.nodule import SCHEMA, Nodule, from_table, to_table
from raymat.pictures.nodule import show_nodule
from raymat.pictures.view import PLANES, panel, view_of, window_of_channel
from raymat.prepare import PrepareParameters
from raymat.quality import QualityParameters
from raymat.release.freeze import ReleaseRequest, release
from raymat.release.record import record_digests, record_of
from raymat.release.verify import verify
from raymat.review.payload import payload
from raymat.sources.cases import CasesSource
from raymat.steps import BuildParameters, MattingParameters, read_and_prepare, score, solve
from raymat.store import Store
from raymat.volume import Grid, read_volume, write_volume
from tests.support import quiet
from tests.support.cases import CHANNELS, GRID, PARAMETERS, PET_GRID, PET_PARAMETERS, write_cases, write_pet_cases
from tests.support.nodules import distances, write_dataset


def prepared(table: str, parameters: BuildParameters = PET_PARAMETERS) -> list[Nodule]:
    source = CasesSource(table)
    return [read_and_prepare(source, ref, parameters) for ref in source.plan()]


def failure(table: str, parameters: BuildParameters = PET_PARAMETERS) -> str:
    """The one case's reason; the other case is unharmed."""
    bad, good = prepared(table, parameters)
    assert good.outcome is None
    assert (bad.outcome, bad.stage) == ("failed", "read")
    return bad.reason


@pytest.fixture
def table(tmp_path):
    return write_pet_cases(tmp_path, 2)


def replaced(table: str, old: str, new: str) -> str:
    path = Path(table)
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    return table


def test_a_pet_of_4_mm_is_brought_to_the_grid_of_the_ct(table):
    nodule = prepared(table)[0]
    (pet,) = nodule.channels
    assert (pet.name, pet.intensity_range, pet.image.shape) == ("PET", (0.0, 12.0), nodule.image.shape)
    assert pet.image.dtype == np.float32
    assert "PET: voxels of 4 x 4 x 4 mm (z, y, x), resampled to the grid of the first image" in nodule.notes
    assert [channel.name for channel in nodule.all_channels] == ["CT", "PET"]
    assert nodule.metadata["channel_spacings"] == {"CT": [1.0, 1.0, 1.0], "PET": [4.0, 4.0, 4.0]}
    # Hottest where the nodule is.
    hot = np.argwhere(pet.image > 0.95 * pet.image.max()).mean(axis=0)
    dense = np.argwhere(nodule.trimap == 255).mean(axis=0)
    assert np.abs(hot - dense).max() < 1.5


def test_resampling_keeps_a_linear_image_whatever_the_grid():
    turned = np.array([[1, 0, 0], [0, np.cos(0.3), -np.sin(0.3)], [0, np.sin(0.3), np.cos(0.3)]])
    own = Grid((9, 12, 12), (3.0, 4.0, 4.0), (-2.0, -15.0, -9.0), turned)
    grid = Grid((8, 9, 10), (0.7, 1.1, 0.9), (3.0, 1.0, 2.0), np.eye(3))
    slope = np.array([2.0, -1.0, 0.5])
    here, there = (g.to_patient(np.moveaxis(np.indices(g.shape), 0, -1)) @ slope for g in (own, grid))
    assert not shortfall(own, grid)
    np.testing.assert_allclose(resampled(here, own, grid), there, atol=1e-4)


def test_a_channel_on_the_same_lattice_is_resampled_as_the_image_is(tmp_path):
    table = write_cases(tmp_path, 1)
    replaced(table, ",0.nii.gz,", ",0.nii.gz;copy.nii.gz,")
    (tmp_path / "copy.nii.gz").write_bytes((tmp_path / "0.nii.gz").read_bytes())
    twice = (CHANNELS[0], replace(CHANNELS[0], name="again"))
    (nodule,) = prepared(table, replace(PET_PARAMETERS, prepare=replace(PET_PARAMETERS.prepare, channels=twice)))
    np.testing.assert_array_equal(nodule.channels[0].image, nodule.image)
    assert not any("resampled" in note for note in nodule.notes)


def test_one_channel_has_the_keys_and_columns_of_before(tmp_path):
    (nodule,) = prepared(write_cases(tmp_path, 1), PARAMETERS)
    assert nodule.channels == []
    assert "image_channel" not in nodule.metadata
    assert to_table([nodule]).schema == SCHEMA
    assert set(PrepareParameters().to_dict()) == {
        "crop_px", "pad_slices", "spacing_mm", "grow_out_mm", "grow_in_mm", "foreground", "intensity_range"
    }  # fmt: skip


def test_channels_come_back_from_the_store_and_from_a_block_between_workers(table, tmp_path):
    nodules = [score(solve(nodule, PET_PARAMETERS), PET_PARAMETERS) for nodule in prepared(table)]
    store = Store.create(tmp_path / "data")
    (row, _) = store.commit_nodules(nodules, "session").to_pylist()
    found = store.read_committed(row["key"], row["shard"])
    (packed, _) = from_table(to_table(nodules, packed=True))
    for nodule in (found, packed):
        for one, other in zip(nodule.all_channels, nodules[0].all_channels, strict=True):
            assert (one.name, one.intensity_range) == (other.name, other.intensity_range)
            np.testing.assert_array_equal(one.image, other.image)


def test_a_shard_of_one_channel_is_read_beside_one_of_two(table, tmp_path):
    two = prepared(table)[0]
    one = replace(two, nodule_id="one", key="1" * 32, channels=[], outcome="rejected")
    two = replace(two, outcome="rejected")
    store = Store.create(tmp_path / "data")
    rows = [*store.commit_nodules([one], "a").to_pylist(), *store.commit_nodules([two], "a").to_pylist()]
    assert [len(store.read_committed(row["key"], row["shard"]).channels) for row in rows] == [0, 1]


def test_another_channel_can_calibrate(table):
    parameters = replace(PET_PARAMETERS, prepare=replace(PET_PARAMETERS.prepare, calibrate_by="PET"))
    by_ct, by_pet = prepared(table)[0], prepared(table, parameters)[0]
    assert parameters.prepare.intensity_range == (0.0, 12.0)
    assert [channel.name for channel in by_pet.all_channels] == ["PET", "CT"]
    np.testing.assert_array_equal(by_pet.image, by_ct.channels[0].image)
    np.testing.assert_array_equal(by_pet.channels[0].image, by_ct.image)
    assert by_pet.key != by_ct.key


def test_the_range_of_a_channel_is_part_of_the_key(table):
    ranges = (CHANNELS[0], ChannelRange("PET", 0, 20))
    other = replace(PET_PARAMETERS, prepare=replace(PET_PARAMETERS.prepare, channels=ranges))
    assert prepared(table)[0].key != prepared(table, other)[0].key


def test_a_second_channel_finds_the_border_where_the_first_cannot_see_it(tmp_path):
    table = write_pet_cases(tmp_path, 1, wall=True)
    thick = replace(PET_PARAMETERS.prepare, grow_out_mm=4.5)
    matting = MattingParameters(methods=("cf",), prior=False)
    two = replace(PET_PARAMETERS, prepare=thick, matting=matting, quality=QualityParameters())
    one = replace(two, prepare=replace(thick, channels=()))
    truth = np.clip(5.5 - distances(GRID.shape, (7, 14, 14)), 0, 1)
    write_volume(tmp_path / "0.pet.nii.gz", (0.5 + 9.5 * truth).astype(np.float32), GRID)
    nodule = solve(prepared(table, two)[0], two)
    without = solve(prepared(replaced(table, ";0.pet.nii.gz", ""), one)[0], one)
    at = np.moveaxis(np.indices(nodule.image.shape), 0, -1) + np.array(nodule.origin) - GRID.to_patient((7, 14, 14))
    truth = np.clip(5.5 - np.linalg.norm(at, axis=-1), 0, 1)
    wall = (nodule.trimap == 128) & (without.image > -100)
    error, error_without = (np.abs(n.mattes["cf"] - truth)[wall].mean() for n in (nodule, without))
    assert wall.sum() > 100
    assert error < 0.3 * error_without


def test_a_case_with_another_number_of_channels_fails_alone(table):
    reason = failure(replaced(table, "0.nii.gz;0.pet.nii.gz", "0.nii.gz"))
    assert reason == (
        "case0: 1 image (0.nii.gz) in a build of 2 channels (CT, PET): give each case one image per channel, separated "
        "by ; in the table, and repeat --intensity-range once per image"
    )


def test_several_images_need_several_ranges(table):
    assert "2 images (0.nii.gz;0.pet.nii.gz) in a build of 1 channel:" in prepared(table, PARAMETERS)[0].reason


def test_a_pet_that_ends_within_the_crop_fails_alone(table, tmp_path):
    write_volume(tmp_path / "0.pet.nii.gz", np.zeros((4, 12, 12), np.float32), PET_GRID.crop((0, 0, 0), (4, 12, 12)))
    reason = failure(table)
    assert reason.startswith(
        "case0: channel PET (0.pet.nii.gz): does not cover the crop around the lesion, which reaches"
    )
    assert "mm beyond its last voxel along z; give an image that covers it" in reason


def test_a_missing_file_or_one_with_nan_fails_alone(table, tmp_path):
    values = np.zeros(PET_GRID.shape, np.float32)
    values[1, 2, 3] = np.nan
    write_volume(tmp_path / "0.pet.nrrd", values, PET_GRID)
    assert "0.pet.nrrd: 1 voxels are NaN or infinite" in failure(replaced(table, "0.pet.nii.gz", "0.pet.nrrd"))
    assert "gone.nii.gz: no such file" in failure(replaced(table, "0.pet.nrrd", "gone.nii.gz"))


@pytest.mark.parametrize(
    ("cell", "words"), [("0.nii.gz;", "an empty entry among the images"), ("0.nii.gz;0.nii.gz", "one file named twice")]
)
def test_a_cell_that_is_no_list_of_files_fails_alone(table, cell, words):
    assert words in failure(replaced(table, "0.nii.gz;0.pet.nii.gz", cell))


def test_the_grid_is_that_of_the_first_image(table):
    nodule = prepared(table)[0]
    assert nodule.metadata["scanner_spacing"] == list(GRID.spacing)


def options(*words: str) -> argparse.Namespace:
    return add_arguments(argparse.ArgumentParser()).parse_args(["--cases", "c.csv", *words])


RANGES = ("--intensity-range", "-1000", "400", "--intensity-range", "0", "12")


def test_ranges_and_names_from_the_command_line():
    parameters = build_parameters(options(*RANGES, "--channels", "CT, PET"), 4)
    assert parameters.prepare.channels == CHANNELS
    assert parameters.prepare.calibrating == "CT"
    assert parameters.quality.pure_lesion is not None  # it is CT
    unnamed = build_parameters(options(*RANGES), 4)
    assert [channel.name for channel in unnamed.prepare.channels] == ["channel 1", "channel 2"]
    of_one = build_parameters(options("--intensity-range", "0", "800"), 4)
    assert (of_one.prepare.channels, of_one.prepare.intensity_range) == ((), (0.0, 800.0))
    assert of_one.quality.pure_lesion is None
    by_pet = build_parameters(
        options(*RANGES, "--channels", "CT,PET", "--calibrate-by", "PET", "--window", "4", "8"), 4
    )
    assert (by_pet.prepare.intensity_range, by_pet.quality.pure_lesion) == ((0.0, 12.0), None)


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ((*RANGES, "--channels", "CT"), r"1 names of channels \(CT\) for 2 intensity ranges"),
        ((*RANGES, "--channels", "CT,ct"), "each with a name of its own, not CT, ct"),
        ((*RANGES, "--channels", "CT,../x"), "a channel cannot be named '../x'"),
        ((*RANGES, "--calibrate-by", "PET"), "no channel 'PET' to calibrate by; there are channel 1, channel 2"),
        ((*RANGES[:3], *RANGES[3:4], "12", "0", "--channels", "CT,PET"), "channel PET: the intensity range must rise"),
        (("--calibrate-by", "PET"), "no several channels"),
        ((*RANGES, "--calibrate-by", "channel 2"), "channel 2 calibrates and has no window"),
    ],
)
def test_what_the_command_line_refuses(words, error):
    with pytest.raises(InputError, match=error):
        build_parameters(options(*words), 4)


def test_one_range_is_one_channel():
    assert channel_ranges([(0, 1)], ["MR"]) == ()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Four solved nodules of CT and PET, of four patients."""
    folder = tmp_path_factory.mktemp("channels")
    parameters = replace(PET_PARAMETERS, matting=MattingParameters(methods=("cf", "cf+")))
    nodules = [
        replace(score(solve(nodule, parameters), parameters), patient_id=nodule.nodule_id)
        for nodule in prepared(write_pet_cases(folder, 4), parameters)
    ]
    note = {"parameters": json.loads(json.dumps(parameters.to_dict()))}
    store = write_dataset(folder / "data", nodules)
    store.write_json("parameters.json", note)
    return store


def test_a_release_keeps_the_channels_and_its_digests_know_them(dataset, tmp_path):
    request = ReleaseRequest(dataset.root, str(tmp_path / "out"), "1.0")
    release(request, quiet)
    nodules = raymat.load(tmp_path / "out")
    (before,) = raymat.load(dataset.root)["case1"].channels
    (after,) = nodules["case1"].channels
    np.testing.assert_array_equal(before.image, after.image)
    assert (after.name, after.intensity_range) == ("PET", (0.0, 12.0))
    assert not verify(tmp_path / "out").problems
    text = (tmp_path / "out" / "datasheet.md").read_text()
    assert "CT (-1000 to 400), PET (0 to 12). `image` is CT, which calibrates" in text
    record = record_of(replace(nodules["case1"], outcome=None), "score", [])
    digest = record_digests(record)["image_digest"]
    record["channels"][0]["image"]["data"] = bytes(len(record["channels"][0]["image"]["data"]))
    assert record_digests(record)["image_digest"] != digest


def test_an_export_has_a_volume_for_each_channel(dataset, tmp_path):
    nodules = raymat.load(dataset.root)
    (done,) = export(nodules, ["case0"], tmp_path, ExportRequest("nrrd"))
    nodule = nodules["case0"]
    assert {path.name for path in done.path.iterdir()} == {
        f"{name}.nrrd" for name in ("image", "image-PET", "alpha", "trimap", "reader1", "reader2")
    }
    for name, channel in zip(("image", "image-PET"), nodule.all_channels, strict=True):
        values, grid = read_volume(done.path / f"{name}.nrrd")
        np.testing.assert_array_equal(values, channel.image)
        assert grid.spacing == nodule.spacing


def test_tensors_have_all_channels(dataset):
    sample = raymat.load(dataset.root).torch()[0]
    assert sample["channel_names"] == ["CT", "PET"]
    assert sample["channels"].shape == (2, *sample["image"].shape)
    assert torch.equal(sample["channels"][0], sample["image"])


def test_pictures_have_a_column_for_each_channel(dataset):
    nodule = raymat.load(dataset.root)["case0"]
    labels = [axes.get_label() for axes in show_nodule(nodule).axes]
    assert labels[:9] == [f"{name} {plane}" for name in ("CT", "PET", "readers") for plane in PLANES]
    pet = nodule.channels[0]
    grey = panel(view_of(nodule, 5.0), pet.image, 0, 64, None, window_of_channel(pet))
    assert 0.3 < grey.max() <= 1


def test_the_page_is_sent_each_channel_with_its_window(dataset):
    nodule = raymat.load(dataset.root)["case0"]
    data = payload(nodule)
    length = int.from_bytes(data[:4], "little")
    ct, pet = json.loads(data[4 : 4 + length])["channels"]
    assert (ct["name"], ct["window"], ct["hu"]) == ("CT", [-600.0, 1500.0], True)
    assert (pet["name"], pet["window"], pet["hu"]) == ("PET", [6.0, 12.0], False)
    stored = np.frombuffer(data, "<u2", nodule.image.size, 4 + length + pet["image"])
    shown = stored.reshape(nodule.image.shape) * pet["slope"] + pet["intercept"]
    np.testing.assert_allclose(shown, view_of(nodule, 5.0).turn(nodule.channels[0].image), atol=pet["slope"])
