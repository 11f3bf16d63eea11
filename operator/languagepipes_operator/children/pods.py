"""The shape that all pods of a pipe share: restricted security, probes, files, and what a template may say.

Pods meet the restricted profile of the Pod Security Standards
(https://kubernetes.io/docs/concepts/security/pod-security-standards/), hold no service-account token and write only to
/tmp. Budgets of probes are constants, since changing them would roll pods.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from languagepipes_api.member_settings import MemberSettings
from languagepipes_api.names import LABEL_REPLICA, TELEMETRY_PORT

from languagepipes_operator import names
from languagepipes_operator.children import quantities
from languagepipes_operator.children.labels import metadata, ring_selector
from languagepipes_operator.kube.kinds import Manifest
from languagepipes_operator.observe.snapshot import Snapshot
from languagepipes_operator.settings import OperatorSettings

USER_ID = 65532
# How long a pod stays bound to a node that is not ready or cannot be reached. Kubernetes' own default is 300 s.
LOST_NODE_SECONDS = 30
_LOST_NODE_TAINTS = ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable")
# Weights take as long as they take: a Deployment that waits for them has not failed.
_PROGRESS_DEADLINE_SECONDS = 3600
# Owner may read, group (fsGroup) may read: 0440.
_SECRET_MODE = 0o440

# Of a template, what goes into the pod as it stands.
_POD_FIELDS = (
    "nodeSelector",
    "priorityClassName",
    "runtimeClassName",
    "schedulerName",
    "serviceAccountName",
    "imagePullSecrets",
)

Volume = dict[str, Any]
Mount = dict[str, Any]


@dataclass(frozen=True)
class Files:
    """One volume and where the container sees it."""

    name: str
    source: Mapping[str, Any]
    path: str
    read_only: bool = True

    @property
    def volume(self) -> Volume:
        return {"name": self.name, **self.source}

    @property
    def mount(self) -> Mount:
        return {"name": self.name, "mountPath": self.path, **({"readOnly": True} if self.read_only else {})}


@dataclass(frozen=True)
class Container:
    """A pod's one container. environment: further variables, beside its settings."""

    image: str
    pull_policy: str
    settings: MemberSettings
    resources: Mapping[str, Any]
    ports: Mapping[str, int]
    files: Sequence[Files]
    environment: Mapping[str, str] = field(default_factory=dict)
    lifecycle: Mapping[str, Any] = field(default_factory=dict)


def secret_files(name: str, secret: str, path: str, *, key: str | None = None, as_file: str = "") -> Files:
    """A Secret's keys as files, or one `key` of it as `as_file`. Whole directories: a subPath is never renewed."""
    items = {} if key is None else {"items": [{"key": key, "path": as_file}]}
    return Files(name, {"secret": {"secretName": secret, "defaultMode": _SECRET_MODE, **items}}, path)


def deployment(
    snapshot: Snapshot,
    name: str,
    *,
    labels: dict[str, str],
    selector: dict[str, str],
    pod: Manifest,
    template: Mapping[str, Any],
) -> Manifest:
    """One pod that comes back, also from a node that is lost, and never twice at a time. The template's labels and
    annotations are the pod's alone, under ours.
    """
    of_pod: Manifest = {"labels": {**template.get("labels", {}), **labels}}
    if template.get("annotations"):
        of_pod["annotations"] = dict(template["annotations"])
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata(snapshot, name, labels),
        "spec": {
            "replicas": 1,
            "revisionHistoryLimit": 1,
            "progressDeadlineSeconds": _PROGRESS_DEADLINE_SECONDS,
            "strategy": {"type": "Recreate"},
            "selector": {"matchLabels": selector},
            "template": {"metadata": of_pod, "spec": pod},
        },
    }


