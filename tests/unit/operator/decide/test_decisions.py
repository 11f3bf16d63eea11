"""One decision as a whole: what follows from a snapshot, from the first look at a pipe to the steady state."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from languagepipes_api.names import Identity
from languagepipes_operator.children import render
from languagepipes_operator.decide.decide import decide
from languagepipes_operator.decide.decision import Decision
from languagepipes_operator.kube.kinds import Manifest
from languagepipes_operator.observe.snapshot import Children, Snapshot, StoreReport
from support.example_pipes import FACTS, living, pipe_snapshot, settings

REPORT = StoreReport(answered=True, facts=FACTS, phase="Ready")


def carried_out(snapshot: Snapshot, decision: Decision) -> Snapshot:
    return replace(living(snapshot, render(snapshot, decision, settings())), store=snapshot.store)


def planned(**spec: Any) -> tuple[Snapshot, Decision]:
    """A pipe whose store has reported facts, and what is decided then."""
    fresh = pipe_snapshot(**spec)
    snapshot = replace(carried_out(fresh, decide(fresh, settings())), store=REPORT)
    return snapshot, decide(snapshot, settings())


def roles(decision: Decision) -> list[tuple[int, str, int]]:
    return [(each.replica, each.role, each.index) for each in decision.identities]


def stopped(decision: Decision) -> list[tuple[int, str, int]]:
    found = [each.identity for each in decision.members if each.stopped]
    return sorted((each.replica, each.role, each.index) for each in found)


def test_a_fresh_pipe_gets_its_store_and_waits_for_facts() -> None:
    decision = decide(pipe_snapshot(), settings())

    assert decision.plan is None
    assert decision.refusal is None
    assert decision.members == ()
    assert decision.store.image == "languagepipes-node:1"
    assert decision.store_revision == "main"
    assert decision.identities == (Identity("default", "qwen3", -1, "store"),)


def test_reported_facts_give_a_plan_and_its_members() -> None:
    _, decision = planned(replicas=2)

    assert decision.plan is not None
    assert decision.plan_is_new
    assert decision.replicas == (0, 1)
    members = [(each.identity.replica, each.identity.role, each.identity.index) for each in decision.members]
    ring = [("stage", 1), ("stage", 2), ("stage", 3), ("end-model", 0)]
    assert members == [(replica, *member) for replica in (0, 1) for member in ring]
    assert all(each.last_applied is None for each in decision.members)


def test_in_the_steady_state_every_last_applied_manifest_is_used_again() -> None:
    snapshot, decision = planned(replicas=2)

    again = decide(carried_out(snapshot, decision), settings(node_image="languagepipes-node:2"))

    assert not again.plan_is_new
    assert again.plan == decision.plan
    assert all(each.last_applied is not None for each in (again.store, *again.members))


def test_the_same_snapshot_gives_the_same_decision() -> None:
    snapshot, decision = planned()

    assert decide(snapshot, settings()) == decision


def test_facts_of_a_store_that_is_about_to_be_replaced_make_no_plan() -> None:
    snapshot, _ = planned()
    other = pipe_snapshot(source="hf://Qwen/Qwen3-4B", children=snapshot.children)

    assert decide(replace(other, store=REPORT), settings()).plan is None


def test_a_paused_pipe_gets_no_new_plan_and_keeps_the_one_that_it_has() -> None:
    fresh, _ = planned(paused=True)
    snapshot, decision = planned()
    live = carried_out(snapshot, decision).children

    paused = decide(replace(pipe_snapshot(paused=True, children=live), store=REPORT), settings())
    unplanned = decide(fresh, settings())

    assert (paused.paused, paused.plan) == (True, decision.plan)
    assert (unplanned.paused, unplanned.plan) == (True, None)


def test_members_that_are_no_longer_wanted_keep_their_certificates_while_they_exist() -> None:
    snapshot, decision = planned(replicas=2)
    live = carried_out(snapshot, decision).children

    fewer = decide(pipe_snapshot(replicas=1, children=live), settings())
    stages_stop = decide(carried_out(pipe_snapshot(replicas=1), fewer), settings())
    unwanted = decide(carried_out(pipe_snapshot(replicas=1), stages_stop), settings())
    gone = decide(carried_out(pipe_snapshot(replicas=1), unwanted), settings())

    assert stopped(fewer) == [(1, "end-model", 0)]
    assert stopped(stages_stop) == [(1, "end-model", 0), (1, "stage", 1), (1, "stage", 2), (1, "stage", 3)]
    assert {each.identity.replica for each in unwanted.members} == {0}
    assert (1, "end-model", 0) in roles(stages_stop)
    assert roles(gone) == [(-1, "store", 0), (0, "end-model", 0), (0, "stage", 1), (0, "stage", 2), (0, "stage", 3)]


@pytest.mark.parametrize("labels", [{"languagepipes.io/chain": "one"}, {"languagepipes.io/role": "other"}])
def test_a_deployment_whose_labels_name_no_member_gets_no_certificate(labels: dict[str, str]) -> None:
    snapshot, decision = planned()
    children = carried_out(snapshot, decision).children
    live = next(each for name, each in children.deployments.items() if "end-model" in name)
    metadata = {**live["metadata"], "name": "stray", "labels": {**live["metadata"]["labels"], **labels}}

    def certified(deployment: Manifest) -> list[tuple[int, str, int]]:
        alone = Children(deployments={deployment["metadata"]["name"]: deployment})
        return roles(decide(pipe_snapshot(children=alone), settings()))

    assert certified({**live, "metadata": metadata}) == [(-1, "store", 0)]
    assert certified(live) == [(-1, "store", 0), (0, "end-model", 0)]
