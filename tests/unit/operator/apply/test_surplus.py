"""Children that are no longer wanted are found, and nothing else."""

from __future__ import annotations

import pytest
from languagepipes_operator.apply.surplus import surplus_children
from languagepipes_operator.certificates.authority import new_ca
from languagepipes_operator.kube.kinds import Manifest
from languagepipes_operator.settings import OperatorSettings
from support.example_pipes import (
    living,
    of_kind,
    pipe_snapshot,
    rendered,
    settings,
    store_children,
    stored_plan_of,
)


def authorities(*names: str) -> str:
    return "".join(new_ca("hub", name).certificate.decode() for name in names)


@pytest.mark.parametrize("planned", [False, True])
def test_authorities_that_are_no_longer_trusted_are_pruned(planned: bool) -> None:
    snapshot, old = pipe_snapshot(), settings(hub_ca_bundle=authorities("one"))
    stored = stored_plan_of(snapshot)
    before = rendered(snapshot, stored, hub_ca_bundle=old.hub_ca_bundle) if planned else store_children(snapshot, old)
    (config_map,) = of_kind(before, "ConfigMap", "store")

    def pruned(operator: OperatorSettings) -> list[Manifest]:
        live = living(snapshot, before)
        wanted = (
            rendered(live, stored, hub_ca_bundle=operator.hub_ca_bundle) if planned else store_children(live, operator)
        )
        return of_kind(surplus_children(wanted, live.children, planned=planned), "ConfigMap")

    assert pruned(old) == []
    assert pruned(settings(hub_ca_bundle=authorities("another"))) == [config_map]


def test_without_a_plan_an_older_plans_replicas_stay() -> None:
    snapshot = pipe_snapshot()
    live = living(snapshot, rendered(snapshot))
    wanted = store_children(live, settings())

    unplanned = surplus_children(wanted, live.children, planned=False)
    planned = surplus_children(wanted, live.children, planned=True)

    roles = {each["metadata"]["labels"]["languagepipes.io/role"] for each in planned}
    assert unplanned == []
    assert roles >= {"stage", "end-model"}


def test_a_plan_stays_as_long_as_a_deployment_mounts_it() -> None:
    snapshot = pipe_snapshot()
    live = living(snapshot, rendered(snapshot))
    wanted = store_children(live, settings())
    (plan,) = of_kind(rendered(snapshot), "ConfigMap", "plan")
    members = [name for name, each in live.children.deployments.items() if "store" not in name]

    with_members = surplus_children(wanted, live.children, planned=True)
    for name in members:
        del live.children.deployments[name]  # type: ignore[attr-defined]

    assert of_kind(with_members, "ConfigMap") == []
    assert of_kind(surplus_children(wanted, live.children, planned=True), "ConfigMap") == [plan]


def test_a_child_that_is_being_deleted_is_not_deleted_again() -> None:
    snapshot = pipe_snapshot(replicas=0)
    live = living(snapshot, rendered(pipe_snapshot()))
    for deployment in live.children.deployments.values():
        deployment["metadata"]["deletionTimestamp"] = "2026-11-24T00:00:00Z"

    assert of_kind(surplus_children(rendered(live), live.children, planned=True), "Deployment") == []
