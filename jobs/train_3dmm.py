"""Train 3DMM: ``python jobs/train_3dmm.py DATASET -o OUT --preset paper``, alone or under ``ray job submit``."""

import argparse
import sys

from raymat.cli import run
from raymat.commands.network import add_train_arguments

if __name__ == "__main__":
    sys.exit(run(add_train_arguments(argparse.ArgumentParser(description=__doc__))))
