"""Where measures are shown: inspect, report, datasheet, pictures, and the review page."""

import json
import re

import pytest

from raymat.cli import main
from raymat.measures.nodule import measure
from raymat.measures.table import DIGEST, STORED, TableFile, as_table, stored_measures
from raymat.nodule import InputError
from raymat.pictures.nodule import size_of
from raymat.release.freeze import ReleaseRequest, release
from raymat.report.report import write_report
from raymat.review.payload import payload
from raymat.sources import digest
from tests.support import quiet
from tests.support.nodules import draw_nodule, write_dataset

NODULES = [draw_nodule(number) for number in range(1, 4)]


@pytest.fixture
def dataset(tmp_path):
    """A dataset with the measures of its nodules."""
    store = write_dataset(tmp_path / "dataset", NODULES)
    keys = sorted(store.outcomes(["key"])["key"].to_pylist())
    table = as_table(map(measure, NODULES), {DIGEST: digest(*keys)})
    TableFile.at(f"{store.root}/{STORED}").write(table)
    return store


def middle_volume() -> str:
    return f"{sorted(measure(nodule)['volume_mm3'] for nodule in NODULES)[1]:.3g}"


def test_inspect_shows_distributions_of_measures_that_are_of_these_nodules(dataset, capsys):
    assert main(["inspect", dataset.root]) == 0
    said = capsys.readouterr().out
    assert "measured 3 nodules" in said
    assert re.search(rf"volume, mm3: \S+ to \S+ \({re.escape(middle_volume())}\)", said)
    assert main(["inspect", dataset.root, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["measures"]["volume, mm3"]["50 %"] == middle_volume()
    TableFile.at(f"{dataset.root}/{STORED}").write(as_table(map(measure, NODULES), {DIGEST: "of others"}))
    assert main(["inspect", dataset.root]) == 0
    assert "measured" not in capsys.readouterr().out


def test_stored_measures_that_are_damaged_are_named(dataset):
    dataset.write(STORED, b"not a table")
    with pytest.raises(InputError, match=rf"{STORED}: cannot be read .* run raymat measure again"):
        stored_measures(dataset, "")


@pytest.mark.slow
def test_the_report_has_a_figure_and_the_datasheet_a_table_of_measures(dataset, tmp_path):
    write_report([dataset.root], tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "Measures of dataset" in page
    assert middle_volume() in page
    assert (tmp_path / "report-figures" / "measures.png").exists()
    release(ReleaseRequest(dataset.root, str(tmp_path / "release"), "1.0"), say=quiet)
    datasheet = (tmp_path / "release" / "datasheet.md").read_text()
    row = next(line for line in datasheet.splitlines() if line.startswith("| volume, mm3 |"))
    assert "| 3 | " in row
    assert f" {middle_volume()} " in row
    dataset.delete(STORED)
    release(ReleaseRequest(dataset.root, str(tmp_path / "without"), "1.0"), say=quiet)
    assert "## Measures" not in (tmp_path / "without" / "datasheet.md").read_text()


def test_pictures_and_the_review_page_say_the_volume_with_its_interval():
    row = measure(NODULES[0])
    interval = f"{row['volume_low_mm3']:.0f} to {row['volume_high_mm3']:.0f} mm"
    assert f"{interval}3" in size_of(NODULES[0])
    message = payload(NODULES[0])
    header = json.loads(message[4 : 4 + int.from_bytes(message[:4], "little")])
    assert header["measures"][:2] == [f"volume {row['volume_mm3']:.0f} mm³", f"90 % interval {interval}³"]
    rejected = payload(draw_nodule(1, outcome="rejected"))
    assert json.loads(rejected[4 : 4 + int.from_bytes(rejected[:4], "little")])["measures"] == []


@pytest.mark.slow
def test_a_release_is_not_measured_into_its_own_folder(dataset, tmp_path, capsys):
    release(ReleaseRequest(dataset.root, str(tmp_path / "release"), "1.0"), say=quiet)
    assert main(["measure", str(tmp_path / "release"), "--no-tracking"]) == 2
    assert "a release does not change; name a file for the table with -o" in capsys.readouterr().err
