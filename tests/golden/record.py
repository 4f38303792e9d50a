"""Record the outputs of every version that was raised: ``python -m tests.golden.record``.

Outputs that changed under the same version are refused, unless their key is named with ``--overwrite``.
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
        entry = recorded.get(versioned.key)
        raised = entry is None or entry["version"] != version
        said = "" if raised else problem(versioned, version, found, recorded)
        if said and versioned.key not in overwrite:
            refused.append(said)
        if raised or (said and versioned.key in overwrite):
            outputs = {name: recorded_form(value) for name, value in found.items()}
            entry = {"version": version, "outputs": outputs}
        after[versioned.key] = entry
    return after, refused


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--overwrite", nargs="+", default=[], metavar="KEY", choices=[v.key for v in VERSIONS])
    after, refused = record(VERSIONS, read_recorded() if RECORDED.exists() else {}, parser.parse_args().overwrite)
    RECORDED.write_text(json.dumps(after, indent=1) + "\n")
    for said in refused:
        print(said, file=sys.stderr)
    return 1 if refused else 0


if __name__ == "__main__":
    sys.exit(main())
