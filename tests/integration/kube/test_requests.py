"""What the client does with an API server that throttles, errs or goes away: a real HTTP server plays it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import pytest
from aiohttp import web
from languagepipes_operator.kube.client import Kube
from languagepipes_operator.kube.errors import Conflict, Expired, NotFound, Throttled, Unavailable
from languagepipes_operator.kube.kinds import CONFIG_MAP
from languagepipes_operator.metrics import Metrics
from support.played_api import Answer, play


def _with_server(answer: Answer, ask: Callable[[Kube], Awaitable[None]]) -> Metrics:
    return play(answer, lambda kube, _: ask(kube))


def _status(code: int, reason: str, **headers: str) -> web.Response:
    return web.json_response(
        {"kind": "Status", "code": code, "reason": reason, "message": "no"}, status=code, headers=headers
    )


def test_a_throttled_request_waits_as_long_as_the_server_asks() -> None:
    seen: list[float] = []

    async def answer(_: web.Request) -> web.StreamResponse:
        seen.append(time.monotonic())
        if len(seen) < 2:
            return _status(429, "TooManyRequests", **{"Retry-After": "1"})
        return web.json_response({"metadata": {"name": "a"}})

    async def ask(kube: Kube) -> None:
        assert (await kube.get(CONFIG_MAP, "a", namespace="n"))["metadata"]["name"] == "a"

    metrics = _with_server(answer, ask)
    assert seen[1] - seen[0] >= 1
    assert metrics.calls("get") == 2


def test_a_token_that_is_turned_over_is_no_refusal() -> None:
    count = 0

    async def answer(_: web.Request) -> web.StreamResponse:
        nonlocal count
        count += 1
        return _status(401, "Unauthorized") if count < 3 else web.json_response({"metadata": {"name": "a"}})

    async def ask(kube: Kube) -> None:
        assert (await kube.get(CONFIG_MAP, "a", namespace="n"))["metadata"]["name"] == "a"

    _with_server(answer, ask)
    assert count == 3


def test_errors_of_the_server_are_tried_again_and_then_told() -> None:
    count = 0

    async def answer(_: web.Request) -> web.StreamResponse:
        nonlocal count
        count += 1
        return _status(503, "ServiceUnavailable")

    async def ask(kube: Kube) -> None:
        with pytest.raises(Unavailable) as caught:
            await kube.get(CONFIG_MAP, "a", namespace="n")
        assert not isinstance(caught.value, Throttled)

    _with_server(answer, ask)
    assert count == 5


@pytest.mark.parametrize(
    ("code", "reason", "error"), [(404, "NotFound", NotFound), (409, "Conflict", Conflict), (410, "Expired", Expired)]
)
def test_what_trying_again_cannot_help_is_told_at_once(code: int, reason: str, error: type[Exception]) -> None:
    count = 0

    async def answer(_: web.Request) -> web.StreamResponse:
        nonlocal count
        count += 1
        return _status(code, reason)

    async def ask(kube: Kube) -> None:
        with pytest.raises(error, match="no"):
            await kube.get(CONFIG_MAP, "a", namespace="n")

    _with_server(answer, ask)
    assert count == 1


def test_a_watch_that_falls_silent_is_noticed() -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b'{"type":"ADDED","object":{"metadata":{"name":"a","resourceVersion":"2"}}}\n')
        await asyncio.sleep(5)
        return response

    async def ask(kube: Kube) -> None:
        events = kube.watch(CONFIG_MAP, "1", silence_seconds=0.3)
        assert (await anext(events)).object["metadata"]["name"] == "a"
        with pytest.raises(TimeoutError):
            await anext(events)

    _with_server(answer, ask)
