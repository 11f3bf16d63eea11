"""What members and stores say reaches the status in time, and so does a node that has what was short."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cluster import ControlPlane
from languagepipes_api.names import Identity
from languagepipes_operator.certificates.authority import Credentials, issue, new_ca
from languagepipes_operator.kube.informer import ObjectKey
from languagepipes_operator.metrics import Metrics
from languagepipes_operator.observe.store_poller import Address, Stores
from support.served_namespace import ServedNamespace, eventually
from support.telemetry import member_that_says


def test_an_end_model_whose_ring_is_down_is_quoted(served: ServedNamespace, tiny_llama: Path) -> None:
    served.started()
    served.apply_pipe()
    served.play_store(tiny_llama)
    pod = eventually(lambda: served.child("Pod", "end-model"))
    eventually(lambda: served.condition("StagesReady")["status"] == "True")
    words = "stage-2 closed the link: certificate of another replica"
    with member_that_says({"state": "ready", "ring_ready": False, "ring_error": words}) as host:
        path = f"{served.path('Pod', pod['metadata']['name'])}/status"
        live = served.get("Pod", pod["metadata"]["name"])["status"]
        began = (datetime.now(UTC) - timedelta(minutes=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
        unready = [
            {**each, "status": "False", "reason": "ContainersNotReady"} if each["type"] in ("Ready",) else each
            for each in live["conditions"]
        ]
        container = {
            "name": "end-model",
            "image": "i",
            "imageID": "i",
            "ready": False,
            "started": True,
            "restartCount": 0,
            "state": {"running": {"startedAt": began}},
        }
        status = {
            "podIP": host,
            "podIPs": [{"ip": host}],
            "conditions": unready,
            "containerStatuses": [container],
        }
        served.api.merge(path, {"status": status})

        def told() -> bool:
            ready = served.condition("Ready")
            return ready["reason"] == "RingDown" and words in ready["message"]

        eventually(told, what="the End Model's words")


def test_a_refused_pipe_is_planned_as_soon_as_a_node_has_what_was_short(
    served: ServedNamespace, control_plane: ControlPlane, tiny_llama: Path
) -> None:
    served.started(NAMESPACES="")
    huge = {"resources": {"requests": {"memory": "900Ti"}, "limits": {"memory": "900Ti"}}}
    served.apply_pipe(stages={"count": 1, "template": huge})
    served.play_store(tiny_llama)
    eventually(lambda: served.condition("Planned")["reason"] == "StageTooLarge")
    control_plane.add_node("huge", allocatable={"memory": "1000Ti"})
    try:
        # Without news of nodes it is tried again after half a minute.
        eventually(lambda: served.condition("Planned")["status"] == "True", seconds=15)
    finally:
        control_plane.remove_node("huge")


def test_a_store_is_asked_on_with_a_new_certificate_before_the_old_one_ends() -> None:
    pipe, address = ObjectKey("n", "pipe"), Address("127.0.0.1", "uid")
    now = datetime.now(UTC)
    ca = new_ca("n", "pipe", now=now - timedelta(days=80))
    operator, store = Identity("n", "pipe", -1, "operator"), Identity("n", "pipe", -1, "store")
    old = Credentials(ca.certificate, issue(ca, operator, now=now - timedelta(days=80)))
    new = Credentials(ca.certificate, issue(ca, operator, now=now))

    async def scene() -> None:
        heard: list[ObjectKey] = []
        stores = Stores(Metrics(), heard.append)
        try:
            stores.watch(pipe, store, address, old)
            while not heard:
                await asyncio.sleep(0.05)
            said = stores.latest(pipe, address)
            stores.watch(pipe, store, address, new)
            assert said is not None
            assert stores.latest(pipe, address) == said
            assert stores.credentials(pipe) is new
            stores.watch(pipe, store, address, Credentials(ca.certificate, issue(ca, operator, now=now)))
            assert stores.credentials(pipe) is new
        finally:
            stores.close()

    asyncio.run(asyncio.wait_for(scene(), 20))


def test_a_ring_that_is_down_under_ready_pods_is_recovering_until_its_end_model_says_that_it_is_up(
    served: ServedNamespace, tiny_llama: Path
) -> None:
    """As after a cut between two healthy nodes: no pod changes."""
    served.started()
    served.apply_pipe()
    served.play_store(tiny_llama)
    pod = eventually(lambda: served.child("Pod", "end-model"))
    report: dict[str, object] = {"state": "ready", "ring_ready": True, "ring_error": ""}
    with member_that_says(report) as host:
        path = f"{served.path('Pod', pod['metadata']['name'])}/status"
        served.api.merge(path, {"status": {"podIP": host, "podIPs": [{"ip": host}]}})
        eventually(lambda: served.condition("Ready")["status"] == "True", what="Ready")
        report |= {"ring_ready": False, "ring_error": "stage-2 does not answer", "recovering": True}

        def recovering() -> bool:
            ready = served.condition("Ready")
            return ready["reason"] == "Recovering" and "stage-2 does not answer" in ready["message"]

        eventually(recovering, what="Recovering")
        assert served.pipe()["status"]["phase"] == "Recovering"
        assert served.condition("EndpointReady")["status"] == "True"
        report |= {"ring_ready": True, "ring_error": "", "recovering": False}
        eventually(lambda: served.condition("Ready")["status"] == "True", what="Ready again")
