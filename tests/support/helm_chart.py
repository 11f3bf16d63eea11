"""The chart through the real helm: what it renders for given values, and what it says to wrong ones."""

from __future__ import annotations

import functools
import json
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from cluster import programs

from support.paths import ROOT

CHART = ROOT / "charts" / "languagepipes"
RELEASE = "lp"
NAMESPACE = "lp-system"
OPERATOR = "lp-languagepipes-operator"
# A helm that `go install` built takes 1.20 for the cluster's version where it asks none.
KUBERNETES = "1.37.2"

Manifest = dict[str, Any]
Values = Mapping[str, Any]

EVERYTHING: Values = {
    "namespaces": [],
    "replicas": 2,
    "imagePullSecrets": [{"name": "registry"}],
    "priorityClassName": "system-cluster-critical",
    "podLabels": {"team": "platform"},
    "podAnnotations": {"example.com/note": "here"},
    "serviceAccount": {"annotations": {"example.com/role": "operator"}},
    "nodeImage": {"pullSecrets": [{"name": "registry"}, {"name": "mirror"}]},
    "extraEnv": [{"name": "HTTPS_PROXY", "value": "http://proxy:3128"}],
    "extraVolumes": [{"name": "authorities", "configMap": {"name": "authorities"}}],
    "extraVolumeMounts": [{"name": "authorities", "mountPath": "/etc/authorities", "readOnly": True}],
    "tolerations": [{"key": "node-role.kubernetes.io/control-plane", "operator": "Exists", "effect": "NoSchedule"}],
    "affinity": {
        "nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {
                "nodeSelectorTerms": [{"matchExpressions": [{"key": "kubernetes.io/arch", "operator": "Exists"}]}]
            }
        }
    },
    "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
    "podMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
    "prometheusRule": {"enabled": True, "labels": {"release": "prometheus"}},
    "dashboards": {"enabled": True, "annotations": {"grafana_folder": "Language Pipes"}},
    "networkPolicy": {"enabled": True},
}
# Values in which the chart renders different objects; each is linted and shown to a real API server.
VARIANTS: Mapping[str, Values] = {
    "as it comes": {},
    "everything": EVERYTHING,
    "two namespaces": {"namespaces": ["team-a", "team-b"], "replicas": 2},
    "no cluster-scoped object": {
        "crds": {"enabled": False},
        "namespaces": ["team-a"],
        "rbac": {"aggregateClusterRoles": False},
    },
    "permissions from elsewhere": {
        "rbac": {"create": False, "aggregateClusterRoles": False},
        "serviceAccount": {"create": False, "name": "given"},
    },
    "no aggregation": {"rbac": {"aggregateClusterRoles": False}},
    "ids from the cluster": {"securityContext": {"fixedIds": False}},
    "images by digest": {
        "image": {"repository": "registry.example:5000/lp/operator", "digest": "sha256:" + "a" * 64},
        "nodeImage": {"repository": "registry.example:5000/lp/node", "tag": "main", "pullPolicy": "Always"},
        "fullnameOverride": "pipes",
    },
}


class Objects(list[Manifest]):
    """Rendered objects in helm's order."""

    def kinds(self) -> set[str]:
        return {each["kind"] for each in self}

    def all(self, kind: str) -> list[Manifest]:
        return [each for each in self if each["kind"] == kind]

    def one(self, kind: str, name: str | None = None) -> Manifest:
        """The only object of this kind (and name); an AssertionError says what there is instead."""
        found = [each for each in self.all(kind) if name in (None, each["metadata"]["name"])]
        assert len(found) == 1, [(each["kind"], each["metadata"]["name"]) for each in self]
        return found[0]


def helm() -> Path:
    """The helm beside the test cluster's programs, else the one on the PATH. FileNotFoundError without either."""
    built = programs.folder() / "helm"
    found = str(built) if built.exists() else shutil.which("helm")
    if found is None:
        raise FileNotFoundError("helm is neither built nor on the PATH: run `make cluster`")
    return Path(found)


def run(*arguments: str | Path, values: Values | None = None) -> subprocess.CompletedProcess[str]:
    """Run helm with these values; never raises for a failure of helm."""
    command: list[str | Path] = [helm(), *arguments]
    if values is not None:
        command += ["--values", "-"]
    return subprocess.run(command, input=json.dumps(dict(values or {})), capture_output=True, text=True, check=False)


def render(values: Values | None = None, *, release: str = RELEASE) -> Objects:
    """The objects of a release in NAMESPACE; an AssertionError carries helm's words."""
    return Objects(yaml.load_all(text(values, release=release), Loader=yaml.CSafeLoader))  # in C: a CRD is long


def text(values: Values | None = None, *, release: str = RELEASE) -> str:
    return _text(json.dumps(dict(values or {}), sort_keys=True), release)


@functools.cache
def _text(values: str, release: str) -> str:
    answer = run(
        *("template", release, CHART, "--namespace", NAMESPACE, "--kube-version", KUBERNETES),
        values=json.loads(values),
    )
    assert answer.returncode == 0, answer.stderr
    return answer.stdout


def refusal(values: Values) -> str:
    """What helm says to wrong values; an AssertionError if it takes them."""
    answer = run(*("template", RELEASE, CHART, "--namespace", NAMESPACE, "--kube-version", KUBERNETES), values=values)
    assert answer.returncode != 0, f"taken: {values}"
    return answer.stderr
