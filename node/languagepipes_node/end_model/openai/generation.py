"""From a planned generation to its answer: open it, wait for the engine, send. The same for all routes.

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
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from fastapi import Response
from pydantic import BaseModel
from starlette.types import Receive, Scope, Send

from languagepipes_node.end_model.openai.admission import disconnected
from languagepipes_node.end_model.openai.answer_format import AnswerFormat, Scored
from languagepipes_node.end_model.openai.answers import Answer
from languagepipes_node.end_model.openai.bridge import ClientGone, EngineBridge, Exchange
from languagepipes_node.end_model.openai.errors import (
    ApiError,
    BodyTooLarge,
    ErrorResponse,
    InternalError,
    InvalidRequest,
    ModelNotFound,
    QueueFull,
    RequestTimeout,
    RingDown,
    UnsupportedMediaType,
    documented,
    from_failure,
)
from languagepipes_node.end_model.openai.http import Outcome
from languagepipes_node.end_model.openai.planning import Generation, told_to_the_client
from languagepipes_node.end_model.openai.response_models import CompletionTokensDetails, PromptTokensDetails, Usage
from languagepipes_node.end_model.openai.sampling_request import shown_answers
from languagepipes_node.end_model.openai.service import Service
from languagepipes_node.end_model.requests import Failure, PromptScores, TokenOutput

# A client that reads nothing for this long has gone, whatever its TCP says.
_STALL_SECONDS = 60.0
# A stream that was silent for so long sends a comment: proxies close what is silent for 30 to 60 s (nginx: 60).
_SILENCE_SECONDS = 10.0
# Microseconds of work, roughly, after which whoever else waits for the event loop gets it.
_WORK_AT_ONCE = 1000
_PART_WORK = 50
_SEND_BYTES = 1 << 16
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
# Readers that split a stream by Python's idea of lines (httpx's and httpx2's `iter_lines`) would cut an event at these
# three. JSON may write them as escapes; as bytes of UTF-8 they occur in no other character.
_LINE_ENDS = ((b"\xc2\x85", b"\\u0085"), (b"\xe2\x80\xa8", b"\\u2028"), (b"\xe2\x80\xa9", b"\\u2029"))
_STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx in front passes events on as they come
]


def streamed(chunk: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    """What FastAPI's `responses=` needs to describe a stream of `chunk`s that ends with [DONE].

    In OpenAPI 3.1 the schema is that of one event. FastAPI makes the components of models in `responses` alone, and of
    one media type each, so `openapi_document` adds those that are named here.
    """
    what = "A chunk; or the error that ended the stream; or [DONE], after the last chunk."
    return _event_stream(chunk, [_json_text(chunk, ErrorResponse), {"const": "[DONE]"}], what)


def streamed_events(event: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    """The same of a stream of named events, without [DONE]."""
    return _event_stream(event, [_json_text(event)], "An event, whose name is its `type`.")


def _json_text(*models: type[BaseModel]) -> dict[str, Any]:
    objects = [{"$ref": f"#/components/schemas/{model.__name__}"} for model in models]
    schema = {"anyOf": objects} if len(objects) > 1 else objects[0]
    return {"type": "string", "contentMediaType": "application/json", "contentSchema": schema}


def _event_stream(model: type[BaseModel], data: list[dict[str, Any]], what: str) -> dict[int | str, dict[str, Any]]:
    event = {
        "type": "object",
        "title": f"{model.__name__.removesuffix('Event')}Event",
        "required": ["data"],
        "properties": {"data": {"anyOf": data, "description": what}},
    }
    return {200: {"description": "The answer.", "content": {"text/event-stream": {"schema": event}}}}


async def answer_whole(
    service: Service, generation: Generation, format: AnswerFormat[Any], receive: Receive
) -> WholeAnswer:
    """Generate, and answer all at once. Raises ApiError and ClientGone."""
    with _generating(service, generation, receive) as (exchange, answers):
        return await _collect(exchange, generation, answers, format)


class EventStream(Response):
    """The answer as server-sent events. Raises ApiError while nothing was sent, and ClientGone."""

    media_type = "text/event-stream"

    def __init__(self, service: Service, generation: Generation, format: AnswerFormat[Any]) -> None:
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
    make = generation.new_reader
    answers = [
        Answer(service.text, sequence.prompt, generation.stops, rules, make and make(), generation.special)
        for sequence, rules in zip(generation.sequences, generation.rules, strict=True)
    ]
    with _open(service.bridge, generation) as exchange, _watch_client(receive, exchange):
        yield exchange, answers


def _open(bridge: EngineBridge, generation: Generation) -> Exchange:
    with told_to_the_client():
        return bridge.open(generation.sequences, generation.seats)


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
    exchange: Exchange, generation: Generation, answers: list[Answer], format: AnswerFormat[Scored]
) -> WholeAnswer:
    texts: list[list[str]] = [[] for _ in answers]
    scored: list[list[Scored]] = [[] for _ in answers]
    ids: list[list[int]] = [[] for _ in answers]
    open_answers = len(answers)
    turns = _Turns()
    while open_answers:
        for index, output in await exchange.take():
            answer = answers[index]
            if answer.finish is not None:
                continue  # sampled while the stop string was being noticed
            if isinstance(output, Failure):
                raise from_failure(output)
            if isinstance(output, PromptScores):
                for work in format.collect_scores(index, output):
                    await turns.after(work)
            for piece in answer.pieces(output):
                texts[index].append(piece.text)
                format.collect(index, piece)
                scored[index] += map(format.scored, piece.scored)
                ids[index] += piece.tokens
                await turns.after(piece.work)
                if piece.finish is not None:
                    exchange.cancel(index)
                    open_answers -= 1
    parts = [format.whole_start]
    for place, index in enumerate(shown_answers(generation.kept, answers, generation.per_prompt)):
        finish = answers[index].finish
        assert finish is not None  # noqa: S101 (none is open any more)
        if place:
            parts.append(b",")
        text = "".join(texts[index])
        for part in format.choice_with_ids(place, text, scored[index], finish, index=index, tokens=ids[index]):
            parts.append(part)
            await turns.after(_PART_WORK)
        texts[index], scored[index] = [], []
    for part in format.whole_ends(_usage(generation, answers)):
        parts.append(part)
        await turns.after(_PART_WORK)
    return WholeAnswer(parts)


async def _stream(
    exchange: Exchange,
    generation: Generation,
    answers: list[Answer],
    format: AnswerFormat[Any],
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

    async def send_events(*, more: bool = False) -> None:
        nonlocal started
        if not started:
            started = True
            await send({"type": "http.response.start", "status": 200, "headers": _STREAM_HEADERS})
        body = b"".join(events)
        events.clear()
        for raw, escaped in _LINE_ENDS:
            body = body.replace(raw, escaped)
        if body:
            with stall:
                await send({"type": "http.response.body", "body": body, "more_body": more or open_answers > 0})
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
                first = not opened[index]
                if first:
                    opened[index] = True
                    format.cached_tokens = output.cached_tokens if isinstance(output, TokenOutput) else 0
                    events.append(format.first_event(index))
                for place, piece in enumerate(answer.pieces(output)):
                    events.append(format.events_of(index, piece, first=first and not place))
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
                events.append(format.failure(failure))
                open_answers = 0
            elif not open_answers:
                for event in format.endings(_usage(generation, answers)):
                    if sum(map(len, events)) >= _SEND_BYTES:
                        await send_events(more=True)
                        await asyncio.sleep(0)
                    events.append(event)
            elif not events and silence.due:
                events.append(format.silence)
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


def _cached_tokens(generation: Generation, answers: Sequence[Answer]) -> int:
    """Of each prompt as its first choice to start found it: the others find what that one computes."""
    found = [answer.cached_tokens for answer in answers]
    size = generation.per_prompt
    return sum(min(found[first : first + size]) for first in range(0, len(found), size))


def _usage(generation: Generation, answers: Sequence[Answer]) -> Usage:
    prompt, completion = generation.prompt_tokens, sum(answer.tokens for answer in answers)
    return Usage(
        prompt_tokens=prompt,
        completion_tokens=completion,
        total_tokens=prompt + completion,
        prompt_tokens_details=PromptTokensDetails(cached_tokens=_cached_tokens(generation, answers)),
        completion_tokens_details=CompletionTokensDetails(
            reasoning_tokens=sum(answer.reasoning_tokens for answer in answers)
        ),
    )
