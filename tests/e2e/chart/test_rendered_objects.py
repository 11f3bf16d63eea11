"""What the chart renders, for each of its conditions."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml
from languagepipes_api.names import FURTHER_STORE, LABEL_MANAGED_BY, MANAGED_BY, STORE_PORT, TELEMETRY_PORT
from languagepipes_node import metrics as node_metrics
from languagepipes_operator.certificates.authority import new_ca
from languagepipes_operator.children.labels import OPERATOR_LABELS, labels, store_labels
from languagepipes_operator.settings import PREFIX, OperatorSettings
from prometheus_client.metrics import MetricWrapperBase
from support import dashboards
from support.helm_chart import EVERYTHING, NAMESPACE, OPERATOR, ROOT, VARIANTS, Manifest, Objects, render
from support.paths import CRD
from support.permissions import IN_A_NAMESPACE, LEASE, NODES, Permission


def pod_of(objects: Objects) -> Manifest:
    pod: Manifest = objects.one("Deployment")["spec"]["template"]["spec"]
    return pod


def container(objects: Objects) -> Manifest:
    found: list[Manifest] = pod_of(objects)["containers"]
    assert len(found) == 1
    return found[0]


def settings(objects: Objects) -> OperatorSettings:
    """The environment as the operator itself reads it; what comes from the pod's fields is filled in."""
    fields = {"metadata.namespace": NAMESPACE, "metadata.name": "operator-0"}
    environment = {
        each["name"]: each["value"] if "value" in each else fields[each["valueFrom"]["fieldRef"]["fieldPath"]]
        for each in container(objects)["env"]
    }
    return OperatorSettings.from_environment(environment)


def rules(role: Manifest) -> set[Permission]:
    """(group, resource, verb, name or "*") of each thing that is allowed."""
    return {
        (group, resource, verb, name)
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
        for name in rule.get("resourceNames", ["*"])
    }


def selects(selector: Manifest, found: dict[str, str]) -> bool:
    exists = [each["key"] for each in selector["matchExpressions"] if each["operator"] == "Exists"]
    assert len(exists) == len(selector["matchExpressions"])
    return selector["matchLabels"].items() <= found.items() and found.keys() >= set(exists)


def pod_specs(objects: Objects) -> list[Manifest]:
    return [each["spec"]["template"]["spec"] if each["kind"] == "Deployment" else each["spec"]
            for each in objects if each["kind"] in ("Deployment", "Pod")]  # fmt: skip


# --- The operator's pods ----------------------------------------------------------------------------------------------


def test_the_operator_reads_its_settings_from_what_the_chart_sets() -> None:
    found = settings(render({"namespaces": ["team-b", "team-a"], "logLevel": "debug"}))

    assert found == OperatorSettings(
        node_image="languagepipes-node:0.1.0",
        image_pull_policy="IfNotPresent",
        namespaces=("team-a", "team-b"),
        pod_namespace=NAMESPACE,
        lease_name=OPERATOR,
        identity="operator-0",
        listen="0.0.0.0:9090",
        log_level="DEBUG",
    )


def test_without_namespaces_the_operator_serves_all() -> None:
    assert settings(render()).cluster_wide


@pytest.mark.parametrize(
    ("values", "image"),
    [
        ({}, "languagepipes-operator:0.1.0"),
        ({"image": {"tag": "main"}}, "languagepipes-operator:main"),
        ({"image": {"repository": "registry.example:5000/x"}}, "registry.example:5000/x:0.1.0"),
        ({"image": {"tag": "main", "digest": f"sha256:{'0' * 64}"}}, f"languagepipes-operator@sha256:{'0' * 64}"),
    ],
)
def test_an_image_is_named_by_tag_or_by_digest(values: dict[str, Any], image: str) -> None:
    node = {"nodeImage": {"repository": "languagepipes-operator", **values.get("image", {})}}
    objects = render({**values, **node})

    assert container(objects)["image"] == image
    assert objects.one("Pod")["spec"]["containers"][0]["image"] == image
    assert settings(objects).node_image == image