def pod_spec(
    container: Container,
    *,
    template: Mapping[str, Any],
    grace_seconds: int,
    placement: Mapping[str, Any],
    host: Mapping[str, str],
    settings: OperatorSettings,
) -> Manifest:
    """placement: our affinity and topologySpreadConstraints, under the template's. host: hostname and subdomain.
    Without settings.fixed_ids user and groups are left to the cluster, which may refuse all others (OpenShift's
    `restricted-v2`). Its pull secrets stand behind the template's.
    """
    files = [*container.files, Files("tmp", {"emptyDir": {}}, str(names.TMP_DIR), read_only=False)]
    spec: Manifest = {
        **host,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": grace_seconds,
        "securityContext": {
            "runAsNonRoot": True,
            **({"runAsUser": USER_ID, "runAsGroup": USER_ID, "fsGroup": USER_ID} if settings.fixed_ids else {}),
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [_container(container, files, template)],
        "volumes": [*(file.volume for file in files), *map(_volume, template.get("volumes", ()))],
        "tolerations": tolerations(template.get("tolerations", ())),
        **placement,
    }
    for key in _POD_FIELDS:
        if template.get(key):
            spec[key] = template[key]
    asked = [secret["name"] for secret in template.get("imagePullSecrets", ())]
    if further := [name for name in settings.image_pull_secrets if name not in asked]:
        spec["imagePullSecrets"] = [{"name": name} for name in (*asked, *further)]
    return spec


def tolerations(asked: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The template's, and ours for lost nodes unless the template has its own for those."""
    ours = [
        {"key": taint, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": LOST_NODE_SECONDS}
        for taint in _LOST_NODE_TAINTS
        if not any(
            toleration.get("key") in (None, "", taint) and toleration.get("effect") in (None, "", "NoExecute")
            for toleration in asked
        )
    ]
    return [*(dict(toleration) for toleration in asked), *ours]


def ring_placement(pipe: str, replica: int, template: Mapping[str, Any], *, node: str | None) -> dict[str, Any]:
    """Where a ring member would rather be: on the plan's node, away from other members and other replicas.

    All of it is a preference. The template's spread constraints replace ours; its affinity comes before ours.
    """
    affinity = {key: dict(value) for key, value in template.get("affinity", {}).items()}
    if node is not None:
        _prefer(
            affinity.setdefault("nodeAffinity", {}),
            {
                "weight": 100,
                "preference": {"matchFields": [{"key": "metadata.name", "operator": "In", "values": [node]}]},
            },
        )
    others = ring_selector(pipe)
    others["matchExpressions"].append({"key": LABEL_REPLICA, "operator": "NotIn", "values": [str(replica)]})
    _prefer(
        affinity.setdefault("podAntiAffinity", {}),
        {"weight": 50, "podAffinityTerm": {"topologyKey": "kubernetes.io/hostname", "labelSelector": others}},
    )
    spread = template.get("topologySpreadConstraints") or [
        {"maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "ScheduleAnyway"}
    ]
    # Only members of the ring count: a store on one of two nodes would move all stages to the other.
    counted = {"labelSelector": ring_selector(pipe)}
    return {"affinity": affinity, "topologySpreadConstraints": [{**counted, **constraint} for constraint in spread]}


def _prefer(affinity: dict[str, Any], term: dict[str, Any]) -> None:
    kind = "preferredDuringSchedulingIgnoredDuringExecution"
    affinity[kind] = [*affinity.get(kind, ()), term]


def _variables(ours: Mapping[str, str], asked: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Ours first, by name, so that the template's may refer to them: $(NAME) is an earlier variable's value."""
    found = [{"name": name, "value": value} for name, value in sorted(ours.items())]
    for variable in asked:
        if variable["name"] not in ours:
            # An empty value would not be read back; without one a variable is empty.
            found.append({key: value for key, value in variable.items() if value != ""})
    return found


def _volume(asked: Mapping[str, Any]) -> Volume:
    """A template's volume, as it is read back."""
    ((kind, source),) = ((key, value) for key, value in asked.items() if key != "name")
    source = _writable({key: value for key, value in source.items() if value not in ([], {})})
    if "sizeLimit" in source:
        source["sizeLimit"] = quantities.canonical(source["sizeLimit"])
    return {"name": asked["name"], kind: source}


def _writable(asked: Mapping[str, Any]) -> dict[str, Any]:
    """`readOnly: false` would not be read back."""
    return {key: value for key, value in asked.items() if (key, value) != ("readOnly", False)}


def _container(container: Container, files: Sequence[Files], template: Mapping[str, Any]) -> Manifest:
    settings = container.settings
    environment = {"HOME": str(names.TMP_DIR), **container.environment, **settings.to_environment()}
    if settings.device == "CPU":
        # Where the node's runtime shows GPUs to every container: this one sees none, and takes no memory there.
        environment["CUDA_VISIBLE_DEVICES"] = "-1"  # an empty value would not be read back
    return {
        "name": settings.role,
        "image": container.image,
        "imagePullPolicy": container.pull_policy,
        "command": ["languagepipes-node"],
        "env": _variables(environment, template.get("env", ())),
        **({"envFrom": template["envFrom"]} if template.get("envFrom") else {}),
        "ports": [{"name": name, "containerPort": port, "protocol": "TCP"} for name, port in container.ports.items()],
        "resources": container.resources,
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        },
        # The process answers once Python is up; importing torch from a cold disk delays it. 5 minutes.
        "startupProbe": _probe("/healthz", period=2, failures=150, timeout=5),
        # The process itself decides when loading makes no progress (a minute); that depends on no other pod.
        "livenessProbe": _probe("/healthz", period=10, failures=3, timeout=10),
        "readinessProbe": _probe("/readyz", period=2, failures=2, timeout=3),
        "terminationMessagePath": "/dev/termination-log",
        "terminationMessagePolicy": "File",
        "volumeMounts": [*(file.mount for file in files), *map(_writable, template.get("volumeMounts", ()))],
        **({"lifecycle": container.lifecycle} if container.lifecycle else {}),
    }


def _probe(path: str, *, period: int, failures: int, timeout: int) -> dict[str, Any]:
    return {
        "httpGet": {"path": path, "port": TELEMETRY_PORT, "scheme": "HTTP"},
        "periodSeconds": period,
        "failureThreshold": failures,
        "timeoutSeconds": timeout,
    }
