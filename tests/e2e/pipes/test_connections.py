"""Every connection that a serving pipe makes is one that its NetworkPolicies let through.

No plugin of the test cluster enforces policies, so the live policies are evaluated against what the kernel saw.
"""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from languagepipes_api.names import API_PORT, RING_PORT, STORE_PORT, TELEMETRY_PORT
from support.installation import Installation
from support.kubectl import Kubectl, wait_for
from support.members import Connection, connections, pods, role
from support.policy_evaluator import Outside, Pod, allowed
from support.serving import Client, condition, wait_ready

pytestmark = pytest.mark.kubernetes


def endpoints(kubectl: Kubectl) -> dict[tuple[str, int], tuple[str, int]]:
    """From the address and port of each Service to those of a pod behind it."""
    found = {}
    slices = kubectl.list("endpointslices")
    for service in kubectl.list("services"):
        for part in slices:
            if part["metadata"]["labels"]["kubernetes.io/service-name"] != service["metadata"]["name"]:
                continue
            ports = {port.get("name", ""): port["port"] for port in part.get("ports") or ()}
            for endpoint in part.get("endpoints") or ():
                for port in service["spec"]["ports"]:
                    if port.get("name", "") in ports:
                        own = (service["spec"]["clusterIP"], port["port"])
                        found[own] = (endpoint["addresses"][0], ports[port.get("name", "")])
    return found


def behind(connection: Connection, services: dict[tuple[str, int], tuple[str, int]]) -> Connection:
    """The connection as policies see it: after a Service's address was translated to a pod's."""
    listener, port = services.get((connection.listener, connection.port), (connection.listener, connection.port))
    return replace(connection, listener=listener, port=port)


def test_policies_let_every_connection_through_that_a_ring_makes(
    smollm2: Kubectl, client: Client, operator: Installation
) -> None:
    """From a stage's loss to its return: it loads from the store, the operator asks the store, the ring joins anew."""
    url = wait_ready(smollm2)["status"]["url"]
    known: dict[str, Pod] = {}
    seen: set[Connection] = set()
    services: dict[tuple[str, int], tuple[str, int]] = {}

    def look() -> None:
        services.update(endpoints(smollm2))
        for kubectl in (smollm2, operator.kubectl):
            for pod in kubectl.list("pods"):
                address, metadata = pod["status"].get("podIP"), pod["metadata"]
                if not address:
                    continue
                labels = metadata.get("labels", {})
                name = role(pod) if "languagepipes.io/role" in labels else metadata["name"]
                known[address] = Pod(name, metadata["namespace"], labels, address)
                running = any("running" in status["state"] for status in pod["status"].get("containerStatuses", ()))
                if running and "deletionTimestamp" not in metadata:
                    seen.update(connections(kubectl, pod))

    look()
    stage = next(pod for pod in pods(smollm2) if role(pod) == "stage-2")
    smollm2("delete", "pod", stage["metadata"]["name"], "--grace-period=0", "--force")
    wait_for("Ready False", lambda: (condition(smollm2, "Ready") or {}).get("status") == "False", timeout_seconds=15)

    def back() -> bool:
        look()
        return (condition(smollm2, "Ready") or {}).get("status") == "True"

    wait_for("Ready True", back, every_seconds=1)
    client.ask(url, "What is the capital of France?")
    look()

    seen = {behind(each, services) for each in seen}

    def end(address: str) -> Pod | Outside:
        return known.get(address) or Outside(address, address)

    policies = [*smollm2.list("networkpolicy"), *operator.kubectl.list("networkpolicy")]
    assert policies
    refused = [
        f"{end(each.dialler).name} -> {end(each.listener).name}:{each.port}"
        for each in seen
        if not allowed(policies, end(each.dialler), end(each.listener), each.port)
    ]
    assert refused == []

    among = {(end(each.dialler).name, end(each.listener).name, each.port) for each in seen}
    ring = ["end-model", "stage-1", "stage-2", "stage-3", "end-model"]
    expected = {(dialler, listener, RING_PORT) for dialler, listener in itertools.pairwise(ring)}
    expected |= {("stage-2", "store", STORE_PORT), ("client", "end-model", API_PORT)}
    assert expected <= among, f"not seen: {expected - among}"
    asking = next(pod.name for pod in known.values() if pod.namespace == operator.kubectl.namespace)
    assert any(dialler == asking and listener == "store" for dialler, listener, _ in among)
    assert any(port == TELEMETRY_PORT and dialler not in ring for dialler, _, port in among)  # a kubelet's probes
    # What nobody does may not be allowed either, or the policies say nothing.
    members = {pod.name: pod for pod in known.values()}
    assert not allowed(policies, members["client"], members["stage-1"], RING_PORT)
    assert not allowed(policies, members["client"], members["store"], STORE_PORT)
    assert not allowed(policies, members["stage-1"], members["stage-3"], RING_PORT)
