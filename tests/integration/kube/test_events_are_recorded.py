"""Events about a pipe: each turn once, also where the API server was away in between; a real HTTP server plays it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from aiohttp import web
from languagepipes_operator.kube.client import Kube
from languagepipes_operator.kube.errors import Unavailable
from languagepipes_operator.metrics import Metrics
from languagepipes_operator.status.event_recorder import EventRecorder
from support.played_api import play

_METADATA = {"name": "p", "namespace": "n", "uid": "u"}


def _status(**reasons: str) -> dict[str, Any]:
    return {"conditions": [{"type": kind, "status": "False", "reason": reason, "message": "m"}
                           for kind, reason in reasons.items()]}  # fmt: skip


def _pipe(status: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"metadata": _METADATA} | ({"status": status} if status else {})


class _Server:
    """Takes Events, unless `refusals` has another answer."""

    def __init__(self) -> None:
        self.reasons: list[str] = []
        self.refusals: list[int] = []

    async def answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        if self.refusals:
            return web.json_response({"kind": "Status", "message": "no"}, status=self.refusals.pop())
        assert body["involvedObject"]["uid"] == "u"
        self.reasons.append(body["reason"])
        return web.json_response(body)


def test_an_event_that_could_not_be_created_is_created_at_the_next_reconcile_and_none_twice() -> None:
    server = _Server()

    async def scene(kube: Kube, _: Metrics) -> None:
        event_recorder, status = EventRecorder(kube, "me"), _status(Planned="StageTooLarge", Ready="NotPlanned")
        event_recorder.observe(_pipe())
        server.refusals = [503] * 5
        with pytest.raises(Unavailable):
            await event_recorder.record(_pipe(), status)
        for _ in range(2):
            # As the API server has it now: the status was written, though no Event of it was created.
            event_recorder.observe(_pipe(status))
            await event_recorder.record(_pipe(status), status)

    play(server.answer, scene)
    assert server.reasons == ["StageTooLarge", "NotPlanned"]


def test_a_status_whose_writing_was_not_answered_is_recorded() -> None:
    server = _Server()

    async def scene(kube: Kube, _: Metrics) -> None:
        event_recorder, status = EventRecorder(kube, "me"), _status(Planned="StageTooLarge")
        event_recorder.observe(_pipe())
        event_recorder.observe(_pipe(status))  # the write raised, the watch brought it
        await event_recorder.record(_pipe(status), status)

    play(server.answer, scene)
    assert server.reasons == ["StageTooLarge"]


def test_an_event_that_was_being_created_as_the_lease_was_lost_is_created_with_the_next() -> None:
    server, asked, over = _Server(), asyncio.Event(), asyncio.Event()

    async def answer(request: web.Request) -> web.StreamResponse:
        if not asked.is_set():
            asked.set()
            await over.wait()  # the first Event is never created
            return web.json_response({"kind": "Status", "message": "it ends"}, status=503)
        return await server.answer(request)

    async def scene(kube: Kube, _: Metrics) -> None:
        event_recorder, status = EventRecorder(kube, "me"), _status(Planned="StageTooLarge")
        event_recorder.observe(_pipe())
        creating = asyncio.create_task(event_recorder.record(_pipe(), status))
        await asyncio.wait_for(asked.wait(), 10)
        creating.cancel()
        with pytest.raises(asyncio.CancelledError):
            await creating
        event_recorder.observe(_pipe(status))
        await event_recorder.record(_pipe(status), status)
        over.set()

    play(answer, scene)
    assert server.reasons == ["StageTooLarge"]


def test_what_others_recorded_and_what_is_refused_for_good_is_not_recorded_again() -> None:
    server = _Server()

    async def scene(kube: Kube, _: Metrics) -> None:
        event_recorder, first, second = EventRecorder(kube, "me"), _status(Planned="A"), _status(Planned="B")
        event_recorder.observe(_pipe(first))
        await event_recorder.record(_pipe(first), first)
        server.refusals = [403]
        await event_recorder.record(_pipe(first), second)
        await event_recorder.record(_pipe(second), second)

    play(server.answer, scene)
    assert server.reasons == []
