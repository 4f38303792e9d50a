"""Threads change the time and no bit."""

import numpy as np
import pytest

from raymat.matting import estimate, estimate_all, estimate_alpha, neighbors, windows
from raymat.matting import solve as solve_module
from raymat.matting.threads import Threads
from tests.support.nodules import bumpy_ball


@pytest.fixture
def small_parts(monkeypatch):
    """Small volumes are cut into parts, too."""
    monkeypatch.setattr(neighbors, "LEAST_QUERIES", 3)
    monkeypatch.setattr(solve_module, "LEAST_ROWS", 5)
    monkeypatch.setattr(windows, "LEAST_PLANES", 1)
    monkeypatch.setattr(windows, "LEAST_VOXELS", 1)


@pytest.mark.parametrize("together", [0, 10**9])
@pytest.mark.parametrize("shape", [(14, 15, 16), (24, 22)])
def test_the_bits_are_the_same_for_any_number_of_threads(small_parts, monkeypatch, together, shape):
    monkeypatch.setattr(estimate, "TOGETHER", together)
    image, trimap = bumpy_ball(3, shape)
    one = estimate_all(image, trimap)
    for threads in (2, 3, 8):
        several = estimate_all(image, trimap, threads=threads)
        assert list(several) == list(one)
        for name, (alpha, info) in several.items():
            assert alpha.tobytes() == one[name][0].tobytes(), name
            assert (info.iterations, info.residual) == (one[name][1].iterations, one[name][1].residual)


@pytest.mark.parametrize("method", ["cf", "knn"])
def test_so_are_those_of_multigrid(small_parts, method):
    image, trimap = bumpy_ball(4, (13, 14, 15))
    one, three = (estimate_alpha(image, trimap, method, preconditioner="amg", threads=count)[0] for count in (1, 3))
    assert one.tobytes() == three.tobytes()


@pytest.mark.parametrize("threads", [0, -1, 1.5, True, "two"])
def test_a_number_that_is_none_is_refused(threads):
    image, trimap = bumpy_ball(0, (9, 9, 9))
    with pytest.raises(ValueError, match="threads must be a whole number of 1 or more"):
        estimate_alpha(image, trimap, "cf", threads=threads)


def test_parts_cover_everything_once_in_order():
    for count, size, least in [(1, 10, 1), (3, 10, 1), (4, 10, 4), (8, 3, 1), (2, 0, 1)]:
        with Threads(count) as threads:
            parts = threads.each(lambda part: list(range(part.start, part.stop)), size, least)
        assert [item for part in parts for item in part] == list(range(size))
        assert all(len(part) >= least for part in parts) or len(parts) == 1


def test_a_fault_in_a_part_is_raised():
    def fail(part):
        if part.start:
            raise ValueError("second part")
        return np.zeros(1)

    with Threads(2) as threads, pytest.raises(ValueError, match="second part"):
        threads.each(fail, 10)