def test_pull_policies_are_each_images_own() -> None:
    objects = render({"image": {"pullPolicy": "Always"}, "nodeImage": {"pullPolicy": "Never"}})

    assert container(objects)["imagePullPolicy"] == "Always"
    assert settings(objects).image_pull_policy == "Never"


@pytest.mark.parametrize(
    "endpoint",
    [
        "https://hub.example",
        "http://hub.models.svc:1",
        "https://hub.example:65535/a/b:c@d",
        "https://[2001:db8::1]:8443/x",
        "https://user:word@hub.example:8443",
    ],
)
def test_a_mirror_of_the_hub_reaches_the_operator_and_is_absent_otherwise(endpoint: str) -> None:
    assert settings(render({"hub": {"endpoint": endpoint}})).hub_endpoint == endpoint
    assert settings(render()).hub_endpoint == ""
    assert "LANGUAGEPIPES_OPERATOR_HUB_ENDPOINT" not in {item["name"] for item in container(render())["env"]}


def test_a_proxy_reaches_the_operator_and_is_absent_otherwise() -> None:
    found = settings(render({"hub": {"proxy": "http://proxy.example:3128", "noProxy": ".svc,10.0.0.1"}}))

    assert (found.hub_proxy, found.hub_no_proxy) == ("http://proxy.example:3128", ".svc,10.0.0.1")
    assert not {item["name"] for item in container(render())["env"]} & {
        "LANGUAGEPIPES_OPERATOR_HUB_PROXY", "LANGUAGEPIPES_OPERATOR_HUB_NO_PROXY"
    }  # fmt: skip


def test_authorities_of_the_hub_reach_the_operator_and_are_absent_otherwise() -> None:
    bundle = new_ca("hub", "one").certificate.decode() + new_ca("hub", "two").certificate.decode()

    assert settings(render({"hub": {"caBundle": bundle}})).hub_ca_bundle == bundle
    assert settings(render()).hub_ca_bundle == ""
    assert "LANGUAGEPIPES_OPERATOR_HUB_CA_BUNDLE" not in {item["name"] for item in container(render())["env"]}


def test_pull_secrets_reach_all_pods_and_are_absent_otherwise() -> None:
    with_secrets = render({"imagePullSecrets": [{"name": "registry"}]})

    assert all(pod["imagePullSecrets"] == [{"name": "registry"}] for pod in pod_specs(with_secrets))
    assert not any("imagePullSecrets" in pod for pod in pod_specs(render()))


def test_pull_secrets_of_pipes_reach_the_operator_and_are_absent_otherwise() -> None:
    assert settings(render(EVERYTHING)).image_pull_secrets == ("mirror", "registry")
    assert "LANGUAGEPIPES_OPERATOR_IMAGE_PULL_SECRETS" not in {item["name"] for item in container(render())["env"]}


def test_further_variables_volumes_and_mounts_stand_behind_ours() -> None:
    given, plain = render(EVERYTHING), render()

    assert container(given)["env"][-1:] == EVERYTHING["extraEnv"]
    for name, ours in (("volumes", pod_of(plain)["volumes"]), ("volumeMounts", container(plain)["volumeMounts"])):
        found = (pod_of(given) if name == "volumes" else container(given))[name]
        assert found == [*ours, *EVERYTHING[f"extra{name[0].upper()}{name[1:]}"]]


def test_the_account_has_its_annotations_and_none_otherwise() -> None:
    assert render(EVERYTHING).one("ServiceAccount")["metadata"]["annotations"] == {"example.com/role": "operator"}
    assert "annotations" not in render().one("ServiceAccount")["metadata"]


