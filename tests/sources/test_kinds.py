"""The registry of sources: what each kind is asked for by, and whose data it is."""

from argparse import ArgumentParser

import pytest

from raymat.commands.build_options import add_source, open_source
from raymat.nodule import InputError
from raymat.sources.cases import CasesSource
from raymat.sources.kinds import DEMO_PHANTOMS, KINDS, asked_for
from raymat.sources.lidc import LidcSource
from raymat.sources.phantom import PhantomSource
from tests.support.cases import write_cases


def options(*arguments: str):
    parser = ArgumentParser(exit_on_error=False)
    add_source(parser)
    parser.add_argument("-o", "--out")
    return parser.parse_args(arguments)


def test_every_source_has_its_kind_and_no_other_has_one():
    assert {source.kind for source in (LidcSource, CasesSource, PhantomSource)} == set(KINDS)


def test_a_source_is_opened_by_the_option_of_its_name(tmp_path):
    table = write_cases(tmp_path / "cases", 1)
    opened = open_source(options("--cases", table))
    assert (opened.source, opened.title, opened.out) == (CasesSource(table), f"cases {table}", "raymat-cases")
    opened = open_source(options("--lidc", str(tmp_path)))
    assert (opened.source, opened.title, opened.out) == (LidcSource(str(tmp_path)), f"lidc {tmp_path}", "raymat-lidc")
    opened = open_source(options("--phantoms", "3", "--seed", "5", "-o", str(tmp_path / "out")))
    assert (opened.source.n, opened.source.seed, opened.source.root) == (3, 5, f"{tmp_path}/out/scans")
    assert opened.title == "3 phantoms, seed 5"


def test_phantoms_are_the_default_and_drawn_on_the_workers_for_an_object_store():
    none = options("-o", "s3://bucket/dataset")
    assert asked_for(none) is None
    opened = open_source(none)
    assert (opened.source.n, opened.out) == (DEMO_PHANTOMS, "raymat-phantoms")
    assert opened.source.root.endswith("/raymat-phantom-scans-0")


def test_a_place_that_is_not_there_is_refused(tmp_path):
    for name in ("lidc", "cases"):
        with pytest.raises(InputError, match="no such file or folder"):
            open_source(options(f"--{name}", str(tmp_path / "none")))


def test_data_of_lidc_names_its_licence_and_a_users_table_names_none():
    assert "CC BY 3.0" in KINDS["lidc"].licence
    assert KINDS["phantoms"].licence.endswith("the images are synthetic")
    assert KINDS["phantoms"].citation == KINDS["lidc"].citation
    assert (KINDS["cases"].licence, KINDS["cases"].citation) == (None, None)
