"""Crop, working grid and trimap (paper, section 3; specification, "From readers to trimap")."""

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import map_coordinates
from scipy.spatial.transform import Rotation

from raymat.nodule import InputError, Nodule, NoduleExcluded
from raymat.prepare import PrepareParameters, make_trimap, prepare
from raymat.sources.cases import CasesSource
from raymat.volume import Grid, to_sitk
from tests.support.nodules import distances

OBLIQUE = Rotation.from_euler("xyz", (0.3, -0.2, 0.5)).as_matrix()


def ball(shape, centre, radius, spacing=(1.0, 1.0, 1.0)):
    return (distances(shape, centre, spacing) <= radius).astype(np.uint8)


def nodule(shape=(20, 160, 160), centre=(10, 80, 80), spacing=(2.5, 0.7, 0.7), direction=None, **changes):
    rng = np.random.default_rng(0)
    readers = [ball(shape, centre, radius, spacing) for radius in (6.0, 6.5, 7.0, 7.5)]
    values = {
        "nodule_id": "A",
        "patient_id": "P",
        "source": "cases",
        "image": rng.normal(-800, 20, shape).astype(np.float32),
        "spacing": spacing,
        "origin": (-100.0, 20.0, 30.0),
        "direction": np.eye(3) if direction is None else direction,
        "readers": readers,
    }
    return Nodule(**{**values, **changes})


def grid(n):
    return Grid(n.image.shape, n.spacing, n.origin, n.direction)


def test_the_crop_is_128_px_around_the_nodule_and_three_slices_beyond():
    given_ = nodule()
    done = prepare(given_)
    inside = np.logical_or.reduce(given_.readers)
    slices = np.flatnonzero(inside.any(axis=(1, 2)))
    assert done.metadata["crop_shape"] == [slices[-1] - slices[0] + 7, 128, 128]
    assert done.metadata["crop_start"][0] == slices[0] - 3
    assert done.image.shape == (round((slices[-1] - slices[0] + 7) * 2.5 / 0.5), 179, 179)
    assert done.spacing == (0.5, 0.5, 0.5)
    assert done.image.dtype == np.float32
    assert {mask.shape for mask in done.readers} | {done.trimap.shape} == {done.image.shape}
    assert not done.notes


def test_the_record_that_was_given_is_left_as_it_was():
    given_ = nodule(notes=["seen"])
    image, readers = given_.image.copy(), [mask.copy() for mask in given_.readers]
    prepare(given_)
    np.testing.assert_array_equal(given_.image, image)
    for mask, before in zip(given_.readers, readers, strict=True):
        np.testing.assert_array_equal(mask, before)
    assert given_.notes == ["seen"]
    assert given_.trimap is None


@pytest.mark.parametrize(
    "direction", [np.eye(3), np.diag([1.0, -1.0, -1.0]), np.diag([1.0, 1.0, -1.0])[[0, 2, 1]], OBLIQUE]
)
@pytest.mark.parametrize("centre", [(10, 80, 80), (1, 30, 155)])
def test_landmarks_keep_their_place_in_the_patient(direction, centre):
    given_ = nodule(centre=centre, direction=direction)
    index = np.indices(given_.image.shape).reshape(3, -1).T
    patient = grid(given_).to_patient(index)
    # An image that is linear in patient coordinates stays that image on any grid that keeps its place.
    for axis in range(3):
        given_.image = patient[:, axis].reshape(given_.image.shape).astype(np.float32)
        done = prepare(given_)
        where = np.stack(np.nonzero(done.trimap), axis=1)
        expected = grid(done).to_patient(where)[:, axis]
        on_scan = np.linalg.solve(given_.direction * given_.spacing, (grid(done).to_patient(where) - given_.origin).T)
        between_centres = ((on_scan >= 0) & (np.array(given_.image.shape) - 1 >= on_scan.T).T).all(axis=0)
        assert between_centres.sum() > 100
        assert np.abs(done.image[tuple(where.T)] - expected)[between_centres].max() < 0.1


@pytest.mark.parametrize("direction", [np.diag([1.0, -1.0, -1.0]), OBLIQUE])
def test_resampling_is_simpleitks_by_physical_points(direction):
    given_ = nodule(direction=direction)
    done = prepare(given_)
    reference = to_sitk(np.zeros(done.image.shape, np.float32), grid(done))
    expected = sitk.Resample(to_sitk(given_.image, grid(given_)), reference, sitk.Transform(), sitk.sitkLinear, -1000.0)
    np.testing.assert_allclose(done.image, sitk.GetArrayFromImage(expected), atol=0.05)
    for mask, before in zip(done.readers, given_.readers, strict=True):
        floating = sitk.Resample(
            to_sitk(before.astype(np.float32), grid(given_)), reference, sitk.Transform(), sitk.sitkLinear, 0.0
        )
        clear = np.abs(sitk.GetArrayFromImage(floating) - 0.5) > 1e-3
        np.testing.assert_array_equal(mask[clear], (sitk.GetArrayFromImage(floating) >= 0.5)[clear])


