"""What an entry is told: tables, differences, problems, and the leaderboard of several."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

import raymat
from raymat.benchmark.judge import Entrant, judge
from raymat.benchmark.leaderboard import leaderboard, read_table
from raymat.benchmark.result import Result
from raymat.benchmark.tables import COLUMNS, Reference, errors_against, less, mean_and_spread, scaled
from raymat.cli import main
from raymat.evidence.bootstrap import mean_of_splits
from raymat.experiment import Experiment
from raymat.nodule import InputError
from raymat.pipelines import benchmark as pipeline
from raymat.pipelines.benchmark import BenchmarkJob, entrant_of
from raymat.release.record import Release
from tests.support.entries import judge_in_a_loop, softened, write_entry, write_matte, write_release

PATIENTS = 10


@pytest.fixture(scope="module")
def release(tmp_path_factory) -> str:
    return write_release(tmp_path_factory.mktemp("release"), PATIENTS)


@pytest.fixture(scope="module", autouse=True)
def without_ray_and_figures():
    """The test on Ray has them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "_judge_all", judge_in_a_loop)
        patch.setattr(pipeline, "_bars", lambda *_: None)
        patch.setattr(Experiment, "figure", lambda *_: None)
        yield


@pytest.fixture(scope="module")
def entry(tmp_path_factory, release):
    return write_entry(tmp_path_factory.mktemp("entry") / "softened", raymat.load(release), softened)


def ids_of(release: str, split: int) -> list[str]:
    return raymat.load(release).split(split, "test").ids


def run(*arguments: object) -> int:
    return main(["benchmark", *map(str, arguments), "--no-tracking"])


def test_an_entry_has_a_page_with_all_that_was_asked(release, entry, tmp_path, capsys):
    (entry / "trained-on.txt").write_text("")
    assert run(release, "--mattes", entry, "-o", tmp_path / "out", "--automatic") == 0
    (entry / "trained-on.txt").unlink()
    page = (tmp_path / "out/table.md").read_text()
    tests = [ids_of(release, split) for split in range(4)]
    count = sum(map(len, tests))
    assert f"| splits | 0, 1, 2, 3: {count} test nodules, {len(set().union(*tests))} of them different |" in page
    assert f"| mattes | {count} answered, 0 missing, 0 unusable, 0 extra |" in page
    assert "| learnt from | nobody, none of them tested, as the entry says; trusted |" in page
    assert Release.open(release).digest in page
    for heading in (
        "## Against the release's calibrated matte",
        "## Against the true calibrated alpha",
        "## Against the release's membership matte",
        "## Against the true membership alpha",
        "## Against the readers' masks",
    ):
        assert heading in page
    assert f"| **softened** | yes | {count} |" in page
    assert f"| less nothing | {count} | -" in page
    assert page.split("## Mattes with a problem")[0].rstrip() in capsys.readouterr().out
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert (summary["name"], summary["automatic"], summary["kind"]) == ("softened", True, "not stated")
    assert summary["digest"] == Release.open(release).digest
    rows = pd.read_csv(tmp_path / "out/errors.csv", keep_default_na=False)
    own = rows[(rows.method == "softened") & (rows.metric == "sad") & (rows.kind == "membership")]
    chosen = own[own.truth == "chosen matte"]
    assert len(chosen) == count
    assert summary["means"]["membership chosen matte"]["sad"] == pytest.approx(
        0.01 * chosen.groupby("split").value.mean().mean()
    )


def test_a_kind_that_is_stated_is_judged_alone(release, entry, tmp_path):
    arguments = ["--kind", "membership", "--splits", "1", "--name", "soft | one"]
    assert run(release, "--mattes", entry, "-o", tmp_path, *arguments) == 0
    page = (tmp_path / "table.md").read_text()
    assert "calibrated alpha" not in page
    assert "## Against the true membership alpha" in page
    assert f"| splits | 1: {len(ids_of(release, 1))} test nodules" in page
    assert r"| **soft \| one** | no |" in page


