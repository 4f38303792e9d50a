"""How far each matte is from the true alpha of phantoms, against the mean of the readers' masks.

    raymat build --phantoms 60 -o phantom-mattes
    python benchmarks/phantom_accuracy.py phantom-mattes

Prints, as a Markdown table, the error inside the unknown region of each method, of the mean of the readers' masks and
of the matte that quality control chose; and on how many phantoms a method is nearer to the truth than their mean.
"""

import argparse

import raymat
from raymat.evidence.phantom_accuracy import as_markdown, errors_of


def main() -> None:
    command = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    command.add_argument("dataset", help="a dataset built from phantoms")
    options = command.parse_args()
    found = [errors_of(n) for n in raymat.load(options.dataset, outcomes=("accepted", "rejected"))]
    if not found:
        command.error(f"{options.dataset} holds no mattes")
    print(as_markdown(found))


if __name__ == "__main__":
    main()
