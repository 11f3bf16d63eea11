"""Where a real scheduler puts the operator's replicas."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from cluster import ControlPlane
from support.helm_chart import CHART, NAMESPACE, RELEASE, Values, run


@pytest.fixture
def control_plane(monkeypatch: pytest.MonkeyPatch) -> Iterator[ControlPlane]:
    """Two nodes, as many clusters have them: without labels for zones."""
    with ControlPlane() as control_plane:
        monkeypatch.setenv("KUBECONFIG", str(control_plane.kubeconfig))
        for name in ("node-1", "node-2"):
            control_plane.add_node(
                name, labels={"kubernetes.io/hostname": name, "kubernetes.io/os": "linux"}, runs_pods=True
            )
        yield control_plane


def roll_out(values: Values) -> None:
    """Install or upgrade, back when the pods are ready."""
    answer = run(
        *("upgrade", "--install", RELEASE, CHART, "--namespace", NAMESPACE, "--create-namespace"),
        *("--wait", "--timeout", "1m"),
        values=values,
    )
    assert answer.returncode == 0, answer.stderr


def nodes_of_two_operators(control_plane: ControlPlane) -> list[str]:
    """Waits until the ones that were replaced are gone."""
    deadline = time.monotonic() + 30
    while True:
        pods = control_plane.api.get(
            f"/api/v1/namespaces/{NAMESPACE}/pods", labelSelector="app.kubernetes.io/component=operator"
        )["items"]
        if len(pods) == 2:
            return sorted(pod["spec"]["nodeName"] for pod in pods)
        assert time.monotonic() < deadline, f"{len(pods)} pods"
        time.sleep(0.1)


def test_two_replicas_run_on_two_nodes_after_every_rollout(control_plane: ControlPlane) -> None:
    roll_out({})
    for number in range(5):
        roll_out({"replicas": 2, "podAnnotations": {"rollout": str(number)}})
        assert nodes_of_two_operators(control_plane) == ["node-1", "node-2"]
