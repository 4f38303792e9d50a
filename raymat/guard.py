"""What goes wrong with a nodule becomes its outcome here and nowhere else, so that one can never harm another."""

from __future__ import annotations

import logging
from collections.abc import Callable

from raymat.nodule import EXCLUDED, FAILED, InputError, Nodule, NoduleExcluded
from raymat.places import Unreachable
from raymat.words import bounded

logger = logging.getLogger(__name__)


def guarded(stage: str, nodule: Nodule, work: Callable[[Nodule], Nodule]) -> Nodule:
    """What ``work`` makes of the nodule. What goes wrong becomes its outcome; a silent store is raised."""
    try:
        return work(nodule)
    except Unreachable:
        raise
    except NoduleExcluded as error:
        return ended(nodule, EXCLUDED, stage, str(error))
    except InputError as error:
        return ended(nodule, FAILED, stage, str(error))
    except Exception as error:
        logger.exception("nodule %s: %s failed", nodule.nodule_id, stage)
        return ended(nodule, FAILED, stage, f"{type(error).__name__}: {error}")


def ended(nodule: Nodule, outcome: str, stage: str, reason: str) -> Nodule:
    """The nodule with its outcome and without the arrays that nobody will look at."""
    return nodule.without_arrays(outcome=outcome, stage=stage, reason=bounded(reason))
