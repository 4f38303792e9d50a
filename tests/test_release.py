"""Releases: what a person decided stands, what was frozen stays as it was, and anyone can read it."""

import hashlib
import json
import subprocess
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import raymat
from raymat.cli import main
from raymat.lock import NAME
from raymat.methods import ALPHA_KINDS, CALIBRATED, MEMBERSHIP
from raymat.nodule import InputError, to_table
from raymat.places import open_filesystem
from raymat.release.freeze import ReleaseRequest, release
from raymat.release.record import RECORD, Release
from raymat.release.verify import compare, verify
from raymat.review.decisions import Decision, Decisions
from raymat.splits import PARTS, REPETITIONS
from raymat.store import Store
from tests.support.nodules import draw_nodule, excluded_nodule, predicted_nodule, shown, write_dataset


def decide(store, number, label, reviewer="Ada", mattes=None, nodule_id=None) -> None:
    """Record a decision: a method, "reject" or "withdraw"."""
    decisions = Decisions(store)
    at = decisions.now()
    method = None if label in ("reject", "withdraw") else label
    decisions.record(
        Decision(
            f"decision-{at}",
            nodule_id or f"case-{number:03d}",
            mattes or shown(draw_nodule(number)),
            reviewer,
            "choose" if method else label,
            method,
            at,
        )
    )


def nodule_of_kind(number, kind, methods=None):
    """A nodule of a dataset of that kind, its calibrated mattes half as dense, its best matte of that kind chosen."""
    nodule = draw_nodule(number, **({"methods": methods} if methods else {}))
    for matte in nodule.candidates:
        if matte.kind == CALIBRATED:
            matte.alpha = matte.alpha * np.float32(0.5)
    return replace(nodule, kind=kind, method=replace(nodule, method=None).best(kind).method)


def freeze(store, out, **more) -> str:
    return release(ReleaseRequest(store.root, str(out), "1.0", **more), say=lambda _: None)


@pytest.fixture(scope="module")
def nodules():
    return [draw_nodule(n, outcome="rejected" if n == 3 else "accepted") for n in range(6)] + [excluded_nodule(6)]


@pytest.fixture
def store(nodules, tmp_path):
    return write_dataset(tmp_path / "dataset", nodules)


@pytest.fixture(scope="module")
def frozen(nodules, tmp_path_factory):
    """A release of six nodules: one chosen by a person against the score, one rejected by her, one rescued."""
    folder = tmp_path_factory.mktemp("frozen")
    store = write_dataset(folder / "dataset", nodules)
    decide(store, 0, "knn+")
    decide(store, 1, "reject")
    decide(store, 3, "lb")
    return folder / "release", freeze(store, folder / "release")


def test_a_persons_decision_overrides_the_score(frozen):
    back = {nodule.nodule_id: nodule for nodule in raymat.load(frozen[0])}
    assert {name: nodule.method for name, nodule in back.items()} == {
        "case-000": "knn+",
        "case-002": "cf",
        "case-003": "lb",
        "case-004": "cf",
        "case-005": "cf",
    }
    rows = {row["nodule_id"]: row for row in pq.read_table(frozen[0] / "nodules.parquet").to_pylist()}
    assert (rows["case-000"]["decided_by"], rows["case-000"]["reviewers"]) == ("reviewers", ["Ada"])
    assert (rows["case-002"]["decided_by"], rows["case-002"]["reviewers"]) == ("score", [])
    left = {row["nodule_id"]: row for row in pq.read_table(frozen[0] / "left_out.parquet").to_pylist()}
    assert left["case-001"]["reason"] == "rejected by Ada"
    assert left["case-006"]["reason"] == "2 readers"
    assert len(left) + len(rows) == 7


