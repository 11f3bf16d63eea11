"""The API as one ASGI application: routes, the guard in front of them, and errors as OpenAI objects."""

from __future__ import annotations

import logging
import traceback
from typing import NoReturn

import orjson
from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from languagepipes_node import metrics
from languagepipes_node.end_model.openai.auth import ApiKeys
from languagepipes_node.end_model.openai.bridge import ClientGone, EngineBridge, EngineHandle
from languagepipes_node.end_model.openai.chat import ChatCompletions
from languagepipes_node.end_model.openai.completions import Completions
from languagepipes_node.end_model.openai.errors import (
    ApiError,
    InternalError,
    MethodNotAllowed,
    Unauthorised,
    UnknownRoute,
)
from languagepipes_node.end_model.openai.generation import Service
from languagepipes_node.end_model.openai.http import send_error, send_json
from languagepipes_node.end_model.openai.models import Models
from languagepipes_node.end_model.text import TextCodec

_LEAST_MAX_REQUEST_BYTES = 1 << 20
_REQUEST_BYTES_PER_TOKEN = 32  # six for a character escaped in JSON, and long words of few tokens
_OPEN_ROUTES = frozenset({"/healthz", "/readyz"})
_COUNTED_ROUTES = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/models"})

logger = logging.getLogger(__name__)


def create_app(
    *,
    engine: EngineHandle,
    bridge: EngineBridge,
    text: TextCodec,
    served_name: str,
    max_context_length: int,
    api_keys: ApiKeys,
    system_fingerprint: str | None = None,
    max_request_bytes: int | None = None,
) -> FastAPI:
    """The OpenAI API for one model.

    bridge: the one whose `deliver` the engine was given. max_context_length: tokens of prompt and answer together.
    system_fingerprint: shown in every answer; the plan hash, say. max_request_bytes: largest body; default: 1 MiB or
    32 bytes for each token of context, whichever is more.
    """
    bridge.attach(engine)
    service = Service(
        bridge=bridge,
        text=text,
        served_name=served_name,
        max_context_length=max_context_length,
        max_request_bytes=max_request_bytes
        or max(_LEAST_MAX_REQUEST_BYTES, _REQUEST_BYTES_PER_TOKEN * max_context_length),
        system_fingerprint=system_fingerprint,
    )
    models = Models(service)
    app = FastAPI(
        openapi_url=None,
        redirect_slashes=False,
        routes=[
            Route("/v1/chat/completions", ChatCompletions(service), methods=["POST"]),
            Route("/v1/completions", Completions(service), methods=["POST"]),
            Route("/v1/models", models, methods=["GET"]),
            Route("/v1/models/{model:path}", models, methods=["GET"]),
            Route("/healthz", _Health(), methods=["GET"]),
            Route("/readyz", _Readiness(engine), methods=["GET"]),
        ],
        exception_handlers={HTTPException: _translate_http_exception},
    )
    app.add_middleware(_Guard, api_keys=api_keys)
    return app


class _Health:
    """200 as long as the process answers."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send_json(send, b'{"status":"ok"}')


class _Readiness:
    """200 while the ring is joined; 503 with the reason otherwise."""

    def __init__(self, engine: EngineHandle) -> None:
        self._engine = engine

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        status = self._engine.status
        if status.ring_ready:
            await send_json(send, b'{"status":"ready"}')
        else:
            body = orjson.dumps({"status": "not ready", "reason": status.ring_error})
            await send_json(send, body, status=503)


class _Guard:
    """In front of every route: asks for an API key, answers with errors, counts outcomes."""

    def __init__(self, app: ASGIApp, *, api_keys: ApiKeys) -> None:
        self._app = app
        self._api_keys = api_keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path: str = scope["path"]
        started = False

        async def noting_send(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        outcome = "cancelled"  # what remains if this task is: the server stops and waits no longer
        try:
            if path not in _OPEN_ROUTES:
                self._check_key(scope)
            await self._app(scope, receive, noting_send)
            outcome = scope.get("languagepipes.outcome", "ok")
        except ClientGone:
            outcome = "cancelled"
        except ApiError as error:
            outcome = error.outcome
            await send_error(send, error)
        except Exception as error:
            # Its message may quote what it choked on, which may be text of a request: type and place are enough.
            outcome = "error"
            place = "".join(traceback.format_tb(error.__traceback__))
            logger.error("%s in %s\n%s", type(error).__name__, path if path in _COUNTED_ROUTES else "a route", place)
            if started:
                raise _ResponseBroken from None
            await send_error(send, InternalError("The server failed to handle the request."))
        finally:
            if path not in _OPEN_ROUTES:
                route = path if path in _COUNTED_ROUTES else "other"
                metrics.REQUESTS.labels(route, outcome).inc()

    def _check_key(self, scope: Scope) -> None:
        if not self._api_keys.required:
            return
        values = [value for name, value in scope["headers"] if name == b"authorization"]
        if not values:
            raise Unauthorised(
                "You did not provide an API key. Send it in an Authorization header: 'Authorization: Bearer KEY'."
            )
        scheme, _, key = values[0].partition(b" ")
        if len(values) > 1 or scheme.lower() != b"bearer" or not self._api_keys.allows(key.strip()):
            raise Unauthorised("Incorrect API key provided.")


class _ResponseBroken(Exception):
    """Tells the server to close a connection whose response cannot be completed."""


def _translate_http_exception(request: Request, error: Exception) -> NoReturn:
    """Starlette's refusals, as OpenAI's errors; `_Guard` answers with them."""
    path = request.url.path[:128]
    if isinstance(error, HTTPException) and error.status_code == 405:
        allow = (error.headers or {}).get("Allow", "")
        raise MethodNotAllowed(f"Not allowed to {request.method} on {path}, only {allow}.", allow=allow)
    raise UnknownRoute(f"Unknown request URL: {request.method} {path}.")
