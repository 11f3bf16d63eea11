"""The chart on a real API server: every object is taken whole, and the permissions are what the operator needs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from cluster import ControlPlane, programs
from support.helm_chart import CHART, NAMESPACE, OPERATOR, RELEASE, VARIANTS, helm, text
from support.permissions import IN_A_NAMESPACE, LEASE, NODES, Permission
from support.waiting import eventually

NARROW = "narrow-system"
# The one object of a kind that the operator may reach by name alone.
NAMED = {"leases": OPERATOR}
VERBS = ("get", "list", "watch", "create", "update", "patch", "delete", "deletecollection")
PIPE = {
    "apiVersion": "languagepipes.io/v1alpha1",
    "kind": "LanguagePipe",
    "metadata": {"name": "qwen3"},
    "spec": {"model": {"source": "hf://Qwen/Qwen3-0.6B"}, "stages": {"count": 3}},
}


def _object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties}


def _list(items: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


def _monitoring(kind: str, **spec: Any) -> dict[str, Any]:
    """A definition with those fields in spec, and no other, so that strict validation refuses a misspelt one."""
    plural = f"{kind.lower()}s"
    schema = {**_object(spec={**_object(**spec), "required": list(spec)}), "required": ["spec"]}
    version = {"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": f"{plural}.monitoring.coreos.com",
            "annotations": {"api-approved.kubernetes.io": "unapproved, a test's"},
        },
        "spec": {
            "group": "monitoring.coreos.com",
            "scope": "Namespaced",
            "names": {"kind": kind, "listKind": f"{kind}List", "plural": plural, "singular": kind.lower()},
            "versions": [version],
        },
    }


# The fields of https://github.com/prometheus-operator/prometheus-operator's resources that the chart sets.
_TEXT = {"type": "string"}
_TEXTS = {"type": "object", "additionalProperties": _TEXT}
_RELABELINGS = _list(
    _object(sourceLabels=_list(_TEXT), targetLabel=_TEXT, regex=_TEXT, replacement=_TEXT, action=_TEXT)
)
_ENDPOINT = {"port": _TEXT, "path": _TEXT, "interval": _TEXT, "honorLabels": {"type": "boolean"}}
MONITORING = [
    _monitoring(
        "ServiceMonitor",
        namespaceSelector=_object(matchNames=_list(_TEXT)),
        selector=_object(matchLabels=_TEXTS),
        endpoints=_list(_object(**_ENDPOINT)),
    ),
    _monitoring(
        "PodMonitor",
        namespaceSelector=_object(matchNames=_list(_TEXT), any={"type": "boolean"}),
        selector=_object(matchLabels=_TEXTS, matchExpressions=_list(_object(key=_TEXT, operator=_TEXT))),
        podMetricsEndpoints=_list(_object(**_ENDPOINT, relabelings=_RELABELINGS, metricRelabelings=_RELABELINGS)),
    ),
    _monitoring(
        "PrometheusRule",
        groups=_list(
            _object(
                name=_TEXT,
                rules=_list(
                    _object(
                        **{"alert": _TEXT, "record": _TEXT, "expr": _TEXT, "for": _TEXT},
                        labels=_TEXTS,
                        annotations=_TEXTS,
                    )
                ),
            )
        ),
    ),
]


class Cluster:
    """The API server, with kubectl and helm as its administrator types them."""

    def __init__(self, control_plane: ControlPlane, home: Path) -> None:
        self.api = control_plane.api
        self._environment = {
            **os.environ,
            "KUBECONFIG": str(control_plane.kubeconfig),
            **{f"HELM_{kind}_HOME": str(home / kind.lower()) for kind in ("CACHE", "CONFIG", "DATA")},
        }

    def kubectl(self, *arguments: str, given: str | None = None) -> subprocess.CompletedProcess[str]:
        return self._run(programs.kubectl(), *arguments, given=given)

    def helm(self, *arguments: str | Path, values: Mapping[str, Any] | None = None) -> str:
        """What helm printed; an AssertionError carries its words if it failed."""
        given = ("--values", "-") if values is not None else ()
        answer = self._run(helm(), *arguments, *given, given=json.dumps(dict(values or {})))
        assert answer.returncode == 0, answer.stderr
        return answer.stdout

    def make_namespace(self, name: str) -> None:
        """A namespace that enforces, and warns by, the restricted Pod Security profile."""
        labels = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn")}
        self.api.create("/api/v1/namespaces", {"metadata": {"name": name, "labels": labels}})
        eventually(lambda: self.api.exists(f"/api/v1/namespaces/{name}/serviceaccounts/default"), seconds=30)

    def kubeconfig_of(self, account: str, path: Path) -> Path:
        """Write the administrator's kubeconfig with a token of the service account "namespace/name" in his stead."""
        namespace, name = account.split("/")
        token = self.api.create(f"/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token", {})["status"]["token"]
        config = json.loads(Path(self._environment["KUBECONFIG"]).read_text())
        config["users"][0]["user"] = {"token": token}
        path.touch(mode=0o600)
        path.write_text(json.dumps(config))
        return path

    def may(self, user: str, permission: Permission, *, namespace: str = "") -> bool:
        """Whether RBAC lets this user, or the service account "namespace/name", do it; namespace "": in all of them."""
        group, resource, verb, name = permission
        resource, _, subresource = resource.partition("/")
        groups = ["system:authenticated"]
        if "/" in user:
            home, account = user.split("/")
            user = f"system:serviceaccount:{home}:{account}"
            groups += ["system:serviceaccounts", f"system:serviceaccounts:{home}"]
        review = {
            "spec": {
                "user": user,
                "groups": groups,
                "resourceAttributes": {
                    "group": group,
                    "resource": resource,
                    "subresource": subresource,
                    "verb": verb,
                    "namespace": namespace,
                    "name": "" if name == "*" else name,
                },
            }
        }
        answer = self.api.create("/apis/authorization.k8s.io/v1/subjectaccessreviews", review)
        return bool(answer["status"]["allowed"])

    def resources(self) -> Iterator[tuple[str, str, bool]]:
        """(group, resource or resource/subresource, whether it is in namespaces) of all that the API server serves."""
        roots = [("", "/api/v1")]
        roots += [
            (group["name"], f"/apis/{group['preferredVersion']['groupVersion']}")
            for group in self.api.get("/apis")["groups"]
        ]
        for group, path in roots:
            for each in self.api.get(path)["resources"]:
                yield group, each["name"], each["namespaced"]

    def everything_allowed(self, account: str, *, namespace: str) -> set[Permission]:
        """All that the account may do in the namespace and to kinds outside of namespaces."""
        found: set[Permission] = set()
        for group, resource, namespaced in self.resources():
            where = namespace if namespaced else ""
            for verb in VERBS:
                for name in ("*", NAMED.get(resource)):
                    if name and self.may(account, (group, resource, verb, name), namespace=where):
                        found.add((group, resource, verb, name))
                        break
        return found

    def _run(self, *command: str | Path, given: str | None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, input=given, capture_output=True, text=True, check=False, env=self._environment, timeout=120
        )


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with ControlPlane(scheduler=False) as control_plane:
        cluster = Cluster(control_plane, tmp_path_factory.mktemp("helm"))
        for name in (NAMESPACE, NARROW, "team-a", "team-b"):
            cluster.make_namespace(name)
        for definition in MONITORING:
            cluster.api.create("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", definition)
        for definition in MONITORING:
            resource = definition["spec"]["names"]["plural"]
            path = f"/apis/monitoring.coreos.com/v1/{resource}"
            eventually(lambda path=path: cluster.api.exists(path), seconds=30)
        yield cluster