@pytest.mark.parametrize("name", VARIANTS)
def test_every_pod_meets_the_restricted_profile_and_carries_resources(name: str) -> None:
    for pod in pod_specs(render(VARIANTS[name])):
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for each in pod["containers"]:
            assert each["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert each["resources"]["requests"]
            assert each["resources"]["limits"]["memory"]
        # A Service "languagepipes-operator-…" would put variables of the operator's own prefix into the environment.
        assert pod["enableServiceLinks"] is False


def test_user_and_groups_are_fixed_or_left_to_the_cluster() -> None:
    ids = {"runAsUser": 65532, "runAsGroup": 65532, "fsGroup": 65532}
    fixed, assigned = render(), render({"securityContext": {"fixedIds": False}})

    for one, other in zip(pod_specs(fixed), pod_specs(assigned), strict=True):
        assert one["securityContext"] == {**other["securityContext"], **ids}
        assert other["securityContext"]["runAsNonRoot"] is True
        assert not ids.keys() & other["securityContext"].keys()
    assert settings(fixed).fixed_ids
    assert not settings(assigned).fixed_ids
    assert "LANGUAGEPIPES_OPERATOR_FIXED_IDS" not in {item["name"] for item in container(fixed)["env"]}


def test_only_the_operator_gets_a_service_account_token() -> None:
    objects = render()

    assert objects.one("ServiceAccount")["automountServiceAccountToken"] is False
    assert pod_of(objects)["automountServiceAccountToken"] is True
    assert objects.one("Pod")["spec"]["automountServiceAccountToken"] is False


def test_probes_ask_the_metrics_port() -> None:
    operator = container(render())

    assert operator["ports"] == [{"name": "metrics", "containerPort": 9090, "protocol": "TCP"}]
    assert operator["livenessProbe"]["httpGet"] == {"path": "/healthz", "port": "metrics"}
    assert operator["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "metrics"}


def test_resources_and_places_are_external_failure_and_absent_where_not_given() -> None:
    given = pod_of(render({**EVERYTHING, "resources": {"limits": {"cpu": 1}}}))
    plain = pod_of(render({"nodeSelector": {"kubernetes.io/os": None}, "tolerations": []}))

    assert given["containers"][0]["resources"]["limits"] == {"cpu": 1, "memory": "512Mi"}
    for name in ("tolerations", "affinity", "priorityClassName"):
        assert given[name] == EVERYTHING[name]
        assert name not in plain
    assert given["nodeSelector"] == {"kubernetes.io/os": "linux"}
    assert "nodeSelector" not in plain


def test_an_operator_on_a_lost_node_is_soon_started_elsewhere() -> None:
    tolerated = {found["key"]: found["tolerationSeconds"] for found in pod_of(render())["tolerations"]}

    assert tolerated == {"node.kubernetes.io/not-ready": 30, "node.kubernetes.io/unreachable": 30}


def test_labels_and_annotations_of_pods_are_added_and_replace_none_of_ours() -> None:
    template = render(
        {"podLabels": {"team": "platform", "app.kubernetes.io/name": "mine"}, "podAnnotations": {"note": "here"}}
    ).one("Deployment")["spec"]["template"]["metadata"]

    assert template["labels"]["team"] == "platform"
    assert template["labels"]["app.kubernetes.io/name"] == "languagepipes"
    assert template["annotations"]["note"] == "here"


def test_policies_of_pipes_know_the_operators_pods_by_their_labels_and_take_no_other_pod_for_it() -> None:
    for release, values in (("lp", {}), ("other", {"fullnameOverride": "x", "nameOverride": "y"})):
        objects = render(values, release=release)

        assert OPERATOR_LABELS.items() <= objects.one("Deployment")["spec"]["template"]["metadata"]["labels"].items()
        assert not OPERATOR_LABELS.items() <= objects.one("Pod")["metadata"]["labels"].items()


def test_one_replica_has_no_budget_and_is_not_spread() -> None:
    objects = render()

    assert objects.one("Deployment")["spec"]["replicas"] == 1
    assert "PodDisruptionBudget" not in objects.kinds()
    assert "topologySpreadConstraints" not in pod_of(objects)


def test_two_replicas_have_a_budget_and_prefer_different_nodes() -> None:
    objects = render({"replicas": 2})
    deployment, budget = objects.one("Deployment"), objects.one("PodDisruptionBudget")

    assert deployment["spec"]["replicas"] == 2
    assert budget["spec"]["selector"] == deployment["spec"]["selector"]
    assert (budget["spec"]["maxUnavailable"], budget["spec"]["unhealthyPodEvictionPolicy"]) == (1, "AlwaysAllow")
    assert pod_of(objects)["topologySpreadConstraints"] == [
        {
            "topologyKey": "kubernetes.io/hostname",
            "maxSkew": 1,
            "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": deployment["spec"]["selector"],
            "matchLabelKeys": ["pod-template-hash"],
        }
    ]


def test_a_spread_of_ones_own_replaces_ours() -> None:
    own = [{"topologyKey": "rack", "maxSkew": 1, "whenUnsatisfiable": "DoNotSchedule"}]

    assert pod_of(render({"replicas": 2, "topologySpreadConstraints": own}))["topologySpreadConstraints"] == own


# --- Names and labels -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("release", "values", "name"),
    [
        ("lp", {}, "lp-languagepipes-operator"),
        ("languagepipes", {}, "languagepipes-operator"),
        ("lp", {"nameOverride": "ring"}, "lp-ring-operator"),
        ("lp", {"fullnameOverride": "pipes"}, "pipes-operator"),
        ("a" * 53, {}, "a" * 40 + "-operator"),
    ],
)
def test_names_come_from_the_release(release: str, values: dict[str, Any], name: str) -> None:
    objects = render(values, release=release)

    for kind in ("Deployment", "ServiceAccount"):
        assert objects.one(kind)["metadata"]["name"] == name
    assert objects.one("Service")["metadata"]["name"] == f"{name}-metrics"
    assert settings(objects).lease_name == name
    for each in objects:
        assert each["kind"] != "Service" or len(each["metadata"]["name"]) <= 63


@pytest.mark.parametrize("name", VARIANTS)
def test_every_object_has_the_standard_labels_and_its_namespace(name: str) -> None:
    for each in render(VARIANTS[name]):
        labels = each["metadata"]["labels"]
        assert labels["app.kubernetes.io/name"] == "languagepipes"
        assert labels["app.kubernetes.io/instance"] == "lp"
        assert labels["app.kubernetes.io/version"] == "0.1.0"
        assert labels["app.kubernetes.io/part-of"] == "languagepipes"
        assert labels["helm.sh/chart"] == "languagepipes-0.1.0"
        # The operator's watches select by this label: what Helm made is not a pipe's child.
        assert labels[LABEL_MANAGED_BY] == "Helm" != MANAGED_BY
        cluster_scoped = each["kind"].startswith(("Cluster", "CustomResource"))
        assert ("namespace" in each["metadata"]) != cluster_scoped


def test_selectors_hold_nothing_that_an_upgrade_changes() -> None:
    objects = render()

    selector = {
        "app.kubernetes.io/name": "languagepipes",
        "app.kubernetes.io/instance": "lp",
        "app.kubernetes.io/component": "operator",
    }
    assert objects.one("Deployment")["spec"]["selector"] == {"matchLabels": selector}
    assert objects.one("Service")["spec"]["selector"] == selector


# --- The custom resource definition -----------------------------------------------------------------------------------


def test_the_crd_is_that_of_the_repository_and_kept() -> None:
    crd = render().one("CustomResourceDefinition")
    original = yaml.safe_load(CRD.read_text())

    assert crd["metadata"].pop("annotations") == {"helm.sh/resource-policy": "keep"}
    assert crd["metadata"].pop("labels")
    assert crd == original


def test_the_crd_is_left_out_if_somebody_else_installs_it() -> None:
    assert "CustomResourceDefinition" not in render({"crds": {"enabled": False}}).kinds()


def test_the_crd_is_small_enough_to_be_applied() -> None:
    # kubectl apply keeps the object in an annotation, and annotations end at 256 KiB.
    crd = ROOT / "charts" / "languagepipes" / "templates" / "customresourcedefinition.yaml"

    assert crd.stat().st_size < 256 * 1024


# --- Permissions ------------------------------------------------------------------------------------------------------


def bound(objects: Objects, kind: str) -> dict[tuple[str | None, str], set[Permission]]:
    """What each Role (or ClusterRole) that is bound to the operator's account allows, by (namespace, name)."""
    account = {"kind": "ServiceAccount", "name": OPERATOR, "namespace": NAMESPACE}
    found = {}
    for binding in objects.all(f"{kind}Binding"):
        assert binding["subjects"] == [account]
        assert binding["roleRef"]["kind"] == kind
        key = (binding["metadata"].get("namespace"), binding["roleRef"]["name"])
        role, = (each for each in objects.all(kind)
                 if (each["metadata"].get("namespace"), each["metadata"]["name"]) == key)  # fmt: skip
        found[key] = rules(role)
    return found


def test_for_all_namespaces_one_cluster_role_allows_what_the_operator_does_and_no_more() -> None:
    objects = render()

    assert bound(objects, "ClusterRole") == {(None, "lp-system:lp-languagepipes-operator"): IN_A_NAMESPACE | NODES}
    assert bound(objects, "Role") == {(NAMESPACE, f"{OPERATOR}-lease"): LEASE}


def test_for_some_namespaces_roles_there_and_none_for_the_cluster() -> None:
    objects = render({"namespaces": ["team-a", NAMESPACE]})

    assert bound(objects, "ClusterRole") == {}
    assert bound(objects, "Role") == {
        ("team-a", OPERATOR): IN_A_NAMESPACE,
        (NAMESPACE, OPERATOR): IN_A_NAMESPACE,
        (NAMESPACE, f"{OPERATOR}-lease"): LEASE,
    }


def test_nothing_is_cluster_scoped_if_it_must_not_be() -> None:
    objects = render(VARIANTS["no cluster-scoped object"])

    assert not any(kind.startswith(("Cluster", "CustomResource")) for kind in objects.kinds())
    assert set(bound(objects, "Role")) == {("team-a", OPERATOR), (NAMESPACE, f"{OPERATOR}-lease")}


def test_permissions_from_elsewhere_leave_out_every_role_and_name_the_given_account() -> None:
    objects = render(VARIANTS["permissions from elsewhere"])

    assert not {"Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding", "ServiceAccount"} & objects.kinds()
    assert pod_of(objects)["serviceAccountName"] == "given"
    assert pod_of(render({"serviceAccount": {"create": False}}))["serviceAccountName"] == "default"


def test_an_account_of_another_name_is_made_and_bound() -> None:
    objects = render({"serviceAccount": {"name": "ring-master"}})

    assert objects.one("ServiceAccount")["metadata"]["name"] == "ring-master"
    assert pod_of(objects)["serviceAccountName"] == "ring-master"
    for each in (*objects.all("RoleBinding"), *objects.all("ClusterRoleBinding")):
        assert [subject["name"] for subject in each["subjects"]] == ["ring-master"]


def test_view_edit_and_admin_reach_pipes_unless_told_otherwise() -> None:
    objects = render()
    view = objects.one("ClusterRole", "lp-system:lp-languagepipes-view")
    edit = objects.one("ClusterRole", "lp-system:lp-languagepipes-edit")

    def aggregated(role: Manifest) -> set[str]:
        prefix = "rbac.authorization.k8s.io/aggregate-to-"
        return {label.removeprefix(prefix) for label in role["metadata"]["labels"] if label.startswith(prefix)}

    assert aggregated(view) == {"view", "edit", "admin"}
    assert aggregated(edit) == {"edit", "admin"}
    assert {verb for _, _, verb, _ in rules(view)} == {"get", "list", "watch"}
    # The status is the operator's.
    assert ("languagepipes.io", "languagepipes/status", "patch", "*") not in rules(edit)
    left = render(VARIANTS["no aggregation"]).all("ClusterRole")
    assert [each["metadata"]["name"] for each in left] == ["lp-system:lp-languagepipes-operator"]


# --- Network and monitoring -------------------------------------------------------------------------------------------


def test_the_service_leads_to_the_metrics_port() -> None:
    assert render().one("Service")["spec"]["ports"] == [
        {"name": "metrics", "port": 9090, "targetPort": "metrics", "protocol": "TCP"}
    ]


def test_a_service_monitor_only_if_asked_for() -> None:
    objects = render({"serviceMonitor": {"enabled": True, "interval": "1m", "labels": {"release": "prometheus"}}})
    monitor, service = objects.one("ServiceMonitor"), objects.one("Service")

    assert monitor["metadata"]["labels"]["release"] == "prometheus"
    # The operator's series about a pipe have that pipe's namespace, not the operator's.
    assert monitor["spec"]["endpoints"] == [
        {"port": "metrics", "path": "/metrics", "interval": "1m", "honorLabels": True}
    ]
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert "ServiceMonitor" not in render().kinds()


def test_a_pod_monitor_only_if_asked_for_finds_the_members_of_all_pipes() -> None:
    objects = render({"podMonitor": {"enabled": True, "interval": "1m", "labels": {"release": "prometheus"}}})
    monitor = objects.one("PodMonitor")
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]

    assert monitor["metadata"]["labels"]["release"] == "prometheus"
    assert monitor["spec"]["namespaceSelector"] == {"any": True}
    assert (endpoint["port"], endpoint["path"], endpoint["interval"]) == ("telemetry", "/metrics", "1m")
    assert "PodMonitor" not in render().kinds()
    for role in ("end-model", "stage", "store", FURTHER_STORE):
        assert selects(monitor["spec"]["selector"], labels("qwen3", role))
    assert not selects(monitor["spec"]["selector"], objects.one("Deployment")["spec"]["template"]["metadata"]["labels"])


