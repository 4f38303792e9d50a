"""Who may build in a dataset."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import asdict

import pytest

from raymat import lock
from raymat.nodule import InputError
from raymat.places import Unreachable
from raymat.store import Store


@pytest.fixture(autouse=True)
def _interruptible():
    """SIGINT raises KeyboardInterrupt; a shell that runs the tests in the background has it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def store(tmp_path):
    return Store.create(tmp_path / "dataset")


def write(store, **changes):
    """Write the lock of a living holder, this process, changed."""
    store.write(lock.NAME, json.dumps(asdict(lock.Holder.here("first")) | changes).encode())


def session_of(store) -> str:
    return json.loads(store.read(lock.NAME))["session"]


def test_it_is_there_while_held_and_gone_after(store):
    with lock.held(store, "mine"):
        assert session_of(store) == "mine"
        with pytest.raises(InputError, match="another command is at work here"), lock.held(store, "other"):
            pass
        assert session_of(store) == "mine"
    assert not store.exists(lock.NAME)


@pytest.mark.parametrize("changes", [{"pid": 2**22 + 1}, {"started": "1"}, {"seen": time.monotonic() - 121}])
def test_a_dead_holder_of_this_machine_loses_it_at_once(store, changes):
    write(store, **changes)
    start = time.monotonic()
    with lock.held(store, "mine"):
        assert session_of(store) == "mine"
    assert time.monotonic() - start < 10


def test_a_process_that_another_namespace_cannot_see_is_not_dead(store):
    """Two containers of one machine: one host name, one clock, and process 1 in each."""
    write(store, processes="another namespace", pid=2**22 + 1)
    with pytest.raises(InputError, match=f"process {2**22 + 1} on {socket.gethostname()}"), lock.held(store):
        pass
    write(store, processes="another namespace", pid=2**22 + 1, seen=time.monotonic() - 121)
    with lock.held(store, "mine"):
        assert session_of(store) == "mine"


def test_two_namespaces_of_processes_are_distinguished(store):
    if subprocess.run(["unshare", "-Urpf", "--mount-proc", "true"], check=False, capture_output=True).returncode:
        pytest.skip("this machine allows no process namespace of its own")
    code = (
        "import sys; from raymat import lock; from raymat.store import Store\n"
        "with lock.held(Store.open(sys.argv[1])): print('held')"
    )
    with lock.held(store):
        command = ["unshare", "-Urpf", "--mount-proc", sys.executable, "-c", code, store.root]
        done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=os.getcwd())
    assert f"another command is at work here (process {os.getpid()} on" in done.stderr


@pytest.fixture
def hurried(monkeypatch):
    """Seconds become a fraction of one."""
    for name, seconds in (("BEAT_S", 0.05), ("DEAD_AFTER_S", 0.6), ("WATCH_S", 0.02), ("SETTLE_S", 0.01)):
        monkeypatch.setattr(lock, name, seconds)


@pytest.mark.parametrize("skew", [-1e6, 0.0, 1e6])
@pytest.mark.usefixtures("hurried")
def test_a_holder_on_another_machine_lives_as_long_as_it_writes_whatever_its_clock_says(store, skew):
    done = threading.Event()

    def beat() -> None:
        while not done.wait(0.1):
            write(store, host="elsewhere", clock="another", seen=skew + time.monotonic())

    write(store, host="elsewhere", clock="another", seen=skew)
    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(InputError, match="on elsewhere, its lock was written again"), lock.held(store):
            pass
    finally:
        done.set()
        thread.join()
    start = time.monotonic()
    lock.refuse_if_held(store)
    waited = time.monotonic() - start
    assert waited > 0.5
    # It has been watched already.
    with lock.held(store, "mine"):
        assert session_of(store) == "mine"
    assert time.monotonic() - start - waited < 0.5


@pytest.mark.usefixtures("hurried")
def test_the_lock_of_an_earlier_version_is_watched(store):
    store.write(lock.NAME, json.dumps({"session": "first", "host": "h", "pid": 1, "seen": time.time()}).encode())
    start = time.monotonic()
    with lock.held(store):
        assert time.monotonic() - start > 0.5


@pytest.mark.usefixtures("hurried")
def test_a_holder_writes_again_and_again(store):
    with lock.held(store, "mine"):
        first = json.loads(store.read(lock.NAME))["seen"]
        time.sleep(0.3)
        assert json.loads(store.read(lock.NAME))["seen"] > first


@pytest.mark.parametrize("what", ["another's", "gone"])
@pytest.mark.usefixtures("hurried")
def test_a_holder_that_was_taken_for_dead_is_stopped_and_leaves_the_lock_alone(store, what):
    take_over = (lambda: store.delete(lock.NAME)) if what == "gone" else (lambda: write(store, session="second"))
    taker = threading.Timer(0.2, take_over)
    start = time.monotonic()
    taker.start()
    with pytest.raises(InputError, match="took over its output; it has stopped"), lock.held(store, "sleeper"):
        time.sleep(30)  # a long piece of work
    assert time.monotonic() - start < 10
    assert store.exists(lock.NAME) == (what != "gone")
    if what != "gone":
        assert session_of(store) == "second"


def test_a_holder_that_ends_before_it_could_see_the_takeover_gets_an_error(store):
    with pytest.raises(InputError, match="took over its output"), lock.held(store, "sleeper"):
        write(store, session="second")
    assert session_of(store) == "second"


@pytest.mark.usefixtures("hurried")
def test_in_another_thread_the_takeover_is_reported_at_the_end(store):
    errors = []

    def work() -> None:
        try:
            with lock.held(store, "sleeper"):
                write(store, session="second")
                time.sleep(0.3)
        except InputError as error:
            errors.append(str(error))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert "took over its output" in errors[0]


def test_what_went_wrong_inside_is_what_is_raised(store):
    with pytest.raises(ZeroDivisionError), lock.held(store):
        raise ZeroDivisionError
    assert not store.exists(lock.NAME)
    with pytest.raises(KeyboardInterrupt), lock.held(store):
        raise KeyboardInterrupt
    assert not store.exists(lock.NAME)
    with pytest.raises(Unreachable), lock.held(store):
        raise Unreachable("silent")
    assert store.exists(lock.NAME)


def test_a_damaged_lock_is_nobodys(store):
    for data in (b"{", b"[]", json.dumps(asdict(lock.Holder.here("x")) | {"pid": "no number"}).encode()):
        store.write(lock.NAME, data)
        with lock.held(store, "mine"):
            pass
