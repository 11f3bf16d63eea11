"""From a validated request to its answer: admit, wait for the engine, send. The same for both routes.

The status line is not sent before the engine's first output or 10 s of silence, so that whatever goes wrong until then
has its proper status; what goes wrong later is an SSE event with the error object, after which the stream ends without
[DONE]. A stream that has nothing to say for another 10 s sends a comment, so that proxies keep its connection.

A stream is a `Response` that speaks ASGI itself, one `send` a step; docs/decisions/0004-fastapi.md has the figures of
Starlette's StreamingResponse beside it. A whole answer is written token by token too, as they arrive, and sent in
parts: nothing holds the event loop in proportion to an answer's length.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Generic, TypeVar

import orjson
from fastapi import Depends, Request, Response
from pydantic import BaseModel
from starlette.types import Receive, Scope, Send

from languagepipes_node.end_model.openai.admission import Asker, FairWorkers, disconnected
from languagepipes_node.end_model.openai.answers import Answer, Piece, ScoredToken
from languagepipes_node.end_model.openai.bridge import (
    ClientGone,
    Draining,
    EngineBridge,
    EngineGone,
    Exchange,
    Reservation,
    SequenceRequest,
    TooManySequences,
)
from languagepipes_node.end_model.openai.errors import (
    ApiError,
    BodyTooLarge,
    ContextLengthExceeded,
    ErrorResponse,
    InternalError,
    InvalidRequest,
    ModelNotFound,
    QueueFull,
    RequestTimeout,
    RingDown,
    ShuttingDown,
    UnsupportedMediaType,
    documented,
    from_failure,
)
from languagepipes_node.end_model.openai.http import Outcome
from languagepipes_node.end_model.openai.logprobs import LogprobWriter
from languagepipes_node.end_model.openai.prompts import PromptReader
from languagepipes_node.end_model.openai.response_models import Usage
from languagepipes_node.end_model.openai.schemas import MAX_CHOICES, ChatCompletionRequest, CompletionRequest
from languagepipes_node.end_model.requests import Failure, FinishReason, SamplingParameters
from languagepipes_node.end_model.text import TextCodec

# A client that reads nothing for this long has gone, whatever its TCP says.
_STALL_SECONDS = 60.0
# A stream that was silent for so long sends a comment: proxies close what is silent for 30 to 60 s (nginx: 60).
_SILENCE_SECONDS = 10.0
_COMMENT = b": waiting for the next token\n\n"
# Microseconds of work, roughly, after which whoever else waits for the event loop gets it.
_WORK_AT_ONCE = 1000
_PART_WORK = 50
_SEND_BYTES = 1 << 16
_DONE = b"data: [DONE]\n\n"
GENERATION_ERRORS = documented(
    InvalidRequest,
    ModelNotFound,
    RequestTimeout,
    BodyTooLarge,
    UnsupportedMediaType,
    QueueFull,
    InternalError,
    RingDown,
)
_STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx in front passes events on as they come
]


@dataclass(frozen=True)
class Service:
    """What the routes share. Rendering and tokenising run in `workers`, so that a long prompt holds up no stream."""

    bridge: EngineBridge
    text: TextCodec
    prompts: PromptReader
    served_name: str
    max_context_length: int
    max_request_bytes: int
    system_fingerprint: str | None = None
    created: int = field(default_factory=lambda: int(time.time()))
    workers: FairWorkers = field(default_factory=FairWorkers)

    @functools.cached_property
    def logprobs(self) -> LogprobWriter:
        return LogprobWriter(self.text)


async def current_service(request: Request) -> Service:
    """FastAPI's dependency: what `create_app` was given."""
    service: Service = request.app.state.service
    return service


CurrentService = Annotated[Service, Depends(current_service)]


async def require_served_model(request: Request, service: CurrentService) -> None:
    """FastAPI's dependency: a body that names another model is refused before anything else in it is. Raises
    ModelNotFound."""
    model = (await request.json()).get("model")
    if isinstance(model, str) and model != service.served_name:
        shown = model if len(model) <= 128 else model[:128] + "…"
        raise ModelNotFound(
            f"The model '{shown}' does not exist. This server serves '{service.served_name}'.", param="model"
        )


