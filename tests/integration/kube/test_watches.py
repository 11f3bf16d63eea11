"""What is kept of the API server's word when answers cross and watches break: a real HTTP server plays it."""

from __future__ import annotations

import asyncio
import json
import logging

import pytest
from aiohttp import web
from languagepipes_operator.kube.client import Kube
from languagepipes_operator.kube.errors import NotLeading, RevisionWentBack
from languagepipes_operator.kube.informer import Informer, ObjectKey
from languagepipes_operator.kube.kinds import CONFIG_MAP
from languagepipes_operator.metrics import Metrics
from languagepipes_operator.observe.pipes import Pipes
from support.played_api import play

KEY = ObjectKey("n", "pipe")


def _object(version: int, name: str = "pipe", uid: str = "u", **spec: object) -> dict[str, object]:
    return {"metadata": {"name": name, "namespace": "n", "uid": uid, "resourceVersion": str(version)}, "spec": spec}


async def _run_for(informer: Informer, seconds: float) -> None:
    task = asyncio.create_task(informer.run())
    await asyncio.sleep(seconds)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def _list_of(*items: dict[str, object], version: int) -> web.Response:
    return web.json_response({"metadata": {"resourceVersion": str(version)}, "items": list(items)})


@pytest.mark.parametrize("how", ["ends at once", "is too old at once", "is forbidden"])
def test_a_watch_that_never_lasts_is_begun_anew_ever_more_slowly(how: str, caplog: pytest.LogCaptureFixture) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        if "watch" not in request.query:
            return await _list_of(version=1)
        if how == "ends at once":
            return web.Response()
        if how == "is forbidden":
            return web.json_response({"kind": "Status", "code": 403, "message": "no"}, status=403)
        return web.Response(text=json.dumps({"type": "ERROR", "object": {"code": 410, "message": "too old"}}) + "\n")

    async def scene(kube: Kube, metrics: Metrics) -> None:
        await _run_for(Informer(kube, CONFIG_MAP, metrics), 3)
        assert 2 <= metrics.calls("watch") <= 5

    with caplog.at_level(logging.WARNING):
        play(answer, scene)
    assert len([record for record in caplog.records if "watching" in record.message]) <= 1


@pytest.mark.parametrize("how", ["ends", "is too old"])
def test_a_watch_is_not_resumed_once_the_api_server_was_put_back_to_an_older_revision(how: str) -> None:
    """The watch itself would say nothing: from a version that is still to come there is nothing to send."""
    restored = False

    async def answer(request: web.Request) -> web.StreamResponse:
        nonlocal restored
        if "watch" in request.query:
            restored = True
            gone = json.dumps({"type": "ERROR", "object": {"code": 410, "message": "too old"}}) + "\n"
            return web.Response(text="" if how == "ends" else gone)
        return await _list_of(_object(4), version=20 if restored else 100)

    async def scene(kube: Kube, metrics: Metrics) -> None:
        informer = Informer(kube, CONFIG_MAP, metrics)
        with pytest.raises(RevisionWentBack, match="resource version 20, and had been at 100"):
            await asyncio.wait_for(informer.run(), 10)
        assert metrics.calls("watch") == 1

    play(answer, scene)


def test_a_watch_that_ends_is_resumed_without_reading_the_whole_list_again() -> None:
    limits: list[str] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        if "watch" in request.query:
            assert request.query["resourceVersion"] == "5"
            return web.Response()
        limits.append(request.query["limit"])
        return await _list_of(_object(4), version=5 if len(limits) == 1 else 9)

    async def scene(kube: Kube, metrics: Metrics) -> None:
        await _run_for(Informer(kube, CONFIG_MAP, metrics), 3)
        assert metrics.calls("watch") > 1

    play(answer, scene)
    assert limits == ["500", *["1"] * (len(limits) - 1)]


