"""What is computed and written changes only with the version that says so (``digests.json``).

Built datasets, trained networks and reviewers' decisions are kept for as long as a version stays the same. Each version
that is raised by hand therefore has a few tiny outputs on record, and every test names the constant to raise.

What is compared bit by bit, since it comes out the same on every processor: the mattes (compiled without fastmath, so
that no sum is reordered and no multiplication fused with an addition, and without a BLAS), the prepared arrays, quality
terms, the images of phantoms, what is read, what is written. What is compared within a tolerance, as its last bits
depend on the processor:

- the quality terms ``overlap`` and ``volume``, and the score, which they are part of: dot products in single precision,
  which each kernel of OpenBLAS sums in its own order, and a logarithm. Seen: 4e-7. Tolerated: 5e-6.
- the alpha of phantoms: NumPy has powers, exponentials and logarithms of its own for processors with AVX-512. Seen:
  1.2e-7. Tolerated: 2e-6. The images are whole HU. Should one voxel of a new recording fall to the other side on
  another processor, choose another seed.
- what a network predicts: seen 2e-7, tolerated 1e-5.

The arrays themselves are on record there, not digests of rounded ones: a value beside the border of a rounding would
fall to one side on one processor and to the other on the next. A change that is smaller than the tolerance is not seen.
"""

import ast
import re

import numpy as np
import pytest

from raymat.methods import SOLVERS
from tests.golden.golden import VERSIONS, Close, Versioned, problem, read_recorded, recorded_form
from tests.golden.record import record
from tests.support import REPOSITORY


@pytest.mark.parametrize("versioned", VERSIONS, ids=lambda versioned: versioned.key)
def test_outputs_change_only_with_their_version(versioned, tmp_path):
    said = problem(versioned, versioned.version, versioned.outputs(tmp_path), read_recorded())
    assert not said, said


def test_every_version_that_is_raised_by_hand_has_its_outputs():
    found = set()
    for path in (REPOSITORY / "raymat").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            named = isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Constant)
            for target in (node.targets if isinstance(node, ast.Assign) else [node.target]) if named else []:
                name = ast.unparse(target)
                if name.endswith("VERSION") or (name == "version" and isinstance(node, ast.AnnAssign)):
                    found.add((str(path.relative_to(REPOSITORY)), name))
    constants = [versioned for versioned in VERSIONS if not versioned.solver]
    assert found == {(versioned.file, versioned.constant.split(".")[-1]) for versioned in constants}
    assert {versioned.solver for versioned in VERSIONS} - {""} == set(SOLVERS)


FILE = "raymat/prepare.py"
BEFORE = {"exact": np.arange(3.0), "text": "a", "close": Close(np.arange(3.0), 1e-3)}


def versioned(**changed) -> Versioned:
    """A version whose outputs are ``BEFORE`` but for what is changed."""
    return Versioned(FILE, "PREPARE_VERSION", lambda _: BEFORE | changed)


def recorded_as(version: str) -> dict:
    return {FILE: {"version": version, "outputs": {name: recorded_form(value) for name, value in BEFORE.items()}}}


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"exact": np.nextafter(np.arange(3.0), 9)}, "exact differs"),
        ({"exact": np.arange(3)}, "exact differs"),
        ({"text": "b"}, "text differs"),
        ({"close": Close(np.arange(3.0) + 2e-3, 1e-3)}, r"close differs by up to 0\.002 in 100"),
        ({"close": Close(np.array([0.0, 1.0, np.nan]), 1e-3)}, "close differs"),
        ({"close": Close(np.arange(4.0), 1e-3)}, "close was float64"),
        ({"new": "c"}, "new is not recorded"),
    ],
)
def test_a_changed_output_under_the_same_version_names_the_constant_and_is_not_recorded(changed, words):
    now = versioned(**changed)
    before = recorded_as(now.version)
    after, (said,) = record([now], before, [])
    assert after == before
    assert f"raise PREPARE_VERSION in {FILE}" in said
    assert f"--overwrite {FILE!r}" in said
    assert re.search(words, said)
    after, said = record([now], before, [FILE])
    assert after[FILE]["outputs"] == {name: recorded_form(value) for name, value in now.outputs(None).items()}
    assert not said


def test_outputs_of_a_raised_version_are_asked_for_and_recorded():
    now = versioned(text="b")
    before = recorded_as("an earlier one")
    assert "record them with" in problem(now, now.version, now.outputs(None), before)
    after, refused = record([now], before, [])
    assert not refused
    assert after[FILE]["version"] == now.version
    assert not problem(now, now.version, now.outputs(None), after)


def test_last_bits_of_what_depends_on_the_processor_are_no_change():
    now = versioned(close=Close(np.arange(3.0) + 5e-4, 1e-3))
    before = recorded_as(now.version)
    assert record([now], before, []) == (before, [])
