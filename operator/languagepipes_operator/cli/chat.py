"""`languagepipes chat`: talk to a pipe, or to any server with the OpenAI API, from a terminal.

ChatError            told to the user in one line
├── Refused          the server answered with an error
└── Unreachable      no answer, or one that broke off
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
import time
from collections.abc import AsyncGenerator, Coroutine, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import aiohttp
from rich.console import Console
from rich.markup import escape

from languagepipes_operator.cli.openai_server import (
    CONNECT_SECONDS,
    api_root,
    authorization,
    error_message,
    without_control_characters,
)

_HELP = "Ctrl-C stops an answer, /new forgets the conversation, Ctrl-D or /exit leaves."
_INTERRUPTED = 130  # 128 + SIGINT, as shells report it

Done = TypeVar("Done")


class ChatError(Exception):
    """The base of what can go wrong; the message is for the user."""


class Refused(ChatError):
    """The server answered with an error object or status."""


class Unreachable(ChatError):
    """No server, or a connection that broke off."""


@dataclass(frozen=True)
class ChatOptions:
    """url: the server's address with or without /v1. model: default, the first that the server lists.
    api_key: default, the environment's OPENAI_API_KEY. message: one question, answered once; None talks until
    the end of input. Sampling fields that are None are left to the server.
    """

    url: str = "http://127.0.0.1:8000"
    model: str | None = None
    api_key: str | None = None
    message: str | None = None
    system: str | None = None
    max_tokens: int | None = None
    temperature: float | None = None


def run(options: ChatOptions) -> int:
    """Chat until the end of input. Returns the process's exit status: 0, 1 after an error (told on stderr) or
    130 if an only answer was stopped with Ctrl-C.
    """
    console, errors = Console(highlight=False), Console(stderr=True, highlight=False)
    # A shell that starts this in the background has SIGINT ignored, and Python leaves it so.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        # One loop for all questions; while it runs, Ctrl-C cancels what it does.
        with _server(options) as server:
            model = options.model or server.run(_first_model(server))
            conversation = _Conversation(server, model, options, console)
            if options.message is not None:
                return _INTERRUPTED if conversation.ask(options.message).stopped else 0
            return _interact(conversation, console, errors)
    except ChatError as error:
        _tell(errors, error)
        return 1
    except KeyboardInterrupt:
        return _INTERRUPTED


@dataclass(frozen=True)
class _Answer:
    """stopped: by Ctrl-C. tokens: None if the server does not tell."""

    text: str
    stopped: bool
    cut_short: bool
    tokens: int | None
    first_seconds: float
    seconds: float


@dataclass(frozen=True)
class _Server:
    """url: ends with /v1/."""

    url: str
    http: aiohttp.ClientSession
    runner: asyncio.Runner

    def run(self, work: Coroutine[Any, Any, Done]) -> Done:
        return self.runner.run(work)


class _Conversation:
    """The messages so far. A question that fails leaves no trace in it."""

    def __init__(self, server: _Server, model: str, options: ChatOptions, console: Console) -> None:
        self._server = server
        self.model = model
        self._options = options
        self._console = console
        self._messages: list[dict[str, str]] = []
        self.restart()

    def restart(self) -> None:
        system = self._options.system
        self._messages = [{"role": "system", "content": system}] if system else []

    def ask(self, question: str) -> _Answer:
        """Print the answer as it comes. Raises ChatError."""
        asked = [*self._messages, {"role": "user", "content": question}]
        answer = self._server.run(self._show(asked))
        if answer.text or not answer.stopped:
            self._messages = [*asked, {"role": "assistant", "content": answer.text}]
        return answer

    async def _show(self, messages: list[dict[str, str]]) -> _Answer:
        text: list[str] = []
        tokens: int | None = None
        finish: str | None = None
        stopped = False
        started = time.monotonic()
        first = started
        try:
            async with contextlib.aclosing(_stream(self._server, self._body(messages))) as chunks:
                async for chunk in chunks:
                    piece, ended = _choice(chunk)
                    finish = ended or finish
                    usage = chunk.get("usage")
                    if isinstance(usage, dict) and isinstance(usage.get("completion_tokens"), int):
                        tokens = usage["completion_tokens"]
                    if piece:
                        if not text:
                            first = time.monotonic()
                        text.append(piece)
                        self._console.print(without_control_characters(piece), end="", markup=False, soft_wrap=True)
        except asyncio.CancelledError:
            stopped = True  # by Ctrl-C; leaving the stream closed the connection, so the server stops too
        finally:
            if text:
                self._console.print()
        seconds = time.monotonic() - started
        return _Answer("".join(text), stopped, finish == "length", tokens, first - started, seconds)

    def _body(self, messages: list[dict[str, str]]) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self.model,
            "messages": messages,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if self._options.max_tokens is not None:
            body["max_tokens"] = self._options.max_tokens
        if self._options.temperature is not None:
            body["temperature"] = self._options.temperature
        return body


def _interact(conversation: _Conversation, console: Console, errors: Console) -> int:
    """Questions from the input until its end. At a terminal an error ends a question, otherwise it ends all."""
    at_terminal = sys.stdin.isatty()
    if at_terminal:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 (gives input() line editing and its history)
        console.print(f"[bold]{escape(conversation.model)}[/]  [dim]{_HELP}[/]")
    while True:
        try:
            question = input("> " if at_terminal else "").strip()
        except (EOFError, KeyboardInterrupt):
            if at_terminal:
                console.print()
            return 0
        if not question:
            continue
        if question == "/exit":
            return 0
        if question == "/new":
            conversation.restart()
            continue
        try:
            answer = conversation.ask(question)
        except ChatError as error:
            if not at_terminal:
                raise
            _tell(errors, error)
            continue
        if at_terminal:
            console.print(f"[dim]{_summary(answer)}[/]")


def _summary(answer: _Answer) -> str:
    parts = [f"first text after {answer.first_seconds:.2f} s"] if answer.text else []
    if answer.tokens is not None:
        parts.append(f"{answer.tokens} tokens")
        since_first = answer.seconds - answer.first_seconds
        if answer.tokens > 1 and since_first > 0:
            parts.append(f"{(answer.tokens - 1) / since_first:.1f} tokens/s")
    if answer.cut_short:
        parts.append("cut short by the token limit")
    if answer.stopped:
        parts.append("stopped")
    return ", ".join(parts)


def _tell(errors: Console, error: ChatError) -> None:
    errors.print(f"[bold red]error:[/] {escape(without_control_characters(str(error)))}", soft_wrap=True)


@contextlib.contextmanager
def _server(options: ChatOptions) -> Iterator[_Server]:
    """Raises Unreachable for an address or a key that is none."""
    try:
        url, headers = api_root(options.url), authorization(options.api_key)
    except ValueError as error:
        raise Unreachable(str(error)) from error
    with asyncio.Runner() as runner:
        http = runner.run(_open_session(headers))
        try:
            yield _Server(url, http, runner)
        finally:
            runner.run(http.close())


async def _open_session(headers: dict[str, str]) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        headers=headers,
        # An answer may be long in coming; Ctrl-C ends the wait.
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS),
        # Between two questions the loop stands still, and would not see that the server closed a kept connection.
        connector=aiohttp.TCPConnector(force_close=True),
        read_bufsize=2**20,
        trust_env=True,
    )


async def _first_model(server: _Server) -> str:
    with _translated(server):
        async with server.http.get(f"{server.url}models", allow_redirects=False) as response:
            await _check(response)
            try:
                return str(json.loads(await response.read())["data"][0]["id"])
            except (ValueError, KeyError, IndexError, TypeError) as error:
                raise Refused(f"{server.url}models lists no model: name one with --model") from error


async def _stream(server: _Server, body: dict[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
    """The chunks of an answer (https://html.spec.whatwg.org/multipage/server-sent-events.html). Raises
    ChatError, also if the answer breaks off.
    """
    url = f"{server.url}chat/completions"
    with _translated(server):
        async with server.http.post(url, json=body, allow_redirects=False) as response:
            await _check(response)
            async for line in response.content:
                field, _, value = line.decode(errors="replace").rstrip("\r\n").partition(":")
                if field != "data":
                    continue  # blank lines, comments that keep a connection alive
                data = value.removeprefix(" ")
                if data == "[DONE]":
                    return
                try:
                    chunk = json.loads(data)
                except ValueError as error:
                    raise Refused(f"{server.url} sent an event that is no JSON") from error
                if not isinstance(chunk, dict):
                    raise Refused(f"{server.url} sent an event that is no JSON object")
                if chunk.get("error") is not None:
                    raise Refused(f"the answer broke off: {error_message(chunk)}")
                yield chunk
    raise Unreachable("the connection ended before the answer did")


def _choice(chunk: dict[str, Any]) -> tuple[str, str | None]:
    """A chunk's text and finish_reason; the chunk with the usage has no choice."""
    choices = chunk.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        return "", None
    delta = choices[0].get("delta")
    content = delta.get("content") if isinstance(delta, dict) else None
    finish = choices[0].get("finish_reason")
    return content if isinstance(content, str) else "", finish if isinstance(finish, str) else None


async def _check(response: aiohttp.ClientResponse) -> None:
    """Raises Refused for anything but a success, with the server's own message."""
    if 200 <= response.status < 300:
        return
    try:
        message = error_message(json.loads(await response.read()))
    except ValueError:
        message = ""
    said = message or response.reason
    hint = ""
    if response.status == 401:
        hint = " (give the key with --api-key or OPENAI_API_KEY)"
    elif (retry := response.headers.get("Retry-After", "")).isdigit():
        hint = f" (try again in {retry} s)"
    raise Refused(f"{response.status}: {said}{hint}")


@contextlib.contextmanager
def _translated(server: _Server) -> Iterator[None]:
    """aiohttp's errors as ours."""
    try:
        yield
    except aiohttp.ClientConnectorError as error:
        raise Unreachable(f"nothing answers at {server.url}: {error.strerror or error}") from error
    except aiohttp.ConnectionTimeoutError as error:
        raise Unreachable(f"no connection to {server.url} within {CONNECT_SECONDS:g} s") from error
    except (aiohttp.ClientError, OSError) as error:
        raise Unreachable(f"the connection to {server.url} broke: {error}") from error