def test_beyond_the_edge_of_the_scan_is_air_and_the_trimap_follows_its_rule_there_too():
    given_ = nodule(shape=(9, 100, 100), centre=(1, 50, 3))
    done = prepare(given_)
    (note,) = done.notes
    assert note.startswith("padded with -1000 beyond the edge of the scan: ")
    assert "3 slices before the first along z" in note
    start = np.array(done.metadata["crop_start"])
    step = 0.5 / np.array(given_.spacing)
    outside = np.zeros(done.image.shape, dtype=bool)
    for axis in range(3):
        index = start[axis] - 0.5 + (np.arange(done.image.shape[axis]) + 0.5) * step[axis]
        beyond = (index < -0.5) | (index > given_.image.shape[axis] - 0.5)
        outside |= beyond.reshape([-1 if a == axis else 1 for a in range(3)])
    assert outside.any()
    assert (done.image[outside] == -1000).all()
    np.testing.assert_array_equal(done.trimap, make_trimap(done.readers, done.spacing))
    assert not any(mask[outside].any() for mask in done.readers)
    # Air does not bleed into the scan.
    assert done.image[~outside].min() > -1000


def test_the_low_end_of_the_range_pads_where_the_image_is_no_ct():
    given_ = nodule(shape=(9, 100, 100), centre=(1, 50, 50))
    given_.image[:] = 7
    done = prepare(given_, PrepareParameters(intensity_range=(0, 50)))
    assert np.unique(done.image).tolist() == [0, 7]


def test_values_outside_the_field_of_view_are_raised_to_air():
    given_ = nodule()
    given_.image[:, :90] = -3024
    assert prepare(given_).image.min() == -1024


def test_a_nodule_too_large_for_the_crop_widens_it_and_says_so():
    given_ = nodule()
    given_.readers = [ball(given_.image.shape, (10, 80, 80), radius, (2.5, 1.0, 1.0)) for radius in (10.0, 62.0)]
    done = prepare(given_)
    assert done.metadata["crop_shape"][1] == 135
    assert any(note.startswith("crop widened to 135 px along y") for note in done.notes)
    assert (done.trimap[:, 0] == 0).all()


def test_masks_change_volume_little():
    given_ = nodule()
    done = prepare(given_)
    for mask, before in zip(done.readers, given_.readers, strict=True):
        assert mask.sum() * 0.125 == pytest.approx(before.sum() * np.prod(given_.spacing), rel=0.05)


def test_a_true_matte_goes_the_images_way():
    given_ = nodule()
    given_.true_membership = np.zeros(given_.image.shape, np.float32)
    given_.true_membership[8:12, 70:90, 70:90] = 0.25
    done = prepare(given_)
    assert done.true_membership.shape == done.image.shape
    assert done.true_membership.max() == np.float32(0.25)
    assert done.true_membership.sum() * 0.125 == pytest.approx(
        given_.true_membership.sum() * np.prod(given_.spacing), rel=0.02
    )


def test_a_given_trimap_is_kept_as_it_is():
    given_ = nodule(spacing=(0.5, 0.5, 0.5), readers=[])
    given_.trimap = 128 * ball(given_.image.shape, (10, 80, 80), 5)
    given_.trimap[ball(given_.image.shape, (10, 80, 80), 2) > 0] = 255
    done = prepare(given_)
    start = np.array(done.metadata["crop_start"])
    assert done.readers == []
    expected = np.zeros_like(done.trimap)
    z, y, x = (
        slice(max(a, 0), min(a + n, m)) for a, n, m in zip(start, done.trimap.shape, (20, 160, 160), strict=True)
    )
    expected[z.start - start[0] : z.stop - start[0], :, :] = given_.trimap[z, y, x]
    np.testing.assert_array_equal(done.trimap, expected)


def test_a_given_trimap_keeps_its_order_of_regions_on_another_grid():
    given_ = nodule(readers=[])
    given_.trimap = 128 * ball(given_.image.shape, (10, 80, 80), 9, given_.spacing)
    given_.trimap[ball(given_.image.shape, (10, 80, 80), 4, given_.spacing) > 0] = 255
    done = prepare(given_)
    for value in (0, 128, 255):
        volume = (done.trimap == value).sum() * 0.125
        if value:
            assert volume == pytest.approx((given_.trimap == value).sum() * np.prod(given_.spacing), rel=0.2)
        assert volume > 0


