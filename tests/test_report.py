"""The report: one page that needs nothing but itself and says what the folders hold."""

import html.parser
import json
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from raymat.cli import main
from raymat.evidence import diagnoses, reader_prediction, readers_table
from raymat.nodule import InputError
from raymat.places import open_filesystem
from raymat.report.page import Section, markdown, page
from raymat.report.report import write_report
from raymat.store import Store
from tests.support.nodules import draw_nodule, excluded_nodule, write_dataset
from tests.support.predictions import draw_predictions


class Page(html.parser.HTMLParser):
    """Collects what a browser would fetch or run, and whether every tag is closed."""

    VOID = ("meta", "img", "br", "hr")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.addresses, self.scripts = [], [], []
        self.feed(text)
        assert not self.open, self.open

    def handle_starttag(self, tag, attributes):
        if tag not in self.VOID:
            self.open.append(tag)
        self.addresses += [value for name, value in attributes if name in ("src", "href", "srcset", "action", "data")]
        self.scripts += [tag] if tag == "script" else []
        self.scripts += [name for name, _ in attributes if name.startswith("on")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture
def dataset(tmp_path):
    nodules = [draw_nodule(0), draw_nodule(1), draw_nodule(2, outcome="rejected"), excluded_nodule(3)]
    write_dataset(tmp_path / "data", nodules)
    return tmp_path / "data"


@pytest.fixture
def experiment(tmp_path):
    store = Store(*open_filesystem(tmp_path / "classified"))
    found = draw_predictions({"image": 0.2, "mean": 1.0, "chosen": 3.0}).assign(network="resnet10-small")
    size = diagnoses.summarise(found[found["input"] == "mean"].assign(network=diagnoses.SIZE, input=diagnoses.SIZE), ())
    table = diagnoses.summarise(found, ("image", "mean", "chosen"))
    store.write_table("predictions.parquet", pa.Table.from_pandas(found, preserve_index=False))
    for name, rows in (
        ("table.csv", pd.concat([size, table])),
        ("trials.csv", diagnoses.trials_table(found)),
        ("comparisons.csv", diagnoses.comparisons(found)),
    ):
        store.write(name, rows.to_csv(index=False).encode())
    store.write(
        "classify.json", b'{"commands": ["raymat classify data -o classified"], "recipe": {"a": 1}, "seconds": 60}'
    )
    return tmp_path / "classified"


@pytest.fixture
def measured(tmp_path):
    return write_measurements(tmp_path, "measurements.parquet")


def write_measurements(folder, name):
    nodule = draw_nodule(0)
    rows = []
    for reader in range(4):
        three = [mask for number, mask in enumerate(nodule.readers) if number != reader]
        seen = replace(nodule, readers=three, true_membership=nodule.readers[reader].astype(np.float32))
        seen.metadata = {"nodule": nodule.nodule_id, "left_out": reader + 1}
        rows += reader_prediction.rows_of(reader_prediction.measure(seen))
    rows = pd.DataFrame(rows)
    store = Store(*open_filesystem(folder / "readers"))
    store.write_table(name, pa.Table.from_pandas(rows, preserve_index=False))
    store.write("readers.csv", readers_table.summarise(rows).to_csv(index=False).encode())
    store.write(
        "readers.json",
        b'{"command": "raymat readers", "source": "drawn", "nodules": null, "outcomes": {}, "parameters": {}}',
    )
    return folder / "readers"


def test_the_page_is_whole_and_asks_nobody_for_anything(dataset, experiment, measured, tmp_path):
    out = tmp_path / "page" / "report.html"
    lines = write_report([str(dataset), str(measured), str(experiment)], out)
    assert [line.rpartition(": ")[2] for line in lines] == ["dataset", "left-out readers", "classification"]
    text = out.read_text()
    found = Page(text)
    assert not found.scripts
    assert all(address.startswith(("data:image/png;base64,", "#")) for address in found.addresses)
    assert not re.search(r"url\(|@import|https?://", re.sub(r"base64,[^\"]*", "", text))
    for words in ("raymat classify data -o classified", "Figure 5", "Figure 6", "2 readers", "size alone", "DeLong"):
        assert words in text, words
    table = pd.read_csv(experiment / "table.csv")
    for value in table["mean"]:
        assert f"{value:.3f}" in text
    for name in ("figure5", "calibration", "readers", "figure6", "chosen-methods"):
        for ending, start in (("png", b"\x89PNG"), ("pdf", b"%PDF")):
            assert (tmp_path / "page" / "report-figures" / f"{name}.{ending}").read_bytes().startswith(start)


def test_an_experiment_of_an_earlier_version_says_what_to_do(experiment, tmp_path):
    table = pd.read_parquet(experiment / "predictions.parquet").drop(columns="calibrated")
    table.to_parquet(experiment / "predictions.parquet")
    with pytest.raises(InputError, match="run `raymat classify data -o classified` again"):
        write_report([str(experiment)], tmp_path / "report.html")


def test_measurements_of_an_earlier_version_are_read_under_their_earlier_name(tmp_path):
    pages = []
    for name in ("measurements.parquet", "foretold.parquet"):
        (tmp_path / name).mkdir()
        folder = write_measurements(tmp_path / name, name)
        write_report([str(folder)], tmp_path / "report.html")
        pages.append((tmp_path / "report.html").read_text().replace(str(folder), "FOLDER"))
    assert "The left-out reader" in pages[0]
    assert pages[0] == pages[1]


def test_readers_are_predicted_by_membership_and_earlier_measurements_do_not_say_so(measured, tmp_path):
    pages = []
    for earlier in (False, True):
        if earlier:
            rows = pd.read_parquet(measured / "measurements.parquet")
            rows = rows[~rows["method"].str.startswith("chosen, calibrated")].drop(columns="chosen_calibrated")
            rows.to_parquet(measured / "measurements.parquet")
            readers_table.summarise(rows).to_csv(measured / "readers.csv", index=False)
        write_report([str(measured)], tmp_path / "report.html")
        pages.append((tmp_path / "report.html").read_text())
    assert ["the best matte of the kind membership" in text for text in pages] == [True, False]
    assert ["<td>chosen, calibrated</td>" in text for text in pages] == [True, False]
    assert all("<td>chosen</td>" in text for text in pages)


def test_the_page_says_of_which_kind_the_chosen_matte_is(experiment, tmp_path):
    note = json.loads((experiment / "classify.json").read_text())
    (tmp_path / "evaluated").mkdir()
    for name in ("errors.csv", "table.md"):
        (tmp_path / "evaluated" / name).write_text("")
    (tmp_path / "evaluated" / "errors-chosen-matte.png").write_bytes(b"png")
    for kind, chosen, truth in (
        ({}, "the best matte by its quality score", "the chosen matte: mean"),
        ({"kind": "calibrated"}, "the best calibrated matte by", "the chosen matte (calibrated): mean"),
        ({"kind": "membership"}, "the best membership matte by", "the chosen matte (membership): mean"),
    ):
        (experiment / "classify.json").write_text(json.dumps(note | kind))
        (tmp_path / "evaluated" / "evaluate.json").write_text(json.dumps(kind))
        write_report([str(experiment), str(tmp_path / "evaluated")], tmp_path / "report.html")
        text = (tmp_path / "report.html").read_text()
        assert chosen in text
        assert truth in text


def test_the_same_folders_give_the_same_page(experiment, tmp_path):
    pages = []
    for _ in range(2):
        write_report([str(experiment)], tmp_path / "report.html")
        pages.append((tmp_path / "report.html").read_text())
    assert pages[0] == pages[1]


def test_what_a_folder_says_is_shown_and_never_run():
    section = Section("<script>alert(1)</script>")
    section.text("<img src=x onerror=alert(1)> [a](javascript:alert(1)) ![b](http://x/y.png)")
    section.figure(b"png", "<b>bold</b>", command='"><script>alert(1)</script>')
    text = page("<t>", "<l>", [section])
    found = Page(text)
    assert not found.scripts
    # A link is followed by who clicks it; nothing is fetched, and no script hides in one.
    assert set(found.addresses) - {"#s0", "http://x/y.png"} == {"data:image/png;base64,cG5n"}
    assert "<table>" in markdown("| a | b |\n| --- | --- |\n| 1 | 2 |")


def test_what_cannot_be_reported_on_is_said(tmp_path, dataset, capsys):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty: contains nothing to report"):
        write_report([str(tmp_path / "empty")], tmp_path / "report.html")
    (tmp_path / "empty" / "classify.json").write_text('{"commands": ["raymat classify x"]}')
    with pytest.raises(InputError, match="no trial has finished yet; run `raymat classify x`"):
        write_report([str(tmp_path / "empty")], tmp_path / "report.html")
    assert main(["report", str(dataset), "-o", str(tmp_path / "report.pdf")]) == 2
    assert "ends in .html" in capsys.readouterr().err


def test_phantoms_are_held_against_their_truth(tmp_path):
    drawn = {"lesion_hu": 40.0, "core_part": 0.0, "wall": "none", "gap_mm": None}
    nodules = [
        replace(nodule, true_membership=nodule.mattes["cf"], metadata={**nodule.metadata, "phantom": drawn})
        for nodule in (draw_nodule(n) for n in range(2))
    ]
    write_dataset(tmp_path / "phantoms", nodules)
    write_report([str(tmp_path / "phantoms")], tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert "Accuracy on phantoms" in text
    assert "<td>cf</td>\n<td>0.000 (0.000 to 0.000)</td>" in text
