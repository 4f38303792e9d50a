"""Compare 3DMM and the solvers: ``python jobs/evaluate.py DATASET TRAINING... -o OUT``, alone or as a Ray job."""

import argparse
import sys

from raymat.cli import run
from raymat.commands import evaluate

if __name__ == "__main__":
    sys.exit(run(evaluate.add_arguments(argparse.ArgumentParser(description=__doc__))))