def test_every_mistake_is_named_with_what_to_do(release, entry, tmp_path, capsys):
    mattes = tmp_path / "mattes"
    shutil.copytree(entry, mattes)
    nodules = raymat.load(release)
    names = sorted({name for split in range(4) for name in ids_of(release, split)})
    assert len(names) >= 5
    missing, copied, elsewhere, broken, nan = names[:5]
    (mattes / f"{missing}.nii.gz").unlink()
    nodule = nodules[copied]
    write_matte(mattes / f"{copied}.nii.gz", nodule.membership, nodule)
    nodule = nodules[elsewhere]
    write_matte(mattes / f"{elsewhere}.nii.gz", softened(nodule), replace(nodule, origin=(0.0, 0.0, 0.0)))
    (mattes / f"{broken}.nii.gz").write_bytes((mattes / f"{broken}.nii.gz").read_bytes()[:200])
    (mattes / f"{nan}.nii.gz").unlink()
    nodule = nodules[nan]
    write_matte(mattes / f"{nan}.nrrd", np.full_like(nodule.alpha, np.nan), nodule)
    (mattes / "stranger.nii.gz").write_text("")
    (mattes / "stranger.npy").write_text("")
    assert run(release, "--mattes", mattes, "-o", tmp_path / "out") == 1
    said = capsys.readouterr().out
    for line in (
        f"missing  {missing}: no matte in {mattes}: write {missing}.nii.gz",
        f"unusable  {copied}: {mattes}/{copied}.nii.gz: is the release's own matte (cf)",
        f"unusable  {elsewhere}: {mattes}/{elsewhere}.nii.gz: misplaced: it has the size of the nodule's crop",
        f"unusable  {broken}: {mattes}/{broken}.nii.gz: truncated or damaged",
        f"unusable  {nan}: {mattes}/{nan}.nrrd: {nodule.alpha.size} voxels are NaN",
        f"extra  {mattes}/stranger.nii.gz: called as no nodule of the release is",
        f"extra  {mattes}/stranger.npy: no volume that can be read",
    ):
        assert said.count(line) == 1, line
    rows = list(csv.DictReader((tmp_path / "out/mattes.csv").open()))
    assert {row["nodule_id"] for row in rows if row["state"] in ("missing", "unusable")} == set(names[:5])
    assert "## Mattes with a problem" in (tmp_path / "out/table.md").read_text()
    # They count, in every split that tests them, as if the entry had found no lesion.
    errors = pd.read_csv(tmp_path / "out/errors.csv", keep_default_na=False)
    for name in names[:5]:
        own, nothing = (
            errors[(errors.nodule_id == name) & (errors.method == method)].value.to_list()
            for method in ("mattes", "nothing")
        )
        assert own == nothing != []


def test_mattes_in_another_order_than_their_headers_are_suspected():
    """Where most would agree better; of a few, or of a few of many, chance has its share."""

    def warning(answered: int) -> str:
        return Result(None, pd.DataFrame(), {}, [{"state": "answered"}] * answered, {"mirrored along x": 6}).warning

    assert "agree better with the release mirrored along x: does each array have the order" in warning(7)
    assert warning(8) == ""


def test_a_matte_that_its_worker_died_of_counts_as_nothing(release):
    nodules = raymat.load(release)
    row = {"outcome": "failed", "nodule_id": nodules.ids[0], "reason": "its worker died 3 times"}
    found = pipeline._judged(row, nodules, Entrant("mine"))
    assert (found.state, found.note) == (
        "unusable",
        "could not be judged (its worker died 3 times); write the file again",
    )
    assert found.rows == judge(nodules[0], None, Entrant("mine")).rows


