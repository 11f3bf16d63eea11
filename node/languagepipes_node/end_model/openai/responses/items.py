"""The `input` of a response: items, as the messages of a chat."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import orjson

from languagepipes_node.end_model.openai import tool_schemas
from languagepipes_node.end_model.openai.errors import InvalidRequest, UnsupportedParameter
from languagepipes_node.end_model.openai.fields import shortened, wrong_type
from languagepipes_node.end_model.openai.message_schemas import ChatMessage
from languagepipes_node.end_model.openai.reading import Fields, items_of, json_object_text
from languagepipes_node.end_model.openai.turns import PlacedMessage, check_calls, check_parts, joined

_MAX_ITEMS = 2048  # each takes its time
_MAX_PARTS = 4096
_MAX_ID_CHARACTERS = 256
_ROLES = ("user", "assistant", "system", "developer")
_STATUSES = ("in_progress", "completed", "incomplete")
_SERVED = ("message", "function_call", "function_call_output", "reasoning", "item_reference")
_RESULT = "an item of type 'function_call_output'"
_ID_PREFIXES = {"message": "msg", "function_call": "fc", "function_call_output": "fco", "reasoning": "rs"}


@dataclass(frozen=True)
class Item:
    """One item of an input. message: what it says, as a message or a part of one; where: its place. kept: as it is
    listed later, with an id."""

    message: ChatMessage
    where: str
    kept: Mapping[str, Any]


@dataclass(frozen=True)
class Reference:
    """An item of a stored response, by its id."""

    id: str
    where: str


def resolved(items: Sequence[Item | Reference], find: Callable[[str, str], bytes]) -> tuple[Item, ...]:
    """The items that are referred to in their places. find: an item as JSON, by its id and the parameter.

    Items that were sent get ids of the server's: a client's own could be guessed, or be those of other items.
    """
    return tuple(
        _read(orjson.loads(find(item.id, f"{item.where}.id")), item.where)
        if isinstance(item, Reference)
        else replace(item, kept={**item.kept, "id": new_id(_ID_PREFIXES[item.kept["type"]])})
        for item in items
    )


def read_input(value: object) -> tuple[Item | Reference, ...]:
    """The `input` of a request. Raises InvalidRequest naming the part that is wrong."""
    if isinstance(value, str):
        if not value:
            raise InvalidRequest("'input' is empty.", param="input")
        return (_read({"role": "user", "content": value}, "input"),)
    items = items_of(value, "input", "a string or a list of items", most=_MAX_ITEMS, least=1)
    check_parts(items, "input")
    read = tuple(_item(item, f"input[{place}]") for place, item in enumerate(items))
    seen: set[object] = set()
    for place, item in enumerate(read):
        id = item.id if isinstance(item, Reference) else item.kept["id"]
        if id in seen:
            raise InvalidRequest(
                f"'input' has two items with the id '{shortened(str(id))}': ids must differ.",
                param=f"input[{place}].id",
            )
        seen.add(id)
    return read


def conversation(
    instructions: str | None, earlier: Sequence[ChatMessage], items: Sequence[Item]
) -> tuple[tuple[PlacedMessage, ...], tuple[ChatMessage, ...]]:
    """(all that the model is to read, what `items` add to `earlier`).

    What one turn of the assistant's says is one message, and so are instructions and what the system says right behind
    them. earlier: of previous responses. Raises InvalidRequest for calls without results, and results without calls.
    """
    placed = [PlacedMessage(message, "previous_response_id") for message in earlier]
    if instructions:
        placed.insert(0, PlacedMessage(ChatMessage("system", instructions), "instructions"))
    added = _turns(items)
    placed += added
    if instructions and len(placed) > 1 and placed[1].message.role in ("system", "developer"):
        system = ChatMessage("system", f"{instructions}\n\n{placed[1].message.content}")
        placed[:2] = [PlacedMessage(system, "instructions")]
    check_calls(placed, result=_RESULT)
    return tuple(placed), tuple(one.message for one in added)


def _turns(items: Sequence[Item]) -> list[PlacedMessage]:
    """Items of the assistant's that follow one another are one message, but an answer after an answer is another."""
    turns: list[list[Item]] = []
    answered = called = False  # what the last turn has, which is the assistant's
    for item in items:
        message = item.message
        another = answered and not called and (message.content or message.reasoning)
        if message.role != "assistant":
            turns.append([item])
        elif turns and turns[-1][0].message.role == "assistant" and not another:
            turns[-1].append(item)
        else:
            turns.append([item])
            answered = called = False
        answered = answered or bool(message.content)
        called = called or bool(message.calls)
        if message.role != "assistant":
            answered = called = False
    return [PlacedMessage(joined([item.message for item in turn]), turn[0].where) for turn in turns]


def _item(value: object, where: str) -> Item | Reference:
    if isinstance(value, dict) and value.get("type") == "item_reference":
        fields = Fields(value, where)
        fields.take("type")
        id: str = fields.text("id", most=_MAX_ID_CHARACTERS)
        fields.no_more()
        return Reference(id, where)
    return _read(value, where)


