"""Compare 3DMM and the solvers: ``python jobs/evaluate.py DATASET TRAINING... -o OUT``, alone or as a Ray job."""

import argparse
import sys

from raymat.cli import run
from raymat.commands.network import add_evaluate_arguments

if __name__ == "__main__":
    sys.exit(run(add_evaluate_arguments(argparse.ArgumentParser(description=__doc__))))
