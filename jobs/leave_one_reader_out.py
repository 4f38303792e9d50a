"""Leave one reader out: ``python jobs/leave_one_reader_out.py --cases CSV -o OUT``, alone or as a Ray job."""

import argparse
import sys

from raymat.cli import run
from raymat.commands import readers

if __name__ == "__main__":
    sys.exit(run(readers.add_arguments(argparse.ArgumentParser(description=__doc__))))
