"""How far each matte is from the truth of either kind on phantoms, against the mean of the readers' masks.

    raymat build --phantoms 60 -o phantom-mattes
    python benchmarks/phantom_accuracy.py phantom-mattes

Prints, as Markdown tables, the error inside the unknown region of each method, of the mean of the readers' masks and
of the best matte of the kind; on how many phantoms a method is nearer to the truth than their mean; and the errors by
texture, size and place.
"""

import argparse

import raymat
from raymat.evidence.phantom_accuracy import tables


def main() -> None:
    command = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    command.add_argument("dataset", help="a dataset built from phantoms")
    options = command.parse_args()
    found = tables(raymat.load(options.dataset, outcomes=("accepted", "rejected")))
    if not found:
        command.error(f"{options.dataset} holds no phantoms with mattes")
    print(found)


if __name__ == "__main__":
    main()
