"""The row of a nodule: its parts by hand, its notes, and what cannot be measured."""

import math
from dataclasses import replace

import numpy as np
import pytest

import raymat
from raymat.calibration import LUNG_WINDOW, HUWindow
from raymat.measures.dictionary import MEASURES, NUMBER
from raymat.measures.nodule import measure, missing
from raymat.methods import ANY, CALIBRATED, MEMBERSHIP, SolveInfo
from raymat.nodule import InputError, Matte, Nodule
from tests.support.kinds import nodule_of_kind
from tests.support.nodules import distances, draw_nodule

SPACING = (0.5, 0.5, 0.5)


def part_solid(core_mm: float = 4.0, whole_mm: float = 8.0, glass_hu: float = -600.0, core_hu: float = 0.0) -> Nodule:
    """A ball of ground glass with a solid core in air, with its true mattes as candidates."""
    distance = distances((44, 44, 44), None, 0.5)
    membership = np.clip(0.5 + (whole_mm - distance) / 1.0, 0, 1).astype(np.float32)
    tissue = np.where(distance < core_mm, core_hu, glass_hu)
    image = (membership * tissue + (1 - membership) * -1000).astype(np.float32)
    calibrated = (membership * LUNG_WINDOW.alpha(tissue)).astype(np.float32)
    return Nodule(
        "n",
        "p",
        "cases",
        image=image,
        spacing=SPACING,
        readers=[(distance < whole_mm + step).astype(np.uint8) for step in (-0.5, 0.0, 0.5)],
        candidates=[Matte("cf", membership, score=0.9), Matte("cf+", calibrated, score=0.8)],
        method="cf+",
        kind=CALIBRATED,
    )


def test_a_row_has_every_column_in_order_and_python_has_it_as_raymat_measure():
    row = raymat.measure(draw_nodule(1))
    assert list(row) == list(MEASURES)
    assert row == measure(draw_nodule(1))
    assert not missing(row)
    numbers = [row[name] for name, column in MEASURES.items() if column.type == NUMBER]
    assert all(isinstance(value, float) and math.isfinite(value) for value in numbers)


def test_mass_and_the_solid_part_of_a_nodule_drawn_by_hand():
    row = measure(part_solid())
    core, whole = (4 / 3 * math.pi * radius**3 for radius in (4.0, 8.0))
    # A border of 1 mm adds a little: pi w^2 r / 3.
    whole += math.pi * 8 / 3
    assert row["volume_mm3"] == pytest.approx(whole, rel=0.01)
    assert row["solid_volume_mm3"] == pytest.approx(core, rel=0.02)
    assert row["ground_glass_volume_mm3"] == pytest.approx(whole - core, rel=0.01)
    assert row["solid_share"] == pytest.approx(core / whole, rel=0.02)
    # 0 HU is 1 g/cm3, -600 HU is 0.4.
    assert row["tissue_mass_mg"] == pytest.approx(core + 0.4 * (whole - core), rel=0.01)
    # In air the mixture in border voxels has less mass than the lesion's share of them.
    assert 0.9 * row["tissue_mass_mg"] < row["mass_mg"] < row["tissue_mass_mg"]
    assert row["consolidation_tumor_ratio"] == pytest.approx(0.5, abs=0.03)
    assert row["longest_diameter_mm"] == pytest.approx(16, abs=0.2)


def test_the_border_of_a_solid_nodule_is_ground_glass_by_hu_and_solid_by_mattes():
    row = measure(part_solid(core_mm=99.0))
    assert row["solid_share"] == pytest.approx(1)
    assert row["ground_glass_volume_mm3"] == pytest.approx(0, abs=1e-6)
    assert row["ground_glass_volume_hu_mm3"] > 20


