"""Decisions: written before they are confirmed, each once, and what they come to."""

import json
import threading
from dataclasses import asdict
from pathlib import Path

import pytest

from raymat.nodule import InputError, from_table, to_table
from raymat.review.agreement import agreement, cohen_kappa
from raymat.review.decisions import Decision, Decisions, choosable, no_longer, standing
from raymat.store import outcome_row
from tests.support.nodules import draw_nodule, shown, write_dataset

MATTES = shown(draw_nodule(0))


@pytest.fixture
def store(tmp_path):
    return write_dataset(tmp_path / "dataset", [draw_nodule(0)])


def a_decision(number=0, reviewer="Ada", action="choose", nodule="case-000", **more) -> Decision:
    method = more.pop("method", "cf" if action == "choose" else None)
    at = more.pop("at", 1_000 + number)
    return Decision(f"decision-{number}", nodule, MATTES, reviewer, action, method, at, **more)


def row_of(kind: str | None, **changes) -> dict:
    """The row of the index of the nodule that ``MATTES`` were shown of."""
    return outcome_row(from_table(to_table([draw_nodule(0)]))[0]) | {"kind": kind} | changes


def test_a_confirmed_decision_is_there_for_whoever_opens_the_dataset_next(store):
    Decisions(store).record(a_decision())
    assert Decisions(store).current() == {"case-000": {"Ada": a_decision()}}


def test_the_same_decision_sent_twice_is_one_also_through_two_servers(store):
    one, other = Decisions(store), Decisions(store)
    for decisions in (one, one, other):
        decisions.record(a_decision(at=decisions.now()))
    assert len(Decisions(store).all()) == 1


def test_later_decisions_stand_and_one_taken_back_is_none(store):
    decisions = Decisions(store)
    decisions.record(a_decision(0, method="cf"))
    decisions.record(a_decision(1, method="lb+"))
    decisions.record(a_decision(2, reviewer="Ben", action="reject"))
    assert {who: d.label for who, d in decisions.current()["case-000"].items()} == {"Ada": "lb+", "Ben": "reject"}
    decisions.record(a_decision(3, action="withdraw"))
    assert list(decisions.current()["case-000"]) == ["Ben"]
    assert len(decisions.all()) == 4