def test_a_released_nodule_is_the_datasets_with_the_chosen_matte_and_the_best_of_the_other_kind(frozen, nodules):
    back = raymat.load(frozen[0])["case-000"]
    assert list(back.mattes) == ["knn+", "cf"]
    for alpha, method in ((back.alpha, "knn+"), (back.calibrated, "knn+"), (back.membership, "cf")):
        np.testing.assert_array_equal(alpha, nodules[0].mattes[method])
    for name in ("image", "trimap", "direction"):
        np.testing.assert_array_equal(getattr(back, name), getattr(nodules[0], name))
    np.testing.assert_array_equal(np.stack(back.readers), np.stack(nodules[0].readers))
    for name in ("patient_id", "spacing", "origin", "metadata", "notes", "key", "source"):
        assert getattr(back, name) == getattr(nodules[0], name)
    assert back.scores == {method: nodules[0].scores[method] for method in ("knn+", "cf")}
    terms = {matte.method: matte.scores for matte in nodules[0].candidates}
    assert {matte.method: matte.scores for matte in back.candidates} == {name: terms[name] for name in ("knn+", "cf")}


@pytest.mark.parametrize("kind", ALPHA_KINDS)
def test_a_release_is_of_its_datasets_kind_and_has_both_mattes(kind, tmp_path):
    drawn = [nodule_of_kind(number, kind) for number in range(3)]
    store = write_dataset(tmp_path / "dataset", [*drawn, replace(excluded_nodule(3), kind="any")])
    freeze(store, tmp_path / "out")
    nodules = raymat.load(tmp_path / "out")
    chosen, other = ("cf+", "cf") if kind == CALIBRATED else ("cf", "cf+")
    assert nodules.kind == raymat.load(store.root).kind == kind
    assert json.loads((tmp_path / "out" / "release.json").read_text())["kind"] == kind
    for nodule, before in zip(nodules, drawn, strict=True):
        assert (nodule.kind, nodule.method, list(nodule.mattes)) == (kind, chosen, [chosen, other])
        for name in ("alpha", "membership", "calibrated"):
            np.testing.assert_array_equal(getattr(nodule, name), getattr(before, name))
    for row in pq.read_table(tmp_path / "out" / "nodules.parquet").to_pylist():
        assert (row["kind"], row["method"], row["other_method"]) == (kind, chosen, other)
        assert (row["score"], row["other_score"]) == tuple(drawn[0].scores[method] for method in (chosen, other))
    assert not verify(tmp_path / "out").problems


def test_a_reviewers_choice_leaves_the_matte_of_the_other_kind_as_it_is(tmp_path):
    store = write_dataset(tmp_path / "dataset", [nodule_of_kind(number, CALIBRATED) for number in range(2)])
    decide(store, 0, "if+", mattes=shown(nodule_of_kind(0, CALIBRATED)))
    freeze(store, tmp_path / "out")
    back = raymat.load(tmp_path / "out")
    assert [list(nodule.mattes) for nodule in back] == [["if+", "cf"], ["cf+", "cf"]]
    np.testing.assert_array_equal(back[0].calibrated, nodule_of_kind(0, CALIBRATED).mattes["if+"])


def test_a_dataset_of_one_kind_of_methods_is_released_without_the_other(tmp_path):
    store = write_dataset(tmp_path / "dataset", [nodule_of_kind(0, CALIBRATED, ("cf+", "knn+"))])
    freeze(store, tmp_path / "out")
    (nodule,) = raymat.load(tmp_path / "out")
    assert (list(nodule.mattes), nodule.membership) == (["cf+"], None)
    (row,) = pq.read_table(tmp_path / "out" / "nodules.parquet").to_pylist()
    assert row["other_method"] is row["other_score"] is row["other_alpha_digest"] is None
    assert not verify(tmp_path / "out").problems
    datasheet = (tmp_path / "out" / "datasheet.md").read_text()
    assert "Nodules without `other_alpha`: 1 of 1" in datasheet
    assert "of 1 nodule without one the sum of the calibrated matte, which is less" in datasheet


