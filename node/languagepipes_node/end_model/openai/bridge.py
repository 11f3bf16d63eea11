"""Between the engine's thread and the event loop: commands go in one by one, outputs come back as a list a step.

The engine calls `EngineBridge.deliver` from its own thread; the bridge hands the list to the event loop in one
call and sorts it there into one `Exchange` per HTTP request. It knows nothing of text or JSON. A client that reads
slowly lets its exchange grow, which `max_tokens` bounds, and never holds up the engine.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Protocol

from languagepipes_node import metrics
from languagepipes_node.end_model.requests import (
    Cancellation,
    EngineCommand,
    EngineOutput,
    EngineStatus,
    Failure,
    PromptScores,
    SamplingParameters,
    Submission,
    TokenOutput,
)
from languagepipes_node.end_model.structured import Grammar


class EngineHandle(Protocol):
    """What the HTTP side needs of the engine."""

    def submit(self, command: EngineCommand, /) -> None:
        """Queue a command. Called from the event loop; never blocks."""
        ...

    @property
    def status(self) -> EngineStatus:
        """A snapshot, at most one step old."""
        ...


class ClientGone(Exception):
    """The client closed its connection before the answer was complete."""


class EngineGone(Exception):
    """The engine will not answer any more; the message says why."""


class Draining(Exception):
    """The server ends what it has begun and takes no new requests; the message says why."""


class TooManySequences(Exception):
    """The server has as many sequences as it admits: `open_sequences` of at most `limit`, and `asked` more."""

    def __init__(self, *, asked: int, open_sequences: int, limit: int) -> None:
        super().__init__(f"{open_sequences} sequences of at most {limit} are open, {asked} more were asked for")
        self.asked, self.open_sequences, self.limit = asked, open_sequences, limit


@dataclass(frozen=True)
class SequenceRequest:
    """One choice to generate, before it has a request id. Fields as in `Submission`."""

    prompt: tuple[int, ...]
    max_tokens: int
    sampling: SamplingParameters
    stop_token_ids: frozenset[int]
    logprobs: int | None
    client: str = ""
    grammar: Grammar | None = None
    prompt_logprobs: int | None = None
    priority: int = 0
    cache_domain: str = ""


class _Route:
    """Where one sequence's outputs go: which exchange, which of its choices; when it came, and its last token."""

    __slots__ = ("admitted", "exchange", "index", "since", "started")

    def __init__(self, exchange: Exchange, index: int, now: float) -> None:
        self.exchange = exchange
        self.index = index
        self.admitted = now
        self.since = now
        self.started = False


class Reservation:
    """Seats for sequences that will be opened later. A context: leaving it gives back what was not used."""

    def __init__(self, bridge: EngineBridge, sequences: int) -> None:
        self._bridge, self._sequences = bridge, sequences
        bridge._reserved += sequences

    def release(self) -> None:
        """Give the seats back. Nothing happens the second time."""
        self._bridge._reserved -= self._sequences
        self._sequences = 0

    def __enter__(self) -> Reservation:
        return self

    def __exit__(self, *exception: object) -> None:
        self.release()


