"""HTTP below the routes: bodies read and parsed within bounds before FastAPI sees them, and errors as responses."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.routing import Match
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
from languagepipes_node.end_model.openai.messages.errors import error_object, is_of_messages
from languagepipes_node.end_model.openai.schemas import parse_json, refusal
from languagepipes_node.end_model.openai.service import Service, check_served_model

_BODY_SECONDS = 60.0
_BYTES_ON_THE_LOOP = 64 * 1024  # takes some milliseconds at the most
_EMBEDDINGS = (
    "This server generates text and makes no embeddings: run a server of embedding models beside it, such as Hugging "
    "Face's text-embeddings-inference or vLLM with a pooling model, and use its URL for this route."
)
# What to use where clients often look for something that is not served.
_INSTEAD = {"/v1/embeddings": _EMBEDDINGS, "/embeddings": _EMBEDDINGS}


@dataclass
class Outcome:
    """What became of a request, for the metrics. The guard puts one into each scope. method: as the client sent it.
    request_id: that of the answer's headers."""

    method: str
    request_id: str
    label: str = "ok"

    @staticmethod
    def of(scope: Scope) -> Outcome:
        outcome: Outcome = scope["languagepipes.outcome"]
        return outcome


class JsonRequest(Request):
    """A request whose body was read and parsed already, and perhaps validated: then it is a model, which is taken as it
    is."""

    def __init__(self, request: Request, body: bytes, parsed: Any) -> None:
        super().__init__(request.scope, request.receive)
        self._whole_body, self._parsed = body, parsed

    async def body(self) -> bytes:
        return self._whole_body

    async def json(self) -> Any:
        return self._parsed


class JsonRoute(APIRoute):
    """A route with a JSON body. Reading and parsing are ours: FastAPI would read a body of any size, for any time, and
    answer whatever goes wrong there with its own 400. Large bodies are parsed and validated beside the event loop.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def read_and_handle(request: Request) -> Response:
            service: Service = request.app.state.service
            body = await read_body(request.scope, request.receive, max_bytes=service.max_request_bytes)
            if len(body) <= _BYTES_ON_THE_LOOP:
                return await handle(JsonRequest(request, body, parse_json(body)))
            work = functools.partial(self._validated, body, service)
            return await handle(JsonRequest(request, body, await service.workers.run_for(request, work)))

        return read_and_handle

    def _validated(self, body: bytes, service: Service) -> Any:
        """The body as the route's model. Raises InvalidRequest, ModelNotFound and RequestValidationError."""
        fields = parse_json(body)
        check_served_model(fields, service)
        if self.body_field is None:
            return fields
        model, errors = self.body_field.validate(fields, loc=("body",))
        if errors:
            raise RequestValidationError(errors)
        return model


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
    """The error as an object in the form of its route, with its status and headers."""
    outcome = Outcome.of(request.scope)
    outcome.label = error.outcome
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in error.headers}
    body = error_object(error, outcome.request_id) if is_of_messages(request.url.path) else error.to_json()
    return Response(body, error.status, headers, media_type="application/json")


async def answer_api_error(request: Request, error: Exception) -> Response:
    """FastAPI's handler of our own errors."""
    assert isinstance(error, ApiError)  # noqa: S101 (what it is registered for)
    return answer(request, error)


async def answer_validation_error(request: Request, error: Exception) -> Response:
    """FastAPI's handler of what pydantic finds in a body."""
    assert isinstance(error, RequestValidationError)  # noqa: S101 (what it is registered for)
    return answer(request, refusal(error.errors()[0]))


def _methods(request: Request) -> list[str]:
    """What the URL may be asked for, by whichever of its routes."""
    allowed = [
        method
        for method in ("GET", "POST", "PUT", "PATCH", "DELETE")
        if any(route.matches({**request.scope, "method": method})[0] is Match.FULL for route in request.app.routes)
    ]
    return ["GET", "HEAD", *allowed[1:]] if "GET" in allowed else allowed


async def answer_http_exception(request: Request, error: Exception) -> Response:
    """Starlette's handler of URLs and methods that there are not."""
    path = request.url.path[:128]
    if isinstance(error, HTTPException) and error.status_code == 405:
        methods = _methods(request)
        allow = ", ".join(methods)
        method = Outcome.of(request.scope).method
        return answer(request, MethodNotAllowed(f"Not allowed to {method} on {path}, only {allow}.", allow=allow))
    if path in _INSTEAD:
        return answer(request, UnknownRoute(f"Unknown request URL: {path}. {_INSTEAD[path]}"))
    return answer(request, UnknownRoute(f"Unknown request URL: {Outcome.of(request.scope).method} {path}."))