def test_a_pod_monitor_of_some_namespaces_looks_at_these_alone() -> None:
    values = {"namespaces": ["team-b", "team-a"], "podMonitor": {"enabled": True}}

    assert render(values).one("PodMonitor")["spec"]["namespaceSelector"] == {"matchNames": ["team-a", "team-b"]}


@pytest.mark.parametrize(
    ("member", "expected"),
    [
        (labels("qwen3", "end-model", replica=1), {"pipe": "qwen3", "replica": "1", "role": "end-model"}),
        (
            labels("qwen3", "stage", replica=0, stage=2, stage_name="gpu"),
            {"pipe": "qwen3", "replica": "0", "role": "stage", "stage": "2"},
        ),
        (store_labels("qwen3"), {"pipe": "qwen3", "role": "store"}),
        (store_labels("qwen3", "abc"), {"pipe": "qwen3", "role": "store"}),
    ],
)
def test_series_of_members_have_labels_that_tell_whose_they_are(
    member: dict[str, str], expected: dict[str, str]
) -> None:
    (endpoint,) = render({"podMonitor": {"enabled": True}}).one("PodMonitor")["spec"]["podMetricsEndpoints"]
    # As Prometheus names pod labels: https://prometheus.io/docs/prometheus/latest/configuration/configuration/#pod
    target = {
        f"__meta_kubernetes_pod_label_{re.sub('[^a-zA-Z0-9_]', '_', key)}": value for key, value in member.items()
    }

    for rule in endpoint["relabelings"]:
        (source,) = rule["sourceLabels"]
        if match := re.fullmatch(rule.get("regex", "(.*)"), target.get(source, "")):
            target[rule["targetLabel"]] = match.expand(rule.get("replacement", r"\1"))

    assert {name: value for name, value in target.items() if value and not name.startswith("__")} == expected


