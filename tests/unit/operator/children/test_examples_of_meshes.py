"""The examples of pipes in a service mesh: what their pods carry, and what the network policies let through then.

No mesh runs here: what its injector and its proxies make of it is not tested.
"""

from __future__ import annotations

from typing import Any

import pytest
from languagepipes_api.names import API_PORT, RING_PORT, STORE_PORT, TELEMETRY_PORT
from support.example_files import example_objects, object_of_kind, snapshot_of
from support.example_pipes import of_kind, rendered
from support.policy_evaluator import Pod, allowed

MESHES = ("istio", "linkerd")
OUT = {
    "istio": ("labels", {"sidecar.istio.io/inject": "false", "istio.io/dataplane-mode": "none"}),
    "linkerd": ("annotations", {"linkerd.io/inject": "disabled"}),
}
EXCLUDED = {
    "istio": ("traffic.sidecar.istio.io/excludeInboundPorts", "traffic.sidecar.istio.io/excludeOutboundPorts"),
    "linkerd": ("config.linkerd.io/skip-inbound-ports", "config.linkerd.io/skip-outbound-ports"),
}
CONTROL_PLANE = {"istio": ("istio-system", (15012,)), "linkerd": ("linkerd", (8080, 8086, 8090))}
TUNNEL_PORT = {"istio": 15008, "linkerd": 4143}
CLIENT = Pod("client", "apps", {"app": "chat"})


def the_pipe(mesh: str) -> dict[str, Any]:
    return object_of_kind(example_objects(f"mesh/{mesh}.yaml"), "LanguagePipe")


def pods_of(mesh: str) -> dict[str, dict[str, Any]]:
    """What the pods of each role carry."""
    return {
        each["metadata"]["labels"]["languagepipes.io/role"]: each["spec"]["template"]["metadata"]
        for each in of_kind(rendered(snapshot_of(the_pipe(mesh))), "Deployment")
    }


def passes(mesh: str, dialler: Pod, listener: Pod, port: int) -> bool:
    """With the operator's policies and the example's."""
    further = object_of_kind(example_objects(f"mesh/{mesh}.yaml"), "NetworkPolicy")
    further["metadata"]["namespace"] = "default"
    policies = [*of_kind(rendered(snapshot_of(the_pipe(mesh))), "NetworkPolicy"), further]
    return allowed(policies, dialler, listener, port)


def pod(mesh: str, role: str) -> Pod:
    return Pod(role, "default", pods_of(mesh)[role]["labels"])


@pytest.mark.parametrize("mesh", MESHES)
def test_stages_and_store_are_kept_out_and_the_end_model_is_not(mesh: str) -> None:
    where, marks = OUT[mesh]
    pods = pods_of(mesh)

    for role in ("stage", "store"):
        assert marks.items() <= pods[role][where].items()
    assert not marks.items() & pods["end-model"].get(where, {}).items()


@pytest.mark.parametrize("mesh", MESHES)
def test_the_proxy_of_the_end_model_leaves_out_the_ports_with_tls_of_their_own(mesh: str) -> None:
    inbound, outbound = (pods_of(mesh)["end-model"]["annotations"][key] for key in EXCLUDED[mesh])

    assert inbound == f"{RING_PORT},{TELEMETRY_PORT}"
    assert outbound == f"{RING_PORT},{STORE_PORT}"


@pytest.mark.parametrize("mesh", MESHES)
def test_the_end_model_reaches_the_control_plane_and_the_mesh_reaches_it(mesh: str) -> None:
    namespace, ports = CONTROL_PLANE[mesh]

    assert all(passes(mesh, pod(mesh, "end-model"), Pod("control", namespace, {}), port) for port in ports)
    assert passes(mesh, CLIENT, pod(mesh, "end-model"), TUNNEL_PORT[mesh])
    assert passes(mesh, CLIENT, pod(mesh, "end-model"), API_PORT)


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("role", ["stage", "store"])
def test_members_in_a_mesh_would_be_cut_off_by_the_policies(mesh: str, role: str) -> None:
    """Why they are kept out: a tunnel hides the ports that the policies name."""
    assert not passes(mesh, pod(mesh, "end-model"), pod(mesh, role), TUNNEL_PORT[mesh])
    assert not passes(mesh, CLIENT, pod(mesh, role), TUNNEL_PORT[mesh])


def test_strict_istio_lets_the_last_stage_and_the_operator_in() -> None:
    policy = object_of_kind(example_objects("mesh/istio-strict.yaml"), "PeerAuthentication")["spec"]

    assert policy["selector"]["matchLabels"].items() <= pods_of("istio")["end-model"]["labels"].items()
    assert policy["portLevelMtls"] == {RING_PORT: {"mode": "PERMISSIVE"}, TELEMETRY_PORT: {"mode": "PERMISSIVE"}}
