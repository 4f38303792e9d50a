"""One lesion of all that a network finds around a target."""

import numpy as np
import pytest

from raymat.network.inference import Predicted
from raymat.network.lesion import BORDER_MM, NOTHING, is_cut, of_target
from raymat.volume import Grid

GRID = Grid((20, 30, 40), (1.0, 1.0, 1.0), (-5.0, 7.0, 11.0), np.diag([1.0, -1.0, 1.0]))


def ball(centre, radius: float) -> np.ndarray:
    away = np.linalg.norm(np.indices(GRID.shape) - np.reshape(centre, (3, 1, 1, 1)), axis=0)
    return 1 / (1 + np.exp(2.0 * (away - radius)))


def predicted(union: np.ndarray) -> Predicted:
    union = union.astype(np.float32)
    return Predicted(union, union, union / 2, union / 4)


LEFT, RIGHT = (10, 15, 10), (10, 15, 26)


def test_a_neighbour_is_left_out_and_the_lesion_keeps_its_soft_border():
    union = np.maximum(ball(LEFT, 4), ball(RIGHT, 6))
    found, note = of_target(predicted(union), GRID.to_patient(LEFT), None, GRID)
    assert not note
    assert found.alpha.sum() == pytest.approx(ball(LEFT, 4).sum(), rel=0.02)
    away = np.linalg.norm(np.indices(GRID.shape) - np.reshape(LEFT, (3, 1, 1, 1)), axis=0)
    assert not found.alpha[away > 4 + BORDER_MM + 1].any()
    assert found.overlap.max() == pytest.approx(found.union.max() / 2)


def test_the_nearest_lesion_is_meant_where_the_centre_lies_in_none():
    union = np.maximum(ball(LEFT, 4), ball(RIGHT, 6))
    found, _ = of_target(predicted(union), GRID.to_patient((10, 15, 16)), None, GRID)
    assert found.alpha[LEFT] > 0.9
    assert found.alpha[RIGHT] == 0


def test_the_box_of_a_detector_cuts_off_what_the_lesion_touches():
    union = np.maximum(ball(LEFT, 4), ball((10, 15, 18), 6))
    alone, _ = of_target(predicted(union), GRID.to_patient(LEFT), None, GRID)
    boxed, _ = of_target(predicted(union), GRID.to_patient(LEFT), (8.0, 8.0, 8.0), GRID)
    assert alone.alpha[10, 15, 22] > 0.9
    assert boxed.alpha[10, 15, 22] == 0
    assert boxed.alpha[LEFT] > 0.9


def test_where_the_network_finds_nothing_all_is_kept_and_a_note_says_so():
    found, note = of_target(predicted(0.4 * ball(LEFT, 4)), GRID.to_patient(LEFT), None, GRID)
    assert note == NOTHING
    assert found.alpha.max() == pytest.approx(0.4, abs=0.01)


def test_a_lesion_that_reaches_a_face_of_the_box_is_cut():
    assert not is_cut(ball(LEFT, 4))
    for centre in ((10, 15, 2), (10, 15, 37), (2, 15, 20), (17, 15, 20), (10, 27, 20)):
        assert is_cut(ball(centre, 4))
