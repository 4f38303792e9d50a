"""Measure nodules: ``python jobs/measure.py DATASET -o measures.parquet``, alone or under ``ray job submit``."""

import argparse
import sys

from raymat.cli import run
from raymat.commands import measure

if __name__ == "__main__":
    sys.exit(run(measure.add_arguments(argparse.ArgumentParser(description=__doc__))))
