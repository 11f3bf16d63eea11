"""Parts of a conversation put together to the messages of a chat, for routes whose requests come in smaller parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from languagepipes_node.end_model.openai.errors import InvalidRequest
from languagepipes_node.end_model.openai.fields import shortened
from languagepipes_node.end_model.openai.message_schemas import ChatMessage
from languagepipes_node.end_model.openai.tool_schemas import OpenCalls
from languagepipes_node.end_model.tools.arguments import MAX_CALLS

MAX_PARTS = 4096  # of all messages together


@dataclass(frozen=True)
class PlacedMessage:
    """where: the place in the request that it came from."""

    message: ChatMessage
    where: str


def joined(parts: Sequence[ChatMessage]) -> ChatMessage:
    """At least one part of a message, as one; texts are joined by line breaks."""
    if len(parts) == 1:
        return parts[0]
    return ChatMessage(
        parts[0].role,
        "\n".join(part.content for part in parts if part.content),
        tuple(chain.from_iterable(part.calls for part in parts)),
        "\n".join(part.reasoning for part in parts if part.reasoning),
    )


def check_calls(placed: Sequence[PlacedMessage], *, result: str) -> None:
    """Raises InvalidRequest for calls without results, results without calls, and too many calls in one message.
    result: what holds one."""
    open_calls = OpenCalls(result)
    for message, where in ((one.message, one.where) for one in placed):
        if message.call_id is not None:
            open_calls.answer(message.call_id, where)
            continue
        open_calls.close()
        if len(message.calls) > MAX_CALLS:
            raise InvalidRequest(
                f"'{where}' begins a turn of {len(message.calls)} calls, at most {MAX_CALLS} are accepted.", param=where
            )
        seen: set[str] = set()
        for call in message.calls:
            if call.id in seen:
                raise InvalidRequest(
                    f"'{where}' has two calls with the id '{shortened(call.id)}': ids must differ.", param=where
                )
            seen.add(call.id)
        open_calls.call(message.calls, where)
    open_calls.close()


def check_parts(messages: Sequence[Any], where: str) -> None:
    """Raises InvalidRequest if the contents of all messages together have too many parts: each takes its time."""
    parts = 0
    for message in messages:
        if isinstance(message, dict):
            parts += sum(len(inner) for inner in message.values() if isinstance(inner, list))
    if parts > MAX_PARTS:
        raise InvalidRequest(
            f"'{where}' holds {parts} content parts in all, at most {MAX_PARTS} are accepted.", param=where
        )
