"""Real harm to real workers: found on PYTHONPATH by every process of a build that a test starts.

RAYMAT_HARM holds JSON: `record`, a file that gets a line for each solve that begins; `slow`, seconds that each takes
longer; `until`, a file that all but the first `free` of them wait for; `exit`, `kill` and `hang`, the nodules whose
solve ends its process, is killed as for memory, and never returns (in C, holding the interpreter's lock).
"""

import ctypes
import importlib.abc
import importlib.util
import json
import os
import signal
import sys
import time


def harmed(solve, harm):
    def harmful(nodule, parameters):
        with open(harm["record"], "a") as file:
            file.write(nodule.nodule_id + "\n")
        if nodule.nodule_id == harm.get("exit"):
            os._exit(7)
        if nodule.nodule_id == harm.get("kill"):
            os.kill(os.getpid(), signal.SIGKILL)
        if nodule.nodule_id == harm.get("hang"):
            ctypes.PyDLL(None).sleep(3600)
        time.sleep(harm.get("slow", 0))
        with open(harm["record"]) as file:
            waits = "until" in harm and len(file.readlines()) > harm["free"]
        while waits and not os.path.exists(harm["until"]):
            time.sleep(0.2)
        return solve(nodule, parameters)

    return harmful


class Finder(importlib.abc.MetaPathFinder):
    """Replaces `solve` in the build as soon as that is imported."""

    def find_spec(self, name, path, target=None):
        if name != "raymat.pipelines.build":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        load = spec.loader.exec_module

        def exec_module(module):
            load(module)
            module.solve = harmed(module.solve, json.loads(os.environ["RAYMAT_HARM"]))

        spec.loader.exec_module = exec_module
        return spec


if "RAYMAT_HARM" in os.environ:
    sys.meta_path.insert(0, Finder())
