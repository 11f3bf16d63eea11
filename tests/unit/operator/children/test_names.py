"""Names are unique, fit their kinds, and lead members to each other."""

from __future__ import annotations

import re
from itertools import product
from typing import Any

import pytest
from languagepipes_api.member_settings import MemberSettings
from languagepipes_api.names import Identity
from languagepipes_operator import names
from languagepipes_operator.kube.kinds import Manifest
from support.example_pipes import container_of, of_kind, pipe_snapshot, pod_of, rendered, stored_plan_of

DNS_LABEL = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")
DNS_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")


def keys(manifests: list[Manifest]) -> list[tuple[str, str]]:
    return [(manifest["kind"], manifest["metadata"]["name"]) for manifest in manifests]


def environment_of(deployment: Manifest) -> dict[str, str]:
    return {item["name"]: item["value"] for item in container_of(deployment)["env"]}


def test_no_two_children_of_pipes_in_one_namespace_share_a_name() -> None:
    pipes = ["a", "a-b", "a-0", "a-store", "a-ring", "a-0-stage-1"]

    found = [key for pipe in pipes for key in keys(rendered(pipe_snapshot(pipe, replicas=3, cache={"size": "1Gi"})))]

    assert len(set(found)) == len(found)


def test_pipe_a_with_b_c_and_pipe_a_b_with_c_differ() -> None:
    first = Identity("default", "a", 0, "stage", 1)
    second = Identity("default", "a-0", 0, "stage", 1)

    assert names.leaf_secret(first) != names.leaf_secret(second)
    assert names.member(first, "5f2a") != names.member(second, "5f2a")
    assert names.policy("a", "b-c") != names.policy("a-b", "c")


def test_members_of_two_plans_and_two_replicas_have_names_and_host_names_of_their_own() -> None:
    members = [
        (Identity("default", "a", replica, "stage", stage), plan)
        for replica, stage, plan in product(range(16), (1, 2), "xy")
    ]

    assert len({names.member(identity, plan) for identity, plan in members}) == len(members)
    assert len({names.hostname(identity, plan) for identity, plan in members}) == len(members)


@pytest.mark.parametrize("pipe", ["a", "a" * 40])
def test_names_labels_and_host_names_fit_their_kinds(pipe: str) -> None:
    snapshot = pipe_snapshot(
        pipe,
        replicas=16,
        stages={
            "list": [*({"name": f"{'s' * 30}{number:02d}", "layers": 1} for number in range(28)), {"name": "rest"}]
        },
        cache={"size": "1Gi"},
    )

    for manifest in rendered(snapshot):
        assert DNS_LABEL.fullmatch(manifest["metadata"]["name"]), manifest["metadata"]["name"]
        for value in manifest["metadata"]["labels"].values():
            assert LABEL_VALUE.fullmatch(value), value
        if manifest["kind"] == "Deployment":
            pod = pod_of(manifest)
            assert DNS_LABEL.fullmatch(pod.get("hostname", "a"))
            for volume in pod["volumes"]:
                assert DNS_SUBDOMAIN.fullmatch(volume.get("secret", {}).get("secretName", "a"))


@pytest.mark.parametrize(("stages", "replica"), [(1, 0), (3, 0), (3, 1)])
def test_following_successors_goes_once_round_the_ring(stages: int, replica: int) -> None:
    manifests = rendered(pipe_snapshot(replicas=2, stages={"count": stages}))
    (service,) = of_kind(manifests, "Service", "ring")
    addressed = {}
    for deployment in of_kind(manifests, "Deployment"):
        pod = pod_of(deployment)
        if deployment["metadata"]["labels"].get("languagepipes.io/chain") == str(replica):
            assert pod["subdomain"] == service["metadata"]["name"]
            addressed[f"{pod['hostname']}.{pod['subdomain']}.default.svc:7070"] = deployment

    (start,) = (
        address
        for address, item in addressed.items()
        if item["metadata"]["labels"]["languagepipes.io/role"] == "end-model"
    )
    passed, at = [], start
    for _ in range(stages + 1):
        at = environment_of(addressed[at])["LANGUAGEPIPES_SUCCESSOR"]
        passed.append(addressed[at]["metadata"]["labels"].get("languagepipes.io/stage", "end"))

    assert passed == [*map(str, range(1, stages + 1)), "end"]
    assert at == start