def test_no_metric_of_a_member_has_a_label_that_a_target_has() -> None:
    """Prometheus would call it exported_…, where labels of targets take precedence."""
    (endpoint,) = render({"podMonitor": {"enabled": True}}).one("PodMonitor")["spec"]["podMetricsEndpoints"]
    of_targets = {rule["targetLabel"] for rule in endpoint["relabelings"]} | {"namespace", "pod", "container", "job"}
    ours = {
        label for metric in vars(node_metrics).values() if isinstance(metric, MetricWrapperBase)
        for label in metric._labelnames
    }  # fmt: skip

    assert endpoint["honorLabels"] is False
    assert not ours & of_targets


def test_alerts_only_if_asked_for() -> None:
    objects = render({"prometheusRule": {"enabled": True, "labels": {"release": "prometheus"}}})

    assert objects.one("PrometheusRule")["metadata"]["labels"]["release"] == "prometheus"
    assert "PrometheusRule" not in render().kinds()


def test_dashboards_only_if_asked_for_are_the_files_as_they_are() -> None:
    objects = render({"dashboards": {"enabled": True}})

    found = {each["metadata"]["name"]: each for each in objects.all("ConfigMap")}
    assert found.keys() == {f"lp-languagepipes-dashboard-{name}" for name in dashboards.NAMES}
    for name in dashboards.NAMES:
        config_map = found[f"lp-languagepipes-dashboard-{name}"]
        text = (dashboards.FOLDER / f"{name}.json").read_text(encoding="utf-8")
        assert "{{" in text, "Grafana's templates, not Helm's"
        assert config_map["data"] == {f"languagepipes-{name}.json": text}
        assert config_map["metadata"]["namespace"] == NAMESPACE
        assert config_map["metadata"]["labels"]["grafana_dashboard"] == "1"
        assert "annotations" not in config_map["metadata"]
    assert not render().all("ConfigMap")


