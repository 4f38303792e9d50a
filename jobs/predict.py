"""Matte lesions in new scans: ``python jobs/predict.py --cases CSV --model TRAINING -o OUT``, alone or as a Ray job."""

import argparse
import sys

from raymat.cli import run
from raymat.commands import predict

if __name__ == "__main__":
    sys.exit(run(predict.add_arguments(argparse.ArgumentParser(description=__doc__))))