def test_a_nodules_diameter_is_that_of_its_membership(tmp_path):
    """A calibrated matte sums to less than the volume, here to half of it, which is all there is without membership."""
    diameters = []
    for name, methods in (("both", None), ("one", ("cf+",))):
        nodule = nodule_of_kind(0, CALIBRATED, methods)
        store = write_dataset(tmp_path / name, [nodule])
        freeze(store, tmp_path / f"{name}-out")
        diameters += pq.read_table(tmp_path / f"{name}-out" / "nodules.parquet")["diameter_mm"].to_pylist()
    drawn = nodule_of_kind(0, CALIBRATED)
    mm3 = [float(drawn.mattes["cf"].sum(dtype=float)) / 8, float(nodule.mattes["cf+"].sum(dtype=float)) / 8]
    assert [np.pi / 6 * diameter**3 for diameter in diameters] == pytest.approx(mm3, rel=1e-6)
    assert mm3[1] < 0.6 * mm3[0]


def test_majorities_decide_ties_leave_out_and_a_decision_can_be_taken_back(store, tmp_path):
    for who, label in (("Ada", "cf"), ("Ben", "lb"), ("Cy", "lb")):
        decide(store, 0, label, who)
    for who, label in (("Ada", "cf"), ("Ben", "reject")):
        decide(store, 1, label, who)
    for who, label in (("Ada", "knn"), ("Ben", "if")):
        decide(store, 2, label, who)
    for label in ("reject", "withdraw"):
        decide(store, 4, label)
    freeze(store, tmp_path / "out")
    back = {nodule.nodule_id: nodule.method for nodule in raymat.load(tmp_path / "out")}
    assert back == {"case-000": "lb", "case-002": "knn", "case-004": "cf", "case-005": "cf"}
    left = {row["nodule_id"]: row for row in pq.read_table(tmp_path / "out" / "left_out.parquet").to_pylist()}
    assert left["case-001"]["reason"] == "reviewers disagree (Ada: cf, Ben: reject)"


def test_reviewed_only_leaves_out_what_no_person_saw(store, tmp_path, capsys):
    decide(store, 2, "if+")
    assert main(["release", store.root, "-o", str(tmp_path / "out"), "--version", "1.0", "--reviewed-only"]) == 0
    assert verify(tmp_path / "out").digest in capsys.readouterr().out
    assert raymat.load(tmp_path / "out").ids == ["case-002"]
    assert "Nodules that no person decided on are left out" in (tmp_path / "out" / "datasheet.md").read_text()


def test_decisions_that_no_longer_fit_are_named_and_refused_unless_left_aside(store, tmp_path):
    decide(store, 0, "cf", nodule_id="case-gone")
    decide(store, 5, "cf", mattes="0" * 24)
    decide(store, 6, "cf")
    with pytest.raises(InputError, match="decisions on 3 nodules no longer fit") as caught:
        freeze(store, tmp_path / "out")
    for words in (
        "case-gone: Ada's decision (cf): the dataset has no such nodule any more",
        "case-005: Ada's decision (cf): its matte cf was solved again since, with another result",
        "case-006: Ada's decision (cf): the nodule has no mattes any more (excluded: 2 readers)",
    ):
        assert words in str(caught.value)
    freeze(store, tmp_path / "out", drop_stale=True)
    note = json.loads((tmp_path / "out" / "release.json").read_text())
    assert sorted(note["stale_decisions_left_aside"]) == ["case-005", "case-006", "case-gone"]
    assert raymat.load(tmp_path / "out")["case-005"].method == "cf"


