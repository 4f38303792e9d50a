"""A build in a plain loop, without Ray."""

from __future__ import annotations

from raymat.pipelines.build import Plan, Steps, plan_build
from raymat.sources import Source
from raymat.steps import BuildParameters
from raymat.store import Store


def build_in_a_loop(store: Store, source: Source, parameters: BuildParameters) -> Plan:
    """Do what is to be done, nodule by nodule, as a build does; what was planned."""
    plan = plan_build(store, source, parameters)
    steps = Steps(store, source, parameters, "session")
    for name, _ in plan.work:
        for row in store.read_table(name).to_pylist():
            store.add_to_index(steps.commit([steps.score(steps.solve(steps.read(row)))]))
    store.delete_all("worklist")
    store.remove_superseded()
    store.compact_index()
    return plan
