"""What every pod has: security, probes, resources, and where it goes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from languagepipes_api.quantity import parse_quantity
from languagepipes_operator.children.quantities import canonical, of_bytes
from languagepipes_operator.kube.kinds import Manifest
from languagepipes_operator.planning import Node
from support.example_pipes import (
    container_of,
    living,
    of_kind,
    pipe_snapshot,
    pod_of,
    rendered,
    rolled_out,
    stored_plan_of,
)
from support.pod_security import violations

LOST = ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable")


def full_pipe() -> list[Manifest]:
    """Everything that a pipe may have."""
    template = {"nodeSelector": {"a": "b"}, "runtimeClassName": "nvidia", "priorityClassName": "high"}
    return rendered(
        pipe_snapshot(
            model={"tokenSecretRef": {"name": "hf", "key": "token"}},
            server={"apiKeysSecretRef": {"name": "keys"}},
            cache={"size": "1Gi"},
            stages={"count": 3, "device": "GPU", "template": template},
            replicas=2,
        )
    )


def stage_of(template: dict[str, Any], **stage: Any) -> Manifest:
    """The Deployment of the one stage of a list."""
    one = {"name": "one", "template": template, **stage}
    (deployment,) = of_kind(rendered(pipe_snapshot(stages={"list": [one]})), "Deployment", "stage")
    return deployment


def test_every_pod_meets_the_restricted_profile() -> None:
    deployments = of_kind(full_pipe(), "Deployment")

    assert len(deployments) == 9
    for deployment in deployments:
        assert list(violations(pod_of(deployment))) == []


def test_user_and_groups_are_fixed_or_left_to_the_cluster_in_every_pod() -> None:
    ids = {"runAsUser": 65532, "runAsGroup": 65532, "fsGroup": 65532}
    fixed, assigned = rendered(pipe_snapshot()), rendered(pipe_snapshot(), fixed_ids=False)

    for one, other in zip(of_kind(fixed, "Deployment"), of_kind(assigned, "Deployment"), strict=True):
        assert pod_of(one).pop("securityContext") == {**pod_of(other)["securityContext"], **ids}
        assert list(violations(pod_of(other))) == []
        assert not ids.keys() & pod_of(other).pop("securityContext").keys()
        assert pod_of(one) == pod_of(other)
    others = [[item for item in manifests if item["kind"] != "Deployment"] for manifests in (fixed, assigned)]
    assert others[0] == others[1]


def test_leaving_the_ids_to_the_cluster_renders_live_pods_anew_and_fixing_them_brings_back_what_was() -> None:
    snapshot = pipe_snapshot()
    before = rendered(snapshot)

    after = rolled_out(living(snapshot, before), fixed_ids=False)
    again = rolled_out(living(snapshot, after))

    assert all("runAsUser" not in pod_of(each)["securityContext"] for each in of_kind(after, "Deployment"))
    assert again == before


def test_the_judge_of_the_restricted_profile_refuses() -> None:
    assert len(list(violations({"containers": [{"name": "c"}], "hostNetwork": True}))) == 5


def test_no_pod_holds_a_token_writes_to_its_image_or_learns_of_other_services() -> None:
    for deployment in of_kind(full_pipe(), "Deployment"):
        pod, container = pod_of(deployment), container_of(deployment)
        assert pod["automountServiceAccountToken"] is False
        assert pod["enableServiceLinks"] is False
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert container["terminationMessagePolicy"] == "File"
        writable = [mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")]
        assert set(writable) <= {"/tmp", "/var/lib/languagepipes/cache"}


def test_no_file_is_mounted_in_a_way_that_is_never_renewed() -> None:
    for deployment in of_kind(full_pipe(), "Deployment"):
        assert not any("subPath" in mount for mount in container_of(deployment)["volumeMounts"])


def test_probes_ask_the_pod_itself_on_its_telemetry_port() -> None:
    for deployment in of_kind(full_pipe(), "Deployment"):
        container = container_of(deployment)
        for probe, path in (("startupProbe", "/healthz"), ("livenessProbe", "/healthz"), ("readinessProbe", "/readyz")):
            assert container[probe]["httpGet"] == {"path": path, "port": 9090, "scheme": "HTTP"}
        start = container["startupProbe"]
        assert start["periodSeconds"] * start["failureThreshold"] == 300
        ready = container["readinessProbe"]
        assert ready["periodSeconds"] * ready["failureThreshold"] + ready["timeoutSeconds"] < 10


def test_the_end_model_outlives_its_last_answers() -> None:
    from inspect import signature

    from languagepipes_api.member_settings import MemberSettings
    from languagepipes_node.end_model.openai.server import ApiServer

    drain = MemberSettings.model_fields["drain_seconds"].default
    close = signature(ApiServer).parameters["close_seconds"].default
    (end_model,) = of_kind(rendered(pipe_snapshot()), "Deployment", "end-model")
    leave = container_of(end_model)["lifecycle"]["preStop"]["sleep"]["seconds"]

    assert leave + drain + close + 2 < pod_of(end_model)["terminationGracePeriodSeconds"]


def test_a_stage_leaves_before_its_pod_is_killed() -> None:
    from languagepipes_node.stage.main import LEAVE_SECONDS

    for stage in of_kind(rendered(pipe_snapshot()), "Deployment", "stage"):
        assert pod_of(stage)["terminationGracePeriodSeconds"] >= LEAVE_SECONDS + 2
        assert "lifecycle" not in container_of(stage)  # a hook's time counts too


def test_one_pod_at_a_time_and_a_selector_that_its_pods_carry() -> None:
    for deployment in of_kind(full_pipe(), "Deployment"):
        spec = deployment["spec"]
        assert (spec["replicas"], spec["strategy"]) == (1, {"type": "Recreate"})
        carried = spec["template"]["metadata"]["labels"]
        assert spec["selector"]["matchLabels"].items() <= carried.items()


def test_no_deployment_selects_anothers_pods() -> None:
    deployments = of_kind([*full_pipe(), *rendered(pipe_snapshot("qwen"))], "Deployment")

    for one in deployments:
        for other in deployments:
            selected = (
                one["spec"]["selector"]["matchLabels"].items()
                <= other["spec"]["template"]["metadata"]["labels"].items()
            )
            assert selected == (one is other)


def test_a_cpu_stage_asks_for_what_its_plan_counts() -> None:
    snapshot = pipe_snapshot()
    stage = stored_plan_of(snapshot).plan.stages[0]
    need = stage.weight_bytes + stage.kv_bytes + stage.overhead_bytes

    resources = container_of(of_kind(rendered(snapshot), "Deployment", "stage")[0])["resources"]

    assert need <= parse_quantity(resources["requests"]["memory"]) < need + 2**20
    assert parse_quantity(resources["limits"]["memory"]) >= need * 9 // 8
    assert resources["requests"]["cpu"] == "500m"
    assert "cpu" not in resources["limits"]


def test_memory_of_a_cpu_stage_is_its_limit() -> None:
    resources = container_of(stage_of({}, memory="3072Mi"))["resources"]

    assert resources["limits"]["memory"] == "3Gi"
    assert parse_quantity(resources["requests"]["memory"]) <= 3 * 2**30


def test_memory_of_a_gpu_stage_is_not_main_memory() -> None:
    resources = container_of(stage_of({}, memory="40Gi", device="GPU"))["resources"]

    assert resources["limits"] == {"memory": "4Gi", "nvidia.com/gpu": "1"}


@pytest.mark.parametrize("device", ["CPU", "GPU"])
@pytest.mark.parametrize(
    ("stored", "more"),
    [
        ({"memory": "4Gi"}, (4 << 30) - (64 << 20)),
        ({"memory": "16Mi"}, 0),
        ({"count": 0, "memory": "4Gi"}, 0),
    ],
)
def test_an_end_model_has_memory_for_the_responses_it_stores(device: str, stored: dict[str, Any], more: int) -> None:
    limits = []
    for spec in ({}, {"storedResponses": stored}):
        objects = rendered(pipe_snapshot(endModel={"device": device}, server=spec))
        (end_model,) = of_kind(objects, "Deployment", "end-model")
        limits.append(parse_quantity(container_of(end_model)["resources"]["limits"]["memory"]))

    assert limits[1] - limits[0] == more


@pytest.mark.parametrize("named", ["nvidia.com/gpu", "nvidia.com/mig-1g.10gb", "amd.com/gpu"])
def test_gpus_that_the_template_names_stand_alone(named: str) -> None:
    resources = container_of(stage_of({"resources": {"limits": {named: 2}}}, device="GPU"))["resources"]

    assert {name: amount for name, amount in resources["limits"].items() if "/" in name} == {named: "2"}


@pytest.mark.parametrize(
    ("asked", "requests", "limits"),
    [
        ({"limits": {"cpu": "250m"}}, {"cpu": "250m"}, {"cpu": "250m"}),
        ({"limits": {"memory": "2048Mi"}}, {"cpu": "500m"}, {"memory": "2Gi"}),
        ({"requests": {"memory": "9000Mi"}}, {"memory": "9000Mi"}, {"memory": "9000Mi"}),
        ({"requests": {"cpu": 2}, "limits": {"cpu": "4.0"}}, {"cpu": "2"}, {"cpu": "4"}),
        ({"limits": {"ephemeral-storage": "1024Mi"}}, {"cpu": "500m"}, {"ephemeral-storage": "1Gi"}),
    ],
)
def test_the_templates_resources_win_and_no_request_is_above_its_limit(
    asked: dict[str, Any], requests: dict[str, str], limits: dict[str, str]
) -> None:
    resources = container_of(stage_of({"resources": asked}))["resources"]

    assert requests.items() <= resources["requests"].items()
    assert limits.items() <= resources["limits"].items()


@pytest.mark.parametrize(
    ("asked", "threads"),
    [
        ({"requests": {"cpu": "1500m"}}, "2"),
        ({"requests": {"cpu": "100m"}}, "1"),
        ({"requests": {"cpu": "2"}, "limits": {"cpu": "4"}}, None),
        ({}, None),
    ],
)
def test_a_cpu_request_without_a_limit_sets_the_threads(asked: dict[str, Any], threads: str | None) -> None:
    environment = {item["name"]: item["value"] for item in container_of(stage_of({"resources": asked}))["env"]}

    assert environment.get("LANGUAGEPIPES_THREADS") == threads


def test_a_pod_leaves_a_lost_node_after_half_a_minute() -> None:
    for deployment in of_kind(full_pipe(), "Deployment"):
        lost = {item["key"]: item["tolerationSeconds"] for item in pod_of(deployment)["tolerations"]}
        assert lost == dict.fromkeys(LOST, 30)


@pytest.mark.parametrize(
    ("asked", "left"),
    [
        ({"key": "gpu", "operator": "Exists"}, LOST),
        ({"key": LOST[0], "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 5}, LOST[1:]),
        ({"key": LOST[0], "operator": "Exists", "effect": "NoSchedule"}, LOST),
        ({"operator": "Exists"}, ()),
    ],
)
def test_the_templates_tolerations_stand_first_and_replace_ours_for_the_same_taint(
    asked: dict[str, Any], left: tuple[str, ...]
) -> None:
    tolerations = pod_of(stage_of({"tolerations": [asked]}))["tolerations"]

    assert tolerations[0] == asked
    assert tuple(item["key"] for item in tolerations[1:]) == left


def test_what_the_template_says_reaches_the_pod() -> None:
    template = {
        "nodeSelector": {"pool": "gpu"},
        "priorityClassName": "high",
        "runtimeClassName": "nvidia",
        "imagePullSecrets": [{"name": "registry"}],
    }

    pod = pod_of(stage_of(template))

    assert template.items() <= pod.items()


def test_scheduler_and_account_of_the_template_reach_the_pod_and_no_token_does() -> None:
    pod = pod_of(stage_of({"schedulerName": "volcano", "serviceAccountName": "reader"}))

    assert (pod["schedulerName"], pod["serviceAccountName"]) == ("volcano", "reader")
    assert pod["automountServiceAccountToken"] is False


def test_the_templates_labels_and_annotations_are_the_pods_alone_and_replace_none_of_ours() -> None:
    asked = {"labels": {"team": "ml"}, "annotations": {"sidecar.istio.io/inject": "false"}}
    plain, stage = stage_of({}), stage_of(asked)

    ours = plain["spec"]["template"]["metadata"]["labels"]
    found = stage["spec"]["template"]["metadata"]
    assert found == {"labels": {"team": "ml", **ours}, "annotations": asked["annotations"]}
    assert stage["metadata"]["labels"] == plain["metadata"]["labels"]
    assert stage["spec"]["selector"] == plain["spec"]["selector"]


def test_the_templates_variables_stand_behind_ours_in_their_order() -> None:
    asked = [
        {"name": "WHERE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
        {"name": "EMPTY", "value": ""},
        {"name": "A", "value": "$(HOME)/a"},
    ]
    sources = [{"prefix": "TEAM_", "configMapRef": {"name": "team"}}]

    container, plain = container_of(stage_of({"env": asked, "envFrom": sources})), container_of(stage_of({}))

    # The API server drops an empty value: sent, it would be drift for ever.
    assert container["env"] == [*plain["env"], asked[0], {"name": "EMPTY"}, asked[2]]
    assert container["envFrom"] == sources
    assert "envFrom" not in plain


def test_the_templates_volumes_stand_behind_ours_as_they_are_read_back() -> None:
    volumes = [
        {"name": "ca", "configMap": {"name": "corporate", "items": []}},
        {"name": "fast", "emptyDir": {"medium": "Memory", "sizeLimit": "1024Mi"}},
        {"name": "data", "persistentVolumeClaim": {"claimName": "c", "readOnly": False}},
    ]
    mounts = [
        {"name": "ca", "mountPath": "/etc/ssl/ours", "readOnly": True},
        {"name": "fast", "mountPath": "/fast", "readOnly": False},
    ]

    stage, plain = stage_of({"volumes": volumes, "volumeMounts": mounts}), stage_of({})

    # What the API server writes otherwise, or leaves out, would be drift for ever.
    ours = plain["spec"]["template"]["spec"]["volumes"]
    assert stage["spec"]["template"]["spec"]["volumes"] == [
        *ours,
        {"name": "ca", "configMap": {"name": "corporate"}},
        {"name": "fast", "emptyDir": {"medium": "Memory", "sizeLimit": "1Gi"}},
        {"name": "data", "persistentVolumeClaim": {"claimName": "c"}},
    ]
    assert container_of(stage)["volumeMounts"] == [
        *container_of(plain)["volumeMounts"],
        mounts[0],
        {"name": "fast", "mountPath": "/fast"},
    ]


@pytest.mark.parametrize(
    "change",
    [
        {"volumes": [{"name": "a", "emptyDir": {}}]},
        {"labels": {"a": "b"}},
        {"annotations": {"a": "b"}},
        {"env": [{"name": "A", "value": "b"}]},
        {"envFrom": [{"secretRef": {"name": "a"}}]},
        {"schedulerName": "a"},
        {"serviceAccountName": "a"},
    ],
)
def test_each_field_of_a_template_makes_another_revision_and_an_empty_one_makes_none(change: dict[str, Any]) -> None:
    def inputs(template: dict[str, Any]) -> str:
        found: str = stage_of(template)["metadata"]["annotations"]["languagepipes.io/inputs"]
        return found

    (name,) = change
    assert inputs(change) != inputs({})
    if not name.endswith("Name"):
        assert inputs({name: type(change[name])()}) == inputs({})


def test_the_store_follows_the_end_model_and_needs_neither_its_runtime_nor_its_resources() -> None:
    template = {
        "nodeSelector": {"pool": "trusted"},
        "runtimeClassName": "nvidia",
        "imagePullSecrets": [{"name": "registry"}],
        "resources": {"requests": {"memory": "100Gi"}},
        "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {
            "nodeSelectorTerms": [{"matchExpressions": [{"key": "trusted", "operator": "Exists"}]}]}}},
    }  # fmt: skip

    (store,) = of_kind(rendered(pipe_snapshot(endModel={"template": template})), "Deployment", "store")

    pod = pod_of(store)
    assert pod["nodeSelector"] == template["nodeSelector"]
    assert pod["imagePullSecrets"] == template["imagePullSecrets"]
    assert pod["affinity"] == template["affinity"]
    assert "runtimeClassName" not in pod
    assert container_of(store)["resources"]["requests"]["memory"] == "256Mi"


def store_of(**spec: Any) -> Manifest:
    (store,) = of_kind(rendered(pipe_snapshot(**spec)), "Deployment", "store")
    return store


def test_the_stores_own_template_takes_precedence_field_by_field() -> None:
    asked = {
        "nodeSelector": {"pool": "storage"},
        "resources": {"limits": {"cpu": 1}},
        "labels": {"team": "ml", "languagepipes": "x"},
        "env": [{"name": "HTTPS_PROXY", "value": "http://proxy:3128"}],
        "runtimeClassName": "gvisor",
    }
    of_end_model = {"nodeSelector": {"pool": "trusted"}, "imagePullSecrets": [{"name": "registry"}]}

    store = store_of(endModel={"template": of_end_model}, store={"template": asked})

    pod, container = pod_of(store), container_of(store)
    assert (pod["nodeSelector"], pod["runtimeClassName"]) == (asked["nodeSelector"], "gvisor")
    assert pod["imagePullSecrets"] == of_end_model["imagePullSecrets"]
    # A ResourceQuota on limits.cpu admits it.
    assert container["resources"]["limits"] == {"cpu": "1", "memory": "2Gi"}
    assert container["resources"]["requests"] == {"cpu": "100m", "memory": "256Mi"}
    assert container["env"][-1] == {"name": "HTTPS_PROXY", "value": "http://proxy:3128"}
    assert asked["labels"].items() <= store["spec"]["template"]["metadata"]["labels"].items()
    assert list(violations(pod)) == []


def test_the_stores_files_on_the_nodes_disk_are_requested_and_bounded() -> None:
    def disk(store: Manifest) -> tuple[Any, Any]:
        (cache,) = (volume for volume in pod_of(store)["volumes"] if volume["name"] == "cache")
        return cache["emptyDir"], container_of(store)["resources"]["requests"].get("ephemeral-storage")

    assert disk(store_of()) == ({}, None)
    assert disk(store_of(store={"ephemeralStorage": "1024Mi"})) == ({"sizeLimit": "1Gi"}, "1Gi")


def test_an_empty_store_field_starts_no_store_anew_and_other_storage_does() -> None:
    def inputs(**store: Any) -> Any:
        return store_of(**({"store": store} if store else {}))["metadata"]["annotations"]["languagepipes.io/inputs"]

    assert inputs(template={}) == inputs()
    assert inputs(ephemeralStorage="1Gi") != inputs()
    assert inputs(ephemeralStorage="1Gi") == inputs(ephemeralStorage="1024Mi")
    assert inputs(template={"labels": {"a": "b"}}) != inputs()


def test_pull_secrets_of_the_operator_reach_every_pod_behind_the_templates_and_once() -> None:
    snapshot = pipe_snapshot(stages={"count": 1, "template": {"imagePullSecrets": [{"name": "b"}, {"name": "own"}]}})

    plain, given = rendered(snapshot), rendered(snapshot, image_pull_secrets="b,a")

    found = {each["metadata"]["labels"]["languagepipes.io/role"]: pod_of(each)["imagePullSecrets"]
             for each in of_kind(given, "Deployment")}  # fmt: skip
    both = [{"name": "a"}, {"name": "b"}]
    assert found == {"store": both, "end-model": both, "stage": [{"name": "b"}, {"name": "own"}, {"name": "a"}]}
    for one, other in zip(of_kind(plain, "Deployment"), of_kind(given, "Deployment"), strict=True):
        assert len({each["metadata"]["annotations"]["languagepipes.io/inputs"] for each in (one, other)}) == 2


def test_pods_of_a_pipe_spread_over_nodes_softly() -> None:
    pod = pod_of(stage_of({}))

    (constraint,) = pod["topologySpreadConstraints"]
    assert (constraint["topologyKey"], constraint["whenUnsatisfiable"]) == ("kubernetes.io/hostname", "ScheduleAnyway")
    assert constraint["labelSelector"]["matchLabels"]["languagepipes.io/pipe"] == "qwen3"


def test_the_weights_store_draws_no_stage_away_from_its_node() -> None:
    """Counted with the ring, a store on one of two nodes had all three stages put on the other."""
    (constraint,) = pod_of(stage_of({}))["topologySpreadConstraints"]

    (role,) = constraint["labelSelector"]["matchExpressions"]
    assert (role["key"], role["operator"]) == ("languagepipes.io/role", "In")
    assert sorted(role["values"]) == ["end-model", "stage"]


def test_the_templates_spread_stands_in_place_of_ours_and_counts_the_pipes_ring() -> None:
    asked = {"maxSkew": 2, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule"}

    (constraint,) = pod_of(stage_of({"topologySpreadConstraints": [asked]}))["topologySpreadConstraints"]

    assert asked.items() <= constraint.items()
    assert constraint["labelSelector"]["matchLabels"]["languagepipes.io/pipe"] == "qwen3"


def test_the_templates_affinity_stands_before_ours() -> None:
    term = {"weight": 7, "podAffinityTerm": {"topologyKey": "zone", "labelSelector": {"matchLabels": {"a": "b"}}}}
    preferred = "preferredDuringSchedulingIgnoredDuringExecution"
    required = [{"topologyKey": "rack", "labelSelector": {"matchLabels": {"c": "d"}}}]
    asked = {"podAntiAffinity": {preferred: [term], "requiredDuringSchedulingIgnoredDuringExecution": required}}

    affinity = pod_of(stage_of({"affinity": asked}))["affinity"]["podAntiAffinity"]

    assert affinity[preferred][0] == term
    assert len(affinity[preferred]) == 2
    assert affinity["requiredDuringSchedulingIgnoredDuringExecution"] == required


def test_a_member_of_the_first_replica_would_rather_run_on_the_plans_node() -> None:
    snapshot = pipe_snapshot(replicas=2)
    kept = stored_plan_of(snapshot)
    stages = tuple(replace(stage, node=f"n{place}") for place, stage in enumerate(kept.plan.stages))
    placed = replace(kept, plan=replace(kept.plan, stages=stages))

    liked = {
        tuple(deployment["metadata"]["labels"][f"languagepipes.io/{key}"] for key in ("chain", "stage")): [
            term["preference"]["matchFields"][0]["values"]
            for term in pod_of(deployment)["affinity"]
            .get("nodeAffinity", {})
            .get("preferredDuringSchedulingIgnoredDuringExecution", ())
        ]
        for deployment in of_kind(rendered(snapshot, placed), "Deployment", "stage")
    }

    first = {("0", str(place)): [[f"n{place - 1}"]] for place in (1, 2, 3)}
    assert liked == {**first, **{("1", str(place)): [] for place in (1, 2, 3)}}


def test_members_of_later_replicas_would_rather_run_where_the_planner_has_room() -> None:
    snapshot = pipe_snapshot(replicas=2)
    kept = stored_plan_of(snapshot)
    nodes = tuple(Node(name, 64 * 2**30, kubernetes=True) for name in ("a", "b", "c", "d"))

    def liked(manifests: list[Manifest]) -> list[str]:
        return [
            pod_of(deployment)["affinity"]["nodeAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"][-1][
                "preference"
            ]["matchFields"][0]["values"][0]
            for deployment in of_kind(manifests, "Deployment")
            if deployment["metadata"]["labels"].get("languagepipes.io/chain") == "1"
        ]

    before = rendered(replace(snapshot, nodes=nodes), kept)
    assert sorted(liked(before)) == ["a", "b", "c", "d"]
    # Nodes that come and go later make no running pod another.
    assert rendered(living(replace(snapshot, nodes=nodes[:1]), before), kept) == before
    assert rendered(living(snapshot, before), kept) == before


def test_other_preferred_nodes_for_the_same_plan_roll_nothing() -> None:
    snapshot = pipe_snapshot()
    kept = stored_plan_of(snapshot)
    before = rendered(snapshot, kept)
    moved = replace(kept, plan=replace(kept.plan, end_model=replace(kept.plan.end_model, node="n9")))

    assert rendered(living(snapshot, before), moved) == before


def test_replicas_keep_away_from_each_other() -> None:
    for replica in ("0", "1"):
        deployments = [
            item
            for item in of_kind(rendered(pipe_snapshot(replicas=2)), "Deployment")
            if item["metadata"]["labels"].get("languagepipes.io/chain") == replica
        ]
        for deployment in deployments:
            (term,) = pod_of(deployment)["affinity"]["podAntiAffinity"][
                "preferredDuringSchedulingIgnoredDuringExecution"
            ]
            demands = term["podAffinityTerm"]["labelSelector"]["matchExpressions"]
            assert {"key": "languagepipes.io/chain", "operator": "NotIn", "values": [replica]} in demands


def test_a_cpu_member_sees_no_gpu() -> None:
    def seen(device: str) -> set[str]:
        return {item["name"] for item in container_of(stage_of({}, device=device))["env"]}

    assert "CUDA_VISIBLE_DEVICES" in seen("CPU")
    assert "CUDA_VISIBLE_DEVICES" not in seen("GPU")


def test_the_variables_of_a_container_are_in_order_and_none_is_empty() -> None:
    for deployment in of_kind(full_pipe(), "Deployment"):
        variables = container_of(deployment)["env"]
        assert [item["name"] for item in variables] == sorted({item["name"] for item in variables})
        assert all(item["value"] for item in variables)


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("1024Mi", "1Gi"), ("1536Mi", "1536Mi"), ("0.5Gi", "512Mi"), (1, "1"), ("1.0", "1"), ("0.5", "500m"),
        ("1000m", "1"), ("1500m", "1500m"), ("512", "512"), ("1000", "1k"), ("1500000", "1500k"), ("1000M", "1G"),
        ("0.1Ki", "102400m"), ("1Ei", "1Ei"), ("1e3", "1e3"), ("12e6", "12e6"), ("1E", "1E"), ("0", "0"),
        ("1000Ki", "1000Ki"), ("100000000Ki", "100000000Ki"), (2.5, "2500m"), ("1n", "1m"), ("1.0001", "1001m"),
    ],
)  # fmt: skip
def test_quantities_are_written_as_the_api_server_writes_them(written: int | float | str, read: str) -> None:
    assert canonical(written) == read


@pytest.mark.parametrize("wrong", ["", "much", "1 Gi", "1Gib", "--1"])
def test_what_is_no_quantity_is_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match="no quantity"):
        canonical(wrong)


def test_bytes_are_rounded_up_to_mebibytes() -> None:
    assert (of_bytes(1), of_bytes(2**20 + 1), of_bytes(2**30)) == ("1Mi", "2Mi", "1Gi")
