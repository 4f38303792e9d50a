"""The server: who gets in, what is written, and what is said when something cannot be."""

import contextlib
import json
import socket
import threading
import uuid
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import requests
import uvicorn

from raymat.matting import METHODS
from raymat.nodule import InputError
from raymat.places import Unreachable
from raymat.quality.selection import WEIGHTS
from raymat.review.decisions import Decisions
from raymat.review.payload import payload
from raymat.review.server import ReviewSession, application, serve
from raymat.store import Store
from tests.support.nodules import draw_nodule, excluded_nodule, predicted_nodule, shown, write_dataset

TOKEN = "secret-of-this-test"


class Client(requests.Session):
    """A visitor of one server."""

    def __init__(self, root: str, **headers: str) -> None:
        super().__init__()
        self.root = root
        self.headers.update(headers)

    def request(self, method: str, path: str, **more) -> requests.Response:
        return super().request(method, self.root + path, timeout=60, **more)


@contextlib.contextmanager
def serving(store) -> Iterator[str]:
    """The application on a free port, in a thread."""
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(
        uvicorn.Config(application(ReviewSession(store), TOKEN, ["127.0.0.1"]), log_level="warning")
    )
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture
def store(tmp_path):
    nodules = [draw_nodule(0), draw_nodule(1), draw_nodule(2, outcome="rejected"), excluded_nodule(3)]
    return write_dataset(tmp_path / "dataset", nodules)


@pytest.fixture
def client(store):
    with serving(store) as root:
        yield Client(root, Authorization=f"Bearer {TOKEN}")


def decision(number=0, label="cf", reviewer="Ada", **more) -> dict:
    """What the page sends of a nodule of ``draw_nodule``, whose kind is any."""
    method = None if label in ("reject", "withdraw") else label
    return {
        "decision_id": uuid.uuid4().hex,
        "nodule_id": f"case-{number:03d}",
        "mattes": shown(draw_nodule(number)),
        "kind": "any",
        "reviewer": reviewer,
        "action": "choose" if method else label,
        "method": method,
    } | more


def calibrated_nodule(number: int, **changes):
    """A nodule of a dataset of the kind calibrated, with all eight mattes."""
    return replace(draw_nodule(number), **({"kind": "calibrated", "method": "cf+"} | changes))


def unpack(message: bytes) -> tuple[dict, memoryview]:
    length = int.from_bytes(message[:4], "little")
    return json.loads(message[4 : 4 + length]), memoryview(message)[4 + length :]


def test_without_the_token_nothing_is_shown(client):
    client = Client(client.root)
    for path in ("/", "/?token=guess", "/api/nodules", "/api/volume?nodule=case-000", "/page/review.js"):
        assert client.get(path).status_code == 401
    assert client.post("/api/decisions", json=decision()).status_code == 401
    assert client.get(f"/?token={TOKEN}").status_code == 200  # by way of a cookie
    assert client.get("/api/nodules").status_code == 200
    assert "SameSite=strict" in client.get(f"/?token={TOKEN}", allow_redirects=False).headers["set-cookie"]


def test_a_request_by_another_name_of_this_host_is_refused(client):
    assert client.get("/api/nodules", headers={"Host": "evil.example"}).status_code == 400


def test_nodules_with_mattes_are_listed_with_what_the_score_says(client):
    rows = client.get("/api/nodules?reviewer=Ada").json()
    assert [row["nodule_id"] for row in rows] == ["case-000", "case-001", "case-002"]
    assert rows[0]["method"] == "cf"
    assert rows[2]["outcome"] == "rejected"
    assert rows[0]["score"] == pytest.approx(0.8)


def test_a_nodule_arrives_whole(client):
    nodule = draw_nodule(1)
    header, data = unpack(client.get("/api/volume?nodule=case-001").content)
    assert header["shape"] == list(nodule.image.shape)
    stored = np.frombuffer(data, "<u2", nodule.image.size, header["image"]).reshape(header["shape"])
    image = stored * header["slope"] + header["intercept"]
    assert np.abs(image - nodule.image).max() <= header["slope"]
    box = tuple(slice(*part) for part in header["box"])
    shape = nodule.trimap[box].shape
    for matte in header["mattes"]:
        alpha = np.frombuffer(data, np.uint8, int(np.prod(shape)), matte["offset"]).reshape(shape)
        whole = np.zeros(nodule.image.shape)
        whole[box] = alpha / 255
        assert np.abs(whole - nodule.mattes[matte["method"]]).max() <= 0.5 / 255 + 1e-6
        assert set(matte["terms"]) == set(WEIGHTS)
    for offset, mask in zip(header["readers"], nodule.readers, strict=True):
        sent = np.frombuffer(data, np.uint8, int(np.prod(shape)), offset).reshape(shape)
        np.testing.assert_array_equal(sent, mask[box])
        assert sent.sum() == mask.sum()


