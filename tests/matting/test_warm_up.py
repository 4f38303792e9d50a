"""The loops are compiled once on a machine."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import REPOSITORY

WARM_UP = """
import json
from raymat.compiled import KERNELS
from raymat.matting.warm_up import are_compiled, compile_kernels
before = are_compiled()
compile_kernels()
misses = sum(sum(kernel.stats.cache_misses.values()) for kernel in KERNELS)
unused = [kernel.py_func.__name__ for kernel in KERNELS if not kernel.signatures]
print(json.dumps({"before": before, "after": are_compiled(), "compiled": misses > 0, "unused": unused}))
"""


@pytest.mark.slow
def test_of_two_processes_at_once_one_compiles_every_loop(tmp_path):
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", WARM_UP]
    processes = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    waited, compiled = sorted(
        (json.loads(process.communicate(timeout=500)[0]) for process in processes), key=lambda said: said["compiled"]
    )
    assert (waited["compiled"], compiled["compiled"]) == (False, True)
    assert waited["after"]
    assert compiled["after"]
    # A loop that the small volume does not need would be compiled by every worker.
    assert compiled["unused"] == []


DAMAGED = """
import logging
import sys
from pathlib import Path
import numpy as np
from raymat.compiled import compiled
from tests.matting.test_warm_up import add_one
logging.basicConfig(level=logging.WARNING)
kernel = compiled(add_one)
assert kernel(np.arange(3.0)).tolist() == [1, 2, 3]
print(sum(kernel.stats.cache_hits.values()))
"""


def add_one(values):
    return values + 1


def added(cache: Path) -> tuple[str, str]:
    """Run a kernel in a process of its own: how often its code was found stored, and what was warned."""
    environment = os.environ | {"NUMBA_CACHE_DIR": str(cache)}
    done = subprocess.run(
        [sys.executable, "-c", DAMAGED], cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout.strip(), done.stderr


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    """The folder of a kernel's machine code, which a second process has found there."""
    folder = tmp_path_factory.mktemp("cache")
    assert added(folder) == ("0", "")
    assert added(folder) == ("1", "")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("damage", "ending"),
    [
        ("cut", "nbi"),
        ("zeros", "nbc"),
        *(
            pytest.param(*other, marks=pytest.mark.soak)
            for other in (("empty", "nbi"), ("zeros", "nbi"), ("cut", "nbc"), ("empty", "nbc"))
        ),
    ],
)
def test_machine_code_that_is_damaged_on_disk_is_compiled_again_and_stored(cache, tmp_path, damage, ending):
    shutil.copytree(cache, tmp_path, dirs_exist_ok=True)
    (file,) = tmp_path.rglob(f"*.{ending}")
    data = file.read_bytes()
    half = len(data) // 2
    file.write_bytes({"cut": data[:half], "empty": b"", "zeros": data[:half] + bytes(len(data) - half)}[damage])
    hits, warning = added(tmp_path)
    assert hits == "0"
    assert "it is compiled again" in warning
    assert added(tmp_path) == ("1", "")


@pytest.mark.slow
def test_where_no_machine_code_can_be_stored_each_process_compiles(tmp_path):
    (tmp_path / "file").touch()
    assert added(tmp_path / "file" / "cache")[0] == "0"
