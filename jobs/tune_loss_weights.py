"""Search the weights of 3DMM's loss: ``python jobs/tune_loss_weights.py DATASET -o OUT``, alone or as a Ray job."""

import argparse
import sys

from raymat.cli import run
from raymat.commands.network import add_tune_arguments

if __name__ == "__main__":
    sys.exit(run(add_tune_arguments(argparse.ArgumentParser(description=__doc__))))
