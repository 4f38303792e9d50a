"""Matte lesions in new scans: ``python jobs/predict.py --cases CSV --model TRAINING -o OUT``, alone or as a Ray job."""

import argparse
import sys

from raymat.cli import run
from raymat.commands.network import add_predict_arguments

if __name__ == "__main__":
    sys.exit(run(add_predict_arguments(argparse.ArgumentParser(description=__doc__))))