def test_reviewers_and_servers_write_beside_each_other_and_nothing_is_lost(store):
    desks = [Decisions(store) for _ in range(4)]

    def review(k: int) -> None:
        for n in range(10):
            desks[k].record(a_decision(100 * k + n, f"reviewer {k}", nodule=f"n{n}", at=desks[k].now()))

    threads = [threading.Thread(target=review, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {len(by) for by in Decisions(store).current().values()} == {4}
    desks[0].refresh()
    assert len(desks[0].all()) == 40


def test_a_full_disk_is_said_and_the_decision_is_not_taken_for_made(store, monkeypatch):
    decisions = Decisions(store)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(InputError, match="No space left"):
        decisions.record(a_decision())
    monkeypatch.undo()
    assert decisions.current() == Decisions(store).current() == {}
    decisions.record(a_decision())
    assert len(Decisions(store).all()) == 1


def test_a_damaged_decision_is_named(store):
    Decisions(store).record(a_decision())
    name = store.listing("review")[0]
    Path(store.path(name)).write_text("{")
    with pytest.raises(InputError, match=name):
        Decisions(store)
    Path(store.path(name)).write_text(json.dumps({"reviewer": "Ada"}))
    with pytest.raises(InputError, match=name):
        Decisions(store)


@pytest.mark.parametrize(
    "wrong",
    [
        {"reviewer": " "},
        {"reviewer": "A\n"},
        {"action": "like"},
        {"method": None},
        {"action": "reject", "method": "cf"},
        {"kind": "density"},
    ],
)
def test_what_is_no_decision_is_refused(wrong):
    with pytest.raises(InputError):
        a_decision(**wrong)


def test_a_choice_fits_a_dataset_of_its_mattes_kind_and_a_rejection_fits_any():
    plain, calibrated, rejection = a_decision(method="cf"), a_decision(method="cf+"), a_decision(action="reject")

    def problems(kind: str | None) -> list[str | None]:
        rows = {"case-000": row_of(kind)}
        return [no_longer(decision, rows) for decision in (plain, calibrated, rejection)]

    for kind in ("any", None):  # None: committed before datasets were of a kind
        assert problems(kind) == [None, None, None]
    words = "chooses a {} matte; the dataset is of the kind {} now".format
    assert problems("calibrated") == [words("membership", "calibrated"), None, None]
    assert problems("membership") == [None, words("calibrated", "membership"), None]


def test_a_matte_of_an_earlier_format_is_of_its_methods_kind():
    row = row_of("calibrated")
    for solve in row["solves"]:
        solve["kind"] = None
    assert [solve["method"] for solve in choosable(row)] == ["cf+", "knn+", "lb+", "if+"]


def test_a_decision_written_before_there_were_kinds_is_read_and_has_none(store):
    written = asdict(a_decision())
    del written["kind"]
    store.write(f"review/{1_000:020d}-decision-0.json", json.dumps(written).encode())
    assert Decisions(store).all() == [a_decision()]
    Decisions(store).record(a_decision(1, kind="calibrated", method="cf+"))
    assert [decision.kind for decision in Decisions(store).all()] == [None, "calibrated"]


def test_kappa_of_cohens_own_example():
    """Cohen 1960, table 1: proportions of agreement of two judges on 200 subjects, kappa 0.492."""
    counts = [[88, 14, 18], [10, 40, 10], [2, 6, 12]]
    pairs = [("abc"[i], "abc"[j]) for i in range(3) for j in range(3) for _ in range(counts[i][j])]
    assert cohen_kappa(*zip(*pairs, strict=True)) == pytest.approx(0.492, abs=5e-4)


def test_kappa_is_1_for_equal_labels_0_for_chance_and_undefined_for_one_label():
    assert cohen_kappa("abab", "abab") == 1.0
    assert cohen_kappa("aabb", "abab") == 0.0
    assert cohen_kappa("aaaa", "aaaa") is None
    assert cohen_kappa("", "") is None


def test_agreement_counts_what_both_have_read():
    said = [("Ada", "cf"), ("Ben", "cf"), ("Ada", "lb"), ("Ben", "cf"), ("Ada", "reject"), ("Ben", "reject")]
    made = [
        a_decision(
            k,
            who,
            "reject" if label == "reject" else "choose",
            f"n{k // 2}",
            method=None if label == "reject" else label,
        )
        for k, (who, label) in enumerate(said)
    ]
    made.append(a_decision(9, "Cy", nodule="alone"))
    (pair,) = agreement(standing(made))
    assert (pair.reviewers, pair.nodules, pair.kept, pair.kept_kappa) == (("Ada", "Ben"), 3, 1.0, 1.0)
    assert pair.chosen == pytest.approx(2 / 3)
    assert pair.chosen_kappa == pytest.approx((2 / 3 - 1 / 3) / (1 - 1 / 3))


def test_reviewers_who_chose_among_mattes_of_different_kinds_are_not_compared():
    made = [
        a_decision(0, "Ada", nodule="n0", kind="calibrated", method="cf+"),
        a_decision(1, "Ben", nodule="n0", kind="calibrated", method="cf+"),
        a_decision(2, "Ada", nodule="n1", kind="calibrated", method="cf+"),
        a_decision(3, "Ben", nodule="n1", kind="any", action="reject"),
        a_decision(4, "Ada", nodule="n2", method="lb+"),  # before there were kinds: counts for any
        a_decision(5, "Ben", nodule="n2", kind="calibrated", action="reject"),
    ]
    (pair,) = agreement(standing(made))
    assert (pair.nodules, pair.kept) == (2, 0.5)
    assert agreement(standing(made[2:4])) == []
