"""The API as one FastAPI application: routes, the guard in front of them, and errors as OpenAI objects."""

from __future__ import annotations

import contextlib
import logging
import traceback
from typing import Any

from fastapi import FastAPI, Request, Security
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from languagepipes_node import metrics
from languagepipes_node.end_model.openai import chat, completions, health, models
from languagepipes_node.end_model.openai.admission import Asker, client_id
from languagepipes_node.end_model.openai.auth import ApiKeys, bearer
from languagepipes_node.end_model.openai.bridge import ClientGone, EngineBridge, EngineHandle
from languagepipes_node.end_model.openai.errors import ApiError, InternalError, Unauthorised, documented
from languagepipes_node.end_model.openai.generation import Service
from languagepipes_node.end_model.openai.http import (
    Outcome,
    answer,
    answer_api_error,
    answer_http_exception,
    answer_validation_error,
)
from languagepipes_node.end_model.openai.openapi_document import describe
from languagepipes_node.end_model.openai.prompts import PromptReader
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
    embedding_rows: int,
    served_name: str,
    max_context_length: int,
    api_keys: ApiKeys,
    system_fingerprint: str | None = None,
    max_request_bytes: int | None = None,
) -> FastAPI:
    """The OpenAI API for one model.

    bridge: the one whose `deliver` the engine was given. embedding_rows: of the model's embedding and head, which may
    be more or fewer than the tokenizer has tokens. max_context_length: tokens of prompt and answer together.
    system_fingerprint: shown in every answer; the plan hash, say. max_request_bytes: largest body; default: 1 MiB or
    32 bytes for each token of context, whichever is more.
    """
    bridge.attach(engine)
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
    app.state.service = Service(
        bridge=bridge,
        text=text,
        prompts=PromptReader(text, embedding_rows, max_context_length),
        served_name=served_name,
        max_context_length=max_context_length,
        max_request_bytes=max_request_bytes
        or max(_LEAST_MAX_REQUEST_BYTES, _REQUEST_BYTES_PER_TOKEN * max_context_length),
        system_fingerprint=system_fingerprint,
    )
    keyed: dict[str, Any] = {}
    if api_keys.required:
        keyed = {"dependencies": [Security(bearer)], "responses": documented(Unauthorised)}
    for router in (chat.router, completions.router, models.router):
        app.include_router(router, prefix="/v1", **keyed)
    app.include_router(health.router)
    app.add_middleware(_Guard, api_keys=api_keys)
    describe(app)
    return app


class _Guard:
    """In front of every route: asks for an API key, answers what failed, counts outcomes.

    The key is asked for here and not by the dependency that describes it: FastAPI reads and parses a body before it
    asks a dependency, and an unknown URL has none.
    """

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

        outcome = Outcome(scope["method"])
        scope = {**scope, "languagepipes.outcome": outcome}
        if scope["method"] == "HEAD":
            scope["method"] = "GET"  # FastAPI's routes know no HEAD; the server sends no body to one
        label = "cancelled"  # what remains if this task is: the server stops and waits no longer
        try:
            key = self._check_key(scope) if path not in _OPEN_ROUTES else None
            with contextlib.ExitStack() as seats:
                scope["languagepipes.asker"] = Asker(client_id(scope, key), seats)
                await self._app(scope, receive, noting_send)
            label = outcome.label
        except ClientGone:
            label = "cancelled"
        except ApiError as error:
            label = error.outcome
            await answer(Request(scope), error)(scope, receive, send)
        except Exception as error:
            # Its message may quote what it choked on, which may be text of a request: type and place are enough.
            label = "error"
            place = "".join(traceback.format_tb(error.__traceback__))
            logger.error("%s in %s\n%s", type(error).__name__, path if path in _COUNTED_ROUTES else "a route", place)
            if started:
                raise _ResponseBroken from None
            failure = InternalError("The server failed to handle the request.")
            await answer(Request(scope), failure)(scope, receive, send)
        finally:
            if path not in _OPEN_ROUTES:
                route = path if path in _COUNTED_ROUTES else "other"
                metrics.REQUESTS.labels(route, label).inc()

    def _check_key(self, scope: Scope) -> bytes | None:
        """The request's API key, if one is asked for. Raises Unauthorised."""
        if not self._api_keys.required:
            return None
        values: list[bytes] = [value for name, value in scope["headers"] if name == b"authorization"]
        if not values:
            raise Unauthorised(
                "You did not provide an API key. Send it in an Authorization header: 'Authorization: Bearer KEY'."
            )
        scheme, _, key = values[0].partition(b" ")
        if len(values) > 1 or scheme.lower() != b"bearer" or not self._api_keys.allows(key.strip()):
            raise Unauthorised("Incorrect API key provided.")
        return key.strip()


class _ResponseBroken(Exception):
    """Tells the server to close a connection whose response cannot be completed."""
