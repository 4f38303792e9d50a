"""Splits by patient: disjoint, complete, in proportion, the same everywhere."""

import pytest

from raymat.nodule import InputError
from raymat.splits import REPETITIONS, Split, split_patients

PATIENTS = [f"LIDC-IDRI-{i:04d}" for i in range(1, 543)]


@pytest.mark.parametrize("count", range(3, 40))
def test_every_patient_is_in_one_part_and_none_is_empty(count):
    patients = PATIENTS[:count]
    split = split_patients(patients, count % REPETITIONS)
    parts = [split.training, split.validation, split.test]
    assert all(parts)
    assert sorted(patient for part in parts for patient in part) == patients


def test_the_542_patients_of_the_paper_are_split_7_to_1_to_2():
    split = split_patients(PATIENTS)
    assert (len(split.training), len(split.validation), len(split.test)) == (380, 54, 108)


def test_neither_order_nor_repeated_names_matter_and_each_repetition_is_another_draw():
    assert split_patients(PATIENTS[::-1] + PATIENTS[:9]) == split_patients(PATIENTS)
    splits = [split_patients(PATIENTS, repetition) for repetition in range(REPETITIONS)]
    shared = set(splits[0].test) & set(splits[1].test)
    assert len(set(splits)) == REPETITIONS
    # Two independent draws of a fifth share a fifth of it: 22 of 108, within four standard deviations.
    assert 6 <= len(shared) <= 38


def test_the_draw_is_the_same_on_every_machine():
    assert split_patients("abcdefghij") == Split(tuple("abdfgij"), ("c",), ("e", "h"))


def test_a_patient_who_joins_moves_few_others():
    before, after = split_patients(PATIENTS), split_patients([*PATIENTS, "LIDC-IDRI-9999"])
    assert len(set(before.test) ^ set(after.test)) <= 2


def test_too_few_patients_are_refused():
    with pytest.raises(InputError, match="2 patients cannot be split"):
        split_patients(["a", "b", "a"])


def test_what_is_chosen_outside_all_test_parts_has_seen_no_patient_of_them():
    splits = [split_patients(PATIENTS, repetition) for repetition in range(REPETITIONS)]
    tested = {patient for split in splits for patient in split.test}
    for split in splits:
        clean = split.outside_tests(splits)
        assert set(clean.training) == set(split.training) - tested
        assert set(clean.validation) == set(split.validation) - tested
        assert len(clean.validation) >= 15
    few = [split_patients(PATIENTS[:4], repetition) for repetition in range(REPETITIONS)]
    assert few[0].outside_tests(few) is None


def test_the_split_of_other_patients_holds_out_whom_it_holds_out():
    split = Split(("a", "b"), ("c",), ("d", "e"))
    assert split.of(["d", "c", "x", "a"]) == Split(("a", "x"), ("c",), ("d",))
    for patients in (["c", "d"], ["a", "d"]):
        with pytest.raises(InputError, match="build a larger dataset"):
            split.of(patients)
