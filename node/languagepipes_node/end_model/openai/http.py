"""HTTP below the routes: bodies read and parsed within bounds before FastAPI sees them, and errors as responses."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope

from languagepipes_node.end_model.openai.bridge import ClientGone
from languagepipes_node.end_model.openai.errors import (
    ApiError,
    BodyTooLarge,
    MethodNotAllowed,
    RequestTimeout,
    UnknownRoute,
    UnsupportedMediaType,
)
from languagepipes_node.end_model.openai.schemas import parse_json, refusal

_BODY_SECONDS = 60.0


@dataclass
class Outcome:
    """What became of a request, for the metrics. The guard puts one into each scope. method: as the client sent it."""

    method: str
    label: str = "ok"

    @staticmethod
    def of(scope: Scope) -> Outcome:
        outcome: Outcome = scope["languagepipes.outcome"]
        return outcome


class JsonRequest(Request):
    """A request whose body was read and parsed already."""

    def __init__(self, request: Request, body: bytes, fields: dict[str, Any]) -> None:
        super().__init__(request.scope, request.receive)
        self._whole_body, self._fields = body, fields

    async def body(self) -> bytes:
        return self._whole_body

    async def json(self) -> dict[str, Any]:
        return self._fields


class JsonRoute(APIRoute):
    """A route with a JSON body. Reading and parsing are ours: FastAPI would read a body of any size, for any time, and
    answer whatever goes wrong there with its own 400.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def read_and_handle(request: Request) -> Response:
            max_bytes = request.app.state.service.max_request_bytes
            body = await read_body(request.scope, request.receive, max_bytes=max_bytes)
            return await handle(JsonRequest(request, body, parse_json(body)))

        return read_and_handle


async def read_body(scope: Scope, receive: Receive, *, max_bytes: int) -> bytes:
    """The request's body, declared to be JSON and at most `max_bytes` long.

    Raises BodyTooLarge, RequestTimeout, UnsupportedMediaType or, if the client leaves meanwhile, ClientGone.
    """
    headers: dict[bytes, bytes] = dict(scope["headers"])
    media_types = [value.split(b";")[0] for name, value in scope["headers"] if name == b"content-type"]
    if any(media_type.strip().lower() != b"application/json" for media_type in media_types):
        raise UnsupportedMediaType("The body's Content-Type is not application/json.")
    if headers.get(b"content-encoding", b"identity").strip().lower() != b"identity":
        raise UnsupportedMediaType("Bodies with a Content-Encoding are not supported: send plain JSON.")
    declared = headers.get(b"content-length", b"")
    too_large = f"The body is larger than this server's limit of {max_bytes} bytes."
    if declared.isdigit() and int(declared) > max_bytes:
        raise BodyTooLarge(too_large)
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientGone
                part = message.get("body", b"")
                size += len(part)
                if size > max_bytes:
                    raise BodyTooLarge(too_large)
                parts.append(part)
                if not message.get("more_body", False):
                    return b"".join(parts)
    except TimeoutError:
        raise RequestTimeout(f"The body did not arrive within {_BODY_SECONDS:g} s.") from None


def answer(request: Request, error: ApiError) -> Response:
    """The error as OpenAI's error object, with its status and headers."""
    Outcome.of(request.scope).label = error.outcome
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in error.headers}
    return Response(error.to_json(), error.status, headers, media_type="application/json")


async def answer_api_error(request: Request, error: Exception) -> Response:
    """FastAPI's handler of our own errors."""
    assert isinstance(error, ApiError)  # noqa: S101 (what it is registered for)
    return answer(request, error)


async def answer_validation_error(request: Request, error: Exception) -> Response:
    """FastAPI's handler of what pydantic finds in a body."""
    assert isinstance(error, RequestValidationError)  # noqa: S101 (what it is registered for)
    return answer(request, refusal(error.errors()[0]))


async def answer_http_exception(request: Request, error: Exception) -> Response:
    """Starlette's handler of URLs and methods that there are not."""
    path = request.url.path[:128]
    if isinstance(error, HTTPException) and error.status_code == 405:
        allow = (error.headers or {}).get("Allow", "")
        allow = "GET, HEAD" if allow == "GET" else allow
        method = Outcome.of(request.scope).method
        return answer(request, MethodNotAllowed(f"Not allowed to {method} on {path}, only {allow}.", allow=allow))
    return answer(request, UnknownRoute(f"Unknown request URL: {Outcome.of(request.scope).method} {path}."))