def test_dashboards_carry_the_labels_and_annotations_that_a_sidecar_looks_for() -> None:
    given = {"labels": {"grafana_dashboard": None, "team": "a"}, "annotations": {"grafana_folder": "Language Pipes"}}

    for config_map in render({"dashboards": {"enabled": True, **given}}).all("ConfigMap"):
        labels = config_map["metadata"]["labels"]
        assert labels["team"] == "a"
        assert "grafana_dashboard" not in labels
        assert (labels["app.kubernetes.io/name"], labels["app.kubernetes.io/instance"]) == ("languagepipes", "lp")
        assert config_map["metadata"]["annotations"] == {"grafana_folder": "Language Pipes"}


def test_a_network_policy_only_if_asked_for_lets_the_operator_do_its_work() -> None:
    objects = render({"networkPolicy": {"enabled": True, "apiServerPorts": [8443]}})
    policy = objects.one("NetworkPolicy")["spec"]

    assert policy["podSelector"] == objects.one("Deployment")["spec"]["selector"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert policy["ingress"] == [{"ports": [{"port": "metrics", "protocol": "TCP"}]}]
    dns, api_server, members = policy["egress"]
    assert {(each["port"], each["protocol"]) for each in dns["ports"]} == {
        (port, protocol) for port in (53, 5353) for protocol in ("UDP", "TCP")
    }
    assert api_server == {"ports": [{"port": 8443, "protocol": "TCP"}]}
    assert members["to"] == [{"namespaceSelector": {}, "podSelector": {"matchLabels": {LABEL_MANAGED_BY: MANAGED_BY}}}]
    assert {each["port"] for each in members["ports"]} == {STORE_PORT, TELEMETRY_PORT}
    assert "NetworkPolicy" not in render().kinds()


# --- helm test --------------------------------------------------------------------------------------------------------


def test_helm_test_asks_the_operators_service_and_leaves_no_pod_behind() -> None:
    objects = render()
    pod = objects.one("Pod")

    assert pod["metadata"]["annotations"] == {
        "helm.sh/hook": "test",
        "helm.sh/hook-delete-policy": "before-hook-creation,hook-succeeded",
    }
    assert pod["spec"]["restartPolicy"] == "Never"
    service = objects.one("Service")["metadata"]["name"]
    assert pod["spec"]["containers"][0]["env"] == [{"name": "URL", "value": f"http://{service}.{NAMESPACE}.svc:9090"}]
    # No setting of the operator's: it would be refused there, and is nothing for a test.
    assert not any(each["name"].startswith(PREFIX) for each in pod["spec"]["containers"][0]["env"])
    selector = objects.one("Service")["spec"]["selector"]
    assert not selector.items() <= pod["metadata"]["labels"].items()