def test_a_folder_per_split_is_read_for_its_split(release, tmp_path):
    nodules = raymat.load(release)
    for split in (0, 2):
        part = nodules.split(split, "test")
        write_entry(tmp_path / f"m/split-{split}", part, lambda n, s=split: softened(n) * (0.9 if s else 1.0))
        (tmp_path / f"m/split-{split}/trained-on.txt").write_text(
            "\n".join({n.patient_id for n in nodules} - {n.patient_id for n in part})
        )
    assert run(release, "--mattes", tmp_path / "m", "-o", tmp_path / "out", "--kind", "membership") == 0
    errors = pd.read_csv(tmp_path / "out/errors.csv")
    own = errors[(errors.method == "m") & (errors.metric == "bias")]
    means = own[own.truth == "chosen matte"].groupby("split").value.mean()
    assert list(means.index) == [0, 2]
    assert means[2] < means[0] - 5
    (tmp_path / "m/split-2/trained-on.txt").write_text(next(iter(nodules.split(2, "test"))).patient_id)
    assert run(release, "--mattes", tmp_path / "m", "-o", tmp_path / "out2") == 2
    assert not (tmp_path / "out2").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--kind", "calibrated", "--solver", "cf"], "mattes of cf are of the kind membership"),
        (["--splits", "7"], "no split 7"),
        (["--name", "nothing"], "give a --name"),
    ],
)
def test_what_cannot_be_is_refused(release, entry, tmp_path, capsys, arguments, words):
    assert run(release, "--mattes", entry, "-o", tmp_path / "out", *arguments) == 2
    assert words in capsys.readouterr().err


def test_a_dataset_is_no_release_and_a_kind_must_be_there(release, entry, tmp_path, capsys):
    dataset = release.replace("release/release", "x").rsplit("/", 1)[0] + "/dataset"
    assert run(dataset, "--mattes", entry, "-o", tmp_path / "out") == 2
    assert "a benchmark needs one that does not change (raymat release)" in capsys.readouterr().err
    found = Release.open(release)
    alone = Release(found.place, [{**row, "other_method": None} for row in found.index])
    job = BenchmarkJob(release, str(entry), None)
    assert entrant_of(job, alone).kinds == ("calibrated",)
    with pytest.raises(InputError, match="has no membership mattes to judge by, only calibrated"):
        entrant_of(replace(job, kind="membership"), alone)


def test_differences_are_of_the_same_nodules_and_intervals_of_patients():
    rows = pd.DataFrame(
        [
            (split, f"n{n}", f"p{n // 2}", "membership", "chosen matte", method, "sad", 100.0 * (n + shift))
            for split in (0, 1)
            for n in range(8)
            for method, shift in (("mine", 1), ("nothing", 2 if n != 7 else None))
            if shift is not None
        ],
        columns=list(COLUMNS),
    )
    found = errors_against(scaled(rows), Reference("membership", "chosen matte"))
    assert list(found) == ["mine", "nothing"]
    assert mean_and_spread(found["mine"]) == {"sad": (pytest.approx(4.5), pytest.approx(0.0))}
    count, difference = less(found["mine"], found["nothing"], ["sad"])
    assert count == 14
    assert (difference["sad"].value, difference["sad"].low, difference["sad"].high) == pytest.approx((-1, -1, -1))


def test_the_mean_over_splits_weighs_splits_alike_and_patients_together():
    values, splits = [0.0, 0.0, 0.0, 4.0], [0, 0, 0, 1]
    alone = mean_of_splits(values, splits, ["a", "a", "a", "a"])
    assert (alone.value, alone.low, alone.high) == (2, 2, 2)
    rng = np.random.default_rng(0)
    many = rng.normal(1, 1, 400)
    found = mean_of_splits([*many, *many], [0] * 400 + [1] * 400, [*range(400), *range(400)])
    assert found.value == pytest.approx(many.mean())
    # Twice the same patients are no more witnesses than once.
    assert found.high - found.low == pytest.approx(2 * 1.96 * many.std() / 20, rel=0.1)


@pytest.fixture(scope="module")
def tables(release, entry, without_ray_and_figures, tmp_path_factory):
    """Three outputs: two that say no kind, one of membership that leaves half of its nodules out."""
    folder = tmp_path_factory.mktemp("tables")
    worse = write_entry(folder / "worse", raymat.load(release), lambda n: 0.5 * softened(n))
    few = write_entry(folder / "few", list(raymat.load(release))[::2], softened)
    (few / "trained-on.txt").write_text("somebody else\n")
    run(release, "--mattes", entry, "-o", folder / "a", "--automatic")
    run(release, "--mattes", worse, "-o", folder / "b")
    run(release, "--mattes", few, "-o", folder / "c", "--kind", "membership")
    return folder


