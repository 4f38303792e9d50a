"""All that raymat touches of Ray Train's private parts, each with its reason.

Apart from ``ray_private``, as a build does not import Ray Train.
"""

from __future__ import annotations

import contextlib
import logging

import ray
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.constants import CHECKPOINT_MANAGER_SNAPSHOT_FILENAME
from ray.train.v2._internal.execution import context as train_context

# Ray Train's own list of its checkpoints: what it does not name is no checkpoint.
SNAPSHOT = CHECKPOINT_MANAGER_SNAPSHOT_FILENAME
ABORT_S = 30.0


class Trainer(TorchTrainer):
    """Without Ray's watcher over placement groups and its process for datasets, and stopped by KeyboardInterrupt.

    The watcher looks for the cluster by itself, which ends in a traceback where a machine has two; a run's group ends
    with its driver all the same. The process for datasets takes two seconds to start, and the batches come from the
    workers' own. Ray's own handler of Ctrl-C ends the process without a word, as if all were done.
    """

    controller: ray.actor.ActorHandle | None = None

    def _create_default_callbacks(self) -> list:
        # ray.train is annotated as Train V1, and is V2 when it runs.
        callbacks = super()._create_default_callbacks()  # type: ignore[misc]
        unused = PlacementGroupCleanerCallback, DatasetsCallback
        return [callback for callback in callbacks if not isinstance(callback, unused)]

    def _register_sigint_handler(self, controller: ray.actor.ActorHandle) -> None:
        self.controller = controller

    def abort(self) -> None:
        """End the workers."""
        if self.controller:
            with contextlib.suppress(ray.exceptions.RayError):
                ray.get(self.controller.abort.remote(), timeout=ABORT_S)


def silence_train() -> None:
    """Keep Ray Train from printing every report of a worker."""
    logging.getLogger("ray.train").setLevel(logging.WARNING)
    # Named after its file, this logger is not below "ray.train".
    train_context.logger.setLevel(logging.WARNING)
