"""Time, memory and error of the eight solvers, beside pymatting run slice by slice.

    OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1 python -m benchmarks.matting

One process, one thread; times are its processor time, so that other work on the machine counts little. Prints Markdown
tables: synthetic nodules of known alpha from 5 to 40 mm at 0.5 mm, the exponent of time against unknown voxels,
phantoms, and real crops (from RAYMAT_TEST_DATA, else ../shared/data), all in the crop of 128 pixels of a scanner that
a build works on; then elapsed time by number of threads, and preconditioners (`benchmarks.preconditioners`).
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from scipy import ndimage

from raymat.matting import METHODS, estimate_all
from raymat.nodule import Nodule
from raymat.sources import Source
from raymat.sources.cases import CasesSource
from raymat.sources.phantom import PhantomSource
from raymat.steps import BuildParameters, read_and_prepare

SPACING = (0.5, 0.5, 0.5)
BASES = ("cf", "lb", "knn", "if")


def synthetic(diameter: float, crop: float = 90.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A round nodule with a blurred border in lung, its trimap, its alpha; crop x crop mm in plane."""
    rng = np.random.default_rng(seed)
    side, height = int(max(crop, diameter + 16) / 0.5), int((diameter + 16) / 0.5)
    shape = (height, side, side)
    z, y, x = (np.arange(n) - (n - 1) / 2 for n in shape)
    r = 0.5 * np.sqrt(z[:, None, None] ** 2 + y[:, None] ** 2 + x**2)
    alpha = ndimage.gaussian_filter(np.clip((diameter / 2 - r) / 0.5 + 0.5, 0, 1), 1.5)
    texture = ndimage.gaussian_filter(rng.normal(size=shape), 3) * 400
    image = alpha * (40 + texture) + (1 - alpha) * (-850 + texture) + rng.normal(size=shape) * 25
    trimap = np.full(shape, 128, dtype=np.uint8)
    trimap[r < max(1.0, diameter / 2 - 2.0)] = 255
    trimap[r > diameter / 2 + 2.5] = 0
    return image, trimap, alpha


