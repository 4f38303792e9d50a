"""The files of measures: units in their metadata, and the way back."""

import csv
import json
import math

import pyarrow.parquet as pq
import pytest

from raymat.measures.dictionary import MEASURES
from raymat.measures.nodule import measure
from raymat.measures.table import TableFile, as_table, read_table
from raymat.nodule import InputError
from tests.support.nodules import draw_nodule

ROWS = [measure(draw_nodule(1)), measure(draw_nodule(2, readers=())) | {"notes": ["a; b", "c"]}]


def test_parquet_has_units_and_meanings_in_its_fields(tmp_path):
    path = tmp_path / "measures.parquet"
    assert TableFile.at(str(path)).write(as_table(ROWS, {"dataset": "d"})) == ["measures.parquet"]
    found = pq.read_table(path)
    assert found.column_names == list(MEASURES)
    assert found.schema.metadata[b"dataset"] == b"d"
    assert found.schema.field("volume_mm3").metadata == {
        b"unit": b"mm3",
        b"description": MEASURES["volume_mm3"].meaning.encode(),
    }
    assert found["readers_mean_mm3"].to_pylist()[1] is None
    assert found["reader_volumes_mm3"].to_pylist()[0] == ROWS[0]["reader_volumes_mm3"]


def test_csv_has_them_in_the_file_that_the_w3c_names(tmp_path):
    path = tmp_path / "measures.csv"
    assert TableFile.at(str(path)).write(as_table(ROWS, {})) == ["measures.csv", "measures.csv-metadata.json"]
    rows = list(csv.DictReader(path.open()))
    assert list(rows[0]) == list(MEASURES)
    assert float(rows[0]["volume_mm3"]) == pytest.approx(ROWS[0]["volume_mm3"], rel=1e-5)
    assert rows[1]["readers_mean_mm3"] == rows[1]["reader_volumes_mm3"] == ""
    assert rows[1]["notes"] == "a, b;c"
    about = json.loads((tmp_path / "measures.csv-metadata.json").read_text())
    columns = {column["name"]: column for column in about["tableSchema"]["columns"]}
    assert about["url"] == "measures.csv"
    assert columns["mass_mg"]["schema:unitText"] == "mg"
    assert columns["reader_volumes_mm3"]["separator"] == ";"


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_a_table_is_read_back(tmp_path, ending):
    path = str(tmp_path / f"measures.{ending}")
    TableFile.at(path).write(as_table(ROWS, {}))
    found = read_table(path).to_pylist()
    assert found[0]["reader_volumes_mm3"] == pytest.approx(ROWS[0]["reader_volumes_mm3"], rel=1e-5)
    assert found[1]["readers_sd_mm3"] is None
    assert found[0]["readers"] == 4
    for name in ("volume_mm3", "sphericity"):
        assert found[1][name] == pytest.approx(ROWS[1][name], rel=1e-5)


def test_other_endings_and_other_tables_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"measures.xlsx: a table is written as .csv or .parquet"):
        TableFile.at("measures.xlsx")
    with pytest.raises(InputError, match="no such file"):
        read_table(str(tmp_path / "none.csv"))
    (tmp_path / "bad.csv").write_text("nodule_id,volume_mm3\na,large\n")
    with pytest.raises(InputError, match=r"bad.csv: is no table of measures"):
        read_table(str(tmp_path / "bad.csv"))


def test_every_number_has_a_unit_and_every_column_a_meaning():
    for name, column in MEASURES.items():
        assert column.meaning, name
        assert bool(column.unit) == (column.type not in ("text", "texts")), name
    assert not [row for row in ROWS if math.isnan(row["volume_mm3"])]


@pytest.mark.parametrize("name", ["measures.csv", "measures.parquet"])
def test_a_table_in_an_object_store_is_that_on_a_disk(s3, tmp_path, name):
    place = f"{s3.bucket(f'measures-{name[-3:]}')}/{name}"
    table = as_table(ROWS, {"dataset": "d"})
    TableFile.at(place).write(table)
    TableFile.at(str(tmp_path / name)).write(table)
    assert TableFile.at(place).folder.read(name) == (tmp_path / name).read_bytes()
    assert read_table(place) == read_table(str(tmp_path / name))
