"""What a pipe leaves behind: nothing, whichever way it goes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from support.installation import Installation
from support.kubectl import Kubectl, wait_for
from support.serving import pipe, wait_condition

pytestmark = pytest.mark.kubernetes

CHILDREN = "deployment,replicaset,pod,service,secret,configmap,persistentvolumeclaim,poddisruptionbudget,networkpolicy"
OURS = "app.kubernetes.io/managed-by=languagepipes"


def test_a_deleted_pipe_leaves_nothing(operator: Installation, new_namespace: Callable[[str], Kubectl]) -> None:
    kubectl = new_namespace("deletion")
    kubectl.apply(pipe(cache={"size": "1Gi"}))
    wait_for("children", lambda: kubectl.list("deployment", OURS))
    kubectl("delete", "lp", "smollm2", "--wait=true", "--timeout=30s")
    wait_for("no child", lambda: not kubectl.list(CHILDREN, OURS))


def test_a_namespace_goes_within_a_minute_while_the_operator_runs(
    operator: Installation, new_namespace: Callable[[str], Kubectl]
) -> None:
    kubectl = new_namespace("namespace-first")
    kubectl.apply(pipe())
    wait_for("children", lambda: kubectl.list("deployment", OURS))
    assert kubectl.namespace
    kubectl("delete", "namespace", kubectl.namespace, "--wait=true", "--timeout=60s")


def test_a_namespace_goes_within_a_minute_after_the_operator(
    operator: Installation, new_namespace: Callable[[str], Kubectl]
) -> None:
    kubectl = new_namespace("operator-first")
    kubectl.apply(pipe())
    wait_for("children", lambda: kubectl.list("deployment", OURS))
    operator.uninstall()
    try:
        assert kubectl.namespace
        kubectl("delete", "namespace", kubectl.namespace, "--wait=true", "--timeout=60s")
    finally:
        operator.install()


def test_two_pipes_and_two_namespaces_never_touch_each_other(
    operator: Installation, new_namespace: Callable[[str], Kubectl]
) -> None:
    first, second = new_namespace("one"), new_namespace("two")
    first.apply(pipe("a"), pipe("b"))
    second.apply(pipe("a"))
    for kubectl, name in ((first, "a"), (first, "b"), (second, "a")):
        wait_condition(kubectl, "Ready", "False", name=name)
        wait_for("its store", lambda k=kubectl, n=name: k.list("deployment", f"languagepipes.io/pipe={n}"))
    others = {
        (kubectl.namespace, item["kind"], item["metadata"]["name"]): item["metadata"]["uid"]
        for kubectl, selector in ((first, "languagepipes.io/pipe=b"), (second, OURS))
        for item in kubectl.list("deployment,service,secret", selector)
    }
    first("delete", "lp", "a", "--wait=true", "--timeout=30s")
    wait_for("no child of a", lambda: not first.list(CHILDREN, "languagepipes.io/pipe=a"))
    assert others == {
        (kubectl.namespace, item["kind"], item["metadata"]["name"]): item["metadata"]["uid"]
        for kubectl, selector in ((first, "languagepipes.io/pipe=b"), (second, OURS))
        for item in kubectl.list("deployment,service,secret", selector)
    }
