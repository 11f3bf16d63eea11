"""Tools as clients send them: their definitions, which may be called, and earlier calls in messages."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Union

import orjson
from pydantic import Field, GetJsonSchemaHandler, WithJsonSchema
from pydantic_core import CoreSchema

from languagepipes_node.end_model.openai.errors import InvalidRequest, UnsupportedParameter
from languagepipes_node.end_model.openai.fields import (
    AnyObject,
    Strict,
    drop_provider_fields,
    missing,
    shortened,
    unknown,
    with_accepted,
    without_nulls,
    wrong_type,
)
from languagepipes_node.end_model.openai.reading import json_object_text
from languagepipes_node.end_model.tools.arguments import MAX_CALLS

MAX_TOOLS = 128
_MAX_ID_CHARACTERS = 256
_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_MODES = ("none", "auto", "required")


@dataclass(frozen=True)
class Tool:
    """A function that the model may call. definition: as templates read it. strict: its arguments must match
    `parameters`, a JSON Schema."""

    name: str
    parameters: Mapping[str, Any]
    strict: bool
    definition: Mapping[str, Any]


@dataclass(frozen=True)
class ToolChoice:
    """names: those that may be called; None for all. param: where the choice stands, for what is wrong with it. named:
    one function is to be called, once."""

    mode: Literal["none", "auto", "required"] = "auto"
    names: tuple[str, ...] | None = None
    param: str = "tool_choice"
    named: bool = False


@dataclass(frozen=True)
class ToolCall:
    """A call in an earlier message. arguments: a JSON object, as text."""

    id: str
    name: str
    arguments: str

    def as_given(self) -> dict[str, Any]:
        return {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": self.arguments}}


class _Described(Strict):
    """A model that only describes: the functions below read what it stands for."""

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return with_accepted(handler.resolve_ref_schema(handler(schema)), {})


_FunctionName = Annotated[str, Field(pattern="^[a-zA-Z0-9_-]{1,64}$")]


class FunctionDefinition(_Described):
    """`parameters` is a JSON Schema of an object; `strict` holds the arguments to it."""

    name: _FunctionName
    description: str = ""
    parameters: Annotated[dict[str, Any], WithJsonSchema({"type": "object"})] = Field(default_factory=dict)
    strict: bool = False


class FunctionTool(_Described):
    type: Literal["function"]
    function: FunctionDefinition


class FunctionReference(_Described):
    name: _FunctionName


class NamedTool(_Described):
    type: Literal["function"]
    function: FunctionReference


class AllowedToolList(_Described):
    mode: Literal["auto", "required"]
    tools: list[NamedTool] = Field(min_length=1, max_length=MAX_TOOLS)


class AllowedTools(_Described):
    type: Literal["allowed_tools"]
    allowed_tools: AllowedToolList


class CalledFunction(_Described):
    """`arguments` is the text of a JSON object, or empty. What clients add to it may be sent back and is not read."""

    name: Annotated[str, Field(min_length=1, max_length=_MAX_ID_CHARACTERS)]
    arguments: str
    parsed_arguments: Any = None
    provider_specific_fields: AnyObject = Field(default_factory=dict)


class CallInMessage(_Described):
    id: Annotated[str, Field(min_length=1, max_length=_MAX_ID_CHARACTERS)]
    type: Literal["function"]
    function: CalledFunction
    index: int = 0
    provider_specific_fields: AnyObject = Field(default_factory=dict)


ToolList = Annotated[list[FunctionTool], Field(max_length=MAX_TOOLS)]
AnyToolChoice = Union[Literal["none", "auto", "required"], NamedTool, AllowedTools]  # noqa: UP007 (read by pydantic)
CallList = Annotated[list[CallInMessage], Field(max_length=MAX_CALLS)]


def tools(value: object) -> tuple[Tool, ...]:
    """The `tools` of a request. Raises InvalidRequest naming the part that is wrong."""
    if not isinstance(value, list):
        raise wrong_type("tools", "a list of tools", value)
    if len(value) > MAX_TOOLS:
        raise InvalidRequest(f"'tools' holds {len(value)} tools, at most {MAX_TOOLS} are accepted.", param="tools")
    read = tuple(_tool(tool, f"tools[{place}]") for place, tool in enumerate(value))
    seen: set[str] = set()
    for place, tool in enumerate(read):
        if tool.name in seen:
            raise InvalidRequest(
                f"'tools' has two functions named '{tool.name}': names must differ.",
                param=f"tools[{place}].function.name",
            )
        seen.add(tool.name)
    return read


def tool_choice(value: object) -> ToolChoice:
    """The `tool_choice` of a request. Raises InvalidRequest."""
    if isinstance(value, str):
        for mode in ("none", "auto", "required"):
            if value == mode:
                return ToolChoice(mode)
        raise InvalidRequest(
            f"'tool_choice' must be one of {', '.join(_MODES)}, a function or allowed tools, got '{shortened(value)}'.",
            param="tool_choice",
        )
    fields = _object(value, "tool_choice", "a string or an object")
    kind = _taken(fields, "type", "tool_choice")
    if kind == "function":
        name = _function_name(fields, "tool_choice")
        return ToolChoice("required", (name,), "tool_choice.function.name", named=True)
    if kind == "allowed_tools":
        allowed = _object(_taken(fields, "allowed_tools", "tool_choice"), "tool_choice.allowed_tools")
        _no_more(fields, "tool_choice", {"type", "allowed_tools"})
        return _allowed(allowed, "tool_choice.allowed_tools")
    raise _of_no_kind(kind, "tool_choice.type", ("function", "allowed_tools"))


def calls(value: object, where: str) -> tuple[ToolCall, ...]:
    """The `tool_calls` of an assistant's message. Raises InvalidRequest."""
    if not isinstance(value, list):
        raise wrong_type(where, "a list of tool calls", value)
    if len(value) > MAX_CALLS:
        raise InvalidRequest(f"'{where}' holds {len(value)} calls, at most {MAX_CALLS} are accepted.", param=where)
    read = tuple(_call(call, f"{where}[{place}]") for place, call in enumerate(value))
    for place, call in enumerate(read):
        if any(call.id == other.id for other in read[:place]):
            raise InvalidRequest(
                f"'{where}' has two calls with the id '{shortened(call.id)}': ids must differ.",
                param=f"{where}[{place}].id",
            )
    return read


