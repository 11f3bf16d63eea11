"""Reads an answer's server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html) into
its record.

In the measuring loop, so it does little: no object a token, and each event is parsed once.
"""

from __future__ import annotations

import json
from typing import Any

from languagepipes_operator.cli.bench.records import RequestRecord
from languagepipes_operator.cli.openai_server import error_message

_LONGEST_LINE = 16 * 2**20
# Where a chat's delta carries something that the model generated.
_DELTA_FIELDS = ("content", "reasoning_content", "reasoning", "tool_calls", "function_call", "refusal")


class StreamError(Exception):
    """The stream is none, or says that it failed. `kind` is what requests of one failure share."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class AnswerReader:
    """Takes bytes as they come. `done`: the answer is whole."""

    def __init__(self, record: RequestRecord) -> None:
        self._record = record
        self._rest = b""
        self._ended = False

    @property
    def done(self) -> bool:
        return self._ended

    @property
    def whole(self) -> bool:
        """Some servers close the connection after the last chunk, without [DONE]."""
        return self._ended or self._record.finish_reason is not None

    def feed(self, data: bytes, now: float) -> None:
        """now: when the bytes came. Raises StreamError."""
        lines = (self._rest + data).split(b"\n")
        self._rest = lines.pop()
        if len(self._rest) > _LONGEST_LINE:
            raise StreamError("malformed stream", f"an event of more than {_LONGEST_LINE} bytes")
        for line in lines:
            if line.startswith(b"data:"):
                self._event(line[5:].strip(), now)

    def _event(self, data: bytes, now: float) -> None:
        if data == b"[DONE]":
            self._ended = True
            return
        try:
            chunk = json.loads(data)
        except ValueError as error:
            raise StreamError("malformed stream", f"an event that is no JSON: {_shown(data)}") from error
        if not isinstance(chunk, dict):
            raise StreamError("malformed stream", f"an event that is no JSON object: {_shown(data)}")
        if chunk.get("error") is not None:
            raise StreamError("error in the stream", error_message(chunk) or _shown(data))
        record = self._record
        usage = chunk.get("usage")
        if isinstance(usage, dict):
            record.prompt_tokens = _count(usage, "prompt_tokens", record.prompt_tokens)
            record.output_tokens = _count(usage, "completion_tokens", record.output_tokens)
        choices = chunk.get("choices")
        if not isinstance(choices, list):
            return
        for choice in choices:
            if not isinstance(choice, dict):
                continue
            if carries_answer(choice):
                record.chunk_times.append(now)
            finish = choice.get("finish_reason")
            if isinstance(finish, str):
                record.finish_reason = finish


def carries_answer(choice: dict[str, Any]) -> bool:
    """Whether the model generated something of it: text, thinking, a tool call. A chunk with the role alone
    has nothing.
    """
    delta = choice.get("delta")
    if isinstance(delta, dict):
        return any(delta.get(field) for field in _DELTA_FIELDS)
    return bool(choice.get("text"))


def _count(usage: dict[str, Any], field: str, known: int | None) -> int | None:
    value = usage.get(field)
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else known


def _shown(data: bytes) -> str:
    return repr(data[:80].decode(errors="replace"))
