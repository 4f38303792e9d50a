"""How busy a worker's machine is, under the names of MLflow's own system metrics, which its page shows apart."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import psutil

# MLflow's variable, as its users know it.
INTERVAL = "MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL"
INTERVAL_S = 10.0
MB = 1e6
Series = Sequence[tuple[int, Mapping[str, float]]]


def machine_metrics() -> dict[str, float]:
    """CPU, memory, disk, network and, where there are GPUs, their use and memory."""
    memory, disk, network = psutil.virtual_memory(), psutil.disk_usage("/"), psutil.net_io_counters()
    found = {
        "cpu_utilization_percentage": psutil.cpu_percent(),
        "system_memory_usage_megabytes": memory.used / MB,
        "system_memory_usage_percentage": memory.percent,
        "disk_usage_megabytes": disk.used / MB,
        "disk_usage_percentage": disk.percent,
        "network_receive_megabytes": network.bytes_recv / MB,
        "network_transmit_megabytes": network.bytes_sent / MB,
    }
    return {f"system/{name}": value for name, value in (found | _gpu_metrics()).items()}


def _gpu_metrics() -> dict[str, float]:
    import torch

    found = {}
    for number in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(number)
        found[f"gpu_{number}_memory_usage_megabytes"] = (total - free) / MB
        found[f"gpu_{number}_memory_usage_percentage"] = 100 * (1 - free / total)
        # The driver's own library is not everywhere.
        with contextlib.suppress(RuntimeError, ImportError, ModuleNotFoundError):
            found[f"gpu_{number}_utilization_percentage"] = float(torch.cuda.utilization(number))
    return found


@contextlib.contextmanager
def watching(report: Callable[[Series], None]) -> Iterator[None]:
    """A thread reports the machine's metrics every few seconds, the step being the second, until the context ends."""
    interval = float(os.environ.get(INTERVAL) or INTERVAL_S)
    done = threading.Event()

    def watch() -> None:
        while not done.wait(interval):
            report([(int(time.time()), machine_metrics())])

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
