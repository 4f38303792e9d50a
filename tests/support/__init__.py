"""What several test files share: drawn nodules, case tables, small networks, clusters, servers and harm.

A test file imports helpers from here, never from another test file.
"""

from pathlib import Path

REPOSITORY = Path(__file__).parents[2]


def quiet(_: str) -> None:
    """Print nothing: the ``say`` of a command whose output a test does not look at."""
