"""The commands of ``raymat``, one per file: its ``HELP``, its arguments, and what it runs.

A command imports what it needs when it runs: the parser, and with it ``raymat --help``, needs only the standard
library.
"""

from types import ModuleType

from raymat.commands import (
    benchmark,
    build,
    change,
    classify,
    demo,
    doctor,
    evaluate,
    export,
    figure,
    inspect,
    leaderboard,
    matte,
    measure,
    phantom,
    predict,
    readers,
    release,
    release_diff,
    report,
    review,
    show,
    train,
    tune,
    verify,
)

# In the order of `raymat --help`.
COMMANDS: dict[str, ModuleType] = {
    "demo": demo,
    "build": build,
    "phantom": phantom,
    "matte": matte,
    "inspect": inspect,
    "show": show,
    "review": review,
    "release": release,
    "verify": verify,
    "release-diff": release_diff,
    "figure": figure,
    "measure": measure,
    "change": change,
    "export": export,
    "train": train,
    "tune": tune,
    "evaluate": evaluate,
    "predict": predict,
    "benchmark": benchmark,
    "leaderboard": leaderboard,
    "readers": readers,
    "classify": classify,
    "report": report,
    "doctor": doctor,
}
