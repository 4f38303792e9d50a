"""The change of a lesion: by hand, and what the command says."""

import csv
import math

import numpy as np
import pytest

from raymat.cli import main
from raymat.measures.change import CHANGES, DEVIATIONS, LARGER, SMALLER, WITHIN, change_of, change_row, pairs_of
from raymat.measures.nodule import measure
from raymat.measures.table import TableFile, as_table
from raymat.nodule import InputError
from tests.support.nodules import draw_nodule, write_dataset

FIRST = measure(draw_nodule(1))


def grown(factor: float, **more) -> dict:
    names = ("volume_estimate_mm3", "tissue_mass_mg", "mean_diameter_mm")
    return FIRST | {name: FIRST[name] * factor for name in names} | more


def test_a_change_and_its_interval_by_hand():
    change = change_of(500.0, 600.0)
    deviation = math.sqrt(2) * DEVIATIONS[1]
    middle, low, high = change.percent
    assert middle == pytest.approx(20)
    assert (1 + low / 100) == pytest.approx(1.2 * math.exp(-1.6449 * deviation))
    assert (1 + high / 100) == pytest.approx(1.2 * math.exp(1.6449 * deviation))
    # Below 6 mm a volume repeats less well.
    small = change_of(50.0, 60.0)
    assert small.deviation == pytest.approx(math.sqrt(2) * DEVIATIONS[0])
    assert small.percent[1] < low


def test_a_verdict_is_right_for_95_of_100_that_did_not_change():
    rng = np.random.default_rng(2)
    logs = rng.normal(0, DEVIATIONS[1], (4000, 2))
    verdicts = [change_of(*(500 * np.exp(pair))).verdict for pair in logs]
    assert np.mean([verdict == WITHIN for verdict in verdicts]) == pytest.approx(0.95, abs=0.01)
    assert {change_of(500, 700).verdict, change_of(700, 500).verdict} == {LARGER, SMALLER}


def test_a_doubling_time_is_that_of_exponential_growth():
    row = change_row(FIRST, grown(1.5), days=90)
    assert row["doubling_time_days"] == pytest.approx(90 * math.log(2) / math.log(1.5))
    assert row["doubling_time_low_days"] < row["doubling_time_days"] < row["doubling_time_high_days"]
    assert row["change"] == pytest.approx(50)
    assert row["tissue_mass_change"] == pytest.approx(50)
    assert row["mean_diameter_change_mm"] == pytest.approx(FIRST["mean_diameter_mm"] / 2)
    assert set(row) == set(CHANGES)
    assert row["notes"] == []


def test_what_is_not_certain_or_not_known_is_noted():
    barely = change_row(FIRST, grown(1.03), days=90)
    assert math.isnan(barely["doubling_time_high_days"])
    assert barely["notes"] == ["the interval of the change holds no change: the doubling time has no upper end"]
    shrunk = change_row(FIRST, grown(0.7), days=90)
    assert math.isnan(shrunk["doubling_time_days"])
    assert shrunk["notes"] == ["the volume did not grow: no doubling time"]
    assert math.isnan(change_row(FIRST, grown(2.0))["doubling_time_days"])
    none = change_row(FIRST, grown(2.0, volume_estimate_mm3=None))
    assert none["verdict"] is None
    assert none["notes"] == ["no estimate of the volume in the second scan"]


def test_pairs_are_of_one_id():
    other = grown(2.0, nodule_id="other")
    assert pairs_of([FIRST, other], [other]) == [(other, other)]
    with pytest.raises(InputError, match="no nodule id is in both: name one of each with --nodules"):
        pairs_of([FIRST], [other])


def test_the_command_compares_tables_datasets_and_two_rows(tmp_path, capsys):
    tables = []
    for name, row in (("first.parquet", FIRST), ("second.csv", grown(1.5, nodule_id="later"))):
        TableFile.at(str(tmp_path / name)).write(as_table([row], {}))
        tables.append(str(tmp_path / name))
    assert main(["change", *tables]) == 2
    assert "no nodule id is in both" in capsys.readouterr().err
    named = ["--nodules", FIRST["nodule_id"], "later", "--days", "90", "-o", str(tmp_path / "change.csv")]
    assert main(["change", *tables, *named]) == 0
    said = capsys.readouterr().out
    assert f"{FIRST['nodule_id']}, later" in said
    assert "+50 %" in said
    assert "larger, doubles in 154 days" in said
    (row,) = csv.DictReader((tmp_path / "change.csv").open())
    assert list(row) == list(CHANGES)
    assert float(row["change"]) == pytest.approx(50, abs=0.01)
    dataset = write_dataset(tmp_path / "dataset", [draw_nodule(1)]).root
    assert main(["change", dataset, tables[0]]) == 0
    assert "+0 %" in capsys.readouterr().out
    assert main(["change", dataset, tables[0], "--nodules", "none", FIRST["nodule_id"]]) == 2
    assert "no accepted nodule none" in capsys.readouterr().err
    assert main(["change", *tables, "--days", "0"]) == 2
    assert "--days 0" in capsys.readouterr().err
