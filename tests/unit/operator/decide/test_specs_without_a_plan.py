"""A spec without a plan (refused, its facts awaited, paused) disarms nothing that runs, and its number of replicas is
honoured.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from languagepipes_operator.apply.surplus import surplus_children
from languagepipes_operator.children import render
from languagepipes_operator.decide.decide import decide
from languagepipes_operator.decide.decision import Decision
from languagepipes_operator.decide.rollout import Rollout
from languagepipes_operator.kube.kinds import Manifest
from languagepipes_operator.observe.snapshot import Snapshot, StoreReport
from languagepipes_operator.observe.stored_plans import StoredPlan
from support.example_pipes import FACTS, living, of_kind, pipe_snapshot, settings

REPORT = StoreReport(answered=True, facts=FACTS, phase="Ready")
# Facts are awaited; the planner refuses it; the template contradicts itself.
EDITS: list[dict[str, Any]] = [
    {"source": "hf://Qwen/Qwen3-4B"},
    {"stages": {"count": 64}},
    {"stages": {"count": 3, "template": {"resources": {"limits": {"cpu": 1}, "requests": {"cpu": 2}}}}},
    {"endModel": {"template": {"resources": {"limits": {"cpu": 1}, "requests": {"cpu": 2}}}}},
]


def running(**spec: Any) -> tuple[Snapshot, StoredPlan]:
    """A pipe whose members are there, with the plan that they run."""
    fresh = pipe_snapshot(**spec)
    first = living(fresh, render(fresh, decide(fresh, settings()), settings()))
    decision = decide(replace(first, store=REPORT), settings())
    assert decision.plan is not None
    return living(fresh, render(first, decision, settings())), decision.plan


def decided(live: Snapshot, **spec: Any) -> tuple[Snapshot, Decision, list[Manifest]]:
    """The same pipe with another spec: its snapshot, the decision, and its children."""
    snapshot = pipe_snapshot(children=live.children, **spec)
    decision = decide(snapshot, settings())
    return snapshot, decision, render(snapshot, decision, settings())


def surplus(snapshot: Snapshot, decision: Decision, children: list[Manifest]) -> list[str]:
    assert decision.plan is None
    assert decision.running is not None
    found = surplus_children(children, snapshot.children, planned=True, left_alone=decision.left_alone)
    return [each["metadata"]["name"] for each in found]


def members(children: list[Manifest]) -> dict[str, Manifest]:
    found = [*of_kind(children, "Deployment", "stage"), *of_kind(children, "Deployment", "end-model")]
    return {each["metadata"]["name"]: each for each in found}


@pytest.mark.parametrize("edit", EDITS)
def test_the_members_stay_as_they_are_with_their_plan_and_certificates(edit: dict[str, Any]) -> None:
    live, plan = running()

    snapshot, decision, children = decided(live, **edit)

    assert (decision.plan, decision.running) == (None, plan)
    assert members(children) == members(list(live.children.deployments.values()))
    assert of_kind(children, "ConfigMap", "plan") == of_kind(
        list(live.children.config_maps.values()), "ConfigMap", "plan"
    )
    assert {each.role for each in decision.identities} == {"store", "stage", "end-model"}
    assert surplus(snapshot, decision, children) == []


@pytest.mark.parametrize("edit", EDITS)
def test_a_member_that_was_deleted_is_made_again_of_the_plan_that_runs(edit: dict[str, Any]) -> None:
    live, plan = running()
    lost = next(name for name in live.children.deployments if "-stage-2-" in name)
    there = {name: item for name, item in live.children.deployments.items() if name != lost}

    _, _, children = decided(replace(live, children=replace(live.children, deployments=there)), **edit)

    again = members(children)[lost]
    assert again["metadata"]["labels"]["languagepipes.io/plan"] == plan.plan.hash


@pytest.mark.parametrize("edit", EDITS)
def test_replicas_of_the_plan_that_runs_follow_the_spec(edit: dict[str, Any]) -> None:
    live, plan = running()

    none, none_decided, none_children = decided(live, replicas=0, **edit)
    _, two, two_children = decided(live, replicas=2, **edit)

    assert none_decided.rollout == Rollout(draining=(0,))
    stopped = [name for name, item in members(none_children).items() if item["spec"]["replicas"] == 0]
    assert len(stopped) == 1
    assert "end-model" in stopped[0]
    assert surplus(none, none_decided, none_children) == []
    assert two.replicas == (0, 1)
    added = members(two_children).keys() - live.children.deployments.keys()
    assert len(added) == 4
    assert {each["metadata"]["labels"]["languagepipes.io/plan"] for each in members(two_children).values()} == {
        plan.plan.hash
    }


@pytest.mark.parametrize("edit", EDITS[1:])
def test_a_spec_that_is_refused_changes_nothing_of_the_store(edit: dict[str, Any]) -> None:
    live, _ = running()
    dtype = {"model": {"dtype": "float32"}}

    _, decision, children = decided(live, **edit, **dtype)

    (store,) = of_kind(children, "Deployment", "store")
    assert decision.refusal is not None
    assert store == live.children.deployments[store["metadata"]["name"]]


def test_once_the_spec_has_a_plan_its_replica_is_made_beside_what_runs() -> None:
    live, old = running()

    _, refused, _ = decided(live, stages={"count": 64})
    _, decision, children = decided(live, stages={"count": 2})

    assert refused.running == old
    assert decision.running is None
    assert decision.plan is not None
    assert decision.rollout == Rollout(updated=(1,), draining=(0,))  # without pods it holds no requests
    made = members(children).keys() - live.children.deployments.keys()
    assert len(made) == 3
    assert members(children).keys() - made == members(list(live.children.deployments.values())).keys()


# --- Paused -----------------------------------------------------------------------------------------------------------


def test_nothing_is_held_back_where_the_spec_runs() -> None:
    live, plan = running()

    _, decision, _ = decided(live, paused=True)

    assert (decision.plan, decision.held_back) == (plan, ())


@pytest.mark.parametrize(
    ("edit", "held"),
    [
        ({"stages": {"count": 2}}, ("a new plan is made", "3 members are created", "4 members are removed")),
        ({"replicas": 2}, ("4 members are created",)),
        ({"replicas": 0}, ("4 members are removed",)),
        ({"server": {"maxConcurrentRequests": 3}}, ("4 members are created", "4 members are removed")),
        ({"source": "hf://Qwen/Qwen3-4B"}, ("another weights store is created",)),
    ],
)
def test_what_a_paused_pipe_holds_back_is_named(edit: dict[str, Any], held: tuple[str, ...]) -> None:
    live, plan = running()

    _, decision, _ = decided(live, paused=True, **edit)

    assert decision.held_back == held
    assert plan in (decision.plan, decision.running)


def test_a_paused_pipe_that_was_never_served_holds_its_store_back() -> None:
    decision = decide(pipe_snapshot(paused=True), settings())

    assert decision.held_back == ("the weights store is created",)


def test_a_paused_pipe_has_the_replicas_that_run_its_plan() -> None:
    live, plan = running()

    _, decision, _ = decided(live, paused=True, server={"maxConcurrentRequests": 3})

    assert decision.plan == plan
    assert decision.rollout == Rollout(updated=(0,))
