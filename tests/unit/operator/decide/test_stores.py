"""A store serves one model as long as members load from it; a change of the model makes another beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from languagepipes_api.names import STORE_PORT
from languagepipes_operator.apply.surplus import surplus_children
from languagepipes_operator.children import render
from languagepipes_operator.decide.decide import decide
from languagepipes_operator.kube.kinds import Manifest
from languagepipes_operator.names import ANNOTATION_RENDERED
from languagepipes_operator.observe.snapshot import StoreReport
from support.example_pipes import FACTS, container_of, living, of_kind, pipe_snapshot, settings
from support.policy_evaluator import Pod, allowed

REPORT = StoreReport(answered=True, facts=FACTS, phase="Ready")
FIRST, FURTHER = "store", "weights-store"
OTHER: dict[str, Any] = {"source": "hf://Qwen/Qwen3-4B"}
# Each shapes what a store serves, or whose token it fetches it with.
CHANGES: list[dict[str, Any]] = [
    OTHER,
    {"model": {"revision": "next"}},
    {"model": {"dtype": "float32"}},
    {"model": {"quantization": "int8"}},
    {"model": {"tokenSecretRef": {"name": "hf", "key": "token"}}},
]


class Pipe:
    """A pipe whose children follow its spec at once; pods take no time, and replicas of old hold no requests."""

    def __init__(self, **spec: Any) -> None:
        self.live = pipe_snapshot()
        self.surplus: list[Manifest] = []
        self.ask(**spec)

    def ask(self, *, facts: bool = True, rounds: int = 6, **spec: Any) -> None:
        """facts: whether the store of the spec reports them."""
        for _ in range(rounds):
            self.step(facts=facts, **spec)

    def step(self, *, facts: bool = True, **spec: Any) -> None:
        snapshot = pipe_snapshot(children=self.live.children, **spec)
        key = decide(snapshot, settings()).store.store_key
        asked = replace(snapshot, store=REPORT if facts else None, store_key=key)
        decision = decide(asked, settings())
        children = render(asked, decision, settings())
        self.surplus = surplus_children(
            children,
            asked.children,
            planned=decision.plan is not None or decision.running is not None,
            left_alone=decision.left_alone,
            other_stores={each.key for each in decision.other_stores},
        )
        gone = {(each["kind"], each["metadata"]["name"]) for each in self.surplus}
        kept = [
            each
            for items in (
                asked.children.deployments,
                asked.children.services,
                asked.children.config_maps,
                asked.children.claims,
                asked.children.policies,
            )
            for each in items.values()
            if (each["kind"], each["metadata"]["name"]) not in gone
        ]
        names = {(each["kind"], each["metadata"]["name"]) for each in children}
        kept = [each for each in kept if (each["kind"], each["metadata"]["name"]) not in names]
        self.live = living(asked, [*kept, *map(as_the_api_server, children)])

    def of(self, kind: str, role: str) -> list[Manifest]:
        children = self.live.children
        found = [*children.deployments.values(), *children.services.values(), *children.claims.values()]
        return of_kind([*found, *children.policies.values()], kind, role)

    @property
    def roles(self) -> list[str]:
        return sorted(
            each["metadata"]["labels"]["languagepipes.io/role"]
            for each in self.live.children.deployments.values()
            if "store" in each["metadata"]["labels"]["languagepipes.io/role"]
        )


def as_the_api_server(manifest: Manifest) -> Manifest:
    """A Deployment of none has no pods as soon as it is written."""
    if manifest["kind"] != "Deployment":
        return manifest
    return {**manifest, "status": {"replicas": manifest["spec"].get("replicas", 1)}}


def addresses(deployments: Sequence[Manifest]) -> set[str]:
    found = (each for deployment in deployments for each in container_of(deployment)["env"])
    return {each["value"] for each in found if each["name"] == "LANGUAGEPIPES_STORE_ADDRESS"}


@pytest.mark.parametrize("change", CHANGES)
def test_another_model_has_its_own_store_and_the_old_one_stays_to_the_letter(change: dict[str, Any]) -> None:
    pipe = Pipe(cache={"size": "4Gi"})
    (store,) = pipe.of("Deployment", FIRST)
    kept = {each["metadata"]["name"]: each for each in pipe.of("Service", FIRST) + pipe.of("NetworkPolicy", FIRST)}

    pipe.step(facts=False, cache={"size": "4Gi"}, **change)

    assert pipe.roles == [FIRST, FURTHER]
    assert pipe.of("Deployment", FIRST) == [store]
    assert {each["metadata"]["name"]: each for each in pipe.of("Service", FIRST) + pipe.of("NetworkPolicy", FIRST)} == (
        kept
    )
    for kind in ("Service", "NetworkPolicy", "PersistentVolumeClaim"):
        assert len(pipe.of(kind, FURTHER)) == 1
    assert not [each for each in pipe.surplus if each["kind"] != "Deployment"]
    (service,) = pipe.of("Service", FIRST)
    (further,) = pipe.of("Deployment", FURTHER)
    pod = further["spec"]["template"]["metadata"]["labels"]
    assert not service["spec"]["selector"].items() <= pod.items()
    (claim,) = pipe.of("PersistentVolumeClaim", FURTHER)
    mounted = [each["persistentVolumeClaim"] for each in volumes(further) if "persistentVolumeClaim" in each]
    assert mounted == [{"claimName": claim["metadata"]["name"]}]


@pytest.mark.parametrize("change", [each for each in CHANGES if "quantization" not in each.get("model", {})])
def test_the_old_store_goes_with_the_last_replica_that_loads_from_it(change: dict[str, Any]) -> None:
    pipe = Pipe()

    pipe.ask(**change)

    assert pipe.roles == [FURTHER]
    assert not [*pipe.of("Service", FIRST), *pipe.of("NetworkPolicy", FIRST)]
    (service,) = pipe.of("Service", FURTHER)
    members = [*pipe.of("Deployment", "stage"), *pipe.of("Deployment", "end-model")]
    assert len(members) == 4
    assert addresses(members) == {f"{service['metadata']['name']}.default.svc:{STORE_PORT}"}
    again = pipe.live.children
    pipe.step(**change)
    assert pipe.live.children == again  # and that stays


@pytest.mark.parametrize("change", CHANGES)
def test_the_old_spec_undoes_it(change: dict[str, Any]) -> None:
    pipe = Pipe()
    before = pipe.live.children

    pipe.ask(facts=False, rounds=1, **change)
    pipe.ask()

    assert pipe.roles == [FIRST]
    assert pipe.live.children.deployments.keys() == before.deployments.keys()
    assert pipe.live.children.services == before.services


def test_without_facts_of_the_new_model_what_is_lost_comes_back_and_loads_from_the_old_store() -> None:
    pipe = Pipe()
    lost = next(name for name in pipe.live.children.deployments if "-stage-2-" in name)
    (was,) = (pipe.live.children.deployments[lost],)
    pipe.ask(facts=False, **OTHER)
    rest = {name: each for name, each in pipe.live.children.deployments.items() if name != lost}
    pipe.live = replace(pipe.live, children=replace(pipe.live.children, deployments=rest))

    pipe.ask(facts=False, **OTHER, replicas=2)

    assert pipe.roles == [FIRST, FURTHER]
    assert pipe.live.children.deployments[lost] == was
    members = [*pipe.of("Deployment", "stage"), *pipe.of("Deployment", "end-model")]
    assert len(members) == 8  # a replica that is added runs the old model too
    assert addresses(members) == addresses([was])


def test_a_model_that_is_refused_by_its_facts_keeps_its_store_which_has_them() -> None:
    """It would be made again and again, else, since without it there is nothing to refuse."""
    pipe = Pipe()
    change = {"model": {"quantization": "int8"}}  # the facts tell of no matrix that can be quantised

    pipe.ask(**change)
    live = pipe.live.children
    pipe.step(**change)

    assert pipe.roles == [FIRST, FURTHER]
    assert pipe.live.children == live


def test_a_second_mind_leaves_no_store_behind() -> None:
    pipe = Pipe()

    pipe.ask(facts=False, **OTHER)
    (second,) = pipe.of("Deployment", FURTHER)
    pipe.ask(facts=False, source="hf://Qwen/Qwen3-14B")

    assert pipe.roles == [FIRST, FURTHER]
    assert pipe.of("Deployment", FURTHER) != [second]


def test_a_pipe_without_members_changes_its_only_store() -> None:
    """A source that never was right is corrected in place."""
    pipe = Pipe.__new__(Pipe)
    pipe.live, pipe.surplus = pipe_snapshot(), []
    pipe.ask(facts=False)

    pipe.ask(facts=False, **OTHER)

    assert pipe.roles == [FIRST]


def test_a_third_model_goes_back_to_the_first_name_once_nobody_has_it() -> None:
    pipe = Pipe()
    pipe.ask(**OTHER)

    pipe.ask(source="hf://Qwen/Qwen3-14B")

    assert pipe.roles == [FIRST]
    members = [*pipe.of("Deployment", "stage"), *pipe.of("Deployment", "end-model")]
    assert {each["metadata"]["labels"].get("languagepipes.io/store") for each in members} == {None}


@pytest.mark.parametrize("change", [{}, {"model": {"revision": "next"}}])
def test_a_store_whose_deployment_was_deleted_is_made_again_and_no_member_is_replaced(change: dict[str, Any]) -> None:
    pipe = Pipe(**change)
    before = pipe.live.children
    if change:
        pipe = Pipe()
        pipe.ask(**change)
        before = pipe.live.children
    rest = {name: each for name, each in before.deployments.items() if "-store-" not in name}
    pipe.live = replace(pipe.live, children=replace(before, deployments=rest))

    pipe.ask(**change)

    assert pipe.live.children.deployments.keys() == before.deployments.keys()


def test_an_edited_store_is_repaired_and_not_taken_for_one_of_another_model() -> None:
    pipe = Pipe()
    (store,) = pipe.of("Deployment", FIRST)
    name = store["metadata"]["name"]
    edited = {**store, "spec": {**store["spec"], "template": {"spec": {"containers": [{"env": []}]}}}}
    deployments = {**pipe.live.children.deployments, name: edited}
    pipe.live = replace(pipe.live, children=replace(pipe.live.children, deployments=deployments))

    pipe.step()

    assert pipe.of("Deployment", FIRST) == [store]


def test_a_store_is_not_given_up_for_a_label_that_was_taken_away() -> None:
    pipe = Pipe()
    pipe.ask(**OTHER)
    back = pipe.live
    pipe.step(facts=False)
    assert pipe.roles == [FIRST, FURTHER]
    deployments = {
        name: {**each, "metadata": {**each["metadata"], "labels": without(each["metadata"]["labels"])}}
        if "-store-" not in name
        else each
        for name, each in pipe.live.children.deployments.items()
    }
    assert all(ANNOTATION_RENDERED in each["metadata"]["annotations"] for each in deployments.values())
    pipe.live = replace(pipe.live, children=replace(pipe.live.children, deployments=deployments))

    pipe.step(facts=False)

    assert FURTHER in pipe.roles
    assert back.children.deployments.keys() <= pipe.live.children.deployments.keys()


def test_nothing_of_it_happens_to_a_paused_pipe() -> None:
    pipe = Pipe()

    decision = decide(pipe_snapshot(children=pipe.live.children, paused=True, **OTHER), settings())

    assert decision.held_back == ("another weights store is created",)
    assert decision.store.store_key == ""


def test_members_reach_both_stores_and_each_store_its_own_source() -> None:
    pipe = Pipe()
    pipe.step(facts=False, source="https://models.example:8443/qwen3")

    policies = list(pipe.live.children.policies.values())
    pods = {role: pod(each) for role in (FIRST, FURTHER, "stage") for each in pipe.of("Deployment", role)[:1]}
    assert allowed(policies, pods["stage"], pods[FIRST], STORE_PORT)
    assert allowed(policies, pods["stage"], pods[FURTHER], STORE_PORT)
    assert not allowed(policies, pods[FIRST], pods["stage"], STORE_PORT)
    (first,), (further,) = pipe.of("NetworkPolicy", FIRST), pipe.of("NetworkPolicy", FURTHER)
    assert "8443" in str(further["spec"]["egress"])
    assert "8443" not in str(first["spec"]["egress"])


def volumes(deployment: Manifest) -> list[Manifest]:
    found: list[Manifest] = deployment["spec"]["template"]["spec"]["volumes"]
    return found


def pod(deployment: Manifest) -> Pod:
    return Pod(deployment["metadata"]["name"], "default", deployment["spec"]["template"]["metadata"]["labels"])


def without(labels: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in labels.items() if name != "languagepipes.io/store"}
