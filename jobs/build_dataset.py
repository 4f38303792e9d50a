"""Build a dataset: ``python jobs/build_dataset.py --lidc DIR -o OUT``, alone or under ``ray job submit``."""

import argparse
import sys

from raymat.cli import run
from raymat.commands import build

if __name__ == "__main__":
    sys.exit(run(build.add_arguments(argparse.ArgumentParser(description=__doc__))))
