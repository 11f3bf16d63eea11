"""Offers to speak another protocol, declined: a request with one is answered as if it had none (RFC 9110, 7.8).

Java's HttpClient offers h2c on plain http with each first request. httptools takes such an offer for accepted: it reads
no body after it and hands over the rest of the stream.
"""

from __future__ import annotations

from typing import Protocol

import httptools


class Callbacks(Protocol):
    """What a parser tells, as httptools calls it."""

    def on_message_begin(self) -> None: ...
    def on_url(self, url: bytes) -> None: ...
    def on_header(self, name: bytes, value: bytes) -> None: ...
    def on_headers_complete(self) -> None: ...
    def on_body(self, body: bytes) -> None: ...
    def on_message_complete(self) -> None: ...


class DecliningParser:
    """A parser of requests, for `httptools.HttpRequestParser`. Where a head holds an offer, the same head without it is
    parsed in its place, and what follows as its body. CONNECT, which is no offer, is left as it is.
    """

    def __init__(self, callbacks: Callbacks) -> None:
        self._callbacks = callbacks
        self._url = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._again = False  # a head is being parsed that the callbacks have been told of
        self._offered = False
        self._parser = self._fresh()

    def _fresh(self) -> httptools.HttpRequestParser:
        parser = httptools.HttpRequestParser(self)
        # As uvicorn sets its own.
        if hasattr(parser, "set_dangerous_leniencies"):
            parser.set_dangerous_leniencies(lenient_data_after_close=True)
        return parser

    def feed_data(self, data: bytes) -> None:
        """Raises httptools.HttpParserError and, after CONNECT, HttpParserUpgrade."""
        while True:
            try:
                self._parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as upgrade:
                if not self._offered:
                    raise
                rest = data[upgrade.args[0] :]
            method, version = self._parser.get_method(), self._parser.get_http_version()
            head = [method + b" " + self._url + b" HTTP/" + version.encode()]
            head += [name + b": " + value for name, value in self._headers if name.lower() != b"upgrade"]
            self._offered, self._again = False, True
            self._parser = self._fresh()
            self._parser.feed_data(b"\r\n".join([*head, b"", b""]))
            data = rest

    def get_method(self) -> bytes:
        method: bytes = self._parser.get_method()
        return method

    def get_http_version(self) -> str:
        version: str = self._parser.get_http_version()
        return version

    def should_keep_alive(self) -> bool:
        return bool(self._parser.should_keep_alive())

    def should_upgrade(self) -> bool:
        return bool(self._parser.should_upgrade())

    # Called by the parser.

    def on_message_begin(self) -> None:
        self._url, self._headers = b"", []
        if not self._again:
            self._callbacks.on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._url += url
        if not self._again:
            self._callbacks.on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name, value))
        if not self._again:
            self._callbacks.on_header(name, value)

    def on_headers_complete(self) -> None:
        self._again = False
        self._offered = self.should_upgrade() and self.get_method() != b"CONNECT"
        if not self._offered:
            self._callbacks.on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._callbacks.on_body(body)

    def on_message_complete(self) -> None:
        if not self._offered:
            self._callbacks.on_message_complete()
