"""Judge mattes on a release: ``python jobs/benchmark.py RELEASE --mattes DIR -o OUT``, alone or as a Ray job."""

import argparse
import sys

from raymat.cli import run
from raymat.commands import benchmark

if __name__ == "__main__":
    sys.exit(run(benchmark.add_arguments(argparse.ArgumentParser(description=__doc__))))
