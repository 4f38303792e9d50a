"""The files of an entry are found by their names, and what an entry says it learnt from is held against the splits."""

from __future__ import annotations

import pytest

from raymat.benchmark.entry import find_mattes, learnt_in_words, refuse_training_on_tests
from raymat.nodule import InputError
from raymat.words import file_name

IDS = ["LIDC-IDRI-0001-N1", "a/b c", "case-2"]


def touch(folder, *names: str) -> str:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("")
    return str(folder)


def test_one_folder_serves_every_split_and_names_are_those_of_words(tmp_path):
    path = touch(
        tmp_path, "LIDC-IDRI-0001-N1.nii.gz", f"{file_name('a/b c')}.NRRD", ".DS_Store", "case-2.mhd", "case-2.raw"
    )
    found = find_mattes(path, IDS)
    assert list(found) == [0, 1, 2, 3]
    assert {name: file.name for name, file in found[3].files.items()} == {
        "LIDC-IDRI-0001-N1": "LIDC-IDRI-0001-N1.nii.gz",
        "a/b c": f"{file_name('a/b c')}.NRRD",
        "case-2": "case-2.mhd",
    }
    assert not found[0].extra
    assert list(find_mattes(path, IDS, (1,))) == [1]


def test_a_folder_per_split_is_judged_on_the_splits_that_it_has(tmp_path):
    path = touch(tmp_path, "split-0/case-2.nii", "split-2/case-2.nii.gz")
    assert {split: one.files["case-2"].name for split, one in find_mattes(path, IDS).items()} == {
        0: "case-2.nii",
        2: "case-2.nii.gz",
    }
    with pytest.raises(InputError, match="no folder split-1; leave the split out of --splits, or add it"):
        find_mattes(path, IDS, (0, 1))


def test_what_is_no_matte_is_named_with_what_to_do(tmp_path):
    names = ["case-2.nii.gz", "case-2.nrrd", "case-9.nii.gz", "a.npy", "notes.txt", "case-2-alpha.nii.gz", "more/x.nii"]
    one = find_mattes(touch(tmp_path, *names), IDS)[0]
    assert one.files == {}
    assert one.problems == {"case-2": "case-2.nii.gz and case-2.nrrd are both of this nodule; delete all but one"}
    extra = {file.name: why for file, why in one.extra.items()}
    assert set(extra) == {"case-9.nii.gz", "a.npy", "notes.txt", "case-2-alpha.nii.gz", "more"}
    assert extra["case-2-alpha.nii.gz"].endswith("a matte is called case-2.nii.gz")
    assert "a matte is called LIDC-IDRI-0001-N1.nii.gz" in extra["case-9.nii.gz"]
    assert "mattes are .nii.gz, .nii" in extra["a.npy"]
    assert "put the mattes into the folder above" in extra["more"]


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ([], "no matte of a nodule of the release in it.*here are: no files"),
        (["x.nii.gz"], "a file is called LIDC-IDRI-0001-N1.nii.gz, here are: x.nii.gz"),
        (["split0/case-2.nii.gz"], "here are: split0"),
        (["case-2.nii.gz", "split-0/case-2.nii.gz"], "holds mattes beside folders of splits"),
        (["split-4/case-2.nii.gz"], "no split 4; the splits of a release are 0 to 3"),
    ],
)
def test_a_folder_that_is_no_entry_is_refused(tmp_path, names, words):
    with pytest.raises(InputError, match=words):
        find_mattes(touch(tmp_path, *names), IDS)


def test_a_place_that_is_no_folder_is_refused(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        find_mattes(str(tmp_path / "none"), IDS)
    with pytest.raises(InputError, match="are read from a folder of this machine"):
        find_mattes("s3://bucket/mattes", IDS)


PATIENTS = {"LIDC-IDRI-0001-N1": "LIDC-IDRI-0001", "a/b c": "p2", "case-2": "p3"}
TESTS = {0: ("p2",), 1: ("p3",), 2: ("LIDC-IDRI-0001",), 3: ("p2",)}


@pytest.mark.parametrize("line", ["p3", "case-2", " P3 "])
def test_an_entry_that_learnt_from_a_test_patient_is_refused(tmp_path, line):
    touch(tmp_path, "case-2.nii.gz")
    (tmp_path / "trained-on.txt").write_text(f"# ours\nelsewhere-7\n{line}\n")
    words = r"trained-on\.txt: the method learnt from 1 patient whom split 1 tests \(p3\); train one for each split"
    with pytest.raises(InputError, match=words):
        refuse_training_on_tests(find_mattes(str(tmp_path), IDS), TESTS, PATIENTS)
    others = find_mattes(str(tmp_path), IDS, (0, 2, 3))
    refuse_training_on_tests(others, TESTS, PATIENTS)
    assert learnt_in_words(others) == "2 patients or nodules"


def test_what_is_not_said_is_not_known(tmp_path):
    path = touch(tmp_path, "split-0/case-2.nii.gz", "split-1/case-2.nii.gz")
    assert learnt_in_words(find_mattes(path, IDS)) == "not stated"
    for split, patients in ((0, "p3\n"), (1, "p2\nLIDC-IDRI-0001\n")):
        (tmp_path / f"split-{split}/trained-on.txt").write_text(patients)
    found = find_mattes(path, IDS)
    refuse_training_on_tests(found, TESTS, PATIENTS)
    assert learnt_in_words(found) == "3 patients or nodules, by split"
    for split in (0, 1):
        (tmp_path / f"split-{split}/trained-on.txt").write_text("")
    assert learnt_in_words(find_mattes(path, IDS)) == "nobody"
    (tmp_path / "split-1/trained-on.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="write one patient per line, in UTF-8"):
        find_mattes(path, IDS)
