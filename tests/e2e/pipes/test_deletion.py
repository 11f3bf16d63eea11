"""What a pipe leaves behind: nothing, whichever way it goes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from support.installation import Installation
from support.kubectl import Kubectl, wait_for
from support.serving import RESTRICTED, Images, pipe, wait_condition

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


@pytest.mark.parametrize("kind", ["node", "operator"])
def test_a_container_that_is_to_end_while_python_starts_ends_at_once(
    kind: str, images: Images, new_namespace: Callable[[str], Kubectl]
) -> None:
    """The first process of a container ignores signals that it does not handle yet: it must not be Python. Otherwise a
    replica that is taken away again as it starts would hold its memory for `drainSeconds`.
    """
    kubectl = new_namespace(f"starting-{kind}")
    slow = {"sitecustomize.py": "import time\nprint('begun', flush=True)\ntime.sleep(600)\n"}
    kubectl.apply(
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "slow"}, "data": slow},
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "slow"},
            "spec": {
                "automountServiceAccountToken": False,
                "terminationGracePeriodSeconds": 300,
                "containers": [
                    {
                        "name": "main",
                        "image": getattr(images, kind),
                        "imagePullPolicy": "IfNotPresent",
                        "command": [f"languagepipes-{kind}"],
                        "env": [{"name": "PYTHONPATH", "value": "/slow"}],
                        "securityContext": RESTRICTED,
                        "volumeMounts": [{"name": "slow", "mountPath": "/slow"}],
                    }
                ],
                "volumes": [{"name": "slow", "configMap": {"name": "slow"}}],
            },
        },
    )
    wait_for("a Python that starts", lambda: "begun" in kubectl.run("logs", "slow").stdout)
    kubectl("delete", "pod", "slow", "--wait=true", "--timeout=100s")


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