def test_another_window_of_the_calibration_gives_the_same_mass():
    drawn, window = part_solid(), HUWindow(-500.0, 1200.0)
    membership = drawn.mattes["cf"]
    tissue = np.where(membership > 0, (drawn.image + 1000) / np.maximum(membership, 1e-6) - 1000, -1000)
    other = Matte("cf+", (membership * window.alpha(tissue)).astype(np.float32), score=0.8)
    moved = replace(drawn, candidates=[drawn.candidates[0], other])
    for name in ("tissue_mass_mg", "solid_volume_mm3"):
        assert measure(moved, window)[name] == pytest.approx(measure(drawn)[name], rel=0.01)


def test_readers_volumes_and_their_spread():
    row = measure(part_solid())
    assert row["readers"] == 3
    assert row["readers_mean_mm3"] == pytest.approx(np.mean(row["reader_volumes_mm3"]))
    assert row["readers_sd_mm3"] == pytest.approx(np.std(row["reader_volumes_mm3"], ddof=1))
    assert (row["readers_min_mm3"], row["readers_max_mm3"]) == (
        min(row["reader_volumes_mm3"]),
        max(row["reader_volumes_mm3"]),
    )


@pytest.mark.parametrize("kind", [CALIBRATED, MEMBERSHIP, ANY])
def test_volume_is_of_the_membership_matte_in_a_dataset_of_any_kind(kind):
    row = measure(nodule_of_kind(2, kind))
    assert row["matte"] == "cf"
    assert row["calibrated_matte"] == "cf+"
    assert row["volume_mm3"] == pytest.approx(float(nodule_of_kind(2, kind).mattes["cf"].sum()) / 8, rel=1e-6)


def test_every_value_that_is_missing_has_a_note():
    distance = distances((24, 24, 24))
    faint = np.clip(0.4 * (7 - distance), 0, 0.4).astype(np.float32)
    alone = Nodule("n", "p", "3dmm", image=np.full(faint.shape, -700, np.float32), spacing=SPACING, kind=MEMBERSHIP)
    alone = replace(alone, candidates=[Matte("3dmm", faint, kind=MEMBERSHIP)], method="3dmm", notes=["padded"])
    row = measure(alone)
    assert row["notes"] == [
        "padded",
        "membership nowhere reaches 0.5: no diameters",
        "no readers' masks",
        "no matte of raymat's solvers in a trimap: no estimate and no interval of the volume",
        "no calibrated matte: no solid part by mattes, no mass of the tissue",
        "membership nowhere exceeds 0.5: no surface",
        "membership nowhere reaches 0.5: no minimum and maximum of intensity",
    ]
    absent = set(missing(row))
    assert {"longest_diameter_mm", "readers_mean_mm3", "solid_share", "sphericity", "intensity_minimum_hu"} <= absent
    assert row["reader_volumes_mm3"] == []
    assert not absent & {"volume_mm3", "mass_mg", "intensity_mean_hu", "fleischner_2017_volume"}


def test_a_solver_that_did_not_converge_is_noted():
    drawn = part_solid()
    drawn.candidates[0].solve = SolveInfo(converged=False, residual=0.02)
    assert "the solver of cf did not converge (residual 0.02)" in measure(drawn)["notes"]


def test_without_a_membership_matte_there_is_no_volume():
    drawn = part_solid()
    only = replace(drawn, candidates=[drawn.candidates[1]])
    with pytest.raises(InputError, match=r"n: has no chosen membership matte \(its mattes: cf\+\).*without \+"):
        measure(only)
    with pytest.raises(InputError, match="n: has no chosen membership matte"):
        measure(replace(drawn, method=None))
    # The masks of a network that learnt calibrated alpha are no membership matte.
    network = [Matte("3dmm", drawn.mattes["cf+"], kind=CALIBRATED), Matte("3dmm-union", drawn.mattes["cf"])]
    with pytest.raises(InputError, match="a network that learnt membership"):
        measure(replace(drawn, candidates=network, method="3dmm"))
    empty = [Matte("cf", np.zeros_like(drawn.mattes["cf"]))]
    with pytest.raises(InputError, match="n: the membership matte cf is 0 everywhere"):
        measure(replace(drawn, candidates=empty, method="cf"))
