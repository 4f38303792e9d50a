"""Being asked to stop."""

import os
import signal
import sys
import threading
import time

import pytest

from raymat.stopping import AGAIN_S, stoppable


def stopped(act) -> None:
    """Do something within that asks this process to stop, and then nothing."""
    with stoppable():
        act()
        time.sleep(30)


def test_a_sigterm_is_a_keyboard_interrupt_within_and_what_it_was_without():
    before, hook = signal.getsignal(signal.SIGTERM), sys.unraisablehook
    with pytest.raises(KeyboardInterrupt):
        stopped(lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert signal.getsignal(signal.SIGTERM) is before
    assert sys.unraisablehook is hook


def test_one_that_comes_while_an_object_is_finalised_is_not_lost():
    class Finalised:
        def __del__(self):
            signal.raise_signal(signal.SIGTERM)

    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        stopped(Finalised)
    assert time.monotonic() - start < 20


def test_one_that_comes_just_before_the_end_is_raised_at_the_end(monkeypatch):
    """And not as a signal that then ends the process."""

    class Finalised:
        def __del__(self):
            signal.raise_signal(signal.SIGTERM)

    outside = []
    before = signal.signal(signal.SIGTERM, lambda *_: outside.append("a signal"))
    try:
        with pytest.raises(KeyboardInterrupt), stoppable():
            Finalised()
        time.sleep(3 * AGAIN_S)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert outside == []


def test_other_exceptions_of_finalisers_are_reported_as_ever(monkeypatch):
    class Finalised:
        def __del__(self):
            raise ValueError("as ever")

    raised = []
    monkeypatch.setattr(sys, "unraisablehook", raised.append)
    with stoppable():
        Finalised()
    assert [one.exc_type for one in raised] == [ValueError]


def test_a_thread_besides_the_main_one_changes_nothing():
    seen = []

    def work() -> None:
        with stoppable():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGTERM)]
