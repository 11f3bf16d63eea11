"""What /v1/chat/completions and /v1/completions have in common when they write an answer."""

from __future__ import annotations

import secrets
import time
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import orjson

from languagepipes_node.end_model.openai.answer_format import AnswerFormat, Scored
from languagepipes_node.end_model.openai.answers import AnswerFinish, Piece
from languagepipes_node.end_model.openai.errors import ApiError
from languagepipes_node.end_model.openai.response_models import Usage
from languagepipes_node.end_model.openai.service import Service
from languagepipes_node.end_model.openai.token_ids import ShownIds

_DONE = b"data: [DONE]\n\n"


class ResponseFormat(AnswerFormat[Scored]):
    """How the OpenAI routes of `choices` write an answer. The constant parts of events are made once."""

    def __init__(self, service: Service, *, prefix: str, whole_object: str, include_usage: bool) -> None:
        self.service = service
        self.include_usage = include_usage
        self.ids: ShownIds | None = None  # for who asks for token ids
        self.head: dict[str, Any] = {
            "id": f"{prefix}-{secrets.token_hex(16)}",
            "created": int(time.time()),
            "model": service.served_name,
            "system_fingerprint": service.system_fingerprint,
        }
        self.whole_start = self._up_to_choices(whole_object)
        self.usage_field = b',"usage":null' if include_usage else b""

    def event_start(self, object_name: str) -> bytes:
        """An event up to its `choices`."""
        return b"data: " + self._up_to_choices(object_name)

    def _up_to_choices(self, object_name: str) -> bytes:
        head = orjson.dumps({**self.head, "object": object_name})
        return head[:-1] + b',"choices":['

    def whole_end(self, usage: Usage) -> bytes:
        ids = b"" if self.ids is None else self.ids.of_whole()
        return b'],"usage":' + usage.model_dump_json().encode() + ids + b"}"

    @abstractmethod
    def usage_event(self, usage: Usage) -> bytes:
        """The last event before [DONE]: no choices, the usage."""

    def ending(self, usage: Usage) -> bytes:
        return (self.usage_event(usage) if self.include_usage else b"") + _DONE

    def failure(self, error: ApiError) -> bytes:
        return b"data: " + error.to_json() + b"\n\n"

    @abstractmethod
    def choice(
        self, index: int, text: str, scored: Sequence[Scored], finish: AnswerFinish, extra: bytes = b""
    ) -> Iterator[bytes]:
        """A choice of an answer that is not streamed, part by part. extra: further fields of it: b"", or a comma and
        what follows."""

    @abstractmethod
    def empty_event(self, index: int) -> bytes:
        """An event of choice `index` that adds no text, for what else is to be told of it."""

    def first_event(self, index: int) -> bytes:
        opening = self.opening(index)
        if self.ids is None or not opening:
            return opening
        return self.ids.in_first_event(opening, index, event_end(self.usage_field))

    def events_of(self, index: int, piece: Piece, *, first: bool) -> bytes:
        events = self.event(index, piece)
        if self.ids is not None:
            end = event_end(self.usage_field)
            events = self.ids.in_event(events or self.empty_event(index), piece.tokens, end)
            if first and self.ids.in_choice:
                events = self.ids.in_first_event(events, index, end)
        return events

    def choice_with_ids(
        self,
        place: int,
        text: str,
        scored: Sequence[Scored],
        finish: AnswerFinish,
        *,
        index: int,
        tokens: Sequence[int],
    ) -> Iterator[bytes]:
        return self.choice(place, text, scored, finish, b"" if self.ids is None else self.ids.of_choice(index, tokens))


def event_end(usage_field: bytes) -> bytes:
    """An event after its choices."""
    return b"]" + usage_field + b"}\n\n"
