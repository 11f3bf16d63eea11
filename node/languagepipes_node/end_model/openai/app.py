"""The API as one FastAPI application: routes, the guard in front of them, and errors as OpenAI objects."""

from __future__ import annotations

import contextlib
import logging
import time
import traceback
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request, Security
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from languagepipes_node import metrics
from languagepipes_node.end_model.openai import chat, completions, health, models, tokens
from languagepipes_node.end_model.openai.admission import Asker, client_id
from languagepipes_node.end_model.openai.auth import ApiKeys, bearer, header, presented_key
from languagepipes_node.end_model.openai.bridge import ClientGone, EngineBridge, EngineHandle
from languagepipes_node.end_model.openai.connections import close_after_answer
from languagepipes_node.end_model.openai.errors import (
    ApiError,
    InternalError,
    QueueFull,
    RingDown,
    ShuttingDown,
    Unauthorised,
    documented,
)
from languagepipes_node.end_model.openai.http import (
    Outcome,
    answer,
    answer_api_error,
    answer_http_exception,
    answer_validation_error,
)
from languagepipes_node.end_model.openai.messages import routes as messages
from languagepipes_node.end_model.openai.messages.errors import in_this_form, is_of_messages
from languagepipes_node.end_model.openai.openapi_document import describe
from languagepipes_node.end_model.openai.prompts import PromptReader
from languagepipes_node.end_model.openai.request_ids import request_id, with_request_id
from languagepipes_node.end_model.openai.responses import routes as responses
from languagepipes_node.end_model.openai.responses.store import ResponseStore
from languagepipes_node.end_model.openai.service import Service
from languagepipes_node.end_model.structured.compiler import Grammars
from languagepipes_node.end_model.text import SamplingDefaults, TextCodec

_LEAST_MAX_REQUEST_BYTES = 1 << 20
_REQUEST_BYTES_PER_TOKEN = 32  # six for a character escaped in JSON, and long words of few tokens
_OPEN_ROUTES = frozenset({"/healthz", "/readyz", "/health", "/version"})
_COUNTED_ROUTES = frozenset(
    {
        "/v1/chat/completions", "/v1/completions", "/v1/models", "/v1/responses", "/v1/messages",
        "/v1/messages/count_tokens", "/tokenize", "/detokenize",
    }
)  # fmt: skip
# Those that may be refused since the queue is full.
_QUEUED_ROUTES = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages")
# Of answers after which a client must not ask this replica again on the connection that it has.
_CLOSING_OUTCOMES = frozenset({RingDown.outcome, ShuttingDown.outcome})

logger = logging.getLogger(__name__)


def create_app(
    *,
    engine: EngineHandle,
    bridge: EngineBridge,
    text: TextCodec,
    embedding_rows: int,
    served_name: str,
    max_context_length: int,
    api_keys: ApiKeys,
    system_fingerprint: str | None = None,
    max_request_bytes: int | None = None,
    tool_parser: str = "auto",
    max_stored_responses: int = 1000,
    max_stored_response_bytes: int = 64 << 20,
    defaults: SamplingDefaults | None = None,
    cors_allowed_origins: Sequence[str] = (),
    takes_priorities: bool = False,
) -> FastAPI:
    """The OpenAI API for one model.

    bridge: the one whose `deliver` the engine was given. embedding_rows: of the model's embedding and head, which may
    be more or fewer than the tokenizer has tokens. max_context_length: tokens of prompt and answer together.
    system_fingerprint: shown in every answer; the plan hash, say. max_request_bytes: largest body; default: 1 MiB or
    32 bytes for each token of context, whichever is more. tool_parser: the format of the model's calls, by its name in
    `tools.families`, or "auto". max_stored_responses: of /v1/responses, that are kept in memory, with at most
    max_stored_response_bytes of text. defaults: for parameters that a request leaves out; None: OpenAI's.
    cors_allowed_origins: of web pages that may call it from a browser; "*": of all. takes_priorities: whether
    requests may have a `priority`.
    """
    bridge.attach(engine)
    prompts = PromptReader(text, embedding_rows, max_context_length)
    app = FastAPI(
        title="Language Pipes",
        summary="The OpenAI API for one model that is served from many machines.",
        version="1",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        strict_content_type=False,  # a body without a Content-Type is JSON, as for OpenAI's API
        generate_unique_id_function=lambda route: route.name,
        exception_handlers={
            ApiError: answer_api_error,
            RequestValidationError: answer_validation_error,
            HTTPException: answer_http_exception,
        },
        # FastAPI would otherwise keep each request's body for whatever exporter the environment names.
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
    )
    service = Service(
        bridge=bridge,
        text=text,
        prompts=prompts,
        grammars=Grammars(text, known_ids=prompts.known_ids),
        served_name=served_name,
        max_context_length=max_context_length,
        max_request_bytes=max_request_bytes
        or max(_LEAST_MAX_REQUEST_BYTES, _REQUEST_BYTES_PER_TOKEN * max_context_length),
        system_fingerprint=system_fingerprint,
        tool_parser=tool_parser,
        takes_priorities=takes_priorities,
        defaults=defaults or SamplingDefaults(),
    )
    app.state.service = service
    app.state.responses = ResponseStore(most=max_stored_responses, most_bytes=max_stored_response_bytes)
    _ = service.chat  # some milliseconds that no request should wait for
    keyed: dict[str, Any] = {}
    if api_keys.required:
        keyed = {"dependencies": [Security(bearer)], "responses": documented(Unauthorised)}
    for router in (chat.router, completions.router, models.router, responses.create, responses.stored):
        app.include_router(router, prefix="/v1", **keyed)
    app.include_router(tokens.router, **keyed)
    if api_keys.required:
        unauthorised = in_this_form(documented(Unauthorised))
        keyed = {"dependencies": [Security(bearer), Security(header)], "responses": unauthorised}
    app.include_router(messages.router, prefix="/v1", **keyed)
    app.include_router(health.router)
    for route in _QUEUED_ROUTES:  # 0 from the start, or Prometheus would not see the first refusals
        metrics.REQUESTS.labels(route, QueueFull.outcome)
    app.add_middleware(_Guard, api_keys=api_keys, bridge=bridge)
    if cors_allowed_origins:
        # Around the guard: a browser asks before it sends a key, and reads errors too.
        app.add_middleware(
            CORSMiddleware,
            allow_origins=cors_allowed_origins,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["*"],
            expose_headers=["x-request-id", "request-id", "retry-after"],
        )
    describe(app)
    return app


