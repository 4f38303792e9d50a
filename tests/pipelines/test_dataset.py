"""The MLflow run of a build that was cut off."""

from dataclasses import replace

from raymat.pipelines.dataset import Job, _begin_run
from raymat.sources.phantom import PhantomSource
from raymat.steps import BuildParameters
from raymat.store import Store


def test_a_build_that_was_cut_off_goes_on_in_its_run_and_one_with_other_parameters_ends_it(tmp_path):
    store = Store.create(tmp_path / "out")
    job = Job(PhantomSource("scans", 1), "1 phantom", store.root, tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    first = _begin_run(job, store)
    again = _begin_run(job, store)
    assert again.id == first.id
    other = _begin_run(replace(job, parameters=BuildParameters(min_readers=3)), store)
    assert other.id != first.id
    assert other.client.get_run(first.id).info.status == "KILLED"
    assert other.client.get_run(other.id).info.status == "RUNNING"
    assert other.page.endswith(other.id)