def test_what_was_written_during_a_list_outlives_it() -> None:
    async def scene(kube: Kube, metrics: Metrics) -> None:
        informer = Informer(kube, CONFIG_MAP, metrics)

        async def later() -> None:
            await asyncio.sleep(0.2)
            informer.remember(_object(7, "made"))
            informer.remember(_object(8, "changed"))

        await asyncio.gather(_run_for(informer, 1), later())
        versions = {key.name: item["metadata"]["resourceVersion"] for key, item in informer._items.items()}
        assert versions == {"made": "7", "changed": "8", "other": "3"}

    async def answer(request: web.Request) -> web.StreamResponse:
        if "watch" in request.query:
            await asyncio.sleep(5)
        await asyncio.sleep(0.5)
        return await _list_of(_object(4, "changed"), _object(3, "other"), version=5)

    play(answer, scene)


def test_others_have_their_turn_while_a_long_list_is_taken_in() -> None:
    """Thousands of nodes, each of which a listener weighs, must not hold up the event loop at once."""
    turn = 0
    seen: list[int] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        if "watch" in request.query:
            await asyncio.sleep(5)
            return web.Response()
        return await _list_of(*(_object(1, name=f"pipe-{number}") for number in range(1000)), version=1)

    async def take_turns() -> None:
        nonlocal turn
        while True:
            turn += 1
            await asyncio.sleep(0)

    async def scene(kube: Kube, metrics: Metrics) -> None:
        informer = Informer(kube, CONFIG_MAP, metrics)
        informer.listeners.append(lambda item: seen.append(turn))
        others, running = asyncio.create_task(take_turns()), asyncio.create_task(informer.run())
        await asyncio.wait_for(informer.wait_synced(), 10)
        for task in (others, running):
            task.cancel()
        await asyncio.gather(others, running, return_exceptions=True)

    play(answer, scene)
    assert len(seen) == 1000
    assert max(seen.count(each) for each in set(seen)) <= 100


def test_a_change_that_overtakes_the_answer_to_a_status_write_is_not_undone() -> None:
    changed: list[ObjectKey] = []
    index = {KEY: [_object(1, replicas=1)]}
    pipes = Pipes(index, changed.append)
    index[KEY] = [_object(3, replicas=2)]  # somebody changed it just after our write, and the watch was faster
    pipes.watched(_object(3, replicas=2))
    pipes.written(_object(2, replicas=1))
    assert (pipes.get(KEY) or {})["spec"] == {"replicas": 2}
    del index[KEY]
    pipes.ended(_object(3, replicas=2))
    pipes.written(_object(2, replicas=1))
    assert pipes.get(KEY) is None


def test_a_change_that_our_status_write_overtook_is_looked_at_and_its_echo_is_not() -> None:
    changed: list[ObjectKey] = []
    index = {KEY: [_object(1, replicas=1)]}
    pipes = Pipes(index, changed.append)
    pipes.written(_object(3, replicas=2))  # holds what somebody else changed in version 2, which no reconcile has seen
    index[KEY] = [_object(2, replicas=2)]
    pipes.watched(_object(2, replicas=2))
    assert changed == [KEY]
    assert (pipes.get(KEY) or {})["metadata"]["resourceVersion"] == "3"
    index[KEY] = [_object(3, replicas=2)]
    pipes.watched(_object(3, replicas=2))
    assert changed == [KEY]


def test_a_pipe_whose_end_an_answer_shows_is_gone_although_the_watch_has_not_shown_it() -> None:
    index = {KEY: [_object(1)]}
    pipes = Pipes(index, lambda key: None)
    pipes.gone(KEY, "u")
    assert pipes.get(KEY) is None
    assert pipes.known() == []
    index[KEY] = [_object(1), _object(2, uid="v")]  # the new one's start is shown before the old one's end
    assert (pipes.get(KEY) or {})["metadata"]["uid"] == "v"
    pipes.gone(KEY, "u")
    assert pipes.known() == [KEY]


def test_a_write_is_not_tried_again_once_the_lease_is_lost() -> None:
    leads, asked = True, 0

    async def answer(_: web.Request) -> web.StreamResponse:
        nonlocal leads, asked
        leads, asked = False, asked + 1
        return web.json_response({"kind": "Status", "code": 503}, status=503)

    async def scene(kube: Kube, _: Metrics) -> None:
        with pytest.raises(NotLeading):
            await kube.guarded(lambda: leads).create(_object(0), CONFIG_MAP)

    play(answer, scene)
    assert asked == 1