def _read(value: object, where: str) -> Item:
    fields = Fields(value, where, "an item object")
    kind = fields.text("type", "message")
    id = fields.text("id", None, most=_MAX_ID_CHARACTERS)
    match kind:
        case "message":
            return _message(fields, where, id)
        case "function_call":
            return _call(fields, where, id)
        case "function_call_output":
            return _result(fields, where, id)
        case "reasoning":
            return _reasoning(fields, where, id)
    raise UnsupportedParameter(
        f"Items of type '{shortened(kind)}' are not supported by this server, only {', '.join(_SERVED)}.",
        param=f"{where}.type",
    )


def _message(fields: Fields, where: str, id: str | None) -> Item:
    role = fields.one_of("role", _ROLES)
    status = fields.one_of("status", _STATUSES, "completed")
    phase = fields.one_of("phase", ("commentary", "final_answer"), None)
    content = fields.take("content")
    fields.no_more()
    if phase is not None and role != "assistant":
        raise InvalidRequest(f"'{where}.phase' is only allowed with role 'assistant'.", param=f"{where}.phase")
    text = _text(content, f"{where}.content", assistant=role == "assistant")
    part: dict[str, Any] = {"type": "input_text", "text": text}
    if role == "assistant":
        part = {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
    kept = {"id": id or new_id("msg"), "type": "message", "role": role, "status": status, "content": [part]}
    if phase is not None:
        kept["phase"] = phase
    return Item(ChatMessage(role, text), where, kept)


def _call(fields: Fields, where: str, id: str | None) -> Item:
    call_id = tool_schemas.call_id(fields.take("call_id"), f"{where}.call_id")
    name = tool_schemas.call_id(fields.take("name"), f"{where}.name")
    arguments = json_object_text(fields.text("arguments"), f"{where}.arguments")
    status = fields.one_of("status", _STATUSES, "completed")
    fields.take("parsed_arguments", None)  # the openai client's parse() adds it, of any type
    fields.no_more()
    call = tool_schemas.ToolCall(call_id, name, arguments)
    kept = {
        "id": id or new_id("fc"),
        "type": "function_call",
        "call_id": call_id,
        "name": name,
        "arguments": arguments,
        "status": status,
    }
    return Item(ChatMessage("assistant", "", (call,)), where, kept)


def _result(fields: Fields, where: str, id: str | None) -> Item:
    call_id = tool_schemas.call_id(fields.take("call_id"), f"{where}.call_id")
    output = _text(fields.take("output"), f"{where}.output", assistant=False)
    status = fields.one_of("status", _STATUSES, "completed")
    fields.no_more()
    kept = {
        "id": id or new_id("fco"),
        "type": "function_call_output",
        "call_id": call_id,
        "output": output,
        "status": status,
    }
    return Item(ChatMessage("tool", output, call_id=call_id), f"{where}.call_id", kept)


def _reasoning(fields: Fields, where: str, id: str | None) -> Item:
    summary = _reasoning_texts(fields.take("summary"), f"{where}.summary", "summary_text")
    content = _reasoning_texts(fields.take("content", []), f"{where}.content", "reasoning_text")
    fields.without_effect("encrypted_content")
    status = fields.one_of("status", _STATUSES, "completed")
    fields.no_more()
    kept = {
        "id": id or new_id("rs"),
        "type": "reasoning",
        "summary": [{"type": "summary_text", "text": text} for text in summary],
        "content": [{"type": "reasoning_text", "text": text} for text in content],
        "status": status,
    }
    return Item(ChatMessage("assistant", "", reasoning="\n".join(content or summary)), where, kept)


def _reasoning_texts(value: object, where: str, kind: str) -> list[str]:
    parts = items_of(value, where, f"a list of {kind} parts", most=_MAX_PARTS)
    texts = []
    for place, part in enumerate(parts):
        fields = Fields(part, f"{where}[{place}]")
        fields.one_of("type", (kind,))
        texts.append(fields.text("text"))
        fields.no_more()
    return texts


def _text(value: object, where: str, *, assistant: bool) -> str:
    """A string, or text parts, which are joined by line breaks."""
    if isinstance(value, str):
        return value
    parts = items_of(value, where, "a string or a list of content parts", most=_MAX_PARTS, least=1)
    return "\n".join(_part(part, f"{where}[{place}]", assistant) for place, part in enumerate(parts))


def _part(value: object, where: str, assistant: bool) -> str:
    fields = Fields(value, where, "a content part object")
    kind = fields.text("type")
    served = ("output_text", "refusal") if assistant else ("input_text",)
    if kind not in (*served, "text"):
        raise UnsupportedParameter(
            f"Content parts of type '{shortened(kind)}' are not supported by this server here, only '{served[0]}'.",
            param=f"{where}.type",
        )
    text: str = fields.text("refusal" if kind == "refusal" else "text")
    if kind == "output_text":
        # What an answer carries beside its text may be sent back.
        for name in ("annotations", "logprobs"):
            if not isinstance(beside := fields.take(name, []), list):
                raise wrong_type(f"{where}.{name}", "a list", beside)
        fields.take("parsed", None)
    fields.no_more()
    return text


def new_id(prefix: str) -> str:
    return f"{prefix}_{secrets.token_hex(16)}"
