"""The diagonal, multigrid and their combination, on systems that one or the other solves faster.

    OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1 python -m benchmarks.preconditioners

One process, one thread, one right-hand side; processor time of the solve with all set-up. The last column
is the time of `auto` over the shorter of the other two.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator

import numpy as np
from scipy import ndimage

from benchmarks.matting import head, synthetic
from raymat.matting.region import Region
from raymat.matting.solve import System, solve
from raymat.matting.warm_up import compile_kernels
from raymat.methods import SOLVERS


def between(shape: tuple[int, ...], side: int = 3) -> np.ndarray:
    """A trimap that is unknown but for its first and last voxels along x."""
    trimap = np.full(shape, 128, dtype=np.uint8)
    trimap[..., :side], trimap[..., -side:] = 0, 255
    return trimap


def images(shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    """What a region may look like, HU."""
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 25, shape)
    texture = ndimage.gaussian_filter(rng.normal(size=shape), [min(4, n - 1) for n in shape])
    return {
        "constant": np.full(shape, -400.0),
        "noise": -400 + noise,
        "slope": np.broadcast_to(np.linspace(-900, 100, shape[2]), shape).copy(),
        "texture": -400 + 200 * texture / texture.std(),
        "patches": -400 + 100 * np.round(2 * texture / texture.std()),
    }


def volumes() -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Label, image, trimap."""
    for diameter in (10.0, 20.0):
        yield f"nodule of {diameter:g} mm", *synthetic(diameter, crop=0.0)[:2]
    for label, shape in {
        "100 voxels thick": (24, 24, 106),
        "600 voxels thick": (8, 8, 606),
        "slice of 256 x 256": (1, 256, 256),
        "slice of 512 x 512": (1, 512, 512),
        "organ of 64 x 64 x 64": (64, 64, 64),
    }.items():
        for name, image in images(shape).items():
            yield f"{label}, {name}", image, between(shape)
    shape = (48, 48, 48)
    trimap = np.zeros(shape, np.uint8)
    trimap[2:-2, 2:-2, 2:-2] = 128
    trimap[8:40, 24, 24] = 255
    for name, image in images(shape).items():
        yield f"foreground a line, {name}", image, trimap


def system_of(solver: str, image: np.ndarray, trimap: np.ndarray) -> System:
    scaled = (np.clip(image, -1000, 400)[..., None] + 1000) / 1400
    step = np.where(np.array(trimap.shape) > 1, 1 / (max(trimap.shape) - 1), 0.0)
    return SOLVERS[solver].system(Region(scaled, trimap, step), **SOLVERS[solver].defaults)


def compare(solvers: list[str], repeats: int, only: str = "") -> None:
    """Print the table, of the systems whose label has ``only`` in it."""
    compile_kernels()
    columns = [column for name in ("jacobi", "amg", "auto") for column in (f"{name}: steps", "s")]
    head("unknown region", "solver", "variables", *columns, "auto took", "auto / best")
    ratios = []
    for label, image, trimap in (volume for volume in volumes() if only in volume[0]):
        for solver in solvers:
            system = system_of(solver, image, trimap)
            known = trimap.ravel()[system.variables] != 128
            S = (trimap.ravel()[system.variables] == 255).astype(float)
            cells, seconds = [label, solver, f"{len(known):,}"], {}
            for name in ("jacobi", "amg", "auto"):
                seconds[name] = np.inf
                for _ in range(repeats):
                    began = time.process_time()
                    (solution,) = solve(system, known, [S], 100.0 * known, name)
                    seconds[name] = min(seconds[name], time.process_time() - began)
                failed = "" if solution.converged else ", not converged"
                cells += [f"{solution.iterations}{failed}", f"{seconds[name]:.2f}"]
            ratios.append(seconds["auto"] / min(seconds["jacobi"], seconds["amg"]))
            cells += [solution.solver.removeprefix("cg, "), f"{ratios[-1]:.2f}"]
            print("| " + " | ".join(cells) + " |", flush=True)
    print(f"\nauto / best: median {np.median(ratios):.2f}, 90th percentile {np.percentile(ratios, 90):.2f}", end="")
    print(f", largest {max(ratios):.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--solvers", nargs="*", default=["cf", "knn"], choices=["cf", "lb", "knn"])
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--only", default="", help="part of the labels of the systems to compare")
    arguments = parser.parse_args()
    compare(arguments.solvers, arguments.repeats, arguments.only)


if __name__ == "__main__":
    main()
