"""A choice's message as JSON: its thinking, content and calls, whole or as the deltas of chunks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import orjson

from languagepipes_node.end_model.tools.events import ArgumentText, CallBegin, Event, Reasoning, Text

_FUNCTION = b',"type":"function","function":{"name":'


class DeltaWriter:
    """The deltas of one streamed choice."""

    def __init__(self) -> None:
        self.said = False  # content, or a call
        self._call = -1

    def deltas(self, events: Sequence[Event]) -> Iterator[bytes]:
        """A `ChatDelta` for each event."""
        for event in events:
            self.said = self.said or not isinstance(event, Reasoning)
            match event:
                case Text(text):
                    yield b'{"content":' + orjson.dumps(text) + b"}"
                case Reasoning(text):
                    written = orjson.dumps(text)
                    yield b'{"reasoning":' + written + b',"reasoning_content":' + written + b"}"
                case CallBegin(id, name):
                    self._call += 1
                    first = orjson.dumps(id) + _FUNCTION + orjson.dumps(name) + b',"arguments":""}}]}'
                    yield b'{"tool_calls":[{"index":' + str(self._call).encode() + b',"id":' + first
                case ArgumentText(text):
                    piece = b',"function":{"arguments":' + orjson.dumps(text) + b"}}]}"
                    yield b'{"tool_calls":[{"index":' + str(self._call).encode() + piece


class MessageWriter:
    """The `AssistantMessage` of a choice that is not streamed."""

    def __init__(self) -> None:
        self._content: list[str] = []
        self._reasoning: list[str] = []
        self._calls: list[tuple[CallBegin, list[str]]] = []

    def collect(self, events: Sequence[Event]) -> None:
        for event in events:
            match event:
                case Text(text):
                    self._content.append(text)
                case Reasoning(text):
                    self._reasoning.append(text)
                case CallBegin():
                    self._calls.append((event, []))
                case ArgumentText(text):
                    self._calls[-1][1].append(text)

    def message(self) -> bytes:
        content = "".join(self._content)
        shown = orjson.dumps(content) if content or not self._calls else b"null"
        message = b'{"role":"assistant","content":' + shown + b',"refusal":null'
        if self._reasoning:
            reasoning = orjson.dumps("".join(self._reasoning))
            message += b',"reasoning":' + reasoning + b',"reasoning_content":' + reasoning
        if self._calls:
            calls = [
                b'{"id":' + orjson.dumps(call.id) + _FUNCTION + orjson.dumps(call.name) + b',"arguments":'
                + orjson.dumps("".join(arguments)) + b"}}"
                for call, arguments in self._calls
            ]  # fmt: skip
            message += b',"tool_calls":[' + b",".join(calls) + b"]"
        return message + b"}"
