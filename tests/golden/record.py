"""Record the outputs of every version that was raised: ``python -m tests.golden.record``.

Outputs that changed under the same version are refused, unless their file is named with ``--overwrite``.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

from tests.golden.golden import RECORDED, VERSIONS, Versioned, problem, read_recorded, recorded_form


def record(versions: list[Versioned], recorded: dict, overwrite: list[str]) -> tuple[dict, list[str]]:
    """What is to be recorded now, and why some outputs were refused."""
    after, refused = {}, []
    for versioned in versions:
        version = versioned.version
        with tempfile.TemporaryDirectory(prefix="raymat-") as folder:
            found = versioned.outputs(Path(folder))
        entry = recorded.get(versioned.file)
        raised = entry is None or entry["version"] != version
        said = "" if raised else problem(versioned, version, found, recorded)
        if said and versioned.file not in overwrite:
            refused.append(said)
        if raised or (said and versioned.file in overwrite):
            outputs = {name: recorded_form(value) for name, value in found.items()}
            entry = {"version": version, "outputs": outputs}
        after[versioned.file] = entry
    return after, refused


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--overwrite", nargs="+", default=[], metavar="FILE", choices=[v.file for v in VERSIONS])
    after, refused = record(VERSIONS, read_recorded() if RECORDED.exists() else {}, parser.parse_args().overwrite)
    RECORDED.write_text(json.dumps(after, indent=1) + "\n")
    for said in refused:
        print(said, file=sys.stderr)
    return 1 if refused else 0


if __name__ == "__main__":
    sys.exit(main())
