"""The messages of a chat: read, checked, and described."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    GetJsonSchemaHandler,
    PlainValidator,
)
from pydantic_core import CoreSchema

from languagepipes_node.end_model.openai import tool_schemas
from languagepipes_node.end_model.openai.errors import InvalidRequest, UnsupportedParameter
from languagepipes_node.end_model.openai.fields import (
    HINT,
    AnyObject,
    Strict,
    drop_provider_fields,
    is_one_of,
    missing,
    shortened,
    unknown,
    with_accepted,
    without_nulls,
    wrong_type,
)

_MAX_MESSAGES = 4096
_ROLES = ("system", "developer", "user", "assistant", "tool")
# What answers carry besides their text, so that a client may send them back, with the values that say nothing.
_MESSAGE_WITHOUT_EFFECT: dict[str, tuple[object, ...]] = {
    "annotations": ([],),
    "audio": (),
    "function_call": (),
    "reasoning": ("",),
    "reasoning_content": ("",),
    "reasoning_details": ([],),
    "refusal": (),
    "thinking_blocks": ([],),
    "tool_call_id": (),
    "tool_calls": ([],),
}


@dataclass(frozen=True)
class ChatMessage:
    """calls, reasoning: of the assistant. call_id: of a tool's result, the call that it answers."""

    role: str
    content: str
    calls: tuple[tool_schemas.ToolCall, ...] = ()
    reasoning: str = ""
    call_id: str | None = None


def _messages(value: object) -> tuple[ChatMessage, ...]:
    """The `messages` of a chat request. Raises InvalidRequest naming the part of the message that is wrong."""
    if not isinstance(value, list):
        raise wrong_type("messages", "a list of messages", value)
    if not 1 <= len(value) <= _MAX_MESSAGES:
        raise InvalidRequest(
            f"'messages' holds {len(value)} messages, expected 1 to {_MAX_MESSAGES}.", param="messages"
        )
    messages = tuple(_message(message, f"messages[{place}]") for place, message in enumerate(value))
    open_calls = tool_schemas.OpenCalls()
    for place, message in enumerate(messages):
        if message.call_id is not None:
            open_calls.answer(message.call_id, f"messages[{place}].tool_call_id")
        else:
            open_calls.close()
            open_calls.call(message.calls, f"messages[{place}].tool_calls")
    open_calls.close()
    return messages


class TextPart(Strict):
    """A part of a message's content. Only text is served."""

    type: Literal["text"]
    text: str
    cache_control: dict[str, str] = Field(default_factory=dict, description=HINT)

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return with_accepted(handler.resolve_ref_schema(handler(schema)), {})


_MessageContent = str | Annotated[list[TextPart], Field(min_length=1)]


class Message(Strict):
    """A message of a chat. Several text parts are joined by line breaks."""

    role: Literal["system", "developer", "user"]
    content: _MessageContent
    name: str = Field("", description=HINT)
    cache_control: dict[str, str] = Field(default_factory=dict, description=HINT)

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        rest = {name: values for name, values in _MESSAGE_WITHOUT_EFFECT.items() if name not in cls.model_fields}
        return with_accepted(handler.resolve_ref_schema(handler(schema)), rest)


class AssistantTurn(Message):
    """An earlier answer: with content, with calls, or with both. `reasoning` and `reasoning_content` are one thing.
    What clients add to it (`parsed`, `provider_specific_fields`) may be sent back and is not read."""

    role: Literal["assistant"]  # type: ignore[assignment]
    content: _MessageContent = ""
    tool_calls: tool_schemas.CallList = Field(default_factory=list)
    reasoning: str = ""
    reasoning_content: str = ""
    parsed: Any = None
    provider_specific_fields: AnyObject = Field(default_factory=dict)


class ToolMessage(Message):
    """What a tool returned. It stands right behind the message that calls it."""

    role: Literal["tool"]  # type: ignore[assignment]
    tool_call_id: Annotated[str, Field(min_length=1, max_length=256)]


Messages = Annotated[
    tuple[ChatMessage, ...],
    PlainValidator(
        _messages,
        json_schema_input_type=Annotated[
            list[Message | AssistantTurn | ToolMessage], Field(min_length=1, max_length=_MAX_MESSAGES)
        ],
    ),
]


