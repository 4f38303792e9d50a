"""``python -m raymat``."""

import sys

from raymat.cli import main

sys.exit(main())
