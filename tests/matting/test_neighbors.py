"""The neighbour search against comparison with every voxel."""

import numpy as np
import pytest
from scipy.ndimage import distance_transform_edt

from raymat.matting import neighbors
from raymat.matting.neighbors import Voxels


def distances(features, step, voxels, others):
    place = np.stack(np.unravel_index(np.arange(features[..., 0].size), features.shape[:3]), axis=1) * step
    points = np.hstack([features.reshape(-1, features.shape[3]), place])
    return np.sqrt(((points[voxels][:, None] - points[others]) ** 2).sum(axis=2))


@pytest.mark.parametrize("way", ["space", "intensity", "blocks"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("values", [1, 2, 1000])
@pytest.mark.parametrize(("shape", "c"), [((9, 8, 10), 1), ((1, 20, 21), 3), ((5, 6, 7), 2)])
def test_no_voxel_lies_nearer_than_those_found(monkeypatch, way, masked, values, shape, c):
    if way != "space":
        monkeypatch.setattr(neighbors, "BALL", 40)
        monkeypatch.setattr(neighbors, "BLOCK", 8)
        monkeypatch.setattr(neighbors, "SWEEP", 1e-6 if way == "intensity" else 1e6)
    rng = np.random.default_rng(values)
    features = rng.integers(values, size=(*shape, c)) / values
    step = np.array([0.02, 0.01, 0.013])
    candidates = rng.random(shape) < 0.2 if masked else None
    among = np.flatnonzero(candidates) if masked else np.arange(np.prod(shape))
    queries = np.arange(np.prod(shape))
    k = 6
    found = Voxels(features).nearest(step, k, queries, candidates)
    assert (found != queries[:, None]).all()
    assert all(len(set(row)) == k for row in found.tolist())
    assert np.isin(found, among).all()
    every = distances(features, step, queries, np.tile(among, (len(queries), 1)))
    every[among[None] == queries[:, None]] = np.inf
    np.testing.assert_allclose(distances(features, step, queries, found), np.sort(every, axis=1)[:, :k], atol=1e-12)


def test_fewer_candidates_than_wanted_leave_the_rest_empty():
    features = np.random.default_rng(0).random((4, 4, 4, 1))
    candidates = np.zeros((4, 4, 4), dtype=bool)
    candidates[1, 2, 3] = candidates[0, 0, 0] = True
    found = Voxels(features).nearest(np.full(3, 0.1), 3, np.array([0, 20]), candidates)
    assert found[0].tolist() == [27, -1, -1]
    assert sorted(found[1].tolist()) == [-1, 0, 27]


@pytest.mark.parametrize("c", [1, 2])
def test_no_voxel_out_of_reach_has_a_neighbour_in_the_set(c):
    rng = np.random.default_rng(c)
    shape, step, k = (7, 12, 11), np.array([0.02, 0.01, 0.013]), 5
    features = 0.03 * rng.random((*shape, c))
    wanted = np.zeros(shape, dtype=bool)
    wanted[:, :3, :3] = True
    queries = np.flatnonzero(~wanted)
    reach = distance_transform_edt(~wanted, sampling=step).ravel()[queries]
    voxels = Voxels(features)
    possible = voxels.within_reach(step, k, queries, reach)
    having = wanted.ravel()[voxels.nearest(step, k, queries)].any(axis=1)
    assert having.any()
    assert not (having & ~possible).any()
    assert np.count_nonzero(possible) < 0.7 * len(queries)
