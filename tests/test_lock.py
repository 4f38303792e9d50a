"""Who may build in a dataset."""

import json
import socket
import time

import pytest

from raymat import lock
from raymat.nodule import InputError
from raymat.store import Store


@pytest.fixture
def store(tmp_path):
    return Store.create(tmp_path / "dataset")


def write(store, **changes):
    holder = {"session": "first", "host": socket.gethostname(), "pid": 1, "seen": time.time()}
    store.write(lock.NAME, json.dumps(holder | changes).encode())


def test_it_is_there_while_held_and_gone_after(store):
    with lock.held(store, "mine"):
        assert json.loads(store.read(lock.NAME))["session"] == "mine"
        with pytest.raises(InputError, match="another command is at work here"), lock.held(store, "other"):
            pass
        assert json.loads(store.read(lock.NAME))["session"] == "mine"
    assert not store.exists(lock.NAME)


@pytest.mark.parametrize(
    "changes", [{"pid": 2**30}, {"seen": 0.0}, {"host": "elsewhere", "seen": time.time() - 1000}, {"pid": "no number"}]
)
def test_a_dead_holder_loses_it(store, changes):
    write(store, **changes)
    with lock.held(store, "mine"):
        assert json.loads(store.read(lock.NAME))["session"] == "mine"


def test_a_holder_elsewhere_is_alive_as_long_as_it_writes(store, monkeypatch):
    write(store, host="elsewhere", pid=2**30)
    with pytest.raises(InputError, match="on elsewhere"), lock.held(store, "mine"):
        pass
    monkeypatch.setattr(lock, "BEAT_S", 0.05)
    store.delete(lock.NAME)
    with lock.held(store, "mine"):
        first = json.loads(store.read(lock.NAME))["seen"]
        time.sleep(0.5)
        assert json.loads(store.read(lock.NAME))["seen"] > first


def test_a_damaged_lock_is_nobodys(store):
    store.write(lock.NAME, b"{")
    with lock.held(store, "mine"):
        pass