class EngineBridge:
    """One for each engine. It belongs to the event loop, but for what says that it may be called from any thread.

    max_sequences: most sequences admitted at once (running and queued); None leaves the bound to the engine.
    """

    def __init__(self, *, max_sequences: int | None = None) -> None:
        self.max_sequences = max_sequences
        self._engine: EngineHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._routes: dict[int, _Route] = {}
        self._reserved = 0
        self._request_ids = itertools.count(1)
        self._gone: str | None = None
        # Why no request is taken any more, if so; and why none is completed.
        self.draining: str | None = None
        self._ended: str | None = None

    def attach(self, engine: EngineHandle) -> None:
        """Name the engine that commands go to; `create_app` does so."""
        self._engine = engine

    @property
    def engine(self) -> EngineHandle:
        if self._engine is None:
            raise RuntimeError("no engine is attached to the bridge yet")
        return self._engine

    @property
    def open_sequences(self) -> int:
        """Sequences submitted whose end has neither come nor been asked for, and those that seats are reserved for."""
        return len(self._routes) + self._reserved

    def deliver(self, outputs: Sequence[EngineOutput]) -> None:
        """Hand one step's outputs to the event loop. Any thread; the caller must not change the list afterwards."""
        loop = self._loop
        if loop is None or not outputs:
            return  # nobody has asked for anything yet
        try:
            loop.call_soon_threadsafe(self._dispatch, outputs)
        except RuntimeError:
            if not loop.is_closed():
                raise
            # The server is gone and with it every client; the engine is about to be stopped too.

    def engine_gone(self, reason: str) -> None:
        """Fail every open request with "ring_down", and each that comes: the engine's thread has ended. Any thread."""
        self._gone = reason
        self._on_loop(self._fail_open, "ring_down", reason)

    def _on_loop(self, function: Callable[..., None], *arguments: object) -> None:
        """Call it there, if anybody has asked for anything, and the server is not gone."""
        loop = self._loop
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(function, *arguments)

    def _fail_open(self, code: Literal["ring_down", "shutting_down"], reason: str) -> None:
        self._dispatch([Failure(request_id, code, reason) for request_id in self._routes])

    def stop_admission(self, reason: str) -> None:
        """Refuse every request that comes from now on; those with seats go on. Any thread."""
        self.draining = reason

    def end_open(self, reason: str) -> None:
        """Fail every open request with "shutting_down", and each that has seats and is opened later. Any thread."""
        self._ended = reason
        self._on_loop(self._end_open, reason)

    def _end_open(self, reason: str) -> None:
        for request_id in self._routes:
            self.engine.submit(Cancellation(request_id))
        self._fail_open("shutting_down", reason)

    def reserve(self, sequences: int) -> Reservation:
        """Seats for so many sequences, before their prompts are known.

        Raises TooManySequences if they would exceed `max_sequences`, Draining after `stop_admission`, and EngineGone
        after `engine_gone`.
        """
        if self._gone is not None:
            raise EngineGone(self._gone)
        if self.draining is not None:
            raise Draining(self.draining)
        if self.max_sequences is not None and self.open_sequences + sequences > self.max_sequences:
            raise TooManySequences(asked=sequences, open_sequences=self.open_sequences, limit=self.max_sequences)
        return Reservation(self, sequences)

    def open(self, sequences: Sequence[SequenceRequest], reservation: Reservation | None = None) -> Exchange:
        """Submit `sequences` as one HTTP request's choices 0, 1, …, in seats that were reserved for them or are free.

        Raises as `reserve`; with seats, Draining after `end_open` only. If it raises, nothing was submitted.
        """
        if self._gone is not None:
            raise EngineGone(self._gone)
        if self._ended is not None:
            raise Draining(self._ended)
        with reservation or self.reserve(len(sequences)):
            return self._open(sequences)

    def _open(self, sequences: Sequence[SequenceRequest]) -> Exchange:
        self._loop = asyncio.get_running_loop()
        exchange = Exchange(self, self._loop)
        now = time.perf_counter()
        try:
            for index, sequence in enumerate(sequences):
                request_id = next(self._request_ids)
                self._routes[request_id] = _Route(exchange, index, now)
                exchange._request_ids[index] = request_id
                self.engine.submit(
                    Submission(
                        request_id=request_id,
                        prompt=sequence.prompt,
                        max_tokens=sequence.max_tokens,
                        sampling=sequence.sampling,
                        stop_token_ids=sequence.stop_token_ids,
                        logprobs=sequence.logprobs,
                        client=sequence.client,
                        grammar=sequence.grammar,
                        prompt_logprobs=sequence.prompt_logprobs,
                        priority=sequence.priority,
                        cache_domain=sequence.cache_domain,
                    )
                )
        except BaseException:
            # An engine that takes no commands takes no cancellations either; its sequences must not count as open.
            for request_id in exchange._request_ids.values():
                self._routes.pop(request_id, None)
            raise
        return exchange

    def _cancel(self, request_id: int, *, complete: bool) -> None:
        """complete: the answer is, without the tokens that are not computed any more."""
        route = self._routes.pop(request_id, None)
        if route is not None:
            if complete:
                metrics.TIME_TO_LAST_TOKEN.observe(time.perf_counter() - route.admitted)
            self.engine.submit(Cancellation(request_id))

    def _dispatch(self, outputs: Sequence[EngineOutput]) -> None:
        now = time.perf_counter()
        for output in outputs:
            route = self._routes.get(output.request_id)
            if route is None:
                continue  # cancelled while the step was on the ring
            if isinstance(output, PromptScores):
                ended = False
            elif isinstance(output, TokenOutput):
                if route.started:
                    if now > route.since:  # tokens that come together are one to who waits for them
                        metrics.TIME_BETWEEN_TOKENS.observe(now - route.since)
                else:
                    metrics.TIME_TO_FIRST_TOKEN.observe(now - route.since)
                    route.started = True
                route.since = now
                ended = output.finish is not None
                if ended:
                    metrics.TIME_TO_LAST_TOKEN.observe(now - route.admitted)
            else:
                ended = True
            if ended:
                del self._routes[output.request_id]
            route.exchange._put(route.index, output)


class Exchange:
    """One HTTP request's outputs, in order. A context: leaving it cancels whatever has not ended."""

    def __init__(self, bridge: EngineBridge, loop: asyncio.AbstractEventLoop) -> None:
        self._bridge = bridge
        self._loop = loop
        self._request_ids: dict[int, int] = {}  # of choices that may still get outputs
        self._arrived: list[tuple[int, EngineOutput]] = []
        self._waiter: asyncio.Future[None] | None = None
        self._client_gone = False

    async def take(self) -> list[tuple[int, EngineOutput]]:
        """Everything that arrived since the last call as (choice, output), at least one; waits for it. Nothing if
        `nudge` was called meanwhile.

        Raises ClientGone once `disconnect` was called.
        """
        if not self._arrived and not self._client_gone:
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        if self._client_gone:
            raise ClientGone
        arrived, self._arrived = self._arrived, []
        return arrived

    def nudge(self) -> None:
        """Let whoever waits in `take` go on, although nothing arrived."""
        self._wake()

    def cancel(self, index: int) -> None:
        """Stop choice `index`: its text hit a stop string."""
        self._cancel(index, complete=True)

    def _cancel(self, index: int, *, complete: bool) -> None:
        request_id = self._request_ids.pop(index, None)
        if request_id is not None:
            self._bridge._cancel(request_id, complete=complete)

    def disconnect(self) -> None:
        """The client is gone: stop computing for it at once, and wake whoever waits in `take`."""
        self._client_gone = True
        self.close()
        self._wake()

    def close(self) -> None:
        """Cancel every choice that has not ended."""
        for index in list(self._request_ids):
            self._cancel(index, complete=False)

    def _put(self, index: int, output: EngineOutput) -> None:
        if isinstance(output, Failure) or (isinstance(output, TokenOutput) and output.finish is not None):
            self._request_ids.pop(index, None)
        self._arrived.append((index, output))
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def __enter__(self) -> Exchange:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