def _message(value: object, where: str) -> ChatMessage:
    if not isinstance(value, dict):
        raise wrong_type(where, "a message object", value)
    message = without_nulls(value)
    role = message.pop("role", None)
    if role is None:
        raise missing(f"{where}.role")
    if role == "function":
        raise UnsupportedParameter(
            "Messages of role 'function' are not supported: send role 'tool' with a 'tool_call_id'.",
            param=f"{where}.role",
        )
    if role not in _ROLES:
        raise InvalidRequest(f"'{where}.role' must be one of {', '.join(_ROLES)}.", param=f"{where}.role")
    content = message.pop("content", None)
    if not isinstance(name := message.pop("name", ""), str):
        raise wrong_type(f"{where}.name", "a string", name)
    _take_cache_control(message, where)
    calls: tuple[tool_schemas.ToolCall, ...] = ()
    reasoning, call_id = "", None
    if role == "assistant":
        calls = tool_schemas.calls(message.pop("tool_calls", []), f"{where}.tool_calls")
        names = ("reasoning_content", "reasoning")
        message.pop("parsed", None)  # openai's parse() adds it, of any type
        drop_provider_fields(message, where)
        reasoning = next(filter(None, [_optional_text(message, name, where) for name in names]), "")
    elif role == "tool":
        if "tool_call_id" not in message:
            raise missing(f"{where}.tool_call_id")
        call_id = tool_schemas.call_id(message.pop("tool_call_id"), f"{where}.tool_call_id")
    for name, rest in message.items():
        if name not in _MESSAGE_WITHOUT_EFFECT:
            raise unknown(name, {"role", "content", *_MESSAGE_WITHOUT_EFFECT}, inside=where)
        if not is_one_of(rest, _MESSAGE_WITHOUT_EFFECT[name]):
            raise UnsupportedParameter(
                f"'{name}' of a message is not supported by this server.", param=f"{where}.{name}"
            )
    if content is None and not calls and not reasoning:
        raise missing(f"{where}.content")
    text = "" if content is None else _content(content, f"{where}.content")
    return ChatMessage(role, text, calls, reasoning, call_id)


def _optional_text(message: dict[str, Any], name: str, where: str) -> str:
    """Taken out of the message; empty if it is not there. Raises InvalidRequest."""
    text = message.pop(name, "")
    if not isinstance(text, str):
        raise wrong_type(f"{where}.{name}", "a string", text)
    return text


def _take_cache_control(value: dict[str, Any], where: str) -> None:
    """Take out a hint of Anthropic's API, which asks for nothing here. Raises InvalidRequest if it is none."""
    hint = value.pop("cache_control", {})
    if not isinstance(hint, dict):
        raise wrong_type(f"{where}.cache_control", "an object", hint)
    for name, text in hint.items():
        if text is not None and not isinstance(text, str):
            raise wrong_type(f"{where}.cache_control.{shortened(name)}", "a string", text)


def _content(value: object, where: str) -> str:
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise wrong_type(where, "a string or a list of text parts", value)
    if not value:
        raise InvalidRequest(f"'{where}' is empty, expected a string or at least one text part.", param=where)
    return "\n".join(_text_part(part, f"{where}[{place}]") for place, part in enumerate(value))


def _text_part(value: object, where: str) -> str:
    if not isinstance(value, dict):
        raise wrong_type(where, "a content part object", value)
    part = without_nulls(value)
    kind = part.pop("type", None)
    if kind is None:
        raise missing(f"{where}.type")
    if not isinstance(kind, str):
        raise wrong_type(f"{where}.type", "a string", kind)
    if kind != "text":
        raise UnsupportedParameter(
            f"Content parts of type '{shortened(kind)}' are not supported by this server, only 'text'.",
            param=f"{where}.type",
        )
    text = part.pop("text", None)
    if text is None:
        raise missing(f"{where}.text")
    if not isinstance(text, str):
        raise wrong_type(f"{where}.text", "a string", text)
    _take_cache_control(part, where)
    for name in part:
        raise unknown(name, {"type", "text", "cache_control"}, inside=where)
    return text
