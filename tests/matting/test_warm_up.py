"""The loops are compiled once on a machine."""

import json
import os
import subprocess
import sys

import pytest

WARM_UP = """
import json
from raymat.matting.compiled import KERNELS
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