def section(page: str, title: str) -> str:
    return page.split(f"## {title}")[1].split("\n## ")[0]


def test_a_leaderboard_orders_entries_by_kind_and_does_not_reward_gaps(tables, tmp_path, capsys):
    assert main(["leaderboard", *(str(tables / n) for n in "bac"), "-o", str(tmp_path / "board.md")]) == 0
    page = (tmp_path / "board.md").read_text()
    part = section(page, "Against the release's membership matte, splits 0, 1, 2, 3")
    lines = [line.split(" | ") for line in part.splitlines() if line.startswith("| ")][2:]
    named = [line[1] for line in lines]
    entries = [name for name in named if not name.startswith("*")]
    assert set(entries) == {"softened", "worse", "few"}
    assert entries[0] == "softened"
    assert {"*nothing*", "*readers' mean*", "*half of the readers*", "*window ramp*"} < set(named)
    assert [line[0].lstrip("| ") for line in lines if not line[1].startswith("*")] == ["1", "2", "3"]
    errors = [float(line[4].split(" ")[0]) for line in lines]
    assert errors == sorted(errors)
    assert f"SAD x 1e-2 less that of {entries[0]}" in part
    assert "few" not in section(page, "Against the release's calibrated matte, splits 0, 1, 2, 3")
    assert "calibration error" in section(page, "Against the readers' masks")
    listed = section(page, "Entries")
    assert "| few | membership | 0, 1, 2, 3 |" in listed
    assert "| 1 patient or nodule |" in listed
    assert listed.count("not stated, judged on both") == 2
    assert read_table(str(tables / "a")).summary["digest"][:12] in listed
    assert f"raymat {raymat.__version__}" in page or raymat.__version__ in listed


def test_entries_that_cannot_be_compared_are_refused(tables, tmp_path):
    a, b = read_table(str(tables / "a")), read_table(str(tables / "b"))
    other = replace(b, summary=b.summary | {"digest": "f" * 64})
    with pytest.raises(InputError, match=r"b: of release 1.0 \(ffffffffffff\), .*a leaderboard is of one release"):
        leaderboard([a, other])
    with pytest.raises(InputError, match=r"both entries are called softened; give one of them another --name"):
        leaderboard([a, replace(a, path="again")])
    with pytest.raises(InputError, match=r"of version 0 of the benchmark.*run raymat benchmark again"):
        leaderboard([a, replace(b, summary=b.summary | {"benchmark": 0})])
    with pytest.raises(InputError, match=r"no output of raymat benchmark \(summary\.json is missing\)"):
        read_table(str(tmp_path))
    shutil.copytree(tables / "a", tmp_path / "damaged")
    (tmp_path / "damaged/errors.csv").write_text("split,nodule_id\n")
    with pytest.raises(InputError, match=r"errors\.csv: damaged"):
        read_table(str(tmp_path / "damaged"))
    (tmp_path / "damaged/summary.json").write_text("{}")
    with pytest.raises(InputError, match=r"summary\.json: damaged \(no benchmark\)"):
        read_table(str(tmp_path / "damaged"))


def test_entries_of_other_splits_have_a_section_of_their_own(tables, release, entry, tmp_path):
    assert (
        run(release, "--mattes", entry, "-o", tmp_path / "d", "--splits", "1", "--name", "once", "--kind", "membership")
        == 0
    )
    page = leaderboard([read_table(str(tables / "a")), read_table(str(tmp_path / "d"))])
    assert "## Against the release's membership matte, splits 0, 1, 2, 3" in page
    assert "once" not in section(page, "Against the release's membership matte, splits 0, 1, 2, 3")
    assert "once" in section(page, "Against the release's membership matte, splits 1")


def test_a_leaderboard_is_a_page(tables, tmp_path, capsys):
    assert main(["leaderboard", str(tables / "a"), "-o", str(tmp_path / "board.csv")]) == 2
    assert "name a file that ends in .md" in capsys.readouterr().err
