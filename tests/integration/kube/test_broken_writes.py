"""What an admission webhook that does not answer costs: the API server answers 500 for each object of its kinds."""

from __future__ import annotations

from collections import Counter
from typing import Any

from aiohttp import web
from languagepipes_operator.apply.applier import Applied, Applier
from languagepipes_operator.kube.client import Kube
from languagepipes_operator.metrics import Metrics
from languagepipes_operator.observe.caches import Caches
from support.played_api import play

UID = "u"


def child(kind: str, name: str, api_version: str = "v1") -> dict[str, Any]:
    owner = {"apiVersion": "languagepipes.io/v1alpha1", "kind": "LanguagePipe", "name": "pipe", "uid": UID}
    metadata = {
        "name": name,
        "namespace": "n",
        "uid": name,
        "resourceVersion": "1",
        "ownerReferences": [{**owner, "controller": True}],
    }
    return {"apiVersion": api_version, "kind": kind, "metadata": metadata}


CHILDREN = [
    child("Service", "api"),
    *(child("Deployment", name, "apps/v1") for name in ("store", "stage-1", "stage-2", "end-model")),
    child("ConfigMap", "plan"),
]


def counted(scene: Any) -> Counter[str]:
    """How often objects of each kind were written or deleted while `scene` lasted; Deployments fail."""
    asked: Counter[str] = Counter()

    async def answer(request: web.Request) -> web.StreamResponse:
        plural = request.path.split("/namespaces/n/")[1].split("/")[0]
        asked[plural] += 1
        if plural == "deployments":
            status = {"kind": "Status", "code": 500, "message": 'failed calling webhook "down.example.com": timeout'}
            return web.json_response(status, status=500)
        return web.json_response(await request.json())

    async def with_applier(kube: Kube, metrics: Metrics) -> None:
        await scene(Applier(kube, Caches(kube, metrics, ("n",), lambda key: None)))

    play(answer, with_applier)
    return asked


def test_one_object_is_tried_twice_and_the_others_of_its_kind_wait_for_the_next_round() -> None:
    applied = Applied()

    asked = counted(lambda applier: applier.write(CHILDREN, UID, applied))

    assert asked == {"services": 1, "deployments": 2, "configmaps": 1}
    (told,) = applied.blocking_errors
    assert told.startswith("Deployment/store: ")
    assert "down.example.com" in told


def test_so_it_is_with_what_is_deleted() -> None:
    applied = Applied()

    asked = counted(lambda applier: applier.prune(CHILDREN, applied))

    assert asked == {"services": 1, "deployments": 2, "configmaps": 1}
    assert len(applied.non_blocking_errors) == 1
