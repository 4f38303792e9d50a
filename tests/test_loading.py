"""``raymat.load``: by position, by id, in slices; what is not asked for is not read."""

import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import raymat
from raymat.nodule import ARRAY, InputError, struct_to_array
from raymat.release.freeze import ReleaseRequest, release
from tests.support.nodules import draw_nodule, write_dataset

NUMBERS = range(5)


@pytest.fixture(scope="module", params=["dataset", "release"])
def place(request, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp(request.param)
    store = write_dataset(folder / "dataset", [draw_nodule(n) for n in NUMBERS])
    if request.param == "dataset":
        return store.root
    release(ReleaseRequest(store.root, str(folder / "release"), "1.0"), say=lambda _: None)
    return str(folder / "release")


def test_position_id_slice_and_iteration_give_the_same_nodules(place):
    nodules = raymat.load(place)
    assert len(nodules) == 5
    assert nodules.ids == [f"case-{n:03d}" for n in NUMBERS]
    assert [nodule.nodule_id for nodule in nodules] == nodules.ids
    assert [nodules[n].nodule_id for n in NUMBERS] == nodules.ids
    assert nodules[-1].nodule_id == nodules["case-004"].nodule_id == "case-004"
    assert nodules[1:4:2].ids == ["case-001", "case-003"]
    assert nodules[1:4][1].nodule_id == "case-002"
    assert "case-001" in nodules
    assert "nobody" not in nodules
    np.testing.assert_array_equal(nodules["case-002"].alpha, draw_nodule(2).alpha)
    assert [next(nodules).nodule_id, next(nodules).nodule_id] == ["case-000", "case-001"]


def test_what_is_not_there_is_said(place):
    nodules = raymat.load(place)
    with pytest.raises(IndexError):
        nodules[5]
    with pytest.raises(KeyError, match="nobody"):
        nodules["nobody"]
    with pytest.raises(InputError, match="no such outcome: lost"):
        raymat.load(place, outcomes=("lost",))
    with pytest.raises(InputError):
        nodules.split(5, "training")


def test_only_the_nodule_that_is_asked_for_is_read(tmp_path):
    """The files of the others may be gone."""
    store = write_dataset(tmp_path / "dataset", [draw_nodule(n) for n in NUMBERS])
    nodules = raymat.load(store.root)
    rows = store.outcomes().to_pylist()
    for row in rows:
        if row["nodule_id"] != "case-003":
            Path(store.path(row["shard"])).unlink()
    assert nodules["case-003"].nodule_id == "case-003"
    with pytest.raises(InputError, match="cannot be read"):
        nodules[0]


def test_workers_can_have_it(place):
    again = pickle.loads(pickle.dumps(raymat.load(place)))
    assert again[2].nodule_id == "case-002"


def test_the_torch_view_gives_tensors_or_what_the_transform_makes(place):
    torch = pytest.importorskip("torch")
    view = raymat.load(place).torch()
    assert isinstance(view, torch.utils.data.Dataset)
    sample = view[1]
    assert sample["image"].shape == sample["alpha"].shape == sample["readers"].shape[1:]
    assert sample["readers"].shape[0] == 4
    np.testing.assert_array_equal(sample["alpha"].numpy(), draw_nodule(1).alpha)
    for kind in ("membership", "calibrated"):
        np.testing.assert_array_equal(sample[kind].numpy(), getattr(draw_nodule(1), kind))
    sample["alpha"].zero_()
    assert sample["membership"].max() == 1
    loader = torch.utils.data.DataLoader(
        raymat.load(place).torch(lambda nodule: nodule.alpha[:8, :16, :16]), batch_size=5, num_workers=1
    )
    assert next(iter(loader)).shape == (5, 8, 16, 16)


def test_a_kind_that_no_nodule_has_is_no_part_of_a_batch(tmp_path):
    torch = pytest.importorskip("torch")
    nodules = [draw_nodule(number, methods=("cf+",), readers=(0.2,)) for number in range(2)]
    view = raymat.load(write_dataset(tmp_path / "dataset", nodules).root).torch()
    batch = next(iter(torch.utils.data.DataLoader(view, batch_size=2)))
    assert "membership" not in batch
    assert batch["calibrated"].shape == batch["alpha"].shape == (2, 20, 32, 32)
    assert batch["kind"] == ["any", "any"]


@pytest.mark.ray
def test_the_ray_view_reads_every_nodule_once(place, ray_cluster):
    rows = raymat.load(place).ray().take_all()
    assert sorted(row["nodule_id"] for row in rows) == [f"case-{n:03d}" for n in NUMBERS]
    row = next(row for row in rows if row["nodule_id"] == "case-003")
    for name in ("alpha", "membership", "calibrated"):
        alpha = struct_to_array(pa.scalar(row[name], type=ARRAY))
        np.testing.assert_array_equal(alpha, getattr(draw_nodule(3), name))


@pytest.mark.ray
def test_the_ray_view_of_nodules_of_different_kinds_has_one_schema(tmp_path, ray_cluster):
    methods = [("cf",), ("cf+",)]
    nodules = [draw_nodule(number, methods=methods[number % 2]) for number in range(4)]
    view = raymat.load(write_dataset(tmp_path / "dataset", nodules).root).ray()
    rows = sorted(view.take_all(), key=lambda row: row["nodule_id"])
    assert [row["membership"] is None for row in rows] == [False, True, False, True]
    assert [row["calibrated"] is None for row in rows] == [True, False, True, False]