def test_a_turned_nodule_is_sent_on_the_patients_axes():
    """The same patient, scanned feet first and face down: the page must show the same."""
    nodule = draw_nodule(1)
    turned = draw_nodule(1)
    turned.direction = np.diag([-1.0, -1.0, 1.0])
    for name in ("image", "trimap"):
        setattr(turned, name, np.ascontiguousarray(getattr(turned, name)[::-1, ::-1]))
    turned.readers = [mask[::-1, ::-1].copy() for mask in turned.readers]
    for matte in turned.candidates:
        matte.alpha = matte.alpha[::-1, ::-1].copy()
    (header, data), (other, same) = unpack(payload(nodule)), unpack(payload(turned))
    assert bytes(data) == bytes(same)
    for name in ("box", "centre", "middle", "spacing"):
        assert header[name] == other[name]


def test_a_decision_is_on_the_disk_when_it_is_confirmed_and_is_kept_after_a_restart(client, store):
    answer = client.post("/api/decisions", json=decision(label="knn+"))
    assert answer.status_code == 200
    assert (answer.json()["mine"], answer.json()["against_score"]) == ("knn+", True)
    assert Decisions(store).current()["case-000"]["Ada"].method == "knn+"
    again = ReviewSession(store).table("Ada")
    assert [row["mine"] for row in again] == ["knn+", None, None]
    client.post("/api/decisions", json=decision(label="withdraw"))
    assert ReviewSession(store).table("Ada")[0]["mine"] is None


def test_a_second_reading_is_blind_until_it_is_made(client):
    client.post("/api/decisions", json=decision(reviewer="Ada", label="lb"))
    before = client.get("/api/nodules?reviewer=Ben").json()[0]
    assert (before["others"], before["others_count"]) == ({}, 1)
    after = client.post("/api/decisions", json=decision(reviewer="Ben", label="reject")).json()
    assert after["others"] == {"Ada": "lb"}
    assert after["split"]
    pair = client.get("/api/progress").json()["agreement"][0]
    assert (pair["reviewers"], pair["nodules"], pair["kept"]) == (["Ada", "Ben"], 1, 0.0)


def test_a_decision_on_what_is_no_longer_there_is_refused_in_words(client, store):
    cases = [
        (decision(nodule_id="case-777"), "the dataset has no such nodule any more"),
        (decision(mattes="f" * 24), "its matte cf was solved again since, with another result"),
        (decision(3), "the nodule has no mattes any more (excluded: 2 readers)"),
        (decision(label="magic"), "there is no matte magic"),
    ]
    for body, words in cases:
        answer = client.post("/api/decisions", json=body)
        assert answer.status_code == 409
        assert words in answer.json()["error"]
    # Deleted beside the running server.
    store.delete(store.outcomes()["shard"][0].as_py())
    answer = client.post("/api/decisions", json=decision())
    assert answer.status_code == 409
    assert Decisions(store).all() == []


def test_mattes_of_the_datasets_kind_come_first_and_the_best_of_either_kind_is_named():
    def header_of(nodule) -> dict:
        return unpack(payload(nodule))[0]

    mixed = header_of(draw_nodule(0))
    assert mixed["kind"] == "any"
    assert [matte["method"] for matte in mixed["mattes"]] == list(METHODS)
    calibrated = header_of(calibrated_nodule(0, method="lb+"))
    assert calibrated["kind"] == "calibrated"
    assert [(matte["method"], matte["kind"]) for matte in calibrated["mattes"]] == [
        *((method, "calibrated") for method in METHODS[4:]),
        *((method, "membership") for method in METHODS[:4]),
    ]
    # The chosen one, and beside it the one of the highest score.
    assert calibrated["best"] == {"calibrated": "lb+", "membership": "cf"}
    assert header_of(replace(draw_nodule(0, methods=("cf", "lb")), kind="membership"))["best"] == {"membership": "cf"}