def test_a_readers_mask_that_vanishes_is_noted_and_left_out():
    given_ = nodule(spacing=(0.3, 0.3, 0.3))
    given_.readers[1][:] = 0
    given_.readers[1][10, 80, 81] = 1
    done = prepare(given_)
    assert len(done.readers) == 3
    assert "the mask of reader 2 vanishes at 0.5 mm and is left out" in done.notes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": np.zeros((4, 4), np.float32)}, "must be 3D, not 2D"),
        ({"readers": []}, "neither readers' masks nor a trimap"),
        ({"readers": [np.zeros((20, 160, 160), np.uint8)]}, "every mask is empty"),
        ({"readers": [np.ones((20, 160, 161), np.uint8)]}, "a mask of"),
        ({"trimap": np.full((20, 160, 160), 7, np.uint8)}, "trimap values must be 0, 128 or 255; found 7"),
        ({"origin": None}, "spacing, origin and direction are needed"),
    ],
)
def test_records_that_cannot_be_prepared(change, message):
    with pytest.raises(InputError, match=message):
        prepare(nodule(**change))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_voxels_that_are_not_finite_are_refused(bad):
    given_ = nodule()
    given_.image[9, 80, 80] = bad
    with pytest.raises(InputError, match="A: 1 voxels near the nodule are NaN or infinite"):
        prepare(given_)


def test_a_trimap_with_nothing_left_to_solve_is_refused():
    given_ = nodule(readers=[])
    given_.trimap = 255 * ball(given_.image.shape, (10, 80, 80), 7, given_.spacing)
    with pytest.raises(InputError, match="the trimap has no unknown voxels"):
        prepare(given_)


@pytest.mark.parametrize(
    "wrong",
    [
        {"crop_px": 0},
        {"pad_slices": -1},
        {"spacing_mm": 0},
        {"grow_in_mm": -1},
        {"foreground": "union"},
        {"intensity_range": (400, -1000)},
        {"grow_out_mm": float("nan")},
    ],
)
def test_parameters_are_checked_where_they_enter(wrong):
    with pytest.raises(InputError, match="prepare: "):
        PrepareParameters(**wrong)


# The trimap by itself.


def test_growth_is_in_millimetres_and_reaches_its_limit():
    readers = [ball((21, 41, 41), (10, 20, 20), radius, (1.0, 0.5, 0.5)) for radius in (6.0, 7.0)]
    trimap = make_trimap(readers, (1.0, 0.5, 0.5), grow_out_mm=2.0, grow_in_mm=1.0)
    x = trimap[10, 20, 20:] != 0
    # Along x the union ends at 7 mm, 14 voxels; 2 mm more are 4.
    assert np.flatnonzero(x).max() == 18
    assert np.flatnonzero(trimap[10, 20, 20:] == 255).max() == 10  # 6 mm less 1 mm
    assert np.flatnonzero(trimap[10:, 20, 20] != 0).max() == 9
    assert np.flatnonzero(trimap[10:, 20, 20] == 255).max() == 5


def test_no_growth_leaves_intersection_union_and_background():
    readers = [ball((15, 15, 15), (7, 7, 7 + shift), 4) for shift in (-1, 0, 1)]
    trimap = make_trimap(readers, (1, 1, 1), grow_out_mm=0, grow_in_mm=0)
    np.testing.assert_array_equal(trimap == 255, np.logical_and.reduce(readers))
    np.testing.assert_array_equal(trimap == 0, ~np.logical_or.reduce(readers))


def test_a_small_nodule_keeps_the_deepest_tenth_of_its_foreground():
    mask = ball((15, 15, 15), (7, 7, 7), 2)
    assert mask.sum() == 33
    trimap = make_trimap([mask] * 4, (0.5, 0.5, 0.5), grow_in_mm=3.0)
    kept = np.argwhere(trimap == 255)
    assert len(kept) == 4  # a tenth of 33, rounded up
    assert [7, 7, 7] in kept.tolist()
    one = np.zeros((9, 9, 9), np.uint8)
    one[4, 4, 4] = 1
    np.testing.assert_array_equal(make_trimap([one], (0.5,) * 3) == 255, one == 1)


def test_readers_that_share_no_voxel():
    a, b, c = np.zeros((3, 9, 9, 9), np.uint8)
    a[4, 4, 2:4] = b[4, 4, 4:6] = c[4, 4, 3:5] = 1
    with pytest.raises(NoduleExcluded, match="the readers share no voxel"):
        make_trimap([a, b, c], (1, 1, 1))
    trimap = make_trimap([a, b, c], (1, 1, 1), foreground="majority", grow_in_mm=0)
    assert np.argwhere(trimap == 255).tolist() == [[4, 4, 3], [4, 4, 4]]
    with pytest.raises(NoduleExcluded, match="more than half of the 2 readers"):
        make_trimap([a, b], (1, 1, 1), foreground="majority")


