"""The MLflow runs of builds that are cut off, and of those that are not."""

from dataclasses import replace

from raymat.experiment import BUILD, Experiment, Facts, Output, experiment
from raymat.pipelines.build_job import Job
from raymat.sources.phantom import PhantomSource
from raymat.steps import BuildParameters
from raymat.store import Store
from raymat.tracking import Run
from tests.support import quiet


def test_a_build_that_was_cut_off_is_resumed_in_its_run_and_one_with_other_parameters_ends_it(tmp_path):
    store = Store.create(tmp_path / "out")
    output = Output(store.root, f"sqlite:///{tmp_path}/mlflow.db")
    job = Job(PhantomSource("scans", 1), "1 phantom", output)

    def begun(job: Job) -> Run:
        """The run of a command that is killed: nothing ends it."""
        return Experiment(BUILD, output, job.facts, store).run

    first = begun(job)
    assert begun(job).id == first.id
    other = begun(replace(job, parameters=BuildParameters(min_readers=3)))
    assert other.id != first.id
    assert other.client.get_run(first.id).info.status == "KILLED"
    assert other.client.get_run(other.id).info.status == "RUNNING"
    assert f"/runs/{other.id}" in other.page


def test_each_finished_build_has_a_run_of_its_own(tmp_path):
    store = Store.create(tmp_path / "out")
    output, runs = Output(store.root, f"sqlite:///{tmp_path}/mlflow.db"), []
    for _ in range(2):
        with experiment(BUILD, output, Facts({"a": 1}, {"of": "1"}), quiet, store) as work:
            runs.append(work.run)
    assert runs[0].id != runs[1].id
    assert {runs[0].client.get_run(run.id).info.status for run in runs} == {"FINISHED"}
    assert store.listing("") == ["dataset.json"]