def _counted_route(path: str) -> str:
    """The label of a path in metrics and the log: never what a client made up."""
    if path in _COUNTED_ROUTES:
        return path
    parts = path.split("/")
    if path.startswith("/v1/responses/") and parts[3]:
        below = "/".join(parts[4:])
        if not below:
            return "/v1/responses/{id}"
        if below in ("input_items", "cancel"):
            return f"/v1/responses/{{id}}/{below}"
    return "other"


class _Guard:
    """In front of every route: asks for an API key, answers what failed, counts outcomes, and ends the connections of
    a server that cannot serve now: its 503s say so, and streams that failed and answers that it completes while it
    drains are the last ones of their connections as well.

    The key is asked for here and not by the dependency that describes it: FastAPI reads and parses a body before it
    asks a dependency, and an unknown URL has none.
    """

    def __init__(self, app: ASGIApp, *, api_keys: ApiKeys, bridge: EngineBridge) -> None:
        self._app = app
        self._api_keys = api_keys
        self._bridge = bridge

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path: str = scope["path"]
        status, since = 0, time.perf_counter()
        number = request_id(scope)
        answer_with_id = with_request_id(send, number, of_messages=is_of_messages(path))

        async def noting_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            if status == 503 or outcome.label in _CLOSING_OUTCOMES or self._bridge.draining is not None:
                close_after_answer(scope)
            await answer_with_id(message)

        outcome = Outcome(scope["method"], number)
        scope = {**scope, "languagepipes.outcome": outcome}
        if scope["method"] == "HEAD":
            scope["method"] = "GET"  # FastAPI's routes know no HEAD; the server sends no body to one
        label = "cancelled"  # what remains if this task is: the server stops and waits no longer
        try:
            key = self._check_key(scope) if path not in _OPEN_ROUTES else None
            with contextlib.ExitStack() as seats:
                scope["languagepipes.asker"] = Asker(client_id(scope, key), seats, key is not None)
                await self._app(scope, receive, noting_send)
            label = outcome.label
        except ClientGone:
            label = "cancelled"
        except ApiError as error:
            label = error.outcome
            await answer(Request(scope), error)(scope, receive, noting_send)
        except Exception as error:
            # Its message may quote what it choked on, which may be text of a request: type and place are enough.
            label = "error"
            place = "".join(traceback.format_tb(error.__traceback__))
            where = _counted_route(path)
            logger.error("%s in %s id=%s\n%s", type(error).__name__, where, number, place)
            if status:
                raise _ResponseBroken from None
            failure = InternalError("The server failed to handle the request.")
            await answer(Request(scope), failure)(scope, receive, noting_send)
        finally:
            if path not in _OPEN_ROUTES:
                route = _counted_route(path)
                metrics.REQUESTS.labels(route, label).inc()
                seconds = time.perf_counter() - since
                logger.info("%s id=%s status=%d outcome=%s seconds=%.3f", route, number, status, label, seconds)

    def _check_key(self, scope: Scope) -> bytes | None:
        """The request's API key, if one is asked for. Raises Unauthorised."""
        if not self._api_keys.required:
            return None
        key = presented_key(scope["headers"])
        if not self._api_keys.allows(key):
            raise Unauthorised("Incorrect API key provided.")
        return key


class _ResponseBroken(Exception):
    """Tells the server to close a connection whose response cannot be completed."""