@dataclass(frozen=True)
class Generation:
    """All that is to be generated for one request. sequences: choice i is of prompt i // n. seats: theirs."""

    seats: Reservation
    sequences: tuple[SequenceRequest, ...]
    prompt_tokens: int
    stops: tuple[str, ...]
    stream: bool


def streamed(chunk: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    """What FastAPI's `responses=` needs to describe a stream of `chunk`s.

    In OpenAPI 3.1 the schema is that of one event. FastAPI makes the components of models in `responses` alone, and of
    one media type each, so `openapi_document` adds those that are named here.
    """
    objects = [{"$ref": f"#/components/schemas/{model.__name__}"} for model in (chunk, ErrorResponse)]
    event = {
        "type": "object",
        "title": f"{chunk.__name__}Event",
        "required": ["data"],
        "properties": {
            "data": {
                "anyOf": [
                    {"type": "string", "contentMediaType": "application/json", "contentSchema": {"anyOf": objects}},
                    {"const": "[DONE]"},
                ],
                "description": "A chunk; or the error that ended the stream; or [DONE], after the last chunk.",
            }
        },
    }
    return {200: {"description": "The answer.", "content": {"text/event-stream": {"schema": event}}}}


Scored = TypeVar("Scored")


class ResponseFormat(ABC, Generic[Scored]):
    """How one route writes an answer, whole or as SSE events. The constant parts of events are made once."""

    def __init__(self, service: Service, *, prefix: str, whole_object: str, include_usage: bool) -> None:
        self.service = service
        self.include_usage = include_usage
        self.head: dict[str, Any] = {
            "id": f"{prefix}-{secrets.token_hex(16)}",
            "created": int(time.time()),
            "model": service.served_name,
            "system_fingerprint": service.system_fingerprint,
        }
        self.whole_start = self._up_to_choices(whole_object)
        self.usage_field = b',"usage":null' if include_usage else b""

    def event_start(self, object_name: str) -> bytes:
        """An event up to its `choices`."""
        return b"data: " + self._up_to_choices(object_name)

    def _up_to_choices(self, object_name: str) -> bytes:
        head = orjson.dumps({**self.head, "object": object_name})
        return head[:-1] + b',"choices":['

    @abstractmethod
    def opening(self, index: int) -> bytes:
        """The first event of a choice, if the route has one."""

    @abstractmethod
    def event(self, index: int, piece: Piece) -> bytes:
        """The events for a piece; nothing for a piece that shows nothing and ends nothing."""

    @abstractmethod
    def usage_event(self, usage: Usage) -> bytes:
        """The last event before [DONE]: no choices, the usage."""

    @abstractmethod
    def scored(self, token: ScoredToken) -> Scored:
        """A token with its log probabilities, written as `choice` wants it."""

    @abstractmethod
    def choice(self, index: int, text: str, scored: Sequence[Scored], finish: FinishReason) -> Iterator[bytes]:
        """A choice of an answer that is not streamed, part by part."""


def event_end(usage_field: bytes) -> bytes:
    """An event after its choices."""
    return b"]" + usage_field + b"}\n\n"


def reserve_seats(
    service: Service, asker: Asker, request: ChatCompletionRequest | CompletionRequest, *, prompts: int
) -> Reservation:
    """Admit a request before anything is done for it that takes long. Raises InvalidRequest, QueueFull, RingDown,
    ShuttingDown."""
    if prompts * request.n > MAX_CHOICES:
        raise InvalidRequest(
            f"'n' asks for {request.n} answers to each of {prompts} prompts, at most {MAX_CHOICES} in all.",
            param="n",
        )
    try:
        with _told_to_the_client():
            return asker.reserve(service.bridge, prompts * request.n)
    except TooManySequences as error:
        if error.asked > error.limit:
            raise InvalidRequest(
                f"The request asks for {error.asked} answers at once, this server generates at most {error.limit}.",
                param="n",
            ) from None
        raise QueueFull(f"The server is at its limit of {error.limit} answers at once: try again later.") from None


def plan_generation(
    service: Service,
    asker: Asker,
    seats: Reservation,
    request: ChatCompletionRequest | CompletionRequest,
    prompts: Sequence[tuple[int, ...]],
    *,
    prompt_param: str,
    max_tokens: tuple[str, int] | None,
    default_max_tokens: int | None,
    logprobs: int | None,
) -> Generation:
    """Turn a request and its tokenised prompts into sequences. seats: for as many. max_tokens: the parameter's name and
    value, if given; default_max_tokens None: as many as the context has room for. Raises InvalidRequest.
    """
    if request.stream_options is not None and not request.stream:
        raise InvalidRequest("'stream_options' is only allowed when 'stream' is true.", param="stream_options")
    sampling = SamplingParameters(
        temperature=float(request.temperature),
        top_p=float(request.top_p),
        top_k=max(0, request.top_k),
        min_p=float(request.min_p),
        seed=request.seed,
        presence_penalty=float(request.presence_penalty),
        frequency_penalty=float(request.frequency_penalty),
        logit_bias=_logit_bias(service.prompts.known_ids, request.logit_bias),
    )
    stop_token_ids = frozenset() if request.ignore_eos else service.text.stop_token_ids
    sequences = []
    for prompt in prompts:
        if not prompt:
            raise InvalidRequest("The prompt holds no tokens, at least one is needed.", param=prompt_param)
        room = _room(service, prompt, prompt_param, max_tokens)
        limit = max_tokens[1] if max_tokens is not None else min(room, default_max_tokens or room)
        sequences += [
            SequenceRequest(prompt, limit, _seeded(sampling, choice), stop_token_ids, logprobs, asker.client)
            for choice in range(request.n)
        ]
    return Generation(seats, tuple(sequences), sum(map(len, prompts)), request.stop, request.stream)


async def answer_whole(
    service: Service, generation: Generation, format: ResponseFormat[Any], receive: Receive
) -> WholeAnswer:
    """Generate, and answer all at once. Raises ApiError and ClientGone."""
    with _generating(service, generation, receive) as (exchange, answers):
        return await _collect(exchange, generation, answers, format)


class EventStream(Response):
    """The answer as server-sent events. Raises ApiError while nothing was sent, and ClientGone."""

    media_type = "text/event-stream"

    def __init__(self, service: Service, generation: Generation, format: ResponseFormat[Any]) -> None:
        # Starlette's own `__init__` is for a body that is there already.
        self.status_code = 200
        self.background = None
        self._service, self._generation, self._format = service, generation, format

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with _generating(self._service, self._generation, receive) as (exchange, answers):
            await _stream(exchange, self._generation, answers, self._format, scope, send)


@contextlib.contextmanager
def _generating(service: Service, generation: Generation, receive: Receive) -> Iterator[tuple[Exchange, list[Answer]]]:
    status = service.bridge.engine.status
    if not status.accepting:
        raise RingDown(f"The model is not being served at the moment: {status.ring_error}")
    answers = [Answer(service.text, sequence.prompt, generation.stops) for sequence in generation.sequences]
    with _open(service.bridge, generation) as exchange, _watch_client(receive, exchange):
        yield exchange, answers


def _open(bridge: EngineBridge, generation: Generation) -> Exchange:
    with _told_to_the_client():
        return bridge.open(generation.sequences, generation.seats)


@contextlib.contextmanager
def _told_to_the_client() -> Iterator[None]:
    """A bridge that takes no requests any more, as an ApiError."""
    try:
        yield
    except EngineGone as error:
        raise RingDown(f"The model is not being served any more: {error}") from None
    except Draining as error:
        raise ShuttingDown(str(error)) from None


@contextlib.contextmanager
def _watch_client(receive: Receive, exchange: Exchange) -> Iterator[None]:
    """While this lasts, a client that closes its connection ends the exchange at once."""

    async def watch() -> None:
        await disconnected(receive)
        exchange.disconnect()

    watcher = asyncio.create_task(watch())
    try:
        yield
    finally:
        watcher.cancel()


class WholeAnswer(Response):
    """An answer's JSON, in parts that are joined nowhere. Raises ClientGone."""

    media_type = "application/json"

    def __init__(self, parts: Sequence[bytes]) -> None:
        # Starlette's own `__init__` is for a body in one part.
        self.status_code = 200
        self.background = None
        self._parts = parts
        length = str(sum(map(len, parts))).encode()
        self.raw_headers = [(b"content-type", b"application/json"), (b"content-length", length)]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        with contextlib.closing(_StallGuard()) as stall:
            pending: list[bytes] = []
            size = 0
            for part in self._parts:
                pending.append(part)
                size += len(part)
                if size >= _SEND_BYTES:
                    with stall:
                        await send({"type": "http.response.body", "body": b"".join(pending), "more_body": True})
                    pending, size = [], 0
                    await asyncio.sleep(0)  # a socket that takes everything lets `send` return at once
            with stall:
                await send({"type": "http.response.body", "body": b"".join(pending)})


class _Turns:
    """When to give the event loop to others: whenever they have waited for a millisecond or so of work."""

    def __init__(self) -> None:
        self._done = 0

    def due(self, work: int) -> bool:
        """Whether it is time, after so much more work (in microseconds, roughly)."""
        self._done += work
        if self._done < _WORK_AT_ONCE:
            return False
        self._done = 0
        return True

    async def after(self, work: int) -> None:
        """Give the loop away if it is time."""
        if self.due(work):
            await asyncio.sleep(0)


async def _collect(
    exchange: Exchange, generation: Generation, answers: list[Answer], format: ResponseFormat[Scored]
) -> WholeAnswer:
    texts: list[list[str]] = [[] for _ in answers]
    scored: list[list[Scored]] = [[] for _ in answers]
    open_answers = len(answers)
    turns = _Turns()
    while open_answers:
        for index, output in await exchange.take():
            answer = answers[index]
            if answer.finish is not None:
                continue  # sampled while the stop string was being noticed
            if isinstance(output, Failure):
                raise from_failure(output)
            for piece in answer.push(output).parts():
                texts[index].append(piece.text)
                scored[index] += map(format.scored, piece.scored)
                await turns.after(piece.work)
            if piece.finish is not None:
                exchange.cancel(index)
                open_answers -= 1
    parts = [format.whole_start]
    for index, answer in enumerate(answers):
        assert answer.finish is not None  # noqa: S101 (none is open any more)
        if index:
            parts.append(b",")
        for part in format.choice(index, "".join(texts[index]), scored[index], answer.finish):
            parts.append(part)
            await turns.after(_PART_WORK)
        texts[index], scored[index] = [], []
    parts.append(b'],"usage":' + _usage(generation, answers).model_dump_json().encode() + b"}")
    return WholeAnswer(parts)


async def _stream(
    exchange: Exchange,
    generation: Generation,
    answers: list[Answer],
    format: ResponseFormat[Any],
    scope: Scope,
    send: Send,
) -> None:
    opened = [False] * len(answers)
    events: list[bytes] = []
    started = False
    open_answers = len(answers)
    stall = _StallGuard()
    silence = _Silence(exchange.nudge)
    turns = _Turns()

    async def send_events() -> None:
        nonlocal started
        if not started:
            started = True
            await send({"type": "http.response.start", "status": 200, "headers": _STREAM_HEADERS})
        body = b"".join(events)
        events.clear()
        if body:
            with stall:
                await send({"type": "http.response.body", "body": body, "more_body": open_answers > 0})
            silence.broken()

    try:
        while open_answers:
            failure: ApiError | None = None
            for index, output in await exchange.take():
                answer = answers[index]
                if answer.finish is not None:
                    continue
                if isinstance(output, Failure):
                    failure = from_failure(output)
                    break
                if not opened[index]:
                    opened[index] = True
                    events.append(format.opening(index))
                for piece in answer.push(output).parts():
                    events.append(format.event(index, piece))
                    if turns.due(piece.work):
                        await send_events()
                        await asyncio.sleep(0)
                if piece.finish is not None:
                    exchange.cancel(index)
                    open_answers -= 1
            if failure is not None:
                if not started:
                    raise failure
                Outcome.of(scope).label = failure.outcome
                events.append(b"data: " + failure.to_json() + b"\n\n")
                open_answers = 0
            elif not open_answers:
                if format.include_usage:
                    events.append(format.usage_event(_usage(generation, answers)))
                events.append(_DONE)
            elif not events and silence.due:
                events.append(_COMMENT)
            await send_events()
    finally:
        stall.close()
        silence.close()


class _Silence:
    """Whether a stream has sent nothing for `_SILENCE_SECONDS`. nudge: called when it is so.

    One timer for a whole stream, as in `_StallGuard`.
    """

    def __init__(self, nudge: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._nudge = nudge
        self._since = self._loop.time()
        self._timer = self._loop.call_later(_SILENCE_SECONDS, self._look)

    @property
    def due(self) -> bool:
        return self._loop.time() - self._since >= _SILENCE_SECONDS

    def broken(self) -> None:
        """Something was sent."""
        self._since = self._loop.time()

    def close(self) -> None:
        self._timer.cancel()

    def _look(self) -> None:
        now = self._loop.time()
        quiet = now - self._since
        if quiet >= _SILENCE_SECONDS:
            self._nudge()
            quiet = 0.0
        self._timer = self._loop.call_at(now + _SILENCE_SECONDS - quiet, self._look)


class _StallGuard:
    """Ends the task if one `with` block of it takes longer than `_STALL_SECONDS`: then ClientGone is raised.

    One timer for a whole stream, looked at once in a while, costs less than a timer for each send.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        self._since: float | None = None
        self._stalled = False
        self._timer = self._loop.call_later(_STALL_SECONDS, self._look)

    def close(self) -> None:
        self._timer.cancel()

    def _look(self) -> None:
        now = self._loop.time()
        if self._since is not None and now - self._since >= _STALL_SECONDS and self._task is not None:
            self._stalled = True
            self._task.cancel()
            return
        self._timer = self._loop.call_at((self._since or now) + _STALL_SECONDS, self._look)

    def __enter__(self) -> None:
        self._since = self._loop.time()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self._since = None
        if self._stalled and kind is asyncio.CancelledError and self._task is not None:
            self._task.uncancel()
            raise ClientGone from error


def _usage(generation: Generation, answers: Sequence[Answer]) -> Usage:
    prompt, completion = generation.prompt_tokens, sum(answer.tokens for answer in answers)
    return Usage(prompt_tokens=prompt, completion_tokens=completion, total_tokens=prompt + completion)


def _room(service: Service, prompt: tuple[int, ...], prompt_param: str, max_tokens: tuple[str, int] | None) -> int:
    """How many tokens an answer may have. Raises ContextLengthExceeded naming the numbers."""
    limit = service.max_context_length
    room = limit - len(prompt)
    if room < 1:
        raise ContextLengthExceeded(
            f"This model's maximum context length is {limit} tokens, and the prompt has {len(prompt)}, which leaves "
            "no room for an answer. Please shorten the prompt.",
            param=prompt_param,
        )
    if max_tokens is not None and max_tokens[1] > room:
        name, asked = max_tokens
        raise ContextLengthExceeded(
            f"This model's maximum context length is {limit} tokens. However, you requested {len(prompt) + asked} "
            f"({len(prompt)} in the prompt and {asked} by '{name}'). Please shorten the prompt or lower '{name}'.",
            param=name,
        )
    return room


def _seeded(sampling: SamplingParameters, choice: int) -> SamplingParameters:
    """Each of a prompt's choices draws from a seed of its own; the first from the one that was asked for."""
    if sampling.seed is None:
        return sampling
    return replace(sampling, seed=(sampling.seed + choice) % 2**63)


def _logit_bias(known_ids: int, bias: dict[str, float]) -> tuple[tuple[int, float], ...]:
    pairs = []
    for token, value in bias.items():
        if not (token.isascii() and token.isdigit()) or len(token) > 9 or int(token) >= known_ids:
            raise InvalidRequest(
                f"'logit_bias' has a key that is no token id, expected 0 to {known_ids - 1}.",
                param="logit_bias",
            )
        pairs.append((int(token), float(value)))
    return tuple(pairs)
