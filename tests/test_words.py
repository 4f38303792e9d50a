"""Names and tables as a person and other programs read them."""

from raymat.words import dotted, markdown_table, plain_name


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
