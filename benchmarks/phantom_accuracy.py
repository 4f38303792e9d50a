"""How far each matte is from the true alpha of phantoms, against the mean of the readers' masks.

    raymat build --phantoms 60 -o phantom-mattes
    python benchmarks/phantom_accuracy.py phantom-mattes

Prints, as a Markdown table, the error inside the unknown region of each method, of the mean of the readers' masks and
of the matte that quality control chose; and on how many phantoms a method is nearer to the truth than their mean.
"""

import argparse

import numpy as np

import raymat
from raymat.matting import METHODS

MEAN_MASK, CHOSEN = "mean of the readers' masks", "the chosen matte"


def errors_of(nodule) -> dict[str, tuple[float, float]]:
    """Mean absolute and mean squared error inside the unknown region, by name of the matte."""
    unknown = nodule.trimap == 128
    truth = nodule.true_alpha[unknown]
    guesses = {MEAN_MASK: np.mean(nodule.readers, axis=0)} | nodule.mattes
    if nodule.method:
        guesses[CHOSEN] = nodule.alpha
    differences = {name: guess[unknown] - truth for name, guess in guesses.items()}
    return {name: (np.abs(d).mean(), np.square(d).mean()) for name, d in differences.items()}


def main() -> None:
    command = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    command.add_argument("dataset", help="a dataset built from phantoms")
    options = command.parse_args()
    found = [errors_of(n) for n in raymat.load(options.dataset, outcomes=("accepted", "rejected"))]
    if not found:
        command.error(f"{options.dataset} holds no mattes")
    print(f"{len(found)} phantoms, error inside the unknown region\n")
    print("| matte | mean abs. error: median (10th to 90th percentile) | MSE x 1e3, median | beats the mean mask |")
    print("| --- | --- | --- | --- |")
    for name in (MEAN_MASK, *METHODS, CHOSEN):
        pairs = [(e[name], e[MEAN_MASK]) for e in found if name in e]
        mae = np.array([own[0] for own, _ in pairs])
        low, mid, high = np.percentile(mae, (10, 50, 90))
        mse = np.median([own[1] for own, _ in pairs]) * 1e3
        better = "" if name == MEAN_MASK else f"{100 * np.mean([own[0] < m[0] for own, m in pairs]):.0f} %"
        print(f"| {name} | {mid:.3f} ({low:.3f} to {high:.3f}) | {mse:.1f} | {better} |")


if __name__ == "__main__":
    main()