def test_every_member_reads_its_settings_from_its_environment() -> None:
    snapshot = pipe_snapshot("qwen3", namespace="models", model={"tokenSecretRef": {"name": "hf", "key": "token"}})
    manifests = rendered(snapshot)
    (store_service,) = of_kind(manifests, "Service", "store")

    read = {
        deployment["metadata"]["name"]: MemberSettings.from_environment(environment_of(deployment))
        for deployment in of_kind(manifests, "Deployment")
    }

    plan = stored_plan_of(snapshot).plan
    for identity in [Identity("models", "qwen3", 0, "stage", place) for place in (1, 2, 3)]:
        assert read[names.member(identity, plan.hash)].identity == identity
    assert read[names.member(Identity("models", "qwen3", 0, "end-model"), plan.hash)].role == "end-model"
    for settings in read.values():
        if settings.role != "store":
            assert settings.store_address == f"{store_service['metadata']['name']}.models.svc:7443"


@pytest.mark.parametrize("role", ["store", "stage", "end-model"])
def test_every_file_that_a_member_is_told_of_is_mounted(role: str) -> None:
    snapshot = pipe_snapshot(
        model={"tokenSecretRef": {"name": "hf", "key": "key"}}, server={"apiKeysSecretRef": {"name": "keys"}}
    )

    for deployment in of_kind(rendered(snapshot), "Deployment", role):
        mounts = {mount["mountPath"]: mount["name"] for mount in container_of(deployment)["volumeMounts"]}
        volumes = {volume["name"] for volume in pod_of(deployment)["volumes"]}
        settings = MemberSettings.from_environment(environment_of(deployment))
        files = [settings.plan_file, settings.token_file]
        folders = [
            settings.tls_dir,
            settings.cache_dir,
            settings.api_keys_dir,
            *(file.parent for file in files if file),
        ]
        for folder in filter(None, folders):
            assert mounts[str(folder)] in volumes


def test_a_claim_of_the_user_is_mounted_read_only_where_the_store_looks_for_it() -> None:
    (store,) = of_kind(rendered(pipe_snapshot(source="pvc://models/qwen3")), "Deployment", "store")
    volumes = environment_of(store)["LANGUAGEPIPES_VOLUMES_DIR"]

    assert {"name": "model", "mountPath": f"{volumes}/models", "readOnly": True} in container_of(store)["volumeMounts"]
    assert {"name": "model", "persistentVolumeClaim": {"claimName": "models", "readOnly": True}} in pod_of(store)[
        "volumes"
    ]


def test_the_hub_token_is_in_the_store_alone() -> None:
    snapshot = pipe_snapshot(model={"tokenSecretRef": {"name": "hf", "key": "key"}})

    holders = [
        deployment["metadata"]["labels"]["languagepipes.io/role"]
        for deployment in of_kind(rendered(snapshot), "Deployment")
        if any(volume.get("secret", {}).get("secretName") == "hf" for volume in pod_of(deployment)["volumes"])
    ]

    assert holders == ["store"]


def test_recovery_is_told_to_the_end_model_alone_and_only_where_it_is_not_the_default() -> None:
    def told(**spec: Any) -> dict[str, dict[str, str]]:
        return {
            deployment["metadata"]["labels"]["languagepipes.io/role"]: {
                name: value
                for name, value in environment_of(deployment).items()
                if name.endswith(("_MAX_WAIT_SECONDS", "_MAX_REPLAYS"))
            }
            for deployment in of_kind(rendered(pipe_snapshot(**spec)), "Deployment")
        }

    assert told(recovery={"maxWaitSeconds": 300, "maxReplays": 5}) == {"store": {}, "stage": {}, "end-model": {}}
    assert told(recovery={"maxWaitSeconds": 0})["end-model"] == {"LANGUAGEPIPES_MAX_WAIT_SECONDS": "0.0"}
    both = told(recovery={"maxWaitSeconds": 60, "maxReplays": 0})
    assert both == {
        "store": {},
        "stage": {},
        "end-model": {"LANGUAGEPIPES_MAX_WAIT_SECONDS": "60.0", "LANGUAGEPIPES_MAX_REPLAYS": "0"},
    }


def test_a_tool_parser_is_told_to_the_end_model_alone_and_only_where_one_is_named() -> None:
    """Images from before it refuse a variable that they do not know."""

    def told(**model: Any) -> dict[str, str]:
        return {
            deployment["metadata"]["labels"]["languagepipes.io/role"]: environment["LANGUAGEPIPES_TOOL_PARSER"]
            for deployment in of_kind(rendered(pipe_snapshot(model=model)), "Deployment")
            if "LANGUAGEPIPES_TOOL_PARSER" in (environment := environment_of(deployment))
        }

    assert told() == told(toolParser="auto") == {}
    assert told(toolParser="qwen-xml") == {"end-model": "qwen-xml"}