def call_id(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise wrong_type(where, "a string", value)
    if not 1 <= len(value) <= _MAX_ID_CHARACTERS:
        raise InvalidRequest(f"'{where}' has {len(value)} characters, expected 1 to {_MAX_ID_CHARACTERS}.", param=where)
    return value


@dataclass
class OpenCalls:
    """Which calls wait for their results, message by message: each must be answered, once, right behind its call.
    result: what holds one."""

    result: str = "a message of role 'tool'"
    _where: str = ""
    _open: list[str] = field(default_factory=list)
    _answered: set[str] = field(default_factory=set)

    def answer(self, id: str, where: str) -> None:
        """A result. Raises InvalidRequest if nothing before it called for it."""
        if id in self._open:
            self._open.remove(id)
            self._answered.add(id)
            return
        what = (
            "has a result already" if id in self._answered else "is no call of the assistant's message just before it"
        )
        raise InvalidRequest(
            f"'{where}' is '{shortened(id)}', which {what}: each tool call takes one result, right behind the message "
            "that calls.",
            param=where,
        )

    def close(self) -> None:
        """Another message, or the end. Raises InvalidRequest if results are missing."""
        if self._open:
            raise InvalidRequest(
                f"'{self._where}' calls tools whose results are missing: send {self.result} for "
                f"{', '.join(repr(shortened(id)) for id in self._open[:4])} right behind it.",
                param=self._where,
            )
        self._answered = set()

    def call(self, calls: Sequence[ToolCall], where: str) -> None:
        self._open, self._where = [call.id for call in calls], where


def _tool(value: object, where: str) -> Tool:
    fields = _object(value, where)
    kind = _taken(fields, "type", where)
    if kind == "custom":
        raise UnsupportedParameter(
            "Tools of type 'custom' are not supported by this server, only 'function'.", param=f"{where}.type"
        )
    if kind != "function":
        raise _of_no_kind(kind, f"{where}.type", ("function",))
    function = _object(_taken(fields, "function", where), f"{where}.function")
    _no_more(fields, where, {"type", "function"})
    where = f"{where}.function"
    name = _name(_taken(function, "name", where), f"{where}.name")
    definition: dict[str, Any] = {"name": name}
    if (description := function.pop("description", None)) is not None:
        if not isinstance(description, str):
            raise wrong_type(f"{where}.description", "a string", description)
        definition["description"] = description
    parameters = function.pop("parameters", {})
    if not isinstance(parameters, dict):
        raise wrong_type(f"{where}.parameters", "a JSON Schema object", parameters)
    definition["parameters"] = parameters or {"type": "object", "properties": {}}
    strict = function.pop("strict", False)
    if not isinstance(strict, bool):
        raise wrong_type(f"{where}.strict", "a boolean", strict)
    _no_more(function, where, {"name", "description", "parameters", "strict"})
    if (kind := definition["parameters"].get("type", "object")) != "object":
        raise InvalidRequest(
            f"'{where}.parameters.type' must be 'object', got {orjson.dumps(kind).decode()[:64]}: a function takes its "
            "arguments by name.",
            param=f"{where}.parameters.type",
        )
    return Tool(name, definition["parameters"], strict, {"type": "function", "function": definition})


def _allowed(fields: dict[str, Any], where: str) -> ToolChoice:
    mode = _taken(fields, "mode", where)
    if mode not in ("auto", "required"):
        raise _of_no_kind(mode, f"{where}.mode", ("auto", "required"))
    named = _taken(fields, "tools", where)
    _no_more(fields, where, {"mode", "tools"})
    if not isinstance(named, list):
        raise wrong_type(f"{where}.tools", "a list of functions", named)
    if not 1 <= len(named) <= MAX_TOOLS:
        raise InvalidRequest(
            f"'{where}.tools' holds {len(named)} functions, expected 1 to {MAX_TOOLS}.", param=f"{where}.tools"
        )
    names = []
    for place, tool in enumerate(named):
        inner = f"{where}.tools[{place}]"
        reference = _object(tool, inner)
        kind = _taken(reference, "type", inner)
        if kind != "function":
            raise _of_no_kind(kind, f"{inner}.type", ("function",))
        names.append(_function_name(reference, inner))
    return ToolChoice(mode, tuple(names), f"{where}.tools")


def _call(value: object, where: str) -> ToolCall:
    fields = _object(value, where)
    id = call_id(_taken(fields, "id", where), f"{where}.id")
    kind = _taken(fields, "type", where)
    if kind != "function":
        raise _of_no_kind(kind, f"{where}.type", ("function",))
    if (index := fields.pop("index", 0)) is not None and (not isinstance(index, int) or isinstance(index, bool)):
        raise wrong_type(f"{where}.index", "an integer", index)  # chunks carry it, and some clients send it back
    function = _object(_taken(fields, "function", where), f"{where}.function")
    drop_provider_fields(fields, where)
    _no_more(fields, where, {"id", "type", "function", "index"})
    where = f"{where}.function"
    name = call_id(_taken(function, "name", where), f"{where}.name")
    arguments = _taken(function, "arguments", where)
    function.pop("parsed_arguments", None)  # openai's parse() adds it, of any type
    drop_provider_fields(function, where)
    _no_more(function, where, {"name", "arguments"})
    where = f"{where}.arguments"
    if not isinstance(arguments, str):
        raise wrong_type(where, "a string that holds a JSON object", arguments)
    return ToolCall(id, name, json_object_text(arguments, where))


def _function_name(fields: dict[str, Any], where: str) -> str:
    function = _object(_taken(fields, "function", where), f"{where}.function")
    _no_more(fields, where, {"type", "function"})
    name = _name(_taken(function, "name", f"{where}.function"), f"{where}.function.name")
    _no_more(function, f"{where}.function", {"name"})
    return name


def _name(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise wrong_type(where, "a string", value)
    if not _NAME.fullmatch(value):
        raise InvalidRequest(
            f"'{where}' must be 1 to 64 letters, digits, underscores and dashes, got '{shortened(value)}'.",
            param=where,
        )
    return value


def _object(value: object, where: str, expected: str = "an object") -> dict[str, Any]:
    if not isinstance(value, dict):
        raise wrong_type(where, expected, value)
    return without_nulls(value)


def _taken(fields: dict[str, Any], name: str, where: str) -> Any:
    if name not in fields:
        raise missing(f"{where}.{name}")
    return fields.pop(name)


def _no_more(fields: Mapping[str, Any], where: str, known: set[str]) -> None:
    for name in fields:
        if name not in known:
            raise unknown(name, known, inside=where)


def _of_no_kind(value: object, where: str, kinds: Sequence[str]) -> InvalidRequest:
    if not isinstance(value, str):
        return wrong_type(where, "a string", value)
    return InvalidRequest(f"'{where}' must be {' or '.join(kinds)}, got '{shortened(value)}'.", param=where)
