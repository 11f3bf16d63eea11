"""`kubectl drain` of any node ends, and fails no request: stages pause their streams, End Models are replaced first."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from cluster import Cluster
from support.kubectl import Kubectl
from support.serving import Client
from support.streams import MEMBERS, miscounted, rolled_out, streams

pytestmark = pytest.mark.kubernetes


@pytest.fixture
def drained(smollm2: Kubectl, our_cluster: Cluster) -> Iterator[Kubectl]:
    """The pipe that tests share; afterwards it is as it was, and so are the nodes."""
    yield smollm2
    for node in our_cluster.nodes:
        smollm2("uncordon", node.name)
    smollm2("scale", "lp/smollm2", "--replicas=1")
    rolled_out(smollm2)


def drain(kubectl: Kubectl, node: str) -> None:
    """Of the pipe's rings. The store's volume is on one node, so it could not run on the other."""
    kubectl("drain", node, f"--pod-selector={MEMBERS}", "--delete-emptydir-data", "--timeout=280s", timeout_seconds=290)
    assert node not in {pod["spec"].get("nodeName") for pod in kubectl.list("pods", MEMBERS)}


@pytest.mark.parametrize("replicas", [1, 2])
def test_no_stream_fails_while_each_node_is_drained_in_turn(
    drained: Kubectl, client: Client, our_cluster: Cluster, replicas: int
) -> None:
    kubectl = drained
    kubectl("scale", "lp/smollm2", f"--replicas={replicas}")
    url, warned = rolled_out(kubectl, replicas)["url"], miscounted(kubectl)

    with streams(kubectl, url, f"drain-{replicas}"):
        for node in our_cluster.nodes:
            drain(kubectl, node.name)
            kubectl("uncordon", node.name)
            assert rolled_out(kubectl, replicas)["readyReplicas"] == replicas

    assert miscounted(kubectl) == warned
