"""Build a dataset: ``python jobs/build_dataset.py --lidc DIR -o OUT``, alone or under ``ray job submit``."""

import argparse
import sys

from raymat.cli import add_build_arguments, run

if __name__ == "__main__":
    sys.exit(run(add_build_arguments(argparse.ArgumentParser(description=__doc__))))
