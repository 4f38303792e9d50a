"""The command line: what a user types, what comes back, and which status it ends with."""

import json
import runpy
import sys
from dataclasses import replace

import numpy as np
import pytest

from raymat import machine
from raymat.cli import main
from raymat.volume import read_volume, write_volume
from tests.support.cases import GRID, OPTIONS, write_cases
from tests.support.nodules import draw_nodule, write_dataset

SMALL = [*OPTIONS, "--workers", "1", "--no-tracking"]


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """A folder with one small image (0.nii.gz) and two readers' masks."""
    folder = tmp_path_factory.mktemp("case")
    write_cases(folder, 1)
    return folder


@pytest.fixture(scope="module")
def dataset(ray_cluster, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("cli")
    table = write_cases(folder / "cases", 2)
    with open(table, "a") as file:
        file.write("alone,p9,0.nii.gz,0.r0.nii.gz,3\n")
    assert main(["build", "--cases", table, "-o", str(folder / "dataset"), *SMALL]) == 0
    return str(folder / "dataset")


def masks(folder) -> list[str]:
    return ["--mask", str(folder / "0.r0.nii.gz"), "--mask", str(folder / "0.r1.nii.gz")]


def test_matte_writes_alpha_on_the_images_own_grid(case, tmp_path):
    out = tmp_path / "alpha.nii.gz"
    assert main(["matte", str(case / "0.nii.gz"), *masks(case), "-o", str(out)]) == 0
    alpha, grid = read_volume(out)
    assert grid.placement_difference(GRID) < 1e-3
    assert 0 <= alpha.min() < alpha.max() <= 1
    inside = read_volume(case / "0.r0.nii.gz")[0] == 1
    assert alpha[inside].mean() > 5 * alpha[~inside].mean()


def test_matte_all_writes_eight_files_and_one_trimap_serves_as_well(case, tmp_path, capsys):
    trimap = np.zeros(GRID.shape, np.uint8)
    inner, outer = (read_volume(case / f"0.r{i}.nii.gz")[0] == 1 for i in (0, 1))
    trimap[outer], trimap[inner] = 128, 255
    write_volume(tmp_path / "trimap.nrrd", trimap, GRID)
    out = tmp_path / "alpha.nrrd"
    arguments = ["matte", str(case / "0.nii.gz"), "--trimap", str(tmp_path / "trimap.nrrd"), "-o", str(out)]
    assert main([*arguments, "--all"]) == 0
    assert len(list(tmp_path.glob("alpha_*.nrrd"))) == 8
    assert main([*arguments, "--method", "lb", "--threads", "3"]) == 0
    np.testing.assert_array_equal(read_volume(out)[0], read_volume(tmp_path / "alpha_lb.nrrd")[0])
    capsys.readouterr()
    assert main([*arguments, "--method", "lb", "--preconditioner", "amg"]) == 0
    assert "(cg, amg)" in capsys.readouterr().out
    np.testing.assert_allclose(read_volume(out)[0], read_volume(tmp_path / "alpha_lb.nrrd")[0], atol=1e-4)


def test_matte_says_beforehand_what_memory_it_would_take(case, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(machine, "free_memory_bytes", lambda: 1 << 20)
    assert main(["matte", str(case / "0.nii.gz"), *masks(case), "-o", str(tmp_path / "alpha.nii.gz")]) == 2
    said = capsys.readouterr().err
    assert "unknown voxels need about" in said
    assert "0.0 GiB are free" in said
    assert not list(tmp_path.glob("alpha*"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["matte", "none.nii.gz", "--trimap", "t.nii.gz", "-o", "a.nii.gz"], "none.nii.gz: no such file"),
        (["inspect", "nowhere"], "no raymat dataset"),
        (["build", "--cases", "none.csv", "--no-tracking"], "none.csv"),
        (["build", "--lidc", "nowhere", "--no-tracking"], "nowhere: no such file or folder"),
        (["build", "--methods", "cf,magic", "--no-tracking"], "unknown methods ['magic']"),
        (["build", "--window", "-600", "0", "--no-tracking"], "width 0"),
        (["matte", "i.nii.gz", "--trimap", "t.nii.gz", "-o", "none/a.nii.gz"], "there is no folder"),
        (["matte", "i.nii.gz", "--trimap", "t.nii.gz", "-o", "a.jpg"], "name a file that ends in"),
        (["build", "--tracking-uri", "http://127.0.0.1:9"], "MLflow store http://127.0.0.1:9 cannot be used"),
    ],
)
def test_what_is_at_fault_is_said_in_one_line(arguments, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.startswith("raymat: ")
    assert len(error.splitlines()) == 1


def test_a_trimap_with_a_stray_value_is_named(case, tmp_path, capsys):
    arguments = ["matte", str(case / "0.nii.gz"), "--trimap", str(case / "0.r0.nii.gz"), "-o", str(tmp_path / "a.nii")]
    assert main(arguments) == 2
    assert "found 1 in" in capsys.readouterr().err


@pytest.mark.ray
def test_inspect_counts_outcomes_and_lists_nodules(dataset, capsys):
    assert main(["inspect", dataset, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert set(report["outcomes"]) == {"accepted", "rejected", "excluded", "failed"}
    assert report["outcomes"]["excluded"] == 1
    assert sum(report["outcomes"].values()) == len(report["nodules"]) == 3
    assert {"nodule_id", "patient_id", "outcome", "method", "reason"} <= set(report["nodules"][0])
    with open(f"{dataset}/parameters.json") as file:
        assert json.load(file)["parameters"]["prepare"]["crop_px"] == 24
    assert main(["inspect", dataset]) == 0
    assert "1 reader, fewer than the 2 asked for" in capsys.readouterr().out


def test_inspect_says_the_kind_and_what_was_best_of_the_other(tmp_path, capsys):
    """Of four nodules cf+ or lb+ is chosen; beside them cf has the highest score, but for one where knn has."""
    nodules = [replace(draw_nodule(n), kind="calibrated", method="lb+" if n == 3 else "cf+") for n in range(4)]
    nodules[2].candidates[1].score = 0.95
    rejected = replace(draw_nodule(4, outcome="rejected"), kind="calibrated")
    write_dataset(tmp_path / "dataset", [*nodules, rejected])
    assert main(["inspect", str(tmp_path / "dataset"), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["kind"] == "calibrated"
    assert report["methods"] == {"cf+": 3, "lb+": 1}
    assert report["other_methods"] == {"membership": {"cf": 3, "knn": 1}}
    assert main(["inspect", str(tmp_path / "dataset")]) == 0
    lines = capsys.readouterr().out.splitlines()
    at = lines.index("kind     calibrated")
    assert lines[at + 1 : at + 3] == ["chosen   cf+ 3, lb+ 1", "  best membership: cf 3, knn 1"]


def test_inspect_of_a_dataset_of_any_kind_has_the_best_of_both(tmp_path, capsys):
    """Chosen is cf and, of one nodule, if+, which stands for its kind whatever its score."""
    write_dataset(tmp_path / "dataset", [draw_nodule(0), draw_nodule(1), replace(draw_nodule(2), method="if+")])
    assert main(["inspect", str(tmp_path / "dataset"), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["kind"], report["methods"]) == ("any", {"cf": 2, "if+": 1})
    assert report["other_methods"] == {"calibrated": {"cf+": 2, "if+": 1}, "membership": {"cf": 3}}


def test_inspect_of_one_kind_alone_names_no_other(tmp_path, capsys):
    plain = replace(draw_nodule(0, methods=("cf", "lb")), kind="membership")
    write_dataset(tmp_path / "dataset", [plain])
    assert main(["inspect", str(tmp_path / "dataset"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["other_methods"] == {}


def test_inspect_keeps_a_column_between_a_long_id_and_its_outcome(tmp_path, capsys):
    names = [f"{'1.2.840.113619.' * 4}{n}-{n}" for n in (1, 2)]
    write_dataset(tmp_path / "dataset", [replace(draw_nodule(n), nodule_id=name) for n, name in enumerate(names)])
    assert main(["inspect", str(tmp_path / "dataset")]) == 0
    said = capsys.readouterr().out
    assert [line.split()[:2] for line in said.splitlines()[-2:]] == [[name, "accepted"] for name in names]


def test_show_draws_a_nodule_and_says_what_cannot_be_drawn(dataset, tmp_path, capsys):
    out = tmp_path / "nodule.png"
    assert main(["show", dataset, "case0", "-o", str(out)]) == 0
    assert out.read_bytes().startswith(b"\x89PNG")
    assert main(["show", dataset, "alone", "-o", str(out)]) == 2
    assert main(["show", dataset, "nobody", "-o", str(out)]) == 2
    assert "no nodule nobody" in capsys.readouterr().err


@pytest.mark.ray
def test_a_failed_nodule_makes_the_exit_status_1(ray_cluster, tmp_path, capsys):
    table = write_cases(tmp_path / "cases", 1)
    with open(table, "a") as file:
        file.write("gone,p,gone.nii.gz,0.r0.nii.gz;0.r1.nii.gz,1\n")
    assert main(["build", "--cases", table, "-o", str(tmp_path / "dataset"), *SMALL]) == 1
    said = capsys.readouterr().out
    assert "failed gone:" in said
    assert "gone.nii.gz: no such file" in said


@pytest.mark.ray
def test_the_build_draws_its_contact_sheet_and_logs_its_run(ray_cluster, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    table = write_cases(tmp_path / "cases", 2)
    assert main(["build", "--cases", table, *SMALL[:-1]]) == 0
    said = capsys.readouterr().out
    assert (tmp_path / "raymat-cases" / "contact_sheet.png").is_file()
    assert f"sqlite:///{tmp_path}/mlflow.db" in said
    assert len(list(tmp_path.glob("mlartifacts/**/contact_sheet.png"))) == 1


def test_the_job_takes_the_same_arguments(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["build_dataset.py", "--help"])
    with pytest.raises(SystemExit) as end:
        runpy.run_path("jobs/build_dataset.py", run_name="__main__")
    assert end.value.code == 0
    assert "--lidc" in capsys.readouterr().out
