"""What the command lines of the evidence come to."""

import sys

import pytest

from raymat.classification.networks import PAPER_NETWORKS, SMALL_NETWORKS
from raymat.cli import main
from raymat.evidence.inputs import inputs_of
from raymat.methods import CALIBRATED


@pytest.fixture
def asked(monkeypatch):
    """The jobs that a command would have run."""
    import raymat.pipelines.classify
    import raymat.pipelines.readers

    jobs = []
    monkeypatch.setattr(raymat.pipelines.classify, "classify", lambda job: (jobs.append(job), (None, []))[1])
    monkeypatch.setattr(
        raymat.pipelines.readers,
        "leave_one_reader_out",
        lambda job: (jobs.append(job), (None, {"failed": 1}))[1],
    )
    return jobs


def run(monkeypatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["raymat", *arguments])
    return main(list(arguments))


def test_the_whole_experiment_is_180_trials_of_the_papers_networks(asked, monkeypatch):
    assert run(monkeypatch, "classify", "data", "-o", "out", "--preset", "paper", "--no-tracking") == 0
    (job,) = asked
    # None is named: which inputs differ is known with the dataset.
    assert (job.inputs, job.networks, job.seeds, job.gpus) == ((), PAPER_NETWORKS, (0, 1, 2, 3), 1.0)
    assert len(inputs_of(CALIBRATED)) * len(job.networks) * len(job.seeds) == 180
    assert job.recipe.crop.side == 96


def test_flags_choose_a_part_and_change_the_recipe(asked, monkeypatch):
    part = ["--inputs", "image,CF+", "--seeds", "1", "--splits", "0,2", "--threshold", "2.5", "--margin", "0.25"]
    recipe = ["--side", "16", "--spacing-mm", "2", "--epochs", "3", "--gpus", "0.5", "--width", "2"]
    assert run(monkeypatch, "classify", "data", "-o", "out", *part, *recipe, "--no-tracking") == 0
    (job,) = asked
    assert (job.inputs, job.networks, job.seeds, job.splits) == (("image", "cf+"), SMALL_NETWORKS, (1,), (0, 2))
    assert (job.recipe.threshold, job.recipe.margin, job.recipe.epochs, job.recipe.width) == (2.5, 0.25, 3, 2.0)
    assert (job.recipe.crop.side, job.recipe.crop.spacing_mm, job.gpus) == (16, 2.0, 0.5)


def test_each_seed_can_have_a_split_of_its_own(asked, monkeypatch):
    assert run(monkeypatch, "classify", "data", "-o", "out", "--splits", "each", "--no-tracking") == 0
    assert asked[0].draws == [(0, 0), (1, 1), (2, 2), (3, 3)]


def test_a_failed_split_makes_the_exit_status_1_and_no_password_is_kept(asked, monkeypatch, tmp_path):
    (tmp_path / "cases.csv").write_text("case_id\n")
    uri = "http://me:secret@host:5000"
    arguments = [
        "readers",
        "--cases",
        str(tmp_path / "cases.csv"),
        "-o",
        "out",
        "--nodules",
        "7",
        "--tracking-uri",
        uri,
    ]
    assert run(monkeypatch, *arguments) == 1
    (job,) = asked
    assert (job.nodules, job.parameters.min_readers) == (7, 3)
    assert "secret" not in " ".join(job.output.command)
    assert job.output.tracking_uri == uri


def test_a_source_has_to_be_named(monkeypatch, capsys):
    assert run(monkeypatch, "readers", "-o", "out") == 2
    assert "name a source" in capsys.readouterr().err
