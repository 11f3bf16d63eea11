"""No change costs a request: streams go through the Service while what runs is replaced, and none of them fails."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from support.installation import Installation
from support.kubectl import Kubectl, wait_for
from support.serving import MODEL_FILE, SMALL, Client, Images, fill_claim, pipe, wait_condition
from support.streams import members, miscounted, replicas, rolled_out, stores, streams

pytestmark = pytest.mark.kubernetes


@pytest.fixture
def fresh(smollm2: Kubectl) -> Iterator[Kubectl]:
    """The pipe that tests share, and as it was afterwards."""
    yield smollm2
    smollm2.apply(pipe())


def test_no_stream_fails_while_what_runs_is_replaced(
    fresh: Kubectl, client: Client, operator: Installation, images: Images
) -> None:
    kubectl = fresh
    url = rolled_out(kubectl)["url"]
    warned = miscounted(kubectl)
    two: dict[str, Any] = {"stages": {"count": 2, "template": SMALL}}

    with streams(kubectl, url, "split"):
        old = replicas(kubectl)
        kubectl.apply(pipe(**two))
        assert rolled_out(kubectl)["stagesReady"] == "2/2"
        assert not replicas(kubectl) & old

    # The operator is killed as soon as the new replica is there; the next one goes on from what it finds.
    server: dict[str, Any] = {**two, "server": {"maxQueuedRequests": 300}}
    with streams(kubectl, url, "server"):
        kubectl.apply(pipe(**server))
        wait_for("a replica beside the old", lambda: len(replicas(kubectl)) == 2)
        operator.kubectl("delete", "pod", operator.leader(), "--grace-period=0", "--force", "--wait=false")
        rolled_out(kubectl)

    with streams(kubectl, url, "scale"):
        kubectl("scale", "lp/smollm2", "--replicas=2")
        assert rolled_out(kubectl, 2)["readyReplicas"] == 2
        kubectl("scale", "lp/smollm2", "--replicas=1")
        rolled_out(kubectl)

    with streams(kubectl, url, "undo"):
        before = members(kubectl)
        nowhere = {**SMALL, "nodeSelector": {"no.such/label": "x"}}
        never = {**server, "stages": {"count": 2, "template": nowhere}, "rollout": {"progressDeadlineSeconds": 10}}
        kubectl.apply(pipe(**never))
        told = wait_condition(kubectl, "Progressing", "False", reason="ProgressDeadlineExceeded")
        assert "goes on serving" in told["message"]
        assert before.items() <= members(kubectl).items()
        kubectl.apply(pipe(**server))
        rolled_out(kubectl)
        assert members(kubectl) == before

    # Another source: the new replica loads from a store of its own, and the old store goes last.
    fill_claim(kubectl, images, "other-models")
    other = {"source": f"pvc://other-models/{MODEL_FILE}"}
    first = stores(kubectl)
    with streams(kubectl, url, "model"):
        kubectl.apply(pipe(**server, model=other))
        wait_for("a store beside the first", lambda: len(stores(kubectl) - first) == 1)
        assert first < stores(kubectl)
        rolled_out(kubectl)
        wait_for("the first store gone", lambda: not stores(kubectl) & first)

    assert miscounted(kubectl) == warned
