"""Benign or malignant by input: ``python jobs/classify_nodules.py DATASET -o OUT``, alone or as a Ray job."""

import argparse
import sys

from raymat.cli import run
from raymat.commands import classify

if __name__ == "__main__":
    sys.exit(run(classify.add_arguments(argparse.ArgumentParser(description=__doc__))))
