"""Volumes and their intervals on phantoms, their repeatability, and how they agree with readers.

    raymat build --phantoms 120 --seed 7 -o phantoms-7
    raymat build --phantoms 72 --seed 4711 -o test
    raymat phantom -n 72 --seed 4711 --retest -o retest-scans && raymat build --lidc retest-scans -o retest
    python benchmarks/measure.py fit phantoms-7 test retest
    python benchmarks/measure.py accuracy phantoms-7 test --figure docs/images/volumes.png
    python benchmarks/measure.py rows phantoms-7 test
    python benchmarks/measure.py retest test retest --figure docs/images/retest.png
    python benchmarks/measure.py real lidc-voi-mattes
    python benchmarks/measure.py fourth lidc-voi-mattes --nodules 60

`fit` fits the constants of raymat/measures/interval.py to the phantoms of one half of the patients, the half that the
quality score was tuned on, and prints their coverage on the other half. `accuracy` prints errors on that other half, or
with --all on all phantoms; `rows` holds every other measure against that of the true mattes. `real` measures real
nodules: ranges, missing values, time, agreement with readers. `fourth` makes mattes of three readers and counts how
often the interval holds the fourth reader's volume.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

import raymat
from raymat.evidence import volumes as evidence
from raymat.evidence.phantom_accuracy import tuned_on
from raymat.evidence.volumes import ESTIMATE, Volumes, volumes_of
from raymat.measures import interval
from raymat.measures.dictionary import MEASURES, NUMBER
from raymat.measures.nodule import missing
from raymat.nodule import InputError, Matte, NoduleExcluded
from raymat.pictures.figure import save
from raymat.pictures.volumes import bland_altman, repeatability_figure
from raymat.prepare import make_trimap
from raymat.quality import assess
from raymat.steps import BuildParameters, MattingParameters, solve


def read(datasets: Sequence[str]) -> list[Volumes]:
    return [volumes_of(nodule) for dataset in datasets for nodule in raymat.load(dataset)]


def fit(options: argparse.Namespace) -> None:
    phantoms = read(options.datasets)
    for name, change in (("READERS_MODEL", lambda e: e), ("MATTE_MODEL", interval.without_readers)):
        judged = {}
        for half in (True, False):
            inside = [one for one in phantoms if tuned_on(one.patient_id) == half]
            patients = [one.patient_id for one in inside]
            model = interval.fitted([change(one.evidence) for one in inside], [one.truth for one in inside], patients)
            if half:
                print(f"fitted to {len(inside)} scans of {len(set(patients))} patients:\n{as_code(name, model)}")
            judged[half] = [
                with_model(one, model, change(one.evidence)) for one in phantoms if tuned_on(one.patient_id) != half
            ]
        for title, part in (
            ("scans of the other patients", judged[True]),
            ("scans, each by the model of the half without its patient", [*judged[True], *judged[False]]),
        ):
            error = np.abs(evidence.errors_of(part, evidence.ESTIMATE))
            print(f"\n{len(part)} {title}: median error {100 * np.median(error):.1f} %\n")
            print(evidence.coverage_table(part))
        print()


def as_code(name: str, model: interval.VolumeModel) -> str:
    scale = ", ".join(f"{value:.4f}" for value in model.scale)
    low, high = model.quantiles
    return f"{name} = VolumeModel({model.shift:.4f}, {model.weight:.4f}, ({scale}), ({low:.4f}, {high:.4f}))"


def with_model(one: Volumes, model: interval.VolumeModel, known: interval.Evidence) -> Volumes:
    """The volumes with estimate and interval of another model."""
    found = model.interval(known)
    return replace(one, interval=found, volumes={**one.volumes, evidence.ESTIMATE: (found.estimate,)})


def accuracy(options: argparse.Namespace) -> None:
    phantoms = [one for one in read(options.datasets) if options.all or not tuned_on(one.patient_id)]
    print(f"{len(phantoms)} scans of {len({one.patient_id for one in phantoms})} patients\n")
    print(evidence.accuracy_table(phantoms))
    print(f"\nmedian bias, median absolute error, %\n\n{evidence.accuracy_by_group(phantoms)}")
    print(f"\n{evidence.coverage_table(phantoms)}")
    if options.figure:
        save(bland_altman(phantoms), options.figure)


# Column, the column of the true mattes that it is held against, and whether the difference is absolute.
HELD_AGAINST = (
    ("volume_mm3", "volume_mm3", False),
    ("longest_diameter_mm", "longest_diameter_mm", False),
    ("perpendicular_diameter_mm", "perpendicular_diameter_mm", False),
    ("mean_diameter_mm", "mean_diameter_mm", False),
    ("mass_mg", "tissue_mass_mg", False),
    ("tissue_mass_mg", "tissue_mass_mg", False),
    ("solid_share", "solid_share", True),
    ("solid_volume_hu_mm3", "solid_volume_mm3", False),
    ("solid_volume_mm3", "solid_volume_mm3", False),
    ("consolidation_tumor_ratio", "consolidation_tumor_ratio", True),
    ("surface_mm2", "surface_mm2", False),
    ("sphericity", "sphericity", True),
    ("border_width_mm", "border_width_mm", False),
    ("border_width_spread_mm", "border_width_spread_mm", False),
)


def rows(options: argparse.Namespace) -> None:
    """Each measure of the mattes against the same measure of the true mattes."""
    pairs = []
    for dataset in options.datasets:
        for nodule in raymat.load(dataset):
            truth = [Matte("cf", nodule.true_membership), Matte("cf+", nodule.true_calibrated)]
            known = replace(nodule, candidates=truth, method="cf+")
            pairs.append((raymat.measure(nodule), raymat.measure(known)))
    print(f"{len(pairs)} phantoms\n")
    print("| measure | held against | bias, median | abs. error, median | 90th percentile |")
    print("| --- | --- | --- | --- | --- |")
    for name, true_name, absolute in HELD_AGAINST:
        found, truth = np.array([(one[name], true[true_name]) for one, true in pairs], dtype=float).T
        usable = np.isfinite(found) & np.isfinite(truth) & (absolute | (truth > 0))
        error = found[usable] - truth[usable]
        error, unit, form = (error, "", ".3f") if absolute else (100 * error / truth[usable], " %", ".1f")
        size = np.abs(error)
        cells = [f"{np.median(error):+{form}}", f"{np.median(size):{form}}", f"{np.percentile(size, 90):{form}}"]
        print(f"| `{name}` | `{true_name}` | {' | '.join(cell + unit for cell in cells)} |")


def retest(options: argparse.Namespace) -> None:
    first, second = options.datasets
    pairs = evidence.pairs_of(read([first]), read([second]))
    print(f"{len(pairs)} lesions scanned twice\n\n{evidence.repeatability_table(pairs)}")
    print(f"\nrepeatability coefficient, %\n\n{evidence.repeatability_by_group(pairs)}")
    for size in (0.0, 6.0, 10.0):
        large = [pair for pair in pairs if (6 * (pair[0].truth or 0) / np.pi) ** (1 / 3) >= size]
        found = {name: evidence.repeatability(large, name) for name in (evidence.ESTIMATE, evidence.SINGLE)}
        said = ", ".join(f"{name} {one.coefficient:.0f} %" for name, one in found.items() if one)
        print(f"\nfrom {size:g} mm on, {len(large)} lesions: {said}")
    print(f"\n{false_growth(pairs)}")
    held = [one.interval.low <= other.interval.estimate <= one.interval.high for one, other in pairs]
    print(f"\nthe interval holds the estimate of the other scan in {100 * np.mean(held):.0f} %")
    if options.figure:
        save(repeatability_figure(pairs), options.figure)


def false_growth(pairs: Sequence[tuple[Volumes, Volumes]]) -> str:
    """The deviations of one half of the patients, and how often they see a change in the other half."""

    def small(pair: tuple[Volumes, Volumes]) -> bool:
        return pair[0].interval.estimate < interval.SMALL_MM3

    halves = {half: [pair for pair in pairs if tuned_on(pair[0].patient_id) == half] for half in (True, False)}
    said = []
    for part, judged in ((pairs, pairs), (halves[True], halves[False]), (halves[False], halves[True])):
        own = [evidence.repeatability([p for p in part if small(p) == size], ESTIMATE) for size in (True, False)]
        deviations = [one.deviation if one else np.nan for one in own]
        changes = [
            abs(evidence.log_changes([pair], ESTIMATE)[0]) > 1.96 * np.sqrt(2) * deviations[0 if small(pair) else 1]
            for pair in judged
        ]
        said.append(
            f"deviations of {len(part)} lesions: {deviations[0]:.4f} small, {deviations[1]:.4f} others; with them "
            f"{100 * np.mean(changes):.0f} % of {len(changes)} lesions seem to change, of which none did"
        )
    return "\n".join(said)


def real(options: argparse.Namespace) -> None:
    (dataset,) = options.datasets
    rows, seconds, read_volumes = [], [], []
    for nodule in raymat.load(dataset):
        start = time.perf_counter()
        rows.append(raymat.measure(nodule))
        seconds.append(time.perf_counter() - start)
        read_volumes.append(volumes_of(nodule))
    print(f"{len(rows)} nodules, {np.median(seconds):.3f} s in the median, {max(seconds):.3f} s at most")
    absent = Counter(name for row in rows for name in missing(row))
    print("missing values", dict(absent) or "none")
    print("without a note", sum(1 for row in rows if missing(row) and not row["notes"]))
    print("\n| measure | least | 5 % | median | 95 % | most |\n| --- | --- | --- | --- | --- | --- |")
    for name, column in MEASURES.items():
        if column.type == NUMBER:
            parts = np.nanpercentile([row[name] for row in rows], (0, 5, 50, 95, 100))
            print(f"| `{name}` | {' | '.join(f'{part:.3g}' for part in parts)} |")
    print(f"\n{evidence.agreement_table(read_volumes)}")


def fourth(options: argparse.Namespace) -> None:
    (dataset,) = options.datasets
    found = list(left_out(dataset, options.nodules))
    held = [low <= volume <= high for low, high, volume, _, _ in found]
    three = [least <= volume <= most for _, _, volume, least, most in found]
    widths = [(high - low) / np.sqrt(low * high) for low, high, _, _, _ in found]
    print(f"{len(found)} fourth readers of {options.nodules} nodules")
    print(f"the interval of three readers' matte holds the fourth reader's volume: {100 * np.mean(held):.0f} %")
    print(f"the range of the three holds it: {100 * np.mean(three):.0f} %")
    print(f"width of the interval, median {100 * np.median(widths):.0f} %")


def left_out(dataset: str, count: int) -> Iterator[tuple[float, float, float, float, float]]:
    """Low, high, the left-out reader's volume, and the range of the other three; mm3."""
    nodules = raymat.load(dataset)
    places = np.linspace(0, len(nodules) - 1, min(count, len(nodules))).astype(int)
    parameters = BuildParameters(min_readers=3, matting=MattingParameters(methods=("cf", "lb", "if")))
    for place in sorted(set(places.tolist())):
        nodule = nodules[place]
        for number in range(len(nodule.readers)):
            others = [mask for reader, mask in enumerate(nodule.readers) if reader != number]
            try:
                trimap = make_trimap(others, nodule.spacing)
                bare = replace(nodule, readers=others, trimap=trimap, candidates=[], outcome=None, method=None)
                judged = assess(solve(bare, parameters), parameters.quality)
                measured = volumes_of(judged)
            except (InputError, NoduleExcluded):
                continue  # three readers without a common voxel, or a rejected matte
            volume = evidence.volume_mm3(nodule.readers[number], nodule.spacing)
            own = measured.evidence.readers
            yield measured.interval.low, measured.interval.high, volume, min(own), max(own)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("fit", "accuracy", "rows", "retest", "real", "fourth"))
    parser.add_argument("datasets", nargs="+")
    parser.add_argument("--all", action="store_true", help="accuracy: also the half that the constants were fitted to")
    parser.add_argument("--figure", type=Path, metavar="PNG", help="accuracy, retest: draw a figure")
    parser.add_argument("--nodules", type=int, default=60, help="fourth: how many (default: %(default)s)")
    options = parser.parse_args()
    globals()[options.what](options)


if __name__ == "__main__":
    main()
