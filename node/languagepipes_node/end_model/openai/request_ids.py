"""One id a request, in the answer's `x-request-id` and in the log, so that a client's complaint can be found there."""

from __future__ import annotations

import re
import secrets

from starlette.types import Message, Scope, Send

HEADER = b"x-request-id"
MESSAGES_HEADER = b"request-id"  # Anthropic's, which its clients read
# A client's own id goes into the log as it is.
_TAKEN = re.compile(rb"[A-Za-z0-9._:/+=@-]{1,128}")


def request_id(scope: Scope) -> str:
    """The client's `X-Request-Id`, if it is one word of plain characters; a new one otherwise."""
    given = [value for name, value in scope["headers"] if name == HEADER]
    if len(given) == 1 and _TAKEN.fullmatch(given[0]):
        return str(given[0].decode("ascii"))
    return new_request_id()


def new_request_id() -> str:
    return f"req_{secrets.token_hex(16)}"


def id_headers(number: str, *, of_messages: bool) -> list[tuple[bytes, bytes]]:
    """The id in an answer's headers. of_messages: also in the one that Anthropic's API has."""
    names = (HEADER, MESSAGES_HEADER) if of_messages else (HEADER,)
    return [(name, number.encode("ascii")) for name in names]


def with_request_id(send: Send, number: str, *, of_messages: bool) -> Send:
    """`send` that adds the id to the headers of a response."""
    added = id_headers(number, of_messages=of_messages)

    async def send_with_id(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), *added]}
        await send(message)

    return send_with_id
