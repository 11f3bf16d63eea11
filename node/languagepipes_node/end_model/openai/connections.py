"""One client's connection, below HTTP: a request's head must arrive in time and be of a sensible size.

uvicorn bounds neither; what follows the head is bounded in `http.read_body`.
"""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from languagepipes_node.end_model.openai.errors import ApiError, HeadTooLarge, RequestTimeout

_HEAD_SECONDS = 30.0
_HEAD_BYTES = 1 << 16
_REASONS = {408: b"Request Timeout", 431: b"Request Header Fields Too Large"}


class BoundedHeadProtocol(HttpToolsProtocol):
    """uvicorn's protocol. A connection on which no head becomes complete in `_HEAD_SECONDS`, counted from its start or
    from the first byte after an answer, is closed, after a 408 if anything had come.
    """

    _head_timer: asyncio.TimerHandle | None = None
    _head_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._head_timer is None and (self.cycle is None or self.cycle.response_complete):
            self._await_head()
        super().data_received(data)
        if self._head_timer is not None:  # still not complete
            self._head_bytes += len(data)
            if self._head_bytes > _HEAD_BYTES:
                self._refuse(HeadTooLarge(f"The request's headers are larger than {_HEAD_BYTES} bytes."))

    def on_headers_complete(self) -> None:
        self._end_waiting()
        super().on_headers_complete()

    def _await_head(self) -> None:
        self._head_bytes = 0
        self._head_timer = self.loop.call_later(_HEAD_SECONDS, self._late)

    def _end_waiting(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _late(self) -> None:
        if self._head_bytes:
            self._refuse(RequestTimeout(f"The request's headers did not arrive within {_HEAD_SECONDS:g} s."))
        elif not self.transport.is_closing():
            self.transport.close()

    def _refuse(self, error: ApiError) -> None:
        """Answer without a request, and close."""
        self._end_waiting()
        if self.transport.is_closing():
            return
        body = error.to_json()
        headers = [*error.headers, (b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        lines = [b"HTTP/1.1 %d %s" % (error.status, _REASONS[error.status]), *(b": ".join(each) for each in headers)]
        self.transport.write(b"\r\n".join([*lines, b"", body]))
        self.transport.close()
