"""Second scans of phantoms: the same lesion, other everything."""

import pickle

import numpy as np
import pytest
from scipy import ndimage

from raymat.cli import main
from raymat.nodule import InputError
from raymat.sources.kinds import KINDS
from raymat.sources.phantom import RetestSource, choose, phantom_of, write_retests
from raymat.sources.phantom.retest import redrawn, retest_of
from tests.support import quiet
from tests.support.nodules import distances

SEED = 5


@pytest.fixture(scope="module")
def cases() -> list:
    return choose(2, SEED)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("retests")
    write_retests(path, 2, SEED, quiet)
    return path


def test_the_lesion_is_the_same_and_scanner_position_and_readers_are_not(cases):
    for case in cases:
        first, second = phantom_of(case, SEED), retest_of(case, SEED)
        voxels = np.prod(case.spacing), np.prod(second.spacing)
        for name in ("membership", "calibrated"):
            before, after = (
                getattr(scan, name).sum(dtype=float) * v for scan, v in zip((first, second), voxels, strict=True)
            )
            assert after == pytest.approx(before, rel=0.02)
        same = ("lesion_hu", "transition_mm", "wall", "gap_mm", "attached", "lung_hu", "offset_mm")
        other = ("blur_mm", "thickness_mm", "noise_hu")
        assert all(first.parameters[name] == second.parameters[name] for name in same)
        assert all(first.parameters[name] != second.parameters[name] for name in other)
        # The lesion's middle lies where it lay, in mm.
        middles = []
        for alpha, spacing in ((first.membership, case.spacing), (second.membership, second.spacing)):
            middles.append(np.array(ndimage.center_of_mass(alpha)) * spacing)
        np.testing.assert_allclose(middles[1] + second.offset, middles[0], atol=0.15)
        assert np.abs(second.offset[1:]).min() > 0
        read = [mask.sum() * voxels[1] for mask in second.readers]
        assert len(set(read)) > 1
        assert 0.3 < np.mean(read) / (np.mean([mask.sum() for mask in case.readers]) * voxels[0]) < 3


def test_new_readers_disagree_as_the_old_ones_do():
    shape, spacing = (9, 24, 24), (1.0, 1.0, 1.0)
    off = distances(shape, spacing=1.0) - 6
    old = np.stack([off + step for step in (-1.5, -0.2, 0.3, 1.4)]).astype(np.float32)
    drawn = np.stack([redrawn(old, spacing, np.random.default_rng(seed)) for seed in range(400)])
    assert drawn.shape[1:] == old.shape
    np.testing.assert_allclose(drawn.mean((0, 1)), old.mean(0), atol=0.12)
    assert drawn.std((0, 1)).mean() == pytest.approx(old.std(0, ddof=1).mean(), rel=0.05)


def test_same_seed_same_bytes_and_an_interrupted_run_resumes(folder, tmp_path):
    write_retests(tmp_path, 1, SEED)
    written = write_retests(tmp_path, 2, SEED)
    names = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    assert sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()) == names
    assert all((folder / name).read_bytes() == (tmp_path / name).read_bytes() for name in names)
    assert written.read_text().count("\n") == 3
    with pytest.raises(InputError, match="holds another phantom"):
        write_retests(_renamed(tmp_path, choose(1, SEED)[0], choose(1, SEED + 1)[0]), 1, SEED + 1)


def _renamed(root, case, other):
    """The folder in which another lesion's second scan lies where that of ``other`` would."""
    place = root / other.scan.patient_id / other.nodule_id
    if not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        (root / case.scan.patient_id / case.nodule_id).rename(place)
    return root


def test_the_source_reads_what_was_drawn(folder, cases):
    source = pickle.loads(pickle.dumps(RetestSource(folder)))
    refs = list(source.plan())
    assert [ref.nodule_id for ref in refs] == [case.nodule_id for case in cases]
    nodule, drawn = source.read(refs[0]), retest_of(cases[0], SEED)
    np.testing.assert_array_equal(nodule.image, drawn.image)
    np.testing.assert_array_equal(nodule.readers, drawn.readers)
    np.testing.assert_allclose(nodule.true_membership, drawn.membership)
    assert nodule.spacing == pytest.approx(drawn.spacing)
    assert nodule.metadata["phantom"]["retest"] is True
    assert nodule.origin[0] == pytest.approx(cases[0].scan.slice_z[cases[0].slices[0]] + drawn.offset[0], abs=1e-3)
    assert len(nodule.ratings["malignancy"]) == 4


def test_raymat_build_opens_such_a_folder_and_others_are_refused(folder, tmp_path, capsys):
    class Options:
        lidc = str(folder)

    assert isinstance(KINDS["lidc"].open(Options).source, RetestSource)
    with pytest.raises(InputError, match="holds no second scans"):
        RetestSource(tmp_path)
    assert main(["phantom", "--retest", "-o", "s3://bucket/scans"]) == 2
    assert "to a folder of this machine" in capsys.readouterr().err


def test_a_scan_that_is_gone_is_a_problem_of_its_own(tmp_path):
    write_retests(tmp_path, 2, SEED)
    first, second = RetestSource(tmp_path).plan()
    (tmp_path / first.patient_id / first.nodule_id / "phantom.json").unlink()
    problems = [ref.problem for ref in RetestSource(tmp_path).plan()]
    assert "its files are missing" in problems[0]
    assert problems[1] == second.problem == ""
