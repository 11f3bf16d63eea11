"""One request to an OpenAI server and its record. Knows nothing of load or of figures.

BenchError           told to the user in one sentence; nothing is measured
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from languagepipes_operator.cli.bench.options import BenchOptions, Route
from languagepipes_operator.cli.bench.prompts import Job
from languagepipes_operator.cli.bench.records import RequestFailure, RequestRecord
from languagepipes_operator.cli.bench.stream import AnswerReader, StreamError
from languagepipes_operator.cli.openai_server import CONNECT_SECONDS, authorization, error_message

# How long a server may keep a stream open after [DONE].
_END_SECONDS = 1.0
_ROUTES: dict[Route, str] = {"chat": "chat/completions", "completions": "completions"}


class BenchError(Exception):
    """The message is for the user."""


@dataclass(frozen=True)
class RequestForm:
    """How this server is asked. limit_field: the name of the greatest number of tokens. length_field: what
    makes answers as long as that, ignore_eos or min_tokens; None: nothing. usage: whether usage may be asked for.
    """

    route: Route
    model: str
    limit_field: str = "max_tokens"
    length_field: str | None = "ignore_eos"
    usage: bool = True
    more: dict[str, Any] = field(default_factory=dict)

    def body(self, job: Job) -> dict[str, Any]:
        body: dict[str, Any] = {"model": self.model, "stream": True, self.limit_field: job.output_tokens}
        if self.route == "chat":
            body["messages"] = [{"role": "user", "content": job.prompt}]
        else:
            body["prompt"] = job.prompt
        if self.length_field is not None:
            body[self.length_field] = True if self.length_field == "ignore_eos" else job.output_tokens
        if self.usage:
            body["stream_options"] = {"include_usage": True}
        return {**body, **self.more}


@dataclass(frozen=True)
class RefusedRequest:
    """An answer other than 200. message: the server's."""

    status: int
    message: str


class Client:
    """url: ends with /v1/."""

    def __init__(self, url: str, http: aiohttp.ClientSession) -> None:
        self.url, self._http = url, http

    async def models(self) -> list[str] | RefusedRequest:
        """The names that the server lists. Raises aiohttp.ClientError and OSError."""
        async with self._http.get(f"{self.url}models", allow_redirects=False) as response:
            if response.status != 200:
                return await _refusal(response)
            try:
                return [str(model["id"]) for model in json.loads(await response.read())["data"]]
            except (ValueError, KeyError, TypeError) as error:
                raise BenchError(f"{self.url}models lists no models: name one with --model") from error

    async def ask(self, job: Job, form: RequestForm, *, due: float | None = None) -> RequestRecord:
        """Send one request and read its answer to the end. Cancelled, it sets `interrupted` and returns. due:
        when it was to be sent, on the clock of time.perf_counter; None: now.
        """
        sent = time.perf_counter()
        record = RequestRecord(job.number, sent if due is None else due, job.output_tokens, sent=sent)
        try:
            await self._answer(job, form, record)
        except asyncio.CancelledError:
            record.interrupted = True
        except StreamError as error:
            record.failure = RequestFailure(error.kind, str(error))
        except aiohttp.ClientConnectorError as error:
            record.failure = RequestFailure("no connection", str(error.strerror or error))
        except TimeoutError:  # aiohttp's time-outs too
            record.failure = RequestFailure("time-out", f"no end after {time.perf_counter() - sent:.1f} s")
        except (aiohttp.ClientError, OSError) as error:
            kind = "cut off" if record.chunk_times else "connection lost"
            record.failure = RequestFailure(kind, str(error) or type(error).__name__)
        record.ended = record.ended or time.perf_counter()
        return record

    async def _answer(self, job: Job, form: RequestForm, record: RequestRecord) -> None:
        url = self.url + _ROUTES[form.route]
        async with self._http.post(url, json=form.body(job), allow_redirects=False) as response:
            if response.status != 200:
                refusal = await _refusal(response)
                raise StreamError(f"HTTP {refusal.status}", refusal.message)
            if response.content_type == "application/json":
                raise StreamError("no stream", "the server answered with one JSON object instead of a stream")
            reader = AnswerReader(record)
            async for data in response.content.iter_any():
                now = time.perf_counter()
                reader.feed(data, now)
                if reader.done:
                    record.ended = now
                    await _read_to_the_end(response)
                    return
            if not reader.whole:
                raise StreamError("cut off", "the stream ended before the answer did")

    async def attempt(self, job: Job, form: RequestForm) -> RefusedRequest | RequestRecord:
        """As `ask`, for a server that is not known yet: its refusal as it is. Raises BenchError if it cannot
        be reached, and CancelledError when it is cancelled.
        """
        record = await self.ask(job, form)
        if record.interrupted:
            raise asyncio.CancelledError
        failure = record.failure
        if failure is None:
            return record
        if failure.kind.startswith("HTTP "):
            return RefusedRequest(int(failure.kind.removeprefix("HTTP ")), failure.message)
        raise BenchError(f"{self.url}{_ROUTES[form.route]}: {failure.kind}: {failure.message}")


def open_session(options: BenchOptions) -> aiohttp.ClientSession:
    """With as many connections as there are requests, kept open. Raises BenchError for a key that is none."""
    try:
        headers = authorization(options.api_key)
    except ValueError as error:
        raise BenchError(str(error)) from error
    return aiohttp.ClientSession(
        headers=headers,
        timeout=aiohttp.ClientTimeout(total=options.timeout_seconds, sock_connect=CONNECT_SECONDS),
        # uvicorn closes a connection that is idle for 5 s; a request sent at that moment would be lost.
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=4),
        read_bufsize=2**20,
        trust_env=True,
    )


async def _read_to_the_end(response: aiohttp.ClientResponse) -> None:
    """A connection whose answer was not read to its end is closed, and the next request would have to open one."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_END_SECONDS):
            async for _ in response.content.iter_any():
                pass


async def _refusal(response: aiohttp.ClientResponse) -> RefusedRequest:
    try:
        message = error_message(json.loads(await response.read()))
    except ValueError:
        message = ""
    return RefusedRequest(response.status, message or str(response.reason))