def test_a_decision_that_no_longer_fits_takes_no_other_reviewers_with_it(store, tmp_path):
    decide(store, 0, "cf", "Ada", mattes="0" * 23 + "9")
    decide(store, 0, "reject", "Ben")
    decide(store, 1, "cf", "Ada", mattes="0" * 24)
    decide(store, 1, "lb", "Ben", mattes="0" * 24)
    decide(store, 1, "knn+", "Cy")
    with pytest.raises(InputError, match="decisions on 2 nodules no longer fit") as caught:
        freeze(store, tmp_path / "out")
    words = "case-001: Ada's decision (cf): its matte cf was solved again since, with another result; Ben's"
    assert words in str(caught.value)
    freeze(store, tmp_path / "out", drop_stale=True)
    back = {nodule.nodule_id: nodule.method for nodule in raymat.load(tmp_path / "out")}
    assert back == {"case-001": "knn+", "case-002": "cf", "case-004": "cf", "case-005": "cf"}
    left = {row["nodule_id"]: row for row in pq.read_table(tmp_path / "out" / "left_out.parquet").to_pylist()}
    assert left["case-000"]["reason"] == "rejected by Ben"
    note = json.loads((tmp_path / "out" / "release.json").read_text())
    assert "Ben's" not in note["stale_decisions_left_aside"]["case-000"]


def test_new_scores_leave_decisions_standing(nodules, tmp_path):
    """A decision is bound to the bytes of mattes, not to what is thought of them."""
    again = draw_nodule(0)
    again.key = again.key[:24] + "r" * 8
    for matte in again.candidates:
        matte.score, matte.scores = 0.6, {}
    store = write_dataset(tmp_path / "dataset", [again, nodules[1]])
    decide(store, 0, "if+")
    freeze(store, tmp_path / "out")
    assert raymat.load(tmp_path / "out")["case-000"].method == "if+"


def test_no_patient_is_on_two_sides_of_a_split(frozen):
    table = pq.read_table(frozen[0] / "nodules.parquet").to_pylist()
    for number in range(REPETITIONS):
        sides = defaultdict(set)
        for row in table:
            sides[row["patient_id"]].add(row[f"split_{number}"])
        assert all(len(parts) == 1 for parts in sides.values())
        loaded = raymat.load(frozen[0])
        parts = [loaded.split(number, part).ids for part in PARTS]
        assert sorted(name for part in parts for name in part) == loaded.ids
        assert [len(part) for part in parts] == [sum(r[f"split_{number}"] == p for r in table) for p in PARTS]


@pytest.mark.parametrize(("column", "method"), [("alpha", "knn+"), ("other_alpha", "cf")])
def test_plain_pyarrow_pandas_and_duckdb_read_a_release(frozen, nodules, column, method):
    files = str(frozen[0] / "nodules")
    query = f"select {column} from read_parquet('{files}/*.parquet') where nodule_id = 'case-000'"
    structs = [
        pq.read_table(files)[column].to_pylist()[0],
        pd.read_parquet(files)[column][0],
        duckdb.sql(query).fetchall()[0][0],
    ]
    for struct in structs:
        alpha = np.frombuffer(struct["data"], struct["dtype"]).reshape(struct["shape"])
        np.testing.assert_array_equal(alpha, nodules[0].mattes[method])


def test_the_datasheet_says_what_a_reader_of_the_data_must_know(frozen):
    text = (frozen[0] / "datasheet.md").read_text()
    for words in (
        "5 nodules of 3 patients",
        "A reviewer's decision stands over the score.",
        "| case-001 | rejected | reviewers | rejected by Ada |",
        "| case-006 | excluded | build | 2 readers |",
        "| prepare.crop_px | 128 |",
        "| cf | membership | 3 | 1 |",
        "| cf+ | calibrated | 0 | 4 |",
        "`alpha` is of the kind that its `method` has",
        "- Membership: the share of the voxel that belongs to the lesion",
        "Nodules without `other_alpha`: 0 of 5",
        "The volume is that of the membership matte.",
        "score of the matte of the other kind",
        "not stated (--licence)",
        "| malignancy |",
        "scanner's slice spacing, mm | 2.50",
        "| numpy |",
    ):
        assert words in text
    for name in ("contact_sheet.png", "histograms.png"):
        assert (frozen[0] / name).read_bytes().startswith(b"\x89PNG")


