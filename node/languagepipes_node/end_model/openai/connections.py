"""One client's connection, below HTTP: a request's head must arrive in time and be of a sensible size, and an answer
may be the connection's last.

uvicorn bounds no head. The body is bounded in `http.read_body`; what frames its chunks and follows it, here. A Service
of Kubernetes chooses a replica for each connection, not for each request: a client that keeps a connection to a replica
that cannot serve now would ask it again and again, and no other one.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from languagepipes_node.end_model.openai.errors import ApiError, HeadTooLarge, RequestTimeout
from languagepipes_node.end_model.openai.messages.errors import error_object, is_of_messages
from languagepipes_node.end_model.openai.request_ids import id_headers, new_request_id
from languagepipes_node.end_model.openai.upgrades import DecliningParser

_HEAD_SECONDS = 30.0
# Checked after each read of the socket, so a head of this size and one read more (256 kB) may get through.
_HEAD_BYTES = 1 << 16
# How long, and how much of it, what is sent on after a refusal is read and thrown away. Closed with bytes unread, the
# connection would be reset, and the client's system might drop the answer before the client has read it.
_LINGER_SECONDS = 2.0
_LINGER_BYTES = 1 << 16
# The framing of chunks of one byte takes five.
_FRAMING_BYTES = 8
_CLOSE = "languagepipes.close_after_answer"
_REASONS = {408: b"Request Timeout", 431: b"Request Header Fields Too Large"}


def close_after_answer(scope: Scope) -> None:
    """Have the connection closed once the request's answer is sent, with `Connection: close` in its head where that
    is still to come (RFC 9112, 9.6): requests that were sent behind it are not answered. Without effect behind
    another server than ours.
    """
    if (close := (scope.get("state") or {}).get(_CLOSE)) is not None:
        close()


class BoundedHeadProtocol(HttpToolsProtocol):
    """uvicorn's protocol. A connection on which no head becomes complete in `_HEAD_SECONDS`, counted from its start or
    from a request's first byte, is closed, after a 408 if a request had begun and no answer is under way.
    """

    _head_timer: asyncio.TimerHandle | None = None
    _in_message = False  # a request has begun, and its last byte has not come
    _in_head = False
    _messages = 0
    _body_bytes = 0  # of the message
    _other_bytes = 0  # of the message; within a read, what was parsed
    _refused = False
    _linger_timer: asyncio.TimerHandle | None = None
    _lingered_bytes = 0

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.parser = DecliningParser(self)  # type: ignore[assignment]

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_waiting()
        if self._linger_timer is not None:
            self._linger_timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            self._lingered_bytes += len(data)
            if self._lingered_bytes > _LINGER_BYTES:
                self.transport.close()
            return
        goes_on, messages = self._in_message, self._messages
        body_bytes, other_bytes = (self._body_bytes, self._other_bytes) if goes_on else (0, 0)
        super().data_received(data)
        if self._messages - messages == (0 if goes_on else 1):  # all of `data` is of this message
            self._other_bytes = other_bytes + len(data) - (self._body_bytes - body_bytes)
        if self._in_message and self._other_bytes > _HEAD_BYTES + _FRAMING_BYTES * self._body_bytes:
            self._refuse(_too_large())
        elif self._head_timer is None and self._answered() and self.timeout_keep_alive_task is None:
            # uvicorn ends the wait for another request at any byte, also at one that begins none.
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def on_message_begin(self) -> None:
        self._in_message = self._in_head = True
        self._messages += 1
        self._body_bytes = self._other_bytes = 0
        if self._head_timer is None:
            self._await_head()
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._other_bytes += len(url)
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:  # what comes after the body is not read
            self._other_bytes += len(name) + len(value)
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._end_waiting()
        if self._other_bytes > _HEAD_BYTES:
            self._refuse(_too_large())
        if not self._refused:
            super().on_headers_complete()
            if self.cycle is not None:
                # Each request has a state of its own, which whoever wraps the scope still shares.
                self.scope["state"][_CLOSE] = partial(setattr, self.cycle, "keep_alive", False)

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        if not self._refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        self._in_message = False
        if not self._refused:
            super().on_message_complete()

    def _answered(self) -> bool:
        """Whether no answer is under way."""
        return self.cycle is None or self.cycle.response_complete

    def _await_head(self) -> None:
        self._head_timer = self.loop.call_later(_HEAD_SECONDS, self._late)

    def _end_waiting(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _late(self) -> None:
        if self._in_message:
            self._refuse(RequestTimeout(f"The request's headers did not arrive within {_HEAD_SECONDS:g} s."))
        elif not self.transport.is_closing():
            self.transport.close()

    def _refuse(self, error: ApiError) -> None:
        """Answer without a request, and close. Where the answer to an earlier request is under way, it ends there."""
        self._refused = True
        self._end_waiting()
        if self.transport.is_closing():
            return
        if self._answered():
            number = new_request_id()
            # The path is known unless it is the request line that came late, or never ends.
            of_messages = is_of_messages(self.url.partition(b"?")[0].decode("latin-1"))
            body = error_object(error, number) if of_messages else error.to_json()
            headers = [
                *error.headers,
                *id_headers(number, of_messages=of_messages),
                (b"content-type", b"application/json"),
                (b"content-length", b"%d" % len(body)),
            ]
            start = b"HTTP/1.1 %d %s" % (error.status, _REASONS[error.status])
            self.transport.write(b"\r\n".join([start, *map(b": ".join, headers), b"", body]))
        self._linger()

    def _linger(self) -> None:
        """Close for the client once all is sent; for ourselves when it has closed too, or sends on for too long."""
        self.flow.resume_reading()
        self.transport.write_eof()
        self._linger_timer = self.loop.call_later(_LINGER_SECONDS, self.transport.close)


def _too_large() -> HeadTooLarge:
    return HeadTooLarge(f"The request's headers are larger than {_HEAD_BYTES} bytes.")
