"""Streams through the OpenAI API, timed by when their bytes arrive.

The client shares the cores with what it measures, so it does next to nothing while streams run: it notes the time of
each piece of bytes and reads the events out of them afterwards.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from benchmarks.prompts import Messages


class StreamFailed(RuntimeError):
    """A stream was refused, broke off or ended without an answer; the message says how."""


@dataclass(frozen=True)
class Stream:
    """One stream. Times are seconds after the first request of its round was sent.

    token_times: when each event that carries text arrived. tokens: as the usage event counts them or, without one,
    as many as there were such events.
    """

    sent: float
    token_times: tuple[float, ...]
    ended: float
    tokens: int
    prompt_tokens: int | None
    text: str


@dataclass(frozen=True)
class Round:
    """Streams that ran at the same time. began: the moment that their times count from, by time.perf_counter()."""

    streams: tuple[Stream, ...]
    began: float = 0.0

    @property
    def tokens(self) -> int:
        return sum(stream.tokens for stream in self.streams)

    @property
    def seconds(self) -> float:
        """From the first request sent to the last stream's end."""
        return max(stream.ended for stream in self.streams) - min(stream.sent for stream in self.streams)

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds

    @property
    def first_token_seconds(self) -> tuple[float, ...]:
        """For each stream, from its request to its first text."""
        return tuple(stream.token_times[0] - stream.sent for stream in self.streams)

    @property
    def decode_tokens_per_second(self) -> float | None:
        """Tokens after the moment when every stream had its first, over the time after it; None if none came after."""
        start = max(stream.token_times[0] for stream in self.streams)
        times = [moment for stream in self.streams for moment in stream.token_times if moment > start]
        return len(times) / (max(times) - start) if times else None


def run_streams(
    url: str,
    prompts: Sequence[Messages],
    *,
    model: str,
    new_tokens: int | Sequence[int],
    extra: dict[str, Any] | None = None,
    stagger_seconds: float = 0.0,
    timeout_seconds: float = 300.0,
    on_piece: Callable[[bytes], None] = lambda piece: None,
) -> Round:
    """Stream one greedy chat completion for each prompt, all at once.

    new_tokens: of each, or one number for all. extra: further fields of the request. stagger_seconds: between two
    requests' starts, for servers whose backlog overflows. on_piece: called at once with each piece that arrives.
    Raises StreamFailed for any stream that does not end as it should within timeout_seconds.
    """
    asked = [new_tokens] * len(prompts) if isinstance(new_tokens, int) else list(new_tokens)
    body = {"model": model, "stream": True, "temperature": 0, **(extra or {})}

    async def one(
        client: httpx.AsyncClient, prompt: Messages, place: int, start: float
    ) -> tuple[float, _Pieces, float]:
        await asyncio.sleep(place * stagger_seconds)
        sent = time.perf_counter() - start
        pieces: _Pieces = []
        request = {**body, "max_tokens": asked[place], "messages": prompt}
        async with client.stream("POST", f"{url}/chat/completions", json=request) as response:
            if response.status_code != 200:
                raise StreamFailed(f"HTTP {response.status_code}: {(await response.aread()).decode()[:300]}")
            async for piece in response.aiter_raw():
                pieces.append((time.perf_counter() - start, piece))
                on_piece(piece)
        return sent, pieces, time.perf_counter() - start

    async def all_of_them() -> tuple[list[_Answer], float]:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        async with httpx.AsyncClient(timeout=timeout_seconds, limits=limits) as client:
            start = time.perf_counter()
            tasks = [one(client, prompt, place, start) for place, prompt in enumerate(prompts)]
            return await asyncio.wait_for(asyncio.gather(*tasks), timeout_seconds), start

    try:
        answers, began = asyncio.run(all_of_them())
    except (httpx.HTTPError, TimeoutError) as error:
        raise StreamFailed(f"{type(error).__name__}: {error} (limit: {timeout_seconds} s)") from error
    return Round(tuple(_read_stream(*answer) for answer in answers), began)


_Pieces = list[tuple[float, bytes]]
_Answer = tuple[float, _Pieces, float]  # when it was sent, what came when, when it ended


def _read_stream(sent: float, pieces: _Pieces, ended: float) -> Stream:
    token_times: list[float] = []
    text: list[str] = []
    usage: dict[str, Any] | None = None
    finished, rest = False, b""
    for moment, piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            if not line.startswith(b"data:"):
                continue
            data = line[5:].strip()
            if data == b"[DONE]":
                finished = True
                continue
            event = json.loads(data)
            if "error" in event:
                raise StreamFailed(f"error in the stream: {event['error']}")
            usage = event.get("usage") or usage
            for choice in event.get("choices", ()):
                delta = choice.get("delta", {})
                if delta.get("content"):
                    token_times.append(moment)
                    text.append(delta["content"])
    if not token_times or not finished:
        raise StreamFailed(f"the stream ended after {len(token_times)} pieces of text, without [DONE] or any text")
    return Stream(
        sent=sent,
        token_times=tuple(token_times),
        ended=ended,
        tokens=usage["completion_tokens"] if usage else len(token_times),
        prompt_tokens=usage["prompt_tokens"] if usage else None,
        text="".join(text),
    )
