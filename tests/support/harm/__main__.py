"""`raymat` whose builds come to the harm that is named in RAYMAT_HARM, as JSON."""

import json
import os
import sys

from raymat.cli import main
from tests.support.harm.harmed import harmed

if __name__ == "__main__":
    with harmed(**json.loads(os.environ["RAYMAT_HARM"])):
        sys.exit(main())
