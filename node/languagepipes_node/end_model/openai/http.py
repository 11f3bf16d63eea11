"""The plain ASGI that the routes need: reading a body within bounds, answering at once, answering with an error.

The routes speak ASGI rather than return response objects: a stream costs one call a step, and a client's departure is
seen while nothing is being sent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from starlette.types import Receive, Scope, Send

from languagepipes_node.end_model.openai.bridge import ClientGone
from languagepipes_node.end_model.openai.errors import (
    ApiError,
    BodyTooLarge,
    RequestTimeout,
    UnsupportedMediaType,
)

_BODY_SECONDS = 60.0
_JSON = (b"content-type", b"application/json")


async def read_body(scope: Scope, receive: Receive, *, max_bytes: int) -> bytes:
    """The request's body, declared to be JSON and at most `max_bytes` long.

    Raises BodyTooLarge, RequestTimeout, UnsupportedMediaType or, if the client leaves meanwhile, ClientGone.
    """
    headers: dict[bytes, bytes] = dict(scope["headers"])
    media_type = headers.get(b"content-type", b"application/json").split(b";")[0].strip().lower()
    if media_type != b"application/json":
        raise UnsupportedMediaType("The body's Content-Type is not application/json.")
    if headers.get(b"content-encoding", b"identity").strip().lower() != b"identity":
        raise UnsupportedMediaType("Bodies with a Content-Encoding are not supported: send plain JSON.")
    declared = headers.get(b"content-length", b"")
    too_large = f"The body is larger than this server's limit of {max_bytes} bytes."
    if declared.isdigit() and int(declared) > max_bytes:
        raise BodyTooLarge(too_large)
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientGone
                part = message.get("body", b"")
                size += len(part)
                if size > max_bytes:
                    raise BodyTooLarge(too_large)
                parts.append(part)
                if not message.get("more_body", False):
                    return b"".join(parts)
    except TimeoutError:
        raise RequestTimeout(f"The body did not arrive within {_BODY_SECONDS:g} s.") from None


async def send_json(send: Send, body: bytes, *, status: int = 200, headers: Sequence[tuple[bytes, bytes]] = ()) -> None:
    """One whole response."""
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": status, "headers": [_JSON, length, *headers]})
    await send({"type": "http.response.body", "body": body})


async def send_error(send: Send, error: ApiError) -> None:
    """The error as OpenAI's error object, with its status and headers."""
    await send_json(send, error.to_json(), status=error.status, headers=error.headers)
