"""Which images of a series are used, and which slab of it has to be whole."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raymat.nodule import InputError
from raymat.sources.dicom import Series, Slice
from raymat.sources.series import patient_meant, scan_of, slab_around, usual_step

AXIAL = ((0.0, 1.0, 0.0), (0.0, 0.0, 1.0))


def image(z: float, patient: str = "p", instance: int = 0) -> Slice:
    name = f"{z}-{patient}-{instance}"
    return Slice(name, (z, 0.0, 0.0), AXIAL, (0.7, 0.7), (512, 512), instance, name, patient, "study", 1, 1)


def heights(slices) -> list[float]:
    return [item.z for item in slices]


@given(st.floats(0.3, 5.0), st.integers(2, 60), st.floats(0, 1), st.floats(0.0, 40.0))
def test_of_an_even_series_all_within_reach_are_taken(step, count, at, half):
    slices = [image(k * step) for k in range(count)]
    z = at * step * (count - 1)
    mean = (slices[-1].z - slices[0].z) / (count - 1)
    assert usual_step(np.array(heights(slices))) == mean
    near = [item for item in slices if abs(item.z - z) <= half + 2 * mean]
    assert slab_around(slices, z, half) == near


@pytest.mark.parametrize("missing", [{0}, {3, 4, 5}, {10}, {30}, {10, 30, 31}])
def test_what_is_missing_far_away_is_no_fault(missing):
    slices = [image(2.5 * k) for k in range(40) if k not in missing]
    assert heights(slab_around(slices, 50.0, 10.0)) == [2.5 * k for k in range(14, 27)]


@pytest.mark.parametrize("missing", [{20}, {17}, {23}, {16, 17}, {14, 15, 16, 17, 18, 19, 21, 22, 23, 24, 25, 26}])
def test_what_is_missing_within_the_slab_is_named(missing):
    slices = [image(2.5 * k) for k in range(40) if k not in missing]
    with pytest.raises(InputError, match=r"a slice is missing, or unevenly spaced, near z = .*download"):
        slab_around(slices, 50.0, 10.0)


def test_a_gap_just_beyond_the_slab_cuts_it_short():
    slices = [image(2.5 * k) for k in range(40) if k != 25]
    assert heights(slab_around(slices, 50.0, 10.0)) == [2.5 * k for k in range(14, 25)]


def test_the_ends_of_the_scan_are_no_gap_and_a_height_beyond_them_is_refused():
    slices = [image(2.5 * k) for k in range(40)]
    assert heights(slab_around(slices, 0.0, 10.0)) == [2.5 * k for k in range(7)]
    with pytest.raises(InputError, match=r"z = 200 mm lies outside the scan, .* from z = 0 to 97.5"):
        slab_around(slices, 200.0, 10.0)


def test_one_image_per_position_is_used_of_the_patient_that_is_meant():
    images = [image(2.5 * k, instance=k + 1) for k in range(9)] + [image(10.0, "q", 0), image(10.0, "p", 99)]
    series = Series("1.2", sorted(images, key=lambda item: item.z))
    scan = scan_of(series)
    assert heights(scan.slices) == [2.5 * k for k in range(9)]
    assert {item.patient_id for item in scan.slices} == {"p"}
    assert scan.slices[4].instance == 5
    assert "at 1 position of the series" in scan.notes[0]
    assert scan_of(series, "q").slices[4].patient_id == "q"
    # An id that no image has says nothing.
    assert patient_meant(series, "LIDC-IDRI-0001") == "p"


def test_two_phases_in_one_series_are_one_of_them():
    images = [image(2.5 * k, instance=100 * phase + k + 1) for phase in (0, 1) for k in range(9)]
    scan = scan_of(Series("1.2", sorted(images, key=lambda item: item.z)))
    assert [item.instance for item in scan.slices] == list(range(1, 10))
    assert "at 9 positions" in scan.notes[0]
