"""The `system` and `messages` of a request: content blocks, as the messages of a chat."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson

from languagepipes_node.end_model.openai import tool_schemas
from languagepipes_node.end_model.openai.errors import InvalidRequest, UnsupportedParameter
from languagepipes_node.end_model.openai.fields import shortened, wrong_type
from languagepipes_node.end_model.openai.message_schemas import ChatMessage
from languagepipes_node.end_model.openai.reading import Fields, alternatives, items_of
from languagepipes_node.end_model.openai.turns import PlacedMessage, check_calls, check_parts, joined

MAX_MESSAGES = 4096
_MAX_BLOCKS = 4096
_SERVED = {"user": ("text", "tool_result"), "assistant": ("text", "tool_use", "thinking"), "system": ("text",)}
_RESULT = "a user's message that begins with 'tool_result' blocks"


def read_system(value: object) -> str:
    """The `system` of a request. Raises InvalidRequest naming the part that is wrong."""
    if isinstance(value, str):
        return value
    blocks = items_of(value, "system", "a string or a list of text blocks", most=_MAX_BLOCKS)
    return "\n".join(_text(_block(block, f"system[{place}]", "system")[1]) for place, block in enumerate(blocks))


def read_messages(value: object) -> tuple[PlacedMessage, ...]:
    """The `messages` of a request; turns of one side that follow one another are one. Raises InvalidRequest."""
    given = items_of(value, "messages", "a list of messages", most=MAX_MESSAGES, least=1)
    check_parts(given, "messages")
    turns: list[list[PlacedMessage]] = []
    for place, message in enumerate(given):
        for read in _message(message, f"messages[{place}]"):
            if turns and turns[-1][0].message.role == read.message.role != "tool":
                turns[-1].append(read)
            else:
                turns.append([read])
    placed = [PlacedMessage(joined([one.message for one in turn]), turn[0].where) for turn in turns]
    if placed and placed[-1].message.role == "assistant" and not placed[-1].message.calls:
        where = f"messages[{len(given) - 1}].role"
        raise UnsupportedParameter(
            f"'{where}' is 'assistant': an answer whose beginning is given is not supported by this server. End with a "
            "message of the user's.",
            param=where,
        )
    check_calls(placed, result=_RESULT)
    return tuple(placed)


def _message(value: object, where: str) -> list[PlacedMessage]:
    """Results are messages of their own."""
    fields = Fields(value, where, "a message object")
    role = fields.one_of("role", ("user", "assistant"))
    content = fields.take("content")
    fields.no_more()
    if isinstance(content, str):
        return [PlacedMessage(ChatMessage(role, content), where)]
    blocks = items_of(
        content,
        f"{where}.content",
        "a string or a list of content blocks",
        most=_MAX_BLOCKS,
        least=1 if role == "user" else 0,
    )
    read = [_block(block, f"{where}.content[{place}]", role) for place, block in enumerate(blocks)]
    return _user(read, where) if role == "user" else [PlacedMessage(_assistant(read, where), where)]


def _user(read: Sequence[tuple[str, Fields]], where: str) -> list[PlacedMessage]:
    results, texts = [], []
    for kind, fields in read:
        if kind == "text":
            texts.append(_text(fields))
        elif texts:
            raise InvalidRequest(
                f"'{fields.where}' stands behind text: 'tool_result' blocks come first in a message.",
                param=fields.where,
            )
        else:
            results.append(_result(fields))
    if texts:
        results.append(PlacedMessage(ChatMessage("user", "\n".join(texts)), where))
    return results


def _assistant(read: Sequence[tuple[str, Fields]], where: str) -> ChatMessage:
    texts, thinking = [], []
    calls = []
    for kind, fields in read:
        match kind:
            case "text":
                texts.append(_text(fields))
            case "thinking":
                thinking.append(fields.text("thinking"))
                fields.text("signature", "")
                fields.no_more()
            case _:
                calls.append(_call(fields))
    return ChatMessage("assistant", "\n".join(texts), tuple(calls), "\n".join(thinking))


def _block(value: object, where: str, role: str) -> tuple[str, Fields]:
    """Its type, and the rest of it."""
    fields = Fields(value, where, "a content block object")
    kind = fields.text("type")
    if kind not in _SERVED[role]:
        raise UnsupportedParameter(
            f"'{where}.type' is '{shortened(kind)}', which is not supported by this server here: send "
            f"{alternatives(_SERVED[role])}.",
            param=f"{where}.type",
        )
    take_hint(fields, "cache_control")
    return kind, fields


def _text(fields: Fields) -> str:
    text: str = fields.text("text")
    fields.without_effect("citations", [])
    fields.no_more()
    return text


def _call(fields: Fields) -> tool_schemas.ToolCall:
    id = tool_schemas.call_id(fields.take("id"), fields.place("id"))
    name = tool_schemas.call_id(fields.take("name"), fields.place("name"))
    given = fields.of(dict, "an object", "input")
    take_hint(fields, "caller")
    fields.no_more()
    return tool_schemas.ToolCall(id, name, orjson.dumps(given).decode())


def _result(fields: Fields) -> PlacedMessage:
    where = fields.where
    id = tool_schemas.call_id(fields.take("tool_use_id"), f"{where}.tool_use_id")
    content = fields.take("content", "")
    failed = fields.boolean("is_error", False)
    fields.no_more()
    if not isinstance(content, str):
        parts = items_of(content, f"{where}.content", "a string or a list of text blocks", most=_MAX_BLOCKS)
        read = [_block(part, f"{where}.content[{place}]", "system")[1] for place, part in enumerate(parts)]
        content = "\n".join(map(_text, read))
    if failed:
        content = f"Error: {content}"  # chat templates have no other word for it
    return PlacedMessage(ChatMessage("tool", content, call_id=id), f"{where}.tool_use_id")


def take_hint(fields: Fields, name: str) -> None:
    """An object that asks this server for nothing."""
    hint: Any = fields.take(name, {})
    if not isinstance(hint, dict):
        raise wrong_type(fields.place(name), "an object", hint)
