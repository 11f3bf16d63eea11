"""`stream_options.include_obfuscation`, OpenAI's: random characters in each delta of a stream.

They keep an event's size from telling the length of its text to who sees the encrypted stream alone.

They are random so that no compression on the way takes them out again.
"""

from __future__ import annotations

import secrets
from typing import Any

import orjson

# Most tokens' texts end up in events of one size, at a cost of some 45 bytes each.
_BLOCK_BYTES = 64
_AROUND_BYTES = 16
_EVENT_END = b"}\n\n"


def padding(size: int) -> str:
    """So many random characters that `size` bytes and they are a multiple of 64."""
    count = -size % _BLOCK_BYTES
    return secrets.token_urlsafe(count)[:count]


def in_events(events: bytes) -> bytes:
    """Each of some chunks with a field `obfuscation`."""
    padded = b""
    for event in events.split(b"\n\n")[:-1]:
        size = sum(map(_size, orjson.loads(event.removeprefix(b"data: "))["choices"]))
        padded += event[:-1] + b',"obfuscation":"' + padding(_AROUND_BYTES + size).encode() + b'"' + _EVENT_END
    return padded


def _size(choice: dict[str, Any]) -> int:
    """Bytes of what differs between a choice's chunks of one kind: texts, and what there is of each token."""
    delta = choice.get("delta", {})
    said = [choice.get("text"), delta.get("content"), delta.get("reasoning"), delta.get("reasoning_content")]
    said += [call["function"]["arguments"] for call in delta.get("tool_calls", ())]
    said += [choice.get("logprobs"), choice.get("token_ids")]
    return sum(len(orjson.dumps(each)) for each in said if each is not None)
