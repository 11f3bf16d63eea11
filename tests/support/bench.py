"""`languagepipes bench` as a user runs it, and servers that misbehave in front of it."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from aiohttp import web

COMMAND = [sys.executable, "-m", "languagepipes_operator.cli", "bench"]


def environment(key: str | None = None) -> dict[str, str]:
    """This process's, with that API key or with none."""
    found = {name: value for name, value in os.environ.items() if name != "OPENAI_API_KEY"}
    return found if key is None else {**found, "OPENAI_API_KEY": key}


def bench(*arguments: str | Path, key: str | None = None, seconds: float = 60) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        env=environment(key),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )


def rows(output: str) -> dict[str, list[str]]:
    """The cells of the table's rows by the row's name."""
    cells = (re.split(r" {2,}", line.strip()) for line in output.splitlines())
    return {row[0]: row[1:] for row in cells if len(row) > 1}


class PlayedServer:
    """An OpenAI server on 127.0.0.1 whose answers are the test's: `answer(body, number)` handles the number-th POST."""

    def __init__(
        self,
        answer: Callable[[web.Request, dict[str, Any], int], Awaitable[web.StreamResponse]],
        models: tuple[str, ...] = ("played",),
    ) -> None:
        self._answer, self._models = answer, models
        self.bodies: list[dict[str, Any]] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> PlayedServer:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(10)
        return self

    def __exit__(self, *exc: object) -> None:
        asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result(20)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _start(self) -> None:
        application = web.Application()
        application.router.add_get("/v1/models", self._list)
        application.router.add_post("/v1/{route:.*}", self._post)
        self._runner = web.AppRunner(application, shutdown_timeout=1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        host, port = self._runner.addresses[0][:2]
        self.url = f"http://{host}:{port}"

    async def _list(self, request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": name} for name in self._models]})

    async def _post(self, request: web.Request) -> web.StreamResponse:
        self.bodies.append(body := await request.json())
        return await self._answer(request, body, len(self.bodies))


def refusal(status: int, message: str) -> web.Response:
    return web.json_response({"error": {"message": message, "type": "invalid_request_error"}}, status=status)


async def stream(
    request: web.Request,
    *events: dict[str, Any] | str,
    pause_seconds: float = 0.0,
    cut: bool = False,
) -> web.StreamResponse:
    """The events, then [DONE]; with `cut` the connection breaks instead."""
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    for event in events:
        await response.write(f"data: {event if isinstance(event, str) else json.dumps(event)}\n\n".encode())
        if pause_seconds:
            await asyncio.sleep(pause_seconds)
    if cut:
        assert request.transport is not None
        request.transport.abort()
        return response
    await response.write(b"data: [DONE]\n\n")
    return response


def content(text: str) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]}


def usage(body: dict[str, Any], output_tokens: int) -> dict[str, Any]:
    """A word is a token here, and the template has five."""
    prompt = len(body["messages"][0]["content"].split()) + 5
    return {"choices": [], "usage": {"prompt_tokens": prompt, "completion_tokens": output_tokens}}
