"""What the pictures show: the right axes, the chosen matte framed, and the patient the right way round."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from matplotlib import image as mpl_image
from matplotlib import rcParams

from raymat.methods import MEANINGS, METHODS
from raymat.nodule import ACCEPTED, EXCLUDED, FAILED, REJECTED, InputError, Matte, Nodule
from raymat.pictures.charts import method_histogram
from raymat.pictures.figure import save
from raymat.pictures.nodule import show_nodule, size_of
from raymat.pictures.paper import masks_and_matte, methods_side_by_side
from raymat.pictures.sheet import contact_sheet
from raymat.pictures.view import PLANES, view_of
from tests.support.nodules import distances, draw_nodule

SHAPE = (24, 40, 44)
CENTRE = (11, 20, 22)
FEW = ("cf", "cf+")


def nodule(direction=(1, 1, 1), methods=METHODS, readers=4, name="N1", **changes) -> Nodule:
    """A ball with a bright mark to the patient's left, back and head of it, on a grid that runs as ``direction`` says.

    Drawn on the patient's axes first and turned round from there: every direction shows one and the same patient.
    """
    rng = np.random.default_rng(3)
    distance = distances(SHAPE, CENTRE)
    alpha = np.clip((8 - distance) / 3, 0, 1).astype(np.float32)
    image = (-850 + 850 * alpha + rng.normal(0, 20, SHAPE)).astype(np.float32)
    image[CENTRE[0], CENTRE[1] + 1, CENTRE[2] + 14] = 900  # left
    image[CENTRE[0] + 9, CENTRE[1] + 1, CENTRE[2]] = 900  # head
    masks = [(distance < 6 + r).astype(np.uint8) for r in range(readers)]
    trimap = np.where(distance < 5, 255, np.where(distance < 10, 128, 0)).astype(np.uint8)
    turn = tuple(slice(None, None, step) for step in direction)
    fields = {
        "image": image[turn],
        "spacing": (0.5, 0.5, 0.5),
        "origin": (0.0, 0.0, 0.0),
        "direction": np.diag(np.asarray(direction, float)),
        "readers": [mask[turn] for mask in masks],
        "trimap": trimap[turn],
        "candidates": [Matte(m, alpha[turn] * (1 - 0.05 * i), score=0.9 - 0.1 * i) for i, m in enumerate(methods)],
        "method": methods[0] if methods else None,
        "outcome": ACCEPTED,
        "metadata": {"malignancy": "4;3;5;4", "texture": [5, 5, 4, 5], "margin": None},
    }
    return Nodule(name, "P1", "cases", **(fields | changes))


def axes_named(figure, name: str):
    found = [axes for axes in figure.axes if axes.get_label() == name]
    assert len(found) == 1, [axes.get_label() for axes in figure.axes]
    return found[0]


def words(figure) -> str:
    texts = [text for artist in (figure, *figure.axes) for text in artist.texts]
    return "\n".join(text.get_text() for text in texts)


def framed(figure) -> set[str]:
    return {
        axes.get_label() for axes in figure.axes if axes.axison and any(s.get_visible() for s in axes.spines.values())
    }


def pixels(figure) -> np.ndarray:
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())


def test_three_planes_of_image_readers_trimap_and_every_matte():
    figure = show_nodule(nodule())
    panels = [axes.get_label() for axes in figure.axes if not axes.get_label().startswith("key")]
    columns = ["image", "readers", "trimap", *METHODS]
    assert panels == [f"{column} {plane}" for column in columns for plane in PLANES]
    for plane in PLANES:
        assert len(axes_named(figure, f"readers {plane}").collections) == 4


def test_a_networks_matte_is_drawn_over_the_image_like_a_solvers():
    uid = "1.3.6.1.4.1.14519.5.2.1.6279.6001.170706757615202213033480003264"
    base = nodule(methods=("3dmm", "3dmm-union"), readers=0, trimap=None, name=f"{uid}-1")
    figure = show_nodule(replace(base, patient_id=uid))
    for plane in PLANES:
        plain, predicted = (axes_named(figure, f"{name} {plane}").images[0].get_array() for name in ("image", "3dmm"))
        assert np.abs(np.asarray(predicted) - np.asarray(plain)).max() > 0.3
    assert "3DMM-union" in words(figure)
    for text in figure.texts:
        assert text.get_window_extent().x1 <= figure.bbox.x1, text.get_text()


def test_both_truths_are_shown_beside_each_other_where_they_are_known():
    alpha = nodule().candidates[0].alpha
    figure = show_nodule(nodule(true_membership=alpha, true_calibrated=0.4 * alpha))
    names = ("true membership", "true calibrated")
    last = [axes.get_label() for axes in figure.axes if not axes.get_label().startswith("key")][-6:]
    assert last == [f"{name} {plane}" for name in names for plane in PLANES]
    assert set(names) <= set(words(figure).splitlines())
    pictures = [np.asarray(axes_named(figure, f"{name} axial").images[0].get_array()) for name in names]
    assert np.abs(pictures[0] - pictures[1]).max() > 0.2
    alone = show_nodule(nodule(methods=(), true_membership=alpha))  # of a phantom of an earlier version
    assert [axes.get_label() for axes in alone.axes][-4:] == [
        *(f"true membership {plane}" for plane in PLANES),
        "key alpha",
    ]


def test_the_chosen_matte_and_no_other_is_framed():
    figure = show_nodule(nodule(method="lb+"))
    assert framed(figure) == {f"lb+ {plane}" for plane in PLANES}
    assert "chosen" in words(figure)
    assert framed(show_nodule(nodule(method=None, outcome=REJECTED, reason="noisy"))) == set()


def test_the_title_says_who_how_large_how_rated_and_why():
    text = words(show_nodule(nodule(method=None, outcome=REJECTED, reason="best score 0.10 is too low")))
    for part in ("N1", "patient P1", "mm (readers' mean)", "malignancy 4 3 5 4", "texture 5 5 4 5", "rejected"):
        assert part in text
    assert "best score 0.10 is too low" in text
    assert "margin" not in text
    assert "accepted: CF, membership" in words(show_nodule(nodule()))


def test_every_matte_stands_under_its_kind_and_the_best_beside_the_chosen_one_is_named():
    figure = show_nodule(nodule(kind="calibrated", method="lb+"))
    text = words(figure).splitlines()
    assert "accepted: LB+, calibrated" in text
    assert [line for line in text if line.endswith(("chosen", "best"))] == ["0.90  best", "0.30  chosen"]
    headings = {t.get_text().partition(":")[0]: t for t in figure.texts if t.get_text().startswith(tuple(MEANINGS))}
    for kind, methods in (("membership", METHODS[:4]), ("calibrated", METHODS[4:])):
        ends = [axes_named(figure, f"{methods[place]} axial").get_position() for place in (0, -1)]
        middle = figure.bbox.width * (ends[0].x0 + ends[1].x1) / 2
        box = headings[kind].get_window_extent()
        assert (box.x0 + box.x1) / 2 == pytest.approx(middle, abs=2)
        assert figure.bbox.width * ends[0].x0 < box.x0 < box.x1 < figure.bbox.width * ends[1].x1
    # Without room for what a kind means, its name alone.
    assert {"membership", "calibrated"} <= set(words(show_nodule(nodule(methods=FEW))).splitlines())
    # In a dataset of any kind there is but one chosen matte.
    assert "best" not in words(show_nodule(nodule(method="lb+")))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"kind": "calibrated", "method": "cf+"}, "{:.1f} mm (CF, membership)"),
        ({"kind": "any", "method": "cf"}, "{:.1f} mm (CF, membership)"),
        ({"kind": "calibrated", "method": "cf+", "methods": ("cf+",)}, "mm (readers' mean)"),
        ({"kind": "calibrated", "method": "cf+", "methods": ("cf+",), "readers": 0}, "at least {:.1f} mm (CF+, cal"),
        ({"method": "3dmm", "methods": ("3dmm",), "readers": 0}, "{:.1f} mm (3DMM)"),
        ({"method": None}, "mm (readers' mean)"),
    ],
)
def test_the_size_is_that_of_the_membership_and_says_so(changes, expected):
    """A calibrated matte sums to less than the volume."""
    changes = {"methods": FEW} | changes
    found = nodule(**changes)
    # The fixture's first matte: the one of membership where there is one.
    volume = found.candidates[0].alpha.sum(dtype=np.float64) * 0.5**3
    assert expected.format((6 * volume / np.pi) ** (1 / 3)) in size_of(found)


@pytest.mark.parametrize("direction", [(1, -1, -1), (-1, 1, 1), (-1, -1, -1)])
def test_every_direction_shows_the_same_patient(direction):
    figure, turned = show_nodule(nodule(methods=FEW)), show_nodule(nodule(direction, FEW))
    np.testing.assert_array_equal(pixels(turned), pixels(figure))


def test_the_patients_left_is_on_the_right_and_the_head_is_up():
    figure = show_nodule(nodule((1, -1, -1)))
    texts = {text.get_text(): text.get_position() for text in axes_named(figure, "image axial").texts}
    assert texts["L"][0] > texts["R"][0]
    assert texts["A"][1] > texts["P"][1]
    coronal = axes_named(figure, "image coronal")
    labels = {text.get_text(): text.get_position() for text in coronal.texts}
    assert labels["S"][1] > labels["I"][1]
    # The planes pass one voxel in front of the marks or through them; look at the slice that holds both.
    shown = view_of(nodule((1, -1, -1), trimap=None), 10.0)
    image = shown.turn(nodule((1, -1, -1)).image)
    cut = image[:, CENTRE[1] + 1, :][::-1]
    left, right, bottom, top = shown.extent(image.shape, 1)
    marks = np.argwhere(cut > 500)
    x = left + (marks[:, 1] + 0.5) / cut.shape[1] * (right - left)
    y = top + (marks[:, 0] + 0.5) / cut.shape[0] * (bottom - top)
    assert x.max() == pytest.approx(7.0, abs=0.6)
    assert y.max() == pytest.approx(4.5, abs=0.6)


def test_arrays_along_other_axes_are_turned_to_the_patients():
    plain = nodule(methods=FEW)
    order = (2, 0, 1)  # sagittal acquisition: index axes run along x, z, y
    direction = np.zeros((3, 3))
    direction[order, (0, 1, 2)] = 1.0
    swapped = replace(
        plain,
        image=plain.image.transpose(order),
        readers=[mask.transpose(order) for mask in plain.readers],
        trimap=plain.trimap.transpose(order),
        candidates=[Matte(m.method, m.alpha.transpose(order), score=m.score) for m in plain.candidates],
        direction=direction,
    )
    np.testing.assert_array_equal(pixels(show_nodule(swapped)), pixels(show_nodule(plain)))


def test_a_nodule_without_direction_has_no_sides():
    texts = {t.get_text() for t in axes_named(show_nodule(nodule(methods=FEW)), "image axial").texts}
    assert "L" in texts
    bare = nodule(methods=FEW)
    bare.direction = None
    assert "L" not in {t.get_text() for t in axes_named(show_nodule(bare), "image axial").texts}


def test_it_draws_what_there_is():
    for less in (
        nodule(readers=0, methods=FEW),
        nodule(methods=()),
        nodule(readers=0, methods=(), trimap=None),
        nodule(methods=FEW, method=None, outcome=None),
        nodule(methods=("cf+",)),
    ):
        assert pixels(show_nodule(less)).any()


def test_a_nodule_without_an_image_has_nothing_to_show():
    gone = Nodule("N7", "P7", "lidc", outcome=EXCLUDED, stage="read", reason="1 reader, fewer than 4")
    with pytest.raises(InputError, match=r"N7: there is no image to show \(excluded: 1 reader"):
        show_nodule(gone)


def test_a_matte_that_is_no_number_is_drawn_as_nothing():
    broken = nodule()
    broken.candidates[2].alpha = np.full(SHAPE, np.nan, np.float32)
    assert pixels(show_nodule(broken)).any()


def test_contact_sheet_takes_an_iterator_and_every_outcome():
    rejected = nodule(name="N2", method=None, outcome=REJECTED, reason="best score 0.10 (cf) is below the floor 0.30")
    failed = Nodule("N3", "P3", "lidc", outcome=FAILED, stage="read", reason="slice missing at z -120")
    figure = contact_sheet(iter([nodule(), rejected, failed, nodule(readers=0, name="N4")]), "twelve nodules")
    assert [axes.get_label() for axes in figure.axes] == ["nodule N1", "nodule N2", "nodule N3", "nodule N4"]
    text = words(figure)
    outcomes = ("accepted", "CF, membership", "rejected", "failed")
    for part in ("twelve nodules", *outcomes, "0.90", "slice missing", *map(str.upper, METHODS)):
        assert part in text
    frames = {axes.get_label(): len([p for p in axes.patches if not p.get_fill()]) for axes in figure.axes}
    assert frames == {"nodule N1": 1, "nodule N2": 0, "nodule N3": 0, "nodule N4": 1}
    # Only small pictures are kept of each nodule, whatever its size.
    for axes in figure.axes:
        assert sum(image.get_array().nbytes for image in axes.images) < 2e6


def test_contact_sheet_has_the_columns_that_its_nodules_have():
    sheet = contact_sheet([nodule(methods=("if",)), nodule(methods=("cf+", "if"), name="N2"), nodule(methods=())])
    assert [text.get_text() for text in sheet.texts][:5] == ["image", "readers", "IF", "CF+", "chosen"]
    widths = [axes.images[0].get_array().shape[1] for axes in sheet.axes]
    assert len(set(widths)) == 1
    third = sheet.axes[2].images[0].get_array()
    assert third[:, 2 * third.shape[1] // 5 :].min() == 255  # no matte: white


def test_contact_sheet_of_nothing_is_refused():
    with pytest.raises(InputError, match="no nodules"):
        contact_sheet([])


def test_method_histogram_has_one_bar_per_method():
    figure = method_histogram({"cf": 3, "if+": 5})
    bars = figure.axes[0].patches
    assert [bar.get_width() for bar in bars] == [3, 0, 0, 0, 0, 0, 0, 5]


def test_saving_twice_gives_the_same_bytes_and_leaves_pyplot_alone(tmp_path):
    backend = rcParams["backend"]
    for name in ("a.png", "b.png"):
        save(show_nodule(nodule(methods=FEW)), tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert mpl_image.imread(tmp_path / "a.png").shape[0] > 500
    assert rcParams["backend"] == backend
    with pytest.raises(InputError, match="cannot be written"):
        save(show_nodule(nodule(methods=FEW)), tmp_path / "no" / "such" / "folder.png")


def test_figures_have_a_panel_for_each_mask_and_method(tmp_path):
    drawn = draw_nodule(0)
    masks = masks_and_matte(replace(drawn, method="cf+", kind="calibrated"))
    assert len(masks.axes) == 3 * (1 + 4 + 1)
    assert "(f) CF+, calibrated" in words(masks)
    methods = methods_side_by_side([drawn, draw_nodule(1)])
    assert len(methods.axes) == 2 * (2 + 8)
    assert "(j) IF+" in words(methods)
    assert [t.get_text().partition(":")[0] for t in methods.texts if ": share of the voxel" in t.get_text()] == [
        "membership",
        "calibrated",
    ]
    drawn.readers = []
    with pytest.raises(InputError, match="readers' masks"):
        masks_and_matte(drawn)
    drawn.candidates.pop()
    with pytest.raises(InputError, match="no if"):
        methods_side_by_side([drawn])
