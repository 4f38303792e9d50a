"""What PET adds to CT: errors of every method on PET-CT phantoms, from CT alone and from both.

    raymat phantom --pet -o phantoms -n 24
    python benchmarks/pet.py phantoms --skip 4

The trimap is that of the readers' masks, or one with a wide unknown region, as a quick outline leaves it. Errors are
those of membership in the unknown region, against what the CT scanner shows of the drawn lesion. Every second phantom
lies against collapsed lung, which CT cannot tell from the lesion.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from raymat.arrays import UNKNOWN
from raymat.channels import ChannelRange
from raymat.methods import SOLVERS
from raymat.nodule import Nodule
from raymat.prepare import PrepareParameters, prepare
from raymat.sources.cases import CasesSource
from raymat.steps import BuildParameters, MattingParameters, score, solve
from raymat.volume import read_volume
from raymat.words import markdown_table

METHODS = tuple(SOLVERS)
CHANNELS = (ChannelRange("CT", -1000, 400), ChannelRange("PET", 0, 10))
TRIMAPS = {"readers": {}, "wide": {"grow_out_mm": 8.0, "grow_in_mm": 3.0}}
INPUTS = {"CT": (), "PET-CT": CHANNELS}


def solved(nodule: Nodule, channels: tuple, trimap: dict, prior: bool, spacing: float) -> Nodule:
    """The nodule with its mattes, from its CT alone or from all channels, scored."""
    grid = PrepareParameters(spacing_mm=spacing, channels=channels, **trimap)
    parameters = BuildParameters(1, grid, MattingParameters(METHODS, prior=prior))
    bare = nodule if channels else replace(nodule, channels=[])
    return score(solve(replace(prepare(bare, grid), key="0" * 40), parameters), parameters)


def errors(nodule: Nodule, truth: np.ndarray) -> dict[str, dict[str, float]]:
    """Mean squared and absolute error in the unknown region, and of the volume, of each method and of the chosen."""
    unknown = nodule.trimap == UNKNOWN
    mattes = nodule.mattes | {"best score": nodule.best("membership").alpha}
    return {
        name: {
            "mse": float(np.mean((alpha - truth)[unknown] ** 2)),
            "mae": float(np.mean(np.abs(alpha - truth)[unknown])),
            "volume": abs(float(alpha.sum()) / float(truth.sum()) - 1),
        }
        for name, alpha in mattes.items()
    }


def measure(folder: Path, spacing: float, skip: int) -> list[dict]:
    """One row per phantom, trimap, input, prior and method; the first ``skip`` phantoms are left out."""
    source = CasesSource(str(folder / "cases.csv"))
    with open(folder / "cases.csv", newline="") as file:
        rows = {row["case_id"]: row for row in csv.DictReader(file)}
    found = []
    for ref in list(source.plan())[skip:]:
        row = rows[ref.nodule_id]
        truth = read_volume(folder / row["membership"])[0].astype(np.float32)
        nodule = replace(source.read(ref), true_membership=truth)
        for trimap, growth in TRIMAPS.items():
            for given, channels in INPUTS.items():
                for prior in (True, False):
                    done = solved(nodule, channels, growth, prior, spacing)
                    for method, values in errors(done, done.true_membership).items():
                        about = {"case": ref.nodule_id, "collapsed": row["collapsed"] == "yes", "trimap": trimap}
                        found.append({**about, "input": given, "prior": prior, "method": method, **values})
        print(f"{ref.nodule_id} measured", file=sys.stderr)
    return found


def table(rows: list[dict], metric: str, collapsed: bool, trimap: str, prior: bool) -> str:
    """Mean error of each method from CT and from PET-CT, and in how many phantoms the second is the smaller."""
    lines = []
    for method in (*METHODS, "best score"):
        some = [
            row
            for row in rows
            if (row["method"], row["collapsed"], row["trimap"], row["prior"]) == (method, collapsed, trimap, prior)
        ]
        ct, both = ({row["case"]: row[metric] for row in some if row["input"] == given} for given in INPUTS)
        better = sum(both[case] < ct[case] for case in ct)
        scale = 1e3 if metric == "mse" else 100
        means = (scale * float(np.mean(list(values.values()))) for values in (ct, both))
        before, after = means
        lines.append((method, f"{before:.1f}", f"{after:.1f}", f"{after / before - 1:+.0%}", f"{better} of {len(ct)}"))
    return markdown_table(("method", "CT", "PET-CT", "change", "smaller with PET"), lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("phantoms", type=Path, help="folder that `raymat phantom --pet` wrote")
    parser.add_argument("--spacing-mm", type=float, default=1.0, help="of the working grid (default: %(default)s)")
    parser.add_argument("--skip", type=int, default=0, help="phantoms to leave out, from the first (default: 0)")
    parser.add_argument("--json", type=Path, help="file of all rows")
    options = parser.parse_args()
    rows = measure(options.phantoms, options.spacing_mm, options.skip)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))
    for collapsed in (False, True):
        for trimap in TRIMAPS:
            for prior in (True, False):
                where = "against collapsed lung" if collapsed else "in lung or at a wall"
                print(f"\n{where}, trimap: {trimap}, {'with' if prior else 'without'} the readers' prior")
                for metric, words in (("mse", "MSE x 1e3"), ("volume", "error of the volume, %")):
                    print(f"\n{words}\n\n{table(rows, metric, collapsed, trimap, prior)}")


if __name__ == "__main__":
    main()
