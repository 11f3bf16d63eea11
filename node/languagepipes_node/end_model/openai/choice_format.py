"""What /v1/chat/completions and /v1/completions have in common when they write an answer."""

from __future__ import annotations

import secrets
import time
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import orjson

from languagepipes_node.end_model.openai import obfuscation
from languagepipes_node.end_model.openai.answer_format import AnswerFormat, Scored
from languagepipes_node.end_model.openai.answers import AnswerFinish, Piece
from languagepipes_node.end_model.openai.errors import ApiError
from languagepipes_node.end_model.openai.prompt_logprobs import ShownPromptLogprobs
from languagepipes_node.end_model.openai.response_models import Usage
from languagepipes_node.end_model.openai.schemas import StreamOptions
from languagepipes_node.end_model.openai.service import Service
from languagepipes_node.end_model.openai.token_ids import ShownIds
from languagepipes_node.end_model.requests import PromptScores

_DONE = b"data: [DONE]\n\n"


class ResponseFormat(AnswerFormat[Scored]):
    """How the OpenAI routes of `choices` write an answer. The constant parts of events are made once."""

    def __init__(self, service: Service, *, prefix: str, whole_object: str, options: StreamOptions | None) -> None:
        self.service = service
        self.include_usage = options is not None and options.include_usage
        self._obfuscates = options is not None and options.include_obfuscation
        self.ids: ShownIds | None = None  # for who asks for token ids
        self.prompt_logprobs: ShownPromptLogprobs | None = None  # for who asks for those
        self.head: dict[str, Any] = {
            "id": f"{prefix}-{secrets.token_hex(16)}",
            "created": int(time.time()),
            "model": service.served_name,
            "system_fingerprint": service.system_fingerprint,
        }
        self.whole_start = self._up_to_choices(whole_object)
        self.usage_field = b',"usage":null' if self.include_usage else b""

    def event_start(self, object_name: str) -> bytes:
        """An event up to its `choices`."""
        return b"data: " + self._up_to_choices(object_name)

    def _up_to_choices(self, object_name: str) -> bytes:
        head = orjson.dumps({**self.head, "object": object_name})
        return head[:-1] + b',"choices":['

    def collect_scores(self, index: int, scores: PromptScores) -> Iterator[int]:
        return iter(()) if self.prompt_logprobs is None else self.prompt_logprobs.collect(index, scores)

    def whole_end(self, usage: Usage) -> bytes:
        return b"".join(self.whole_ends(usage))

    def whole_ends(self, usage: Usage) -> Iterator[bytes]:
        yield b'],"usage":' + usage.model_dump_json().encode()
        if self.ids is not None:
            yield self.ids.of_whole()
        if self.prompt_logprobs is not None:
            yield from self.prompt_logprobs.of_whole()
        yield b"}"

    @abstractmethod
    def usage_event(self, usage: Usage) -> bytes:
        """The last event before [DONE]: no choices, the usage."""

    def ending(self, usage: Usage) -> bytes:
        return (self.usage_event(usage) if self.include_usage else b"") + _DONE

    def failure(self, error: ApiError) -> bytes:
        return b"data: " + error.to_json() + b"\n\n"

    @abstractmethod
    def choice(
        self, index: int, text: str, scored: Sequence[Scored], finish: AnswerFinish, extra: Iterable[bytes] = ()
    ) -> Iterator[bytes]:
        """A choice of an answer that is not streamed, part by part. extra: further fields of it, each with a comma in
        front, in parts."""

    @abstractmethod
    def empty_event(self, index: int) -> bytes:
        """An event of choice `index` that adds no text, for what else is to be told of it."""

    def first_event(self, index: int) -> bytes:
        opening = self.opening(index)
        if self.ids is not None and opening:
            opening = self.ids.in_first_event(opening, index, event_end(self.usage_field))
        return self._obfuscated(opening)

    def events_of(self, index: int, piece: Piece, *, first: bool) -> bytes:
        events = self.event(index, piece)
        if self.ids is not None:
            end = event_end(self.usage_field)
            events = self.ids.in_event(events or self.empty_event(index), piece.tokens, end)
            if first and self.ids.in_choice:
                events = self.ids.in_first_event(events, index, end)
        return self._obfuscated(events)

    def _obfuscated(self, events: bytes) -> bytes:
        """With random characters, if the request asks for them."""
        return obfuscation.in_events(events) if self._obfuscates else events

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
        return self.choice(place, text, scored, finish, self._further(index, tokens))

    def _further(self, index: int, tokens: Sequence[int]) -> Iterator[bytes]:
        """Fields of a whole choice that only some ask for."""
        if self.ids is not None:
            yield self.ids.of_choice(index, tokens)
        if self.prompt_logprobs is not None:
            yield from self.prompt_logprobs.of_choice(index)


def event_end(usage_field: bytes) -> bytes:
    """An event after its choices."""
    return b"]" + usage_field + b"}\n\n"
