"""What workers report to the driver while they work: lines for the person who watches, metrics, pictures, texts.

Only the driver knows MLflow: a tracking server may listen where no worker reaches it. Reports travel through one queue,
whose process is on the driver's node.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import ray
from ray.util.queue import Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

BEGUN, ENDED = "begun", "ended"


@dataclass(frozen=True)
class Report:
    """One report.

    Attributes
    ----------
    sender : the trial or training that it is of
    line : for the person who watches; "" for none
    metrics : numbers by name, of each step
    pictures : PNG bytes by name
    texts : text by name
    state : ``BEGUN`` or ``ENDED`` where the sender begins or has come to its end; "" in between
    """

    sender: str = ""
    line: str = ""
    metrics: Sequence[tuple[int, Mapping[str, float]]] = ()
    pictures: Mapping[str, bytes] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)
    state: str = ""


@dataclass(frozen=True)
class Reporter:
    """A worker's end of the queue; picklable."""

    queue: Queue
    sender: str = ""

    def named(self, sender: str) -> Reporter:
        """The reporter of one trial or training."""
        return replace(self, sender=sender)

    def say(self, line: str) -> None:
        """Report a line for the person who watches."""
        self._put(Report(self.sender, line=line))

    def metrics(self, steps: Sequence[tuple[int, Mapping[str, float]]]) -> None:
        """Report the numbers of some steps."""
        self._put(Report(self.sender, metrics=steps))

    def picture(self, name: str, png: bytes) -> None:
        """Report a picture."""
        self._put(Report(self.sender, pictures={name: png}))

    def text(self, name: str, text: str) -> None:
        """Report a text."""
        self._put(Report(self.sender, texts={name: text}))

    def begun(self) -> None:
        """Report that the sender's work has begun."""
        self._put(Report(self.sender, state=BEGUN))

    def ended(self, line: str = "") -> None:
        """Report that the sender's result is stored."""
        self._put(Report(self.sender, line=line, state=ENDED))

    def _put(self, report: Report) -> None:
        # A queue that is lost with its node ends the reports, not the work.
        with contextlib.suppress(ray.exceptions.RayError):
            self.queue.put(report)


@contextlib.contextmanager
def reports(take: Callable[[Report], None]) -> Iterator[Reporter]:
    """A thread calls ``take`` with each report of the workers, in the order of their arrival, until the context ends.

    All that was reported has been taken when the context is left. What ``take`` raised is raised then, where the work
    itself raised nothing.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    queue = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})

    troubles: list[Exception] = []

    def follow() -> None:
        # The thread waits in the queue's own process: to poll would take a share of the CPU from the work.
        with contextlib.suppress(ray.exceptions.RayError):
            while (report := queue.get()) is not None:
                try:
                    take(report)
                except Exception as error:  # a full disk, say: the workers go on, and what stopped is raised at the end
                    troubles.append(error)

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield Reporter(queue)
    finally:
        # Nor must a lost queue hide how the work itself ended.
        with contextlib.suppress(ray.exceptions.RayError):
            queue.put(None)
        thread.join()
        queue.shutdown()
    if troubles:
        raise troubles[0]
