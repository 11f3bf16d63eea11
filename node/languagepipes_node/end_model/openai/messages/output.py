"""An answer as the content blocks of a message, and as the events of its stream.

https://docs.anthropic.com/en/docs/build-with-claude/streaming
"""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import orjson
from pydantic_core import from_json

from languagepipes_node.end_model.openai.answer_format import AnswerFormat
from languagepipes_node.end_model.openai.answers import AnswerFinish, Piece, ScoredToken
from languagepipes_node.end_model.openai.errors import ApiError
from languagepipes_node.end_model.openai.messages.errors import error_object
from languagepipes_node.end_model.openai.response_models import Usage
from languagepipes_node.end_model.tools.arguments import is_object
from languagepipes_node.end_model.tools.events import ArgumentText, CallBegin, Event, Reasoning, Text

_REASONS: dict[AnswerFinish | None, str] = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


class MessageFormat(AnswerFormat[bytes]):
    """A `message` object, and its events. show_thinking: or leave its text out."""

    silence: ClassVar[bytes] = b'event: ping\ndata: {"type":"ping"}\n\n'

    def __init__(self, *, model: str, input_tokens: int, show_thinking: bool, request_id: str) -> None:
        self._model, self._input_tokens, self._request_id = model, input_tokens, request_id
        self._id = f"msg_{secrets.token_hex(16)}"
        self._blocks = ContentBlocks(show_thinking=show_thinking)
        self._finish: AnswerFinish | None = None
        self._stop: str | None = None

    def opening(self, index: int) -> bytes:
        message = self._message(
            [], _usage(self._input_tokens, 0, 0, self.cached_tokens), stop_reason=None, stop_sequence=None
        )
        return _event("message_start", {"message": message})

    def event(self, index: int, piece: Piece) -> bytes:
        self._note(piece)
        return b"".join(_event(*change) for change in self._blocks.add(piece.shown))

    def collect(self, index: int, piece: Piece) -> None:
        self._note(piece)
        for _ in self._blocks.add(piece.shown):
            pass

    def scored(self, token: ScoredToken) -> bytes:
        return b""  # this API has no log probabilities

    def choice(self, index: int, text: str, scored: Sequence[bytes], finish: AnswerFinish) -> Iterator[bytes]:
        yield from ()

    def whole_end(self, usage: Usage) -> bytes:
        for _ in self._blocks.end():
            pass
        return orjson.dumps(self._message(self._blocks.whole, _usage_of(usage), **self._stopped))

    def ending(self, usage: Usage) -> bytes:
        events = [_event(*change) for change in self._blocks.end()]
        delta = {"container": None, "stop_details": None, **self._stopped}
        events.append(_event("message_delta", {"delta": delta, "usage": _usage_of(usage)}))
        return b"".join(events) + _event("message_stop", {})

    def failure(self, error: ApiError) -> bytes:
        return b"event: error\ndata: " + error_object(error, self._request_id) + b"\n\n"

    def _note(self, piece: Piece) -> None:
        self._finish = piece.finish
        if piece.stopped_by is not None and piece.finish == "stop":
            self._stop = piece.stopped_by

    @property
    def _stopped(self) -> dict[str, Any]:
        reason = "stop_sequence" if self._stop is not None else _REASONS[self._finish]
        return {"stop_reason": reason, "stop_sequence": self._stop}

    def _message(
        self, content: Sequence[Mapping[str, Any]], usage: Mapping[str, Any], **stopped: Any
    ) -> dict[str, Any]:
        return {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": content,
            "container": None,
            "stop_details": None,
            **stopped,
            "usage": usage,
        }


class ContentBlocks:
    """The blocks of one answer. whole: those that are complete, as they stand in the message."""

    def __init__(self, *, show_thinking: bool) -> None:
        self.whole: list[dict[str, Any]] = []
        self._show_thinking = show_thinking
        self._open: dict[str, Any] | None = None
        self._text: list[str] = []

    def add(self, events: Sequence[Event]) -> Iterator[tuple[str, dict[str, Any]]]:
        """What the stream tells of these: events' types and fields."""
        for event in events:
            match event:
                case Text(text):
                    yield from self._begin_unless("text", {"text": "", "citations": None})
                    yield self._delta("text_delta", "text", text)
                case Reasoning(text):
                    yield from self._begin_unless("thinking", {"thinking": "", "signature": ""})
                    if self._show_thinking:
                        yield self._delta("thinking_delta", "thinking", text)
                case CallBegin(id, name):
                    call = {"id": id, "name": name, "input": {}, "caller": {"type": "direct"}}
                    yield from self._begin("tool_use", call)
                    continue
                case ArgumentText(text):
                    yield self._delta("input_json_delta", "partial_json", text)
            self._text.append(text)

    def end(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """The end of the answer. One without anything is an empty text."""
        if self._open is None and not self.whole:
            yield from self._begin("text", {"text": "", "citations": None})
        yield from self._close()

    def _delta(self, kind: str, field: str, text: str) -> tuple[str, dict[str, Any]]:
        return "content_block_delta", {"index": len(self.whole), "delta": {"type": kind, field: text}}

    def _begin_unless(self, kind: str, fields: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
        if self._open is None or self._open["type"] != kind:
            yield from self._begin(kind, fields)

    def _begin(self, kind: str, fields: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
        yield from self._close()
        self._open = {"type": kind, **fields}
        yield "content_block_start", {"index": len(self.whole), "content_block": self._open}

    def _close(self) -> Iterator[tuple[str, dict[str, Any]]]:
        block = self._open
        if block is None:
            return
        text = "".join(self._text)
        match block["type"]:
            case "text":
                block = {**block, "text": text}
            case "thinking":
                signature = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
                yield self._delta("signature_delta", "signature", signature)
                block = {**block, "thinking": text if self._show_thinking else "", "signature": signature}
            case _:
                block = {**block, "input": _object(text)}
        yield "content_block_stop", {"index": len(self.whole)}
        self.whole.append(block)
        self._open, self._text = None, []


def _object(arguments: str) -> Any:
    """What a call's arguments are: of those that were cut off the members that are whole, as Anthropic's clients read a
    stream of them. What is no JSON is handed on under the name that Anthropic's guide gives it."""
    if is_object(arguments):
        return orjson.Fragment(arguments)  # with all digits
    try:
        begun = from_json(arguments or "{}", allow_inf_nan=False, allow_partial=True)
        written = json.dumps(begun, allow_nan=False)
    except ValueError:
        begun = None
    return orjson.Fragment(written) if isinstance(begun, dict) else {"INVALID_JSON": arguments}


def _event(kind: str, fields: Mapping[str, Any]) -> bytes:
    return b"event: " + kind.encode() + b"\ndata: " + orjson.dumps({"type": kind, **fields}) + b"\n\n"


def _usage_of(usage: Usage) -> dict[str, Any]:
    thinking = usage.completion_tokens_details.reasoning_tokens
    return _usage(usage.prompt_tokens, usage.completion_tokens, thinking, usage.prompt_tokens_details.cached_tokens)


def _usage(prompt_tokens: int, output_tokens: int, thinking_tokens: int, cached_tokens: int) -> dict[str, Any]:
    return {
        "input_tokens": prompt_tokens - cached_tokens,  # in this API those that were read from a cache do not count
        "output_tokens": output_tokens,
        "output_tokens_details": {"thinking_tokens": thinking_tokens},
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached_tokens,
        "cache_creation": None,
        "inference_geo": None,
        "server_tool_use": None,
        "service_tier": "standard",
    }