def test_a_sound_release_verifies_by_raymat_and_by_sha256sum(frozen, capsys):
    out, digest = frozen
    assert main(["verify", str(out), "--digest", digest]) == 0
    assert "5 nodules: as it was released" in capsys.readouterr().out
    assert subprocess.run(["sha256sum", "--quiet", "-c", "SHA256SUMS"], cwd=out, check=False).returncode == 0
    assert hashlib.sha256((out / "SHA256SUMS").read_bytes()).hexdigest() == digest


def test_every_way_of_tampering_is_named(store, tmp_path):
    out = tmp_path / "out"
    digest = freeze(store, out)
    shard = out / "nodules" / "00000.parquet"
    sound = {path: path.read_bytes() for path in (shard, out / "datasheet.md", out / "SHA256SUMS")}

    def problems(**more) -> str:
        found = "\n".join(verify(out, **more).problems)
        for path, data in sound.items():
            path.write_bytes(data)
        return found

    assert not problems(digest=digest)
    (out / "datasheet.md").write_text("# better")
    assert problems() == "datasheet.md: changed since the release"
    (out / "datasheet.md").unlink()
    assert problems() == "datasheet.md: missing"
    (out / "extra.txt").write_text("")
    assert problems() == "extra.txt: does not belong to the release"
    (out / "extra.txt").unlink()
    shard.write_bytes(sound[shard][:-50])
    assert "nodules/00000.parquet: changed since the release" in problems()

    # One voxel of one matte, and every digest of a file made to fit.
    for column in ("alpha", "other_alpha"):
        rows = pq.read_table(shard).to_pylist()
        data = bytearray(rows[1][column]["data"])
        data[4] ^= 1
        rows[1][column]["data"] = bytes(data)
        pq.write_table(pa.Table.from_pylist(rows, schema=RECORD), shard, row_group_size=1)
        old, new = (hashlib.sha256(content).hexdigest() for content in (sound[shard], shard.read_bytes()))
        (out / "SHA256SUMS").write_text(sound[out / "SHA256SUMS"].decode().replace(old, new))
        found = problems(digest=digest)
        assert f"case-001: {column} not as the index says" in found
        assert "SHA256SUMS: the release's digest is" in found
    # A matte of the other kind that was taken out.
    rows[1] |= dict.fromkeys(name for name in rows[1] if name.startswith("other_"))
    pq.write_table(pa.Table.from_pylist(rows, schema=RECORD), shard, row_group_size=1)
    assert "case-001: other_alpha not as the index says" in problems()
    rows[1]["trimap"] = None
    pq.write_table(pa.Table.from_pylist(rows, schema=RECORD), shard, row_group_size=1)
    assert "case-001: damaged" in problems()


def test_two_releases_are_compared_nodule_by_nodule(store, frozen, tmp_path, capsys):
    decide(store, 0, "lb+")
    decide(store, 2, "reject")
    freeze(store, tmp_path / "second")
    difference = compare(Release.open(frozen[0]), Release.open(tmp_path / "second"))
    assert difference.added == ["case-001"]
    assert difference.removed == ["case-002", "case-003"]
    assert difference.changed == {"case-000": "method knn+ -> lb+"}
    assert difference.same == 2
    assert main(["release-diff", str(frozen[0]), str(tmp_path / "second")]) == 0
    assert "case-000: method knn+ -> lb+" in capsys.readouterr().out


