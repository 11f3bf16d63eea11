"""An answer as the output items of a response, and as the events of its stream.

https://platform.openai.com/docs/api-reference/responses-streaming
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import orjson

from languagepipes_node.end_model.openai.answer_format import AnswerFormat
from languagepipes_node.end_model.openai.answers import AnswerFinish, Piece, ScoredToken
from languagepipes_node.end_model.openai.errors import ApiError
from languagepipes_node.end_model.openai.message_schemas import ChatMessage
from languagepipes_node.end_model.openai.obfuscation import padding
from languagepipes_node.end_model.openai.response_models import Usage
from languagepipes_node.end_model.openai.responses.items import new_id
from languagepipes_node.end_model.openai.responses.store import ResponseStore, StoredResponse, Turn, compact_json
from languagepipes_node.end_model.openai.service import Service
from languagepipes_node.end_model.openai.tool_schemas import ToolCall
from languagepipes_node.end_model.tools import arguments
from languagepipes_node.end_model.tools.events import ArgumentText, CallBegin, Event, Reasoning, Text

# OpenAI's codes of responses that failed.
_FAILURES = {"queue_full": "rate_limit_exceeded"}

_Change = tuple[str, dict[str, Any]]  # an event's type, and its fields


class Place(NamedTuple):
    """Where a response is kept. parent: of the turn that this response adds."""

    store: ResponseStore
    owner: str
    parent: Turn | None
    messages: Sequence[ChatMessage]
    items: Sequence[Mapping[str, Any]]


class ResponseFormat(AnswerFormat[bytes]):
    """A `response` object, and its events. shown: its fields that the request decides. place: None: it is not kept.
    obfuscates: whether deltas have random characters."""

    def __init__(
        self, service: Service, shown: Mapping[str, Any], *, place: Place | None, obfuscates: bool = False
    ) -> None:
        self._obfuscates = obfuscates
        self._service = service
        self._place = place
        self._id = new_id("resp")
        self._created = int(time.time())
        self._shown = shown
        self._output = OutputItems()
        self._number = 0
        self._finish: AnswerFinish | None = None

    def opening(self, index: int) -> bytes:
        response = self._response("in_progress")
        return self._event("response.created", {"response": response}) + self._event(
            "response.in_progress", {"response": response}
        )

    def event(self, index: int, piece: Piece) -> bytes:
        self._finish = piece.finish
        return b"".join(self._event(*change) for change in self._output.add(piece.shown, self._logprobs(piece)))

    def collect(self, index: int, piece: Piece) -> None:
        for _ in self._output.add(piece.shown, self._logprobs(piece)):
            pass

    def _logprobs(self, piece: Piece) -> Sequence[bytes]:
        return [self._service.logprobs.chat_token(token) for token in piece.scored]

    def scored(self, token: ScoredToken) -> bytes:
        return b""  # `collect` has it

    def choice(self, index: int, text: str, scored: Sequence[bytes], finish: AnswerFinish) -> Iterator[bytes]:
        self._finish = finish
        yield from ()

    def whole_end(self, usage: Usage) -> bytes:
        for _ in self._output.end(whole=self._finish != "length"):
            pass
        response = self._response(self._status, usage)
        self._keep(response)
        return orjson.dumps(response)

    def endings(self, usage: Usage) -> Iterator[bytes]:
        for change in self._output.end(whole=self._finish != "length"):
            yield self._event(*change)
        response = self._response(self._status, usage)
        self._keep(response)
        yield self._event(f"response.{self._status}", {"response": response})

    def ending(self, usage: Usage) -> bytes:
        return b"".join(self.endings(usage))

    def failure(self, error: ApiError) -> bytes:
        """What was begun is ended; then both of the events that clients look for. The second has the error in both of
        the forms that they read."""
        closing = b"".join(self._event(*change) for change in self._output.break_off())
        told = {"code": error.code, "message": error.message, "param": error.param}
        response = self._response("failed") | {"store": False}
        response["error"] = {"code": _FAILURES.get(error.code or "", "server_error"), "message": error.message}
        failed = self._event("response.failed", {"response": response})
        return closing + failed + self._event("error", {**told, "error": {"type": error.type, **told}})

    @property
    def _status(self) -> str:
        return "incomplete" if self._finish == "length" else "completed"

    def _event(self, kind: str, fields: Mapping[str, Any]) -> bytes:
        if self._obfuscates and kind.endswith(".delta"):
            said = {name: fields[name] for name in ("delta", "logprobs") if name in fields}
            fields = {**fields, "obfuscation": padding(len(orjson.dumps(said)))}
        data = orjson.dumps({"type": kind, "sequence_number": self._number, **fields})
        self._number += 1
        return b"event: " + kind.encode() + b"\ndata: " + data + b"\n\n"

    def _response(self, status: str, usage: Usage | None = None) -> dict[str, Any]:
        incomplete = {"reason": "max_output_tokens"} if status == "incomplete" else None
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "completed_at": int(time.time()) if status == "completed" else None,
            "status": status,
            "error": None,
            "incomplete_details": incomplete,
            "model": self._service.served_name,
            "output": [] if status == "in_progress" else self._output.items,
            "usage": None if usage is None else _usage(usage),
            **self._shown,
        }

    def _keep(self, response: dict[str, Any]) -> None:
        """Keep the response if it is to be: without log probabilities, which are many times its text. It shows that it
        is not stored if it is too large."""
        if self._place is None:
            return
        place = self._place
        turn = Turn(place.parent, [*place.messages, *self._output.messages])
        answered = [_unscored(item) for item in self._output.items]
        body = compact_json({**response, "output": answered})
        items = {str(item["id"]): compact_json(item) for item in place.items}
        output = {str(item["id"]): compact_json(item) for item in answered}
        response["store"] = place.store.keep(StoredResponse(self._id, place.owner, body, items, turn, output))


class OutputItems:
    """The items of one answer. items: those that are complete, as they stand in the response."""

    def __init__(self) -> None:
        self.items: list[dict[str, Any]] = []
        self._open: dict[str, Any] | None = None
        self._text: list[str] = []
        self._logprobs: list[bytes] = []

    def add(self, events: Sequence[Event], logprobs: Sequence[bytes] = ()) -> Iterator[_Change]:
        """What the stream tells of these. logprobs: of the tokens, each as JSON; they go with text."""
        for event in events:
            match event:
                case Text(text):
                    yield from self._message()
                    self._logprobs += logprobs
                    delta = {**self._part_place, "delta": text, "logprobs": _fragment(logprobs)}
                    yield "response.output_text.delta", delta
                    logprobs = ()
                case Reasoning(text):
                    if self._open is None or self._open["type"] != "reasoning":
                        item = {"id": new_id("rs"), "type": "reasoning", "summary": [], "content": []}
                        yield from self._begin(item)
                        yield "response.content_part.added", {**self._part_place, "part": _reasoning_part("")}
                    yield "response.reasoning_text.delta", {**self._part_place, "delta": text}
                case CallBegin(id, name):
                    item = {"id": new_id("fc"), "type": "function_call", "call_id": id, "name": name, "arguments": ""}
                    yield from self._begin(item)
                    continue
                case ArgumentText(text):
                    yield "response.function_call_arguments.delta", {**self._place, "delta": text}
            self._text.append(text)
        if logprobs and self._open is not None and self._open["type"] == "message":
            self._logprobs += logprobs
            yield (
                "response.output_text.delta",
                {**self._part_place, "delta": "", "logprobs": _fragment(logprobs)},
            )

    def end(self, *, whole: bool) -> Iterator[_Change]:
        """The end of the answer. whole: not cut off. An answer without anything is an empty message."""
        if self._open is None and not self.items:
            yield from self._message()
        yield from self._close(whole=whole)

    def break_off(self) -> Iterator[_Change]:
        """The end of an answer that failed, which may have nothing."""
        yield from self._close(whole=False)

    @property
    def messages(self) -> list[ChatMessage]:
        """The same as a message of the assistant's, once it is complete; none if it is empty."""
        content, reasoning = [], []
        calls = []
        for item in self.items:
            if item["type"] == "message":
                content.append(item["content"][0]["text"])
            elif item["type"] == "reasoning":
                reasoning.append(item["content"][0]["text"])
            elif item["status"] == "completed":
                calls.append(ToolCall(item["call_id"], item["name"], item["arguments"]))
        message = ChatMessage("assistant", "".join(content), tuple(calls), "\n".join(reasoning))
        return [message] if message.content or message.calls else []

    @property
    def _place(self) -> dict[str, Any]:
        assert self._open is not None  # noqa: S101 (asked for within an item alone)
        return {"item_id": self._open["id"], "output_index": len(self.items)}

    @property
    def _part_place(self) -> dict[str, Any]:
        return {**self._place, "content_index": 0}

    def _message(self) -> Iterator[_Change]:
        """Begin a message, if none is begun."""
        if self._open is None or self._open["type"] != "message":
            yield from self._begin({"id": new_id("msg"), "type": "message", "role": "assistant", "content": []})
            yield "response.content_part.added", {**self._part_place, "part": _text_part("", ())}

    def _begin(self, item: dict[str, Any]) -> Iterator[_Change]:
        yield from self._close(whole=True)
        self._open = {**item, "status": "in_progress"}
        yield "response.output_item.added", {"output_index": len(self.items), "item": self._open}

    def _close(self, *, whole: bool) -> Iterator[_Change]:
        item = self._open
        if item is None:
            return
        text = "".join(self._text)
        match item["type"]:
            case "message":
                part = _text_part(text, self._logprobs)
                done = {**self._part_place, "text": text, "logprobs": part["logprobs"]}
                yield "response.output_text.done", done
                yield "response.content_part.done", {**self._part_place, "part": part}
                item = {**item, "content": [part]}
            case "reasoning":
                part = _reasoning_part(text)
                yield "response.reasoning_text.done", {**self._part_place, "text": text}
                yield "response.content_part.done", {**self._part_place, "part": part}
                item = {**item, "content": [part]}
            case _:
                done = {**self._place, "name": item["name"], "arguments": text}
                yield "response.function_call_arguments.done", done
                item = {**item, "arguments": text}
                whole = arguments.is_object(text)
        item["status"] = "completed" if whole else "incomplete"
        yield "response.output_item.done", {"output_index": len(self.items), "item": item}
        self.items.append(item)
        self._open, self._text, self._logprobs = None, [], []


def _text_part(text: str, logprobs: Sequence[bytes]) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": _fragment(logprobs)}


def _unscored(item: dict[str, Any]) -> dict[str, Any]:
    if item["type"] != "message":
        return item
    return {**item, "content": [{**part, "logprobs": []} for part in item["content"]]}


def _reasoning_part(text: str) -> dict[str, Any]:
    return {"type": "reasoning_text", "text": text}


def _fragment(logprobs: Sequence[bytes]) -> Any:
    return orjson.Fragment(b"[" + b",".join(logprobs) + b"]") if logprobs else []


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.prompt_tokens_details.cached_tokens},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.completion_tokens_details.reasoning_tokens},
        "total_tokens": usage.total_tokens,
    }
