from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest
from cluster import ControlPlane, programs
from support.waiting import eventually

PODS = "/api/v1/namespaces/default/pods"


@pytest.fixture(scope="module")
def control_plane() -> Iterator[ControlPlane]:
    with ControlPlane() as control_plane:
        yield control_plane


def pod(name: str, **spec: object) -> dict[str, object]:
    return {"metadata": {"name": name}, "spec": {"containers": [{"name": "main", "image": "none"}], **spec}}


def gpu(count: int) -> dict[str, object]:
    return {"name": "main", "image": "none", "resources": {"limits": {"nvidia.com/gpu": str(count)}}}


def test_the_scheduler_binds_a_pod_that_asks_for_a_gpu_to_the_node_that_has_one(control_plane: ControlPlane) -> None:
    taint = {"key": "nvidia.com/gpu", "effect": "NoSchedule"}
    control_plane.add_node("plain")
    control_plane.add_node("gpu", allocatable={"nvidia.com/gpu": "1"}, taints=[taint])
    tolerations = [{"key": "nvidia.com/gpu", "operator": "Exists"}]

    control_plane.api.create(PODS, pod("with-gpu", containers=[gpu(1)], tolerations=tolerations))
    control_plane.api.create(PODS, pod("with-two", containers=[gpu(2)], tolerations=tolerations))

    assert eventually(lambda: control_plane.api.get(f"{PODS}/with-gpu")["spec"].get("nodeName") == "gpu", seconds=20)
    assert eventually(lambda: bool(control_plane.api.get(f"{PODS}/with-two")["status"].get("conditions")), seconds=20)
    message = control_plane.api.get(f"{PODS}/with-two")["status"]["conditions"][0]["message"]
    assert "Insufficient nvidia.com/gpu" in message


def test_a_deployments_pods_run_on_fake_nodes_and_go_when_it_is_deleted(control_plane: ControlPlane) -> None:
    control_plane.add_node("runner", labels={"runs": "pods"}, runs_pods=True)
    labels = {"app": "web"}
    template = {"metadata": {"labels": labels}, "spec": {**pod("")["spec"], "nodeSelector": {"runs": "pods"}}}  # type: ignore[dict-item]
    deployments = "/apis/apps/v1/namespaces/default/deployments"
    body = {"metadata": {"name": "web"}, "spec": {"selector": {"matchLabels": labels}, "template": template}}
    control_plane.api.create(deployments, body)
    assert eventually(
        lambda: control_plane.api.get(f"{deployments}/web")["status"].get("readyReplicas") == 1, seconds=20
    )

    control_plane.api.delete(f"{deployments}/web")

    assert eventually(lambda: not control_plane.api.get(PODS, labelSelector="app=web")["items"], seconds=20)


def test_the_api_server_comes_back_with_its_data_after_an_outage(control_plane: ControlPlane) -> None:
    path = "/api/v1/namespaces/default/configmaps"
    control_plane.api.create(path, {"metadata": {"name": "kept"}, "data": {"a": "b"}})

    control_plane.stop_api_server()
    assert not control_plane.api.ready()
    control_plane.start_api_server()

    assert control_plane.api.get(f"{path}/kept")["data"] == {"a": "b"}


@pytest.mark.slow
def test_two_control_planes_side_by_side_never_meet_and_leave_nothing() -> None:
    with ControlPlane(scheduler=False) as first, ControlPlane(scheduler=False) as second:
        folders = (first.folder, second.folder)
        processes = [psutil.Process(each.process.pid) for one in (first, second) for each in one.processes.members]
        first.api.create("/api/v1/namespaces", {"metadata": {"name": "only-here"}})
        assert first.api.exists("/api/v1/namespaces/only-here")
        assert not second.api.exists("/api/v1/namespaces/only-here")

    assert len(processes) == 6
    assert not any(process.is_running() for process in processes)
    assert not any(Path(folder).exists() for folder in folders)


def test_kubectl_reads_the_kubeconfig(control_plane: ControlPlane) -> None:
    command = [str(programs.kubectl()), "--kubeconfig", str(control_plane.kubeconfig), "get", "--raw", "/version"]

    answer = subprocess.run(command, capture_output=True, text=True, check=True)

    assert '"gitVersion"' in answer.stdout