def test_a_given_order_of_readers_changes_nothing():
    readers = [ball((15, 15, 15), (7, 7, 6 + shift), 4 + shift % 2) for shift in range(3)]
    np.testing.assert_array_equal(make_trimap(readers, (1, 1, 1)), make_trimap(readers[::-1], (1, 1, 1)))


def plain_trimap(readers, spacing, grow_out, grow_in):
    """The rules of the specification written out over all pairs of voxels."""
    union, sure = np.logical_or.reduce(readers), np.logical_and.reduce(readers)
    place = np.indices(union.shape).reshape(3, -1).T * np.asarray(spacing)
    distance = np.linalg.norm(place[:, None] - place[None], axis=2)
    out = distance[:, union.ravel()].min(axis=1).reshape(union.shape)
    depth = distance[:, ~sure.ravel()].min(axis=1).reshape(union.shape)
    trimap = np.where(out <= grow_out, 128, 0)
    kept = sure & (depth > grow_in)
    enough = kept.sum() >= sure.sum() / 10
    if enough:
        trimap[kept] = 255
    return trimap, enough, depth


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    spacing=st.tuples(*[st.sampled_from([0.5, 0.7, 1.0, 2.5])] * 3),
    grow=st.tuples(st.sampled_from([0.0, 0.6, 1.1, 2.3]), st.sampled_from([0.0, 0.6, 1.1, 2.3])),
)
def test_trimaps_are_those_of_the_rules_written_out(seed, spacing, grow):
    rng = np.random.default_rng(seed)
    core = rng.random((6, 7, 8)) < 0.6
    readers = [core | (rng.random(core.shape) < 0.1) for _ in range(3)]
    core[0, 0, 0] = True
    readers = [mask | core for mask in readers]
    if np.logical_and.reduce(readers).all():
        return
    trimap = make_trimap(readers, spacing, *grow)
    expected, enough, depth = plain_trimap(readers, spacing, *grow)
    if enough:
        np.testing.assert_array_equal(trimap, expected)
    else:
        sure = np.logical_and.reduce(readers)
        kept = trimap == 255
        assert kept.sum() == -(-sure.sum() // 10)
        assert (kept <= sure).all()
        assert depth[kept].min() >= depth[sure & ~kept].max() - 1e-6
        np.testing.assert_array_equal(trimap[~kept], expected[~kept])


def test_a_mirrored_nodule_is_prepared_to_its_mirror_image():
    # 128 px of 0.75 mm are 192 working voxels to the last, so that both grids end where the crop does.
    given_ = nodule(shape=(20, 160, 160), centre=(9.5, 79.5, 77.5), spacing=(2.5, 0.75, 0.75))
    image, readers = given_.image[:, :, ::-1].copy(), [mask[:, :, ::-1].copy() for mask in given_.readers]
    done, mirrored = prepare(given_), prepare(nodule(image=image, readers=readers, spacing=given_.spacing))
    np.testing.assert_allclose(mirrored.image, done.image[:, :, ::-1], atol=0.01)
    np.testing.assert_array_equal(mirrored.trimap, done.trimap[:, :, ::-1])


def test_linear_interpolation_by_another_implementation():
    given_ = nodule()
    done = prepare(given_)
    start = np.array(done.metadata["crop_start"])
    index = [start[a] - 0.5 + (np.arange(n) + 0.5) * 0.5 / given_.spacing[a] for a, n in enumerate(done.image.shape)]
    expected = map_coordinates(given_.image, np.meshgrid(*index, indexing="ij"), order=1, mode="nearest")
    np.testing.assert_allclose(done.image, expected, atol=0.02)


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.parametrize("step", [8, pytest.param(1, marks=pytest.mark.soak)])
def test_published_cases_are_prepared_or_excluded(real_data, step):
    source = CasesSource(real_data / "lidc-voi" / "cases.csv")
    excluded, unknown = [], []
    cases = list(source.plan())
    assert len(cases) == 734
    for ref in cases[::step]:
        try:
            done = prepare(source.read(ref))
        except NoduleExcluded as reason:
            excluded.append(str(reason))
        else:
            # The specification's numbers are of the crops alone, which end at the nodule in z; beyond them is -1000.
            unknown.append(np.count_nonzero((done.trimap == 128) & (done.image != -1000)))
            assert (done.trimap == 255).any()
    assert set(excluded) <= {"the readers share no voxel"}
    assert len(excluded) + len(unknown) == len(cases[::step])
    assert len(excluded) / len(cases[::step]) == pytest.approx(0.008, abs=0.003 if step == 1 else 0.03)
    # The specification's 2,000 / 5,700 / 38,000, seen on half of the cases.
    np.testing.assert_allclose(np.percentile(unknown, [10, 50, 90]), [2000, 5700, 38000], rtol=0.25)