@pytest.fixture(scope="module")
def wide(cluster: Cluster) -> str:
    """A release for all namespaces; what helm said."""
    return cluster.helm("install", RELEASE, CHART, "--namespace", NAMESPACE)


@pytest.fixture(scope="module")
def narrow(cluster: Cluster, wide: str) -> str:
    """A release of the same name in another namespace, for team-a alone; what helm said."""
    values = {"namespaces": ["team-a"], "crds": {"enabled": False}}
    return cluster.helm("install", RELEASE, CHART, "--namespace", NARROW, values=values)


@pytest.fixture(scope="module")
def anyone(cluster: Cluster) -> set[Permission]:
    """What the API server lets every account do, such as asking what it may do."""
    return cluster.everything_allowed("team-b/default", namespace="team-b")


@pytest.mark.parametrize("name", VARIANTS)
def test_the_api_server_takes_every_object_under_strict_validation_without_a_warning(
    cluster: Cluster, name: str
) -> None:
    command = (
        "apply",
        "--server-side",
        "--dry-run=server",
        "--validate=strict",
        "--force-conflicts",
        "--filename",
        "-",
    )

    answer = cluster.kubectl(*command, given=text(VARIANTS[name]))

    assert (answer.returncode, answer.stderr) == (0, "")
    assert answer.stdout.count("serverside-applied") == text(VARIANTS[name]).count("\nkind: ")


