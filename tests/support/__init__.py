"""What several test files share: drawn nodules, case tables, small networks, clusters, servers and harm.

A test file imports helpers from here, never from another test file.
"""

import re
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]


def quiet(_: str) -> None:
    """Print nothing: the ``say`` of a command whose output a test does not look at."""


def lines_of_ray(said: str) -> list[str]:
    """Lines that Ray or Python's warnings wrote, as "(raylet) WARNING: 8 PYTHON worker processes"."""
    return [line for line in said.splitlines() if re.search(r"\bray\b|raylet|warning|traceback", line, re.IGNORECASE)]
