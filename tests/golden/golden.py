"""Recorded outputs (``digests.json``) and how those of today differ from them."""

from __future__ import annotations

import base64
import hashlib
import importlib
import json
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from pathlib import Path

import numpy as np

from raymat.methods import SOLVERS
from tests.golden import outputs
from tests.golden.outputs import Close

RECORDED = Path(__file__).parent / "digests.json"
RECORD = "python -m tests.golden.record"


@dataclass(frozen=True)
class Versioned:
    """A version that is raised by hand, and the outputs that change only with it.

    Attributes
    ----------
    file : where it is, from the repository's root; its key in ``digests.json``
    constant : its name there
    outputs : a folder for files to their names and values
    solver : whose version it is, where the constant is the registry of solvers; part of the key, then
    """

    file: str
    constant: str
    outputs: Callable[[Path], dict]
    solver: str = ""

    @property
    def key(self) -> str:
        return f"{self.file} {self.solver}".rstrip()

    @property
    def version(self) -> str:
        if self.solver:
            return str(SOLVERS[self.solver].version)
        module = importlib.import_module(self.file.removesuffix(".py").replace("/", "."))
        return str(attrgetter(self.constant)(module))


VERSIONS = [
    *(Versioned("raymat/methods.py", "SOLVERS", partial(outputs.solver, name=name), name) for name in SOLVERS),
    Versioned("raymat/matting/prior.py", "PRIOR_VERSION", outputs.prior),
    Versioned("raymat/prepare.py", "PREPARE_VERSION", outputs.prepared),
    Versioned("raymat/quality/selection.py", "QualityParameters.version", outputs.quality),
    Versioned("raymat/evidence/reader_prediction.py", "VERSION", outputs.reader_prediction_scores),
    Versioned("raymat/sources/phantom/source.py", "VERSION", outputs.phantoms),
    Versioned("raymat/sources/cases.py", "SOURCE_VERSION", outputs.read_cases),
    Versioned("raymat/sources/lidc.py", "SOURCE_VERSION", outputs.read_lidc),
    Versioned("raymat/store.py", "FORMAT_VERSION", outputs.dataset_format),
    Versioned("raymat/release/record.py", "FORMAT_VERSION", outputs.release_format),
    Versioned("raymat/benchmark/judge.py", "BENCHMARK_VERSION", outputs.benchmark_scores),
    Versioned("raymat/network/training.py", "FORMAT_VERSION", outputs.weights_format),
]


def recorded_form(value: object) -> str | dict:
    """What is recorded of a value: a digest, or for a ``Close`` the array itself."""
    if isinstance(value, Close):
        data = base64.b64encode(zlib.compress(np.ascontiguousarray(value.array).tobytes(), 9)).decode()
        return {"tolerance": value.tolerance, "dtype": value.array.dtype.str, "shape": value.array.shape, "zlib": data}
    if isinstance(value, np.ndarray):
        head = f"{value.dtype.str} {list(value.shape)}".encode()
        return hashlib.sha256(head + np.ascontiguousarray(value).tobytes()).hexdigest()[:24]
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:24]


def difference(value: object, recorded: str | dict | None) -> str:
    """How a value differs from what was recorded of it, in words; empty where it does not."""
    if recorded is None:
        return "is not recorded"
    if not isinstance(value, Close) or not isinstance(recorded, dict):
        return "" if recorded_form(value) == recorded else "differs"
    data = zlib.decompress(base64.b64decode(recorded["zlib"]))
    before = np.frombuffer(data, recorded["dtype"]).reshape(recorded["shape"])
    if (before.shape, before.dtype) != (value.array.shape, value.array.dtype):
        return f"was {before.dtype} {before.shape}, is {value.array.dtype} {value.array.shape}"
    apart = np.abs(value.array.astype(float) - before)
    if (apart <= recorded["tolerance"]).all():
        return ""
    return f"differs by up to {np.nanmax(apart):.2g} in {np.mean(apart > recorded['tolerance']):.1%} of its values"


def changes(found: dict, recorded: dict) -> list[str]:
    """The outputs that are not as recorded, with how they differ."""
    said = {name: difference(value, recorded.get(name)) for name, value in found.items()}
    said |= dict.fromkeys(recorded.keys() - found.keys(), "is gone")
    return [f"{name} {words}" for name, words in said.items() if words]


def problem(versioned: Versioned, version: str, found: dict, recorded: dict) -> str:
    """What to do about outputs that are not those recorded for this version; empty where they are."""
    file, constant = versioned.file, versioned.constant
    if versioned.solver:
        constant += f"[{versioned.solver!r}].version"
    entry = recorded.get(versioned.key, {"version": "none", "outputs": {}})
    if version != entry["version"]:
        return (
            f"{constant} in {file} is {version}, but the outputs in {RECORDED.name} are of {entry['version']}: "
            f"record them with `{RECORD}`"
        )
    changed = changes(found, entry["outputs"])
    if not changed:
        return ""
    return (
        f"{len(changed)} of {len(found)} outputs changed while {constant} in {file} is still {version}: "
        f"{'; '.join(changed[:8])}{'; ...' if len(changed) > 8 else ''}.\n"
        f"If the change is meant, raise {constant} in {file} and record the new outputs with `{RECORD}`. "
        f"If nothing that was built before changes (say, an output was added to this test), "
        f"record them with `{RECORD} --overwrite {versioned.key!r}`. Else undo the change."
    )


def read_recorded() -> dict:
    return json.loads(RECORDED.read_text())
