"""Names and tables as a person and other programs read them.

At the border anything comes in; valid UTF-8 of a bounded length goes out, and no two texts are one.
"""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raymat.nodule import Nodule, from_table, to_table
from raymat.sources import NoduleRef, digest
from raymat.words import bounded, dotted, file_name, label, markdown_table, plain_name, utf8

# Surrogates among them, as in names of files that are not UTF-8.
ANY = st.text(st.characters(exclude_categories=()), max_size=90)
PATH = os.fsdecode(b"CT \xff/1.dcm")


@given(ANY)
def test_any_text_becomes_valid_utf8(text):
    for made in (utf8(text), bounded(text), label(text), file_name(text)):
        made.encode()
    assert utf8(utf8(text)) == utf8(text)


@given(ANY, ANY)
def test_no_two_texts_have_one_label_or_file_name(a, b):
    assert (label(a) == label(b)) == (utf8(a) == utf8(b))
    assert (file_name(a) == file_name(b)) == (utf8(a) == utf8(b))


@given(st.text(max_size=3000), st.integers(20, 64))
def test_labels_and_names_have_a_length_and_no_signs_of_their_formats(text, most):
    made = label(text, most)
    assert len(made) <= most
    assert "\\" not in made
    assert made.isprintable() or not made.isascii()
    assert made == made.strip()
    name = file_name(text)
    assert len(name.encode()) < 200
    assert "/" not in name
    assert name not in ("", ".", "..")
    assert len(bounded(text)) <= 2000


@pytest.mark.parametrize("text", ["LIDC-IDRI-0001-N1", "case 7", "läsion", "a" * 64])
def test_a_plain_id_is_its_own_label(text):
    assert label(text) == text


def test_a_long_label_keeps_its_end():
    assert label("1." * 40 + "-12").endswith("-12")


def test_records_and_references_take_any_text():
    ref = NoduleRef("a", "p", "cases", 4, digest(PATH), "{}", f"{PATH}: damaged", [f"{PATH}: left aside"])
    assert ref.problem == "CT \\udcff/1.dcm: damaged"
    assert ref.notes == ["CT \\udcff/1.dcm: left aside"]
    nodule = Nodule(
        "a", PATH, "cases", outcome="failed", stage="read", reason=PATH, notes=[PATH], metadata={"at": PATH}
    )
    (again,) = from_table(to_table([nodule]))
    assert (again.patient_id, again.reason, again.notes) == (utf8(PATH), utf8(PATH), [utf8(PATH)])


def test_nested_names_are_joined_by_dots_and_an_empty_part_leaves_none():
    assert dotted({"a": {"b": 1, "c": {"d": None}}, "e": (1, 2), "f": {}}) == {"a.b": 1, "a.c.d": None, "e": (1, 2)}


def test_a_plain_name_has_no_signs_and_differs_where_names_differ():
    names = ["cf", "cf+", "cf & mean", "cf+ & mean", "3DMM", "3DMM‡", "3DMM, mean of its masks", "readers' mean"]
    plain = [plain_name(name) for name in names]
    assert plain[3] == "cf_plus_and_mean"
    assert len(set(plain)) == len(names)
    assert all(name.replace("_", "").isalnum() for name in plain)


def test_a_bar_and_an_end_of_a_line_stay_inside_their_cell():
    lines = markdown_table(("a", "b"), [("x|y", "1\n2")]).splitlines()
    assert lines == ["| a | b |", "| --- | --- |", "| x\\|y | 1 2 |"]
