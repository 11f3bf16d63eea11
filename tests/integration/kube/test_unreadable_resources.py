"""A resource that this version of the operator cannot read: the status reports it, and it is looked at again."""

from __future__ import annotations

from typing import Any

import aiohttp
from aiohttp import web
from languagepipes_operator.apply.applier import Applier
from languagepipes_operator.decide.autoscaling import desired_replicas
from languagepipes_operator.kube.client import Kube
from languagepipes_operator.kube.informer import ObjectKey
from languagepipes_operator.metrics import Metrics
from languagepipes_operator.observe.caches import Caches
from languagepipes_operator.observe.load import LoadProbe
from languagepipes_operator.observe.node_probe import Reachability
from languagepipes_operator.observe.observer import Observer
from languagepipes_operator.observe.pipes import Pipes
from languagepipes_operator.observe.ring_probe import RingProbe
from languagepipes_operator.observe.store_poller import Stores
from languagepipes_operator.reconcile import Reconciler
from support.example_pipes import settings
from support.played_api import play

KEY = ObjectKey("n", "pipe")


def test_it_is_looked_at_again_and_each_look_puts_its_status_right() -> None:
    newer: dict[str, Any] = {
        "apiVersion": "languagepipes.io/v1alpha1",
        "kind": "LanguagePipe",
        "metadata": {"name": "pipe", "namespace": "n", "uid": "u", "generation": 3, "resourceVersion": "1"},
        "spec": {"model": {"source": "hf://a/b"}, "stages": {"count": 2}, "ofALaterVersion": True},
    }
    written: list[dict[str, Any]] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        if request.path.endswith("/status"):
            written.append((await request.json())["status"])
            changed = {**newer["metadata"], "resourceVersion": str(1 + len(written))}
            return web.json_response({**newer, "metadata": changed, "status": written[-1]})
        return web.json_response(await request.json())

    async def scene(kube: Kube, metrics: Metrics) -> None:
        async with aiohttp.ClientSession() as http:

            async def ask(_: str) -> None:
                return None

            caches = Caches(kube, metrics, ("n",), lambda key: None)
            stores = Stores(metrics, lambda key: None)
            reachability = Reachability(metrics, caches.pods, lambda node: None)
            rings = RingProbe(metrics, ask, caches.pods, lambda key: None)
            pipes = Pipes({KEY: [newer]}, lambda key: None)
            loads = LoadProbe(ask, pipes, lambda key: (), desired_replicas, lambda key: None)
            observer = Observer(kube, caches, stores, reachability, rings, loads, http)
            reconcile = Reconciler(
                kube, pipes, observer, Applier(kube, caches), stores, settings(), metrics, caches.reservations
            )

            first, second = await reconcile(KEY), await reconcile(KEY)
            assert first == second == 60
            assert len(written) == 1

            # Somebody took it away.
            pipes.seen({**newer, "metadata": {**newer["metadata"], "resourceVersion": "9"}})
            await reconcile(KEY)

    play(answer, scene)

    assert len(written) == 2
    (ready,) = [each for each in written[-1]["conditions"] if each["type"] == "Ready"]
    assert (ready["status"], ready["reason"]) == ("False", "InvalidSpec")
    assert "ofALaterVersion" in ready["message"]