def test_the_notes_say_how_to_check_the_operator_and_make_a_pipe_that_the_api_server_takes(
    cluster: Cluster, wide: str
) -> None:
    notes = wide.split("NOTES:\n", 1)[1]

    assert f"kubectl --namespace {NAMESPACE} rollout status deployment/{OPERATOR}" in notes
    assert f"helm test {RELEASE} --namespace {NAMESPACE}" in notes
    assert "It serves pipes in all namespaces." in notes
    assert "http://qwen3.default.svc/v1" in notes
    pipe = notes.split("<<EOF\n", 1)[1].split("  EOF\n", 1)[0]
    answer = cluster.kubectl("apply", "--dry-run=server", "--validate=strict", "--filename", "-", given=pipe)
    assert (answer.returncode, answer.stderr) == (0, "")


def test_the_notes_of_a_release_for_some_namespaces_say_what_is_different(narrow: str) -> None:
    notes = narrow.split("NOTES:\n", 1)[1]

    assert "It serves pipes in: team-a. It does not read nodes" in notes
    assert "crds.enabled is false: apply crds/languagepipes.io_languagepipes.yaml" in notes
    assert "http://qwen3.team-a.svc/v1" in notes


@pytest.mark.slow
def test_the_operator_for_all_namespaces_may_do_what_it_needs_and_nothing_else(
    cluster: Cluster, wide: str, anyone: set[Permission]
) -> None:
    account = f"{NAMESPACE}/{OPERATOR}"

    everywhere = IN_A_NAMESPACE | NODES | anyone
    assert cluster.everything_allowed(account, namespace="team-b") == everywhere
    assert cluster.everything_allowed(account, namespace=NAMESPACE) == everywhere | LEASE


@pytest.mark.slow
def test_the_operator_for_some_namespaces_reaches_no_other(
    cluster: Cluster, narrow: str, anyone: set[Permission]
) -> None:
    account = f"{NARROW}/{OPERATOR}"

    assert cluster.everything_allowed(account, namespace="team-a") == anyone | IN_A_NAMESPACE
    assert cluster.everything_allowed(account, namespace="team-b") == anyone
    assert cluster.everything_allowed(account, namespace=NARROW) == anyone | LEASE
    for permission in IN_A_NAMESPACE | NODES:
        assert not cluster.may(account, permission), permission


@pytest.mark.parametrize(("home", "namespaces"), [(NAMESPACE, ""), (NARROW, "team-a")])
def test_an_operator_under_its_account_makes_a_pipes_children_and_is_forbidden_nothing(
    cluster: Cluster, wide: str, narrow: str, home: str, namespaces: str, tmp_path: Path
) -> None:
    kubeconfig = cluster.kubeconfig_of(f"{home}/{OPERATOR}", tmp_path / "kubeconfig")
    settings = {
        "NODE_IMAGE": "languagepipes-node:0.1.0",
        "NAMESPACES": namespaces,
        "POD_NAMESPACE": home,
        "LEASE_NAME": OPERATOR,
        "IDENTITY": "operator-0",
        "LISTEN": "127.0.0.1:0",
    }
    environment = {f"LANGUAGEPIPES_OPERATOR_{name}": value for name, value in settings.items()}
    name = f"of-{home}"
    pipes = "/apis/languagepipes.io/v1alpha1/namespaces/team-a/languagepipes"
    cluster.api.create(pipes, {**PIPE, "metadata": {"name": name}})

    def made(collection: str, **selected: str) -> Callable[[], bool]:
        selected = selected or {"labelSelector": f"languagepipes.io/pipe={name}"}
        return lambda: bool(cluster.api.get(collection.format("namespaces/team-a"), **selected)["items"])

    log = tmp_path / "log"
    with log.open("wb") as file:
        operator = subprocess.Popen(
            [sys.executable, "-m", "languagepipes_operator.main"],
            env={**os.environ, "KUBECONFIG": str(kubeconfig), **environment},
            stdout=file,
            stderr=file,
        )
        try:
            eventually(made("/api/v1/{}/secrets"), seconds=30)
            eventually(made("/api/v1/{}/services"), seconds=30)
            eventually(made("/apis/networking.k8s.io/v1/{}/networkpolicies"), seconds=30)
            eventually(made("/apis/apps/v1/{}/deployments"), seconds=30)
            eventually(made("/api/v1/{}/events", fieldSelector=f"involvedObject.name={name}"), seconds=30)
            eventually(lambda: "conditions" in cluster.api.get(f"{pipes}/{name}").get("status", {}), seconds=30)
        finally:
            operator.terminate()
            operator.wait(timeout=30)
            cluster.api.delete(f"{pipes}/{name}")

    assert "forbidden" not in log.read_text().lower()