def nodules(source: Source, count: int) -> Iterator[Nodule]:
    """Prepared nodules of the source, evenly spread over it, those without a trimap left out."""
    refs = [ref for ref in source.plan() if ref.readers >= 2]
    found = 0
    for ref in refs[:: max(1, len(refs) // (2 * count))]:
        nodule = read_and_prepare(source, ref, BuildParameters(min_readers=2))
        if nodule.trimap is not None and found < count:
            found += 1
            yield nodule


def slice_by_slice(image: np.ndarray, trimap: np.ndarray) -> tuple[dict[str, float], float, dict[str, np.ndarray]]:
    """pymatting's cf, lbdm and knn, slice by slice.

    pymatting refuses a slice without foreground or background. There one known pixel in a corner is given the value it
    misses, which costs what any slice costs and changes nothing near the nodule.

    Returns
    -------
    seconds of each on all slices with unknown voxels, seconds of the three on those that it takes as they are, mattes
    """
    from pymatting import estimate_alpha_cf, estimate_alpha_knn, estimate_alpha_lbdm

    scaled = (np.clip(image, -1000, 400).astype(float) + 1000) / 1400
    mattes, all_slices, taken_slices = {}, {}, 0.0
    for name, estimate in (("cf", estimate_alpha_cf), ("lb", estimate_alpha_lbdm), ("knn", estimate_alpha_knn)):
        matte = (trimap == 255).astype(float)
        all_slices[name] = 0.0
        for z in np.flatnonzero((trimap == 128).any(axis=(1, 2))):
            plane = np.where(trimap[z] == 128, 0.5, trimap[z] / 255.0)
            taken = True
            for corner, value in (((0, 0), 1.0), ((-1, -1), 0.0)):
                if not (plane == value).any():
                    plane[corner], taken = value, False
            rgb = np.repeat(scaled[z][..., None], 3, axis=2)
            began = time.process_time()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                solution = estimate(rgb, plane, **({} if taken or name == "knn" else {"cg_kwargs": {"atol": 1e-8}}))
            seconds = time.process_time() - began
            all_slices[name] += seconds
            taken_slices += seconds if taken else 0.0
            matte[z] = np.where(trimap[z] == 128, solution, matte[z])
        mattes[name] = matte
    return all_slices, taken_slices, mattes


def ours(image: np.ndarray, trimap: np.ndarray, spacing, repeats: int = 3, methods=METHODS) -> tuple[float, dict]:
    """Shortest of some runs of all eight, or of some of them."""
    best = np.inf
    for _ in range(repeats):
        began = time.process_time()
        mattes = estimate_all(image, trimap, methods, spacing=spacing)
        best = min(best, time.process_time() - began)
    return best, mattes


def by_threads(diameters: list[float], counts: list[int]) -> None:
    """Elapsed time of all eight by number of threads, shortest of five; what else the machine does counts here."""
    head("nodule mm", *(f"{count} threads, s" if count > 1 else "1 thread, s" for count in counts))
    for diameter in diameters:
        image, trimap, _ = synthetic(diameter)
        best = dict.fromkeys(counts, np.inf)
        for _ in range(5):
            for count in counts:
                began = time.perf_counter()
                estimate_all(image, trimap, METHODS, spacing=SPACING, threads=count)
                best[count] = min(best[count], time.perf_counter() - began)
        print(f"| {diameter:g} | " + " | ".join(f"{best[count]:.2f}" for count in counts) + " |", flush=True)


def peak_mib() -> float:
    """Peak resident memory since the last call (Linux)."""
    status = Path("/proc/self/status").read_text()
    peak = int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1024
    Path("/proc/self/clear_refs").write_text("5")
    return peak


def line(
    label: str,
    image: np.ndarray,
    trimap: np.ndarray,
    alpha: np.ndarray | None,
    compare: bool = True,
    spacing=SPACING,
) -> tuple[int, dict]:
    peak_mib()
    seconds, mattes = ours(image, trimap, spacing, 3 if compare else 1)
    peak = peak_mib()
    unknown = trimap == 128
    each = {base: ours(image, trimap, spacing, 3 if compare else 1, (base, base + "+"))[0] for base in BASES}
    steps = "/".join(str(mattes[base][1].iterations) for base in BASES)
    cells = [label, "x".join(map(str, trimap.shape)), f"{unknown.sum():,}"]
    apart, taken, other = slice_by_slice(image, trimap) if compare else ({}, 0.0, {})
    # Beside a pair the ratio to twice its time in pymatting, which would solve each of the two by itself.
    cells += [f"{each[b]:.2f}" + (f" ({2 * apart[b] / each[b]:.0f} x)" if b in apart else "") for b in BASES]
    cells += [f"{seconds:.2f}", steps, f"{peak:.0f}"]
    if compare:
        every = sum(apart.values())
        cells += [f"{every:.1f}", f"**{every / seconds:.0f}**", f"{taken:.1f}", f"{taken / seconds:.0f}"]
    else:
        cells += [""] * 4
    if alpha is not None:
        cells.append(" ".join(f"{np.abs(mattes[b][0] - alpha)[unknown].mean():.3f}" for b in BASES))
        cells.append(" ".join(f"{np.abs(other[b] - alpha)[unknown].mean():.3f}" for b in other))
    print("| " + " | ".join(cells) + " |", flush=True)
    return int(unknown.sum()), each


def exponents(points: list[tuple[float, int, dict]]) -> None:
    """Print those of time against unknown voxels, of diameters (mm), unknown voxels and seconds of each pair."""
    fitted = [(unknown, each) for diameter, unknown, each in points if diameter >= 10]
    if len(fitted) > 1:
        for base in BASES:
            logs = np.log([[unknown, each[base]] for unknown, each in fitted])
            print(f"\nexponent of {base}: {np.polyfit(logs[:, 0], logs[:, 1], 1)[0]:.2f}")


HEAD = ["unknown", *(f"{b}, {b}+ s" for b in BASES), "all 8 s", "steps", "peak MiB"]
HEAD += ["pymatting 3 s", "ratio", "of slices it takes, s", "ratio"]
ERRORS = ["mean error cf lb knn if", "pymatting cf lb knn"]


def head(*columns: str) -> None:
    print("\n| " + " | ".join(columns) + " |")
    print("|" + " --- |" * len(columns))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=float, nargs="*", default=[5.0, 10.0, 20.0, 30.0, 40.0], help="diameters in mm")
    parser.add_argument(
        "--large",
        type=float,
        nargs="*",
        default=[],
        metavar="MM",
        help="diameters of a second table in grids cut to the nodule, with exponents, such as 10 20 40 80",
    )
    parser.add_argument("--compare-up-to", type=float, default=20.0, help="largest diameter given to pymatting, in mm")
    parser.add_argument("--nodules", type=int, default=5, help="phantoms, and real crops; 0 for none")
    parser.add_argument("--threads", type=int, nargs="*", default=[1, 2], help="numbers of threads to compare")
    parser.add_argument("--no-preconditioners", action="store_true", help="leave their comparison out")
    arguments = parser.parse_args()
    image, trimap, _ = synthetic(4.0, crop=12.0)
    ours(image, trimap, SPACING, 1)
    slice_by_slice(image, trimap)
    print(f"compiled and warmed up: {peak_mib():.0f} MiB")
    head("nodule mm", "grid", *HEAD, *ERRORS)
    points = [
        (diameter, *line(f"{diameter:g}", *synthetic(diameter), compare=diameter <= arguments.compare_up_to))
        for diameter in arguments.sizes
    ]
    exponents(points)
    if arguments.large:
        head("nodule mm, grid cut to it", "grid", *HEAD, *ERRORS)
        exponents([(d, *line(f"{d:g}", *synthetic(d, crop=0.0), compare=False)) for d in arguments.large])

    if arguments.nodules:
        with tempfile.TemporaryDirectory() as folder:
            head("phantom", "grid", *HEAD, *ERRORS)
            for n in nodules(PhantomSource(folder, 2 * arguments.nodules), arguments.nodules):
                line(n.nodule_id, n.image, n.trimap, n.true_membership, spacing=n.spacing)
        data = Path(os.environ.get("RAYMAT_TEST_DATA") or Path(__file__).parents[2] / "shared" / "data")
        if (table := data / "lidc-voi" / "cases.csv").is_file():
            head("real crop", "grid", *HEAD)
            for n in nodules(CasesSource(str(table)), arguments.nodules):
                line(n.nodule_id, n.image, n.trimap, None, spacing=n.spacing)
    if arguments.threads:
        by_threads([size for size in arguments.sizes if size <= arguments.compare_up_to], arguments.threads)
    if not arguments.no_preconditioners:
        from benchmarks import preconditioners

        preconditioners.compare(["cf", "knn"], 1)


if __name__ == "__main__":
    main()
