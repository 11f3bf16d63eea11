"""`return_token_ids`, vLLM's: token ids beside the text, in answers and in the events of a stream.

A completion's choices hold the ids of their prompt; of a chat there is one prompt, which the whole answer, or the
first chunk, holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import orjson

_END = b"}\n\n"


@dataclass(frozen=True)
class ShownIds:
    """prompts: the request's, as token ids. per_prompt: choices of each. in_choice: whether a prompt's ids are shown in
    each of its choices, or once beside them."""

    prompts: Sequence[tuple[int, ...]]
    per_prompt: int
    in_choice: bool

    def of_choice(self, index: int, tokens: Sequence[int]) -> bytes:
        """Further fields of a whole choice."""
        return _field("token_ids", tokens) + (self._prompt(index) if self.in_choice else b"")

    def of_whole(self) -> bytes:
        """Further fields of a whole answer."""
        return b"" if self.in_choice else self._prompt(0)

    def in_first_event(self, event: bytes, index: int, end: bytes) -> bytes:
        """The choice's first event with its prompt's ids. end: what follows an event's only choice."""
        if self.in_choice:
            return _insert(event, self._prompt(index), b"}" + end)
        return event if index else event.removesuffix(_END) + self._prompt(0) + _END

    @staticmethod
    def in_event(events: bytes, tokens: Sequence[int], end: bytes) -> bytes:
        """The first of some events with the ids of the tokens that they are of."""
        first, separator, others = events.partition(b"\n\n")
        return _insert(first + separator, _field("token_ids", tokens), b"}" + end) + others

    def _prompt(self, index: int) -> bytes:
        return _field("prompt_token_ids", self.prompts[index // self.per_prompt])


def _field(name: str, ids: Sequence[int]) -> bytes:
    return b',"' + name.encode() + b'":' + orjson.dumps(list(ids))


def _insert(event: bytes, fields: bytes, end: bytes) -> bytes:
    return event.removesuffix(end) + fields + end