def test_only_a_matte_of_the_datasets_kind_can_be_chosen(tmp_path):
    store = write_dataset(tmp_path / "dataset", [calibrated_nodule(0)])
    with serving(store) as root:
        client = Client(root, Authorization=f"Bearer {TOKEN}")
        (row,) = client.get("/api/nodules?reviewer=Ada").json()
        assert row["score"] == pytest.approx(0.6)  # of cf+; cf has 0.8 and cannot be chosen
        answer = client.post("/api/decisions", json=decision(label="lb", kind="calibrated"))
        assert answer.status_code == 409
        assert "case-000: chooses a membership matte; the dataset is of the kind calibrated" in answer.json()["error"]
        assert Decisions(store).all() == []
        for label in ("lb+", "reject"):
            assert client.post("/api/decisions", json=decision(label=label, kind="calibrated")).json()["mine"] == label
            assert Decisions(store).current()["case-000"]["Ada"].kind == "calibrated"


def test_a_page_of_before_the_dataset_was_of_another_kind_is_told_to_reload(tmp_path):
    store = write_dataset(tmp_path / "dataset", [draw_nodule(0)])
    with serving(store) as root:
        client = Client(root, Authorization=f"Bearer {TOKEN}")
        before, _ = unpack(client.get("/api/volume?nodule=case-000").content)
        assert client.post("/api/decisions", json=decision(label="cf")).json()["mine"] == "cf"
        # Scored again beside the running server: the same mattes, of which four can be chosen.
        old = store.outcomes()["shard"][0].as_py()
        write_dataset(store.root, [calibrated_nodule(0, key="f" * 32)])
        store.delete(old)
        for label in ("cf+", "reject"):
            answer = client.post("/api/decisions", json=decision(label=label))
            assert answer.status_code == 409
            assert "for the kind any; the dataset is of the kind calibrated now; reload" in answer.json()["error"]
        (row,) = client.get("/api/nodules?reviewer=Ada").json()
        assert row["mine"] is None  # the choice of cf no longer fits
        after, _ = unpack(client.get("/api/volume?nodule=case-000").content)
        assert (before["kind"], after["kind"]) == ("any", "calibrated")
        assert after["mattes_id"] == before["mattes_id"]
        answer = client.post("/api/decisions", json=decision(label="cf+", kind=after["kind"]))
        assert (answer.status_code, answer.json()["mine"]) == (200, "cf+")


def test_a_full_disk_is_reported_and_the_same_decision_can_be_sent_again(client, store, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    body = decision()
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        answer = client.post("/api/decisions", json=body)
    assert answer.status_code == 507
    assert "No space left on device" in answer.json()["error"]
    for _ in range(2):
        assert client.post("/api/decisions", json=body).status_code == 200
    assert len(Decisions(store).all()) == 1


def test_a_store_that_does_not_answer_is_distinguished_from_a_bad_decision(client, monkeypatch):
    def silent(*_):
        raise Unreachable("the store says: cannot be written")

    body = decision()
    with monkeypatch.context() as patch:
        patch.setattr(Store, "write", silent)
        assert client.post("/api/decisions", json=body).status_code == 503
    # Its words alone make nothing a full disk.
    assert client.post("/api/decisions", json=decision(decision_id="cannot be written")).status_code == 400


def test_a_dataset_of_predictions_is_not_reviewed(tmp_path):
    predictions = write_dataset(tmp_path / "predictions", [predicted_nodule(0)])
    with pytest.raises(InputError, match="case-000 has a matte without a score"):
        serve(predictions.root)


NO_DECISIONS = ([], {}, {"reviewer": 5}, {"at": 1}, decision() | {"kind": None}, decision() | {"at": 1})


@pytest.mark.parametrize("body", [b"no json", *(json.dumps(wrong).encode() for wrong in NO_DECISIONS)])
def test_what_is_no_decision_is_refused(client, body):
    answer = client.post("/api/decisions", data=body)
    assert answer.status_code == 400
    assert answer.json()["error"]


def test_an_unknown_nodule_has_no_volume(client):
    assert client.get("/api/volume?nodule=nobody").status_code == 400
