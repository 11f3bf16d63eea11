"""A write that the cluster refuses stops nothing else, and the status says what it was: real admission refuses here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from support.served_namespace import Object, ServedNamespace, eventually, settled

ADMISSION = "/apis/admissionregistration.k8s.io/v1"


def _here(served: ServedNamespace) -> Object:
    return {"matchLabels": {"kubernetes.io/metadata.name": served.namespace}}


@contextmanager
def no_deletes_of(served: ServedNamespace, group: str, resource: str) -> Iterator[None]:
    """A ValidatingAdmissionPolicy, as administrators protect volumes with."""
    name = f"protect-{served.namespace}"
    rule = {"apiGroups": [group], "apiVersions": ["*"], "operations": ["DELETE"], "resources": [resource]}
    policy = {
        "metadata": {"name": name},
        "spec": {
            "failurePolicy": "Fail",
            "matchConstraints": {"namespaceSelector": _here(served), "resourceRules": [rule]},
            "validations": [{"expression": "false", "message": "nothing is deleted here"}],
        },
    }
    binding = {"metadata": {"name": name}, "spec": {"policyName": name, "validationActions": ["Deny"]}}
    served.api.create(f"{ADMISSION}/validatingadmissionpolicies", policy)
    served.api.create(f"{ADMISSION}/validatingadmissionpolicybindings", binding)
    try:
        yield
    finally:
        served.api.delete(f"{ADMISSION}/validatingadmissionpolicybindings/{name}")
        served.api.delete(f"{ADMISSION}/validatingadmissionpolicies/{name}")


@contextmanager
def a_webhook_that_is_down(served: ServedNamespace) -> Iterator[None]:
    """For Deployments, with failurePolicy Fail: the API server answers 500."""
    name = f"down-{served.namespace}"
    rule = {
        "apiGroups": ["apps"],
        "apiVersions": ["v1"],
        "operations": ["CREATE", "UPDATE"],
        "resources": ["deployments"],
    }
    webhook = {
        "name": "down.languagepipes.io",
        "clientConfig": {"url": "https://127.0.0.1:1/"},
        "rules": [rule],
        "namespaceSelector": _here(served),
        "failurePolicy": "Fail",
        "sideEffects": "None",
        "timeoutSeconds": 2,
        "admissionReviewVersions": ["v1"],
    }
    path = f"{ADMISSION}/validatingwebhookconfigurations"
    served.api.create(path, {"metadata": {"name": name}, "webhooks": [webhook]})
    try:
        yield
    finally:
        served.api.delete(f"{path}/{name}")


def test_a_surplus_that_may_not_be_deleted_is_told_and_stops_nothing(served: ServedNamespace, tiny_llama: Path) -> None:
    operator = served.started()
    served.apply_pipe()
    served.play_store(tiny_llama)
    eventually(lambda: len(served.list("Deployment")) == 4)
    settled(operator)
    old = {item["metadata"]["name"] for item in served.list("Deployment")}
    with no_deletes_of(served, "apps", "deployments"):
        # A policy works a moment after it was made.
        def protected() -> bool:
            answer = served.api.create(
                served.path("Deployment"),
                {
                    "metadata": {"generateName": "probe-"},
                    "spec": {
                        "replicas": 0,
                        "selector": {"matchLabels": {"a": "b"}},
                        "template": {
                            "metadata": {"labels": {"a": "b"}},
                            "spec": {"containers": [{"name": "c", "image": "i"}]},
                        },
                    },
                },
            )
            try:
                served.api.delete(served.path("Deployment", answer["metadata"]["name"]))
            except Exception as error:
                return "nothing is deleted here" in str(error)
            return False

        eventually(protected, what="the policy is in force")
        served.apply_pipe(stages={"count": 3})

        def told() -> bool:
            progressing = served.condition("Progressing")
            return progressing["reason"] == "ChildRefused" and "nothing is deleted here" in progressing["message"]

        eventually(told, what="what may not be deleted is told")
        now = {item["metadata"]["name"] for item in served.list("Deployment")}
        assert old < now  # the new replica was made beside the old one
        assert served.condition("Planned")["status"] == "True"
        events = served.api.get(f"/api/v1/namespaces/{served.namespace}/events")["items"]
        assert any(each["reason"] == "ChildRefused" and each["type"] == "Warning" for each in events)
    eventually(lambda: len(served.list("Deployment")) == 5, what="the surplus goes")
    eventually(lambda: served.condition("Progressing")["reason"] != "ChildRefused")


def test_a_webhook_that_is_down_is_told_and_waited_out(served: ServedNamespace) -> None:
    served.started()
    with a_webhook_that_is_down(served):
        served.apply_pipe()

        def told() -> bool:
            ready = served.condition("Ready")
            return ready["reason"] == "ChildRefused" and "down.languagepipes.io" in ready["message"]

        eventually(told, what="the webhook is told of")
        # What needs no webhook is there all the same.
        assert served.list("Secret")
        assert served.list("Service")
    eventually(lambda: served.list("Deployment"), what="the store's Deployment")
    eventually(lambda: served.condition("Ready")["reason"] != "ChildRefused")
