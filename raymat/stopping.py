"""Being asked to stop: SIGTERM is taken as Ctrl-C is, and neither is lost."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator

AGAIN_S = 0.1


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """With SIGTERM, by which ``ray job stop`` and schedulers end a job, raising KeyboardInterrupt.

    One that comes while an object is finalised is dropped by Python with a word on stderr; it is raised again, at the
    end of the context at the latest. So is the SystemExit of a handler that a library set.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    main, hook = threading.main_thread().ident, sys.unraisablehook
    timers: list[threading.Timer] = []

    def again(dropped: sys.UnraisableHookArgs) -> None:
        if issubclass(dropped.exc_type, (KeyboardInterrupt, SystemExit)):
            timers.append(threading.Timer(AGAIN_S, signal.pthread_kill, (main, signal.SIGTERM)))
            timers[-1].start()
        else:
            hook(dropped)

    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.unraisablehook = again
    try:
        try:
            yield
        finally:
            # While a signal still means what it does in here: one that is on its way would end the process.
            waiting = [timer for timer in timers if timer.is_alive()]
            for timer in waiting:
                timer.cancel()
                timer.join()
            if waiting:
                raise KeyboardInterrupt
    finally:
        sys.unraisablehook = hook
        signal.signal(signal.SIGTERM, before)
