"""Search the weights of 3DMM's loss: ``python jobs/tune_loss_weights.py DATASET -o OUT``, alone or as a Ray job."""

import argparse
import sys

from raymat.cli import run
from raymat.commands import tune

if __name__ == "__main__":
    sys.exit(run(tune.add_arguments(argparse.ArgumentParser(description=__doc__))))