def test_releases_of_two_kinds_are_compared_and_mattes_of_the_other_kind_too(tmp_path, capsys):
    drawn = [nodule_of_kind(number, CALIBRATED) for number in range(3)]
    write_dataset(tmp_path / "calibrated", drawn)
    write_dataset(tmp_path / "membership", [nodule_of_kind(number, MEMBERSHIP) for number in range(3)])
    later = [drawn[0], *(replace(nodule, candidates=list(nodule.candidates)) for nodule in drawn[1:])]
    later[1].candidates = [
        replace(matte, score=0.9) if matte.method == "lb" else matte for matte in drawn[1].candidates
    ]
    later[2].candidates[0] = replace(drawn[2].candidates[0], alpha=drawn[2].candidates[0].alpha * np.float32(0.9))
    write_dataset(tmp_path / "later", later)
    for name in ("calibrated", "membership", "later"):
        freeze(Store.open(tmp_path / name), tmp_path / f"{name}-out")
    first, second, third = (Release.open(tmp_path / f"{name}-out") for name in ("calibrated", "membership", "later"))
    assert compare(first, third).changed == {
        "case-001": "membership cf -> lb",
        "case-002": "membership alpha",
    }
    # The same two mattes of each nodule, and the other one chosen.
    assert compare(first, second).changed == {f"case-{number:03d}": "method cf+ -> cf" for number in range(3)}
    assert compare(second, third).changed["case-001"] == "method cf -> cf+, membership cf -> lb"
    assert main(["release-diff", *(str(tmp_path / f"{name}-out") for name in ("calibrated", "membership"))]) == 0
    said = capsys.readouterr().out
    assert "calibrated -> membership" in said
    assert "case-000: method cf+ -> cf" in said


def test_releases_of_the_same_dataset_are_equal(store, tmp_path):
    for name in ("one", "two"):
        freeze(store, tmp_path / name)
    difference = compare(Release.open(tmp_path / "one"), Release.open(tmp_path / "two"))
    assert (difference.added, difference.removed, difference.changed, difference.same) == ([], [], {}, 5)
    for name in ("nodules/00000.parquet", "nodules.parquet", "left_out.parquet", "contact_sheet.png"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_a_release_never_takes_anothers_place_but_an_interrupted_one_may_be_begun_again(store, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.doc").write_text("mine")
    with pytest.raises(InputError, match=r"thesis\.doc"):
        freeze(store, out)
    (out / "thesis.doc").unlink()
    (out / "unfinished").write_text("")
    (out / "nodules").mkdir()
    (out / "nodules" / "00007.parquet").write_text("half")
    with pytest.raises(InputError, match="no release here"):
        verify(out)
    freeze(store, out)
    assert not verify(out).problems
    with pytest.raises(InputError, match="releases do not change"):
        freeze(store, out)


def test_of_two_releases_into_one_folder_at_once_one_is_refused(store, tmp_path):
    out = Store(*open_filesystem(tmp_path / "out"))

    def meanwhile(line: str) -> None:
        with pytest.raises(InputError, match="another command is at work here"):
            freeze(store, tmp_path / "out")
        assert out.listing("nodules"), line

    release(ReleaseRequest(store.root, str(tmp_path / "out"), "1.0"), say=meanwhile)
    assert not verify(tmp_path / "out").problems
    assert NAME not in out.listing("")


def test_a_dataset_of_predictions_is_not_released(tmp_path, capsys):
    store = write_dataset(tmp_path / "predictions", [predicted_nodule(n) for n in range(3)])
    assert main(["release", store.root, "-o", str(tmp_path / "out"), "--version", "1.0"]) == 2
    assert "case-000 has a matte without a score" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_dataset_that_is_not_built_to_the_end_is_not_released(store, nodules, tmp_path):
    Path(store.path(store.outcomes()["shard"][0].as_py())).unlink()
    with pytest.raises(InputError, match="1 of 7 nodules are not built yet"):
        freeze(store, tmp_path / "out")
    store.commit(to_table([nodules[0]]))
    for number in (0, 1, 2, 4, 5):
        decide(store, number, "reject")
    with pytest.raises(InputError, match="nothing to release"):
        freeze(store, tmp_path / "out")