def test_who_may_edit_a_namespace_makes_and_scales_pipes_there_and_who_may_view_reads_them(
    cluster: Cluster, wide: str
) -> None:
    bindings = "/apis/rbac.authorization.k8s.io/v1/namespaces/team-a/rolebindings"
    for role in ("view", "edit", "admin"):
        binding = {
            "metadata": {"name": role},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": f"{role}er"}],
        }
        cluster.api.create(bindings, binding)
    eventually(
        lambda: cluster.may("viewer", ("languagepipes.io", "languagepipes", "get", "*"), namespace="team-a"),
        seconds=30,
    )
    eventually(
        lambda: cluster.may("editer", ("languagepipes.io", "languagepipes", "create", "*"), namespace="team-a"),
        seconds=30,
    )
    eventually(
        lambda: cluster.may("adminer", ("languagepipes.io", "languagepipes", "create", "*"), namespace="team-a"),
        seconds=30,
    )

    def as_user(user: str, *arguments: str, given: str | None = None) -> str:
        answer = cluster.kubectl("--as", user, *arguments, given=given)
        return answer.stdout + answer.stderr

    pipe = json.dumps(PIPE)
    assert "forbidden" in as_user("viewer", "-n", "team-a", "apply", "-f", "-", given=pipe)
    assert "languagepipe.languagepipes.io/qwen3 created" in as_user(
        "editer", "-n", "team-a", "apply", "--validate=strict", "-f", "-", given=pipe
    )
    assert "forbidden" in as_user("editer", "-n", "team-b", "apply", "-f", "-", given=pipe)
    assert "scaled" in as_user("editer", "-n", "team-a", "scale", "languagepipe/qwen3", "--replicas=2")
    status = ("patch", "languagepipe/qwen3", "--subresource=status", "--type=merge", '--patch={"status":{"phase":"x"}}')
    assert "forbidden" in as_user("editer", "-n", "team-a", *status)
    assert "qwen3" in as_user("viewer", "-n", "team-a", "get", "languagepipes")
    assert "deleted" in as_user("adminer", "-n", "team-a", "delete", "languagepipe/qwen3")


def test_a_pipe_that_no_operator_has_seen_says_so(cluster: Cluster, wide: str) -> None:
    """Else tools that follow kstatus, as Flux and kpt do, would call it current."""
    pipes = "/apis/languagepipes.io/v1alpha1/namespaces/team-b/languagepipes"
    metadata = {**PIPE["metadata"], "name": "unseen"}
    cluster.api.create(pipes, {**PIPE, "metadata": metadata, "status": {"phase": "Ready"}})
    assert cluster.api.get(f"{pipes}/unseen")["status"] == {"observedGeneration": -1}
    cluster.api.delete(f"{pipes}/unseen")


def test_an_upgrade_changes_the_release_and_an_uninstall_keeps_the_definition_and_the_pipes(
    cluster: Cluster, wide: str
) -> None:
    def there(path: str) -> bool:
        return cluster.api.exists(f"/apis/{path}")

    deployment = f"apps/v1/namespaces/{NAMESPACE}/deployments/{OPERATOR}"
    budget = f"policy/v1/namespaces/{NAMESPACE}/poddisruptionbudgets/{OPERATOR}"
    crd = "apiextensions.k8s.io/v1/customresourcedefinitions/languagepipes.languagepipes.io"
    pipes = "languagepipes.io/v1alpha1/namespaces/team-b/languagepipes"
    cluster.api.create(f"/apis/{pipes}", PIPE)
    assert not there(budget)

    cluster.helm("upgrade", RELEASE, CHART, "--namespace", NAMESPACE, values={"replicas": 2})
    assert cluster.api.get(f"/apis/{deployment}")["spec"]["replicas"] == 2
    assert there(budget)

    kept = cluster.helm("uninstall", RELEASE, "--namespace", NAMESPACE)
    assert "[CustomResourceDefinition] languagepipes.languagepipes.io" in kept
    eventually(lambda: not there(deployment), seconds=30)
    assert there(crd)
    assert there(f"{pipes}/qwen3")

    # The same release takes up what it left.
    cluster.helm("install", RELEASE, CHART, "--namespace", NAMESPACE)
    assert there(deployment)
    assert there(f"{pipes}/qwen3")
    cluster.api.delete(f"/apis/{pipes}/qwen3")
