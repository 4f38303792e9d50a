"""Train 3DMM: ``python jobs/train_3dmm.py DATASET -o OUT --preset paper``, alone or under ``ray job submit``."""

import argparse
import sys

from raymat.cli import run
from raymat.commands import train

if __name__ == "__main__":
    sys.exit(run(train.add_arguments(argparse.ArgumentParser(description=__doc__))))
