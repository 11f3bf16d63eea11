"""What clients may send to /v1/responses, and the chat that it asks for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, GetJsonSchemaHandler, PlainValidator
from pydantic_core import CoreSchema

from languagepipes_node.end_model.openai import tool_schemas
from languagepipes_node.end_model.openai.errors import InvalidRequest, UnsupportedParameter
from languagepipes_node.end_model.openai.fields import HINT, Strict, shortened, with_accepted, wrong_type
from languagepipes_node.end_model.openai.reading import Fields, items_of, params_renamed
from languagepipes_node.end_model.openai.responses import described
from languagepipes_node.end_model.openai.responses.items import Item, Reference, read_input
from languagepipes_node.end_model.openai.schemas import MAX_CACHE_SALT, RequestBody
from languagepipes_node.end_model.openai.structured_parameters import AskedConstraint, read_named_schema
from languagepipes_node.end_model.reasoning.effort import EFFORTS, Effort
from languagepipes_node.end_model.structured import Constraint

_LOGPROBS = "message.output_text.logprobs"
_VERBOSITIES = ("low", "medium", "high")
_PARAMS = {"max_tokens": "max_output_tokens", "max_completion_tokens": "max_output_tokens", "messages": "input"}

_WITHOUT_EFFECT: dict[str, tuple[object, ...]] = {
    "access_programs": (),
    "background": (False,),
    "background_options": (),
    "context_management": ([],),
    "conversation": (),
    "image": (),
    "moderation": (),
    "prompt": (),
    "prompt_cache_options": (),
    "service_tier": ("auto", "default"),
}


@dataclass(frozen=True)
class AskedText:
    """format: as the response shows it."""

    format: Mapping[str, Any] = field(default_factory=lambda: {"type": "text"})
    constraint: AskedConstraint | None = None
    verbosity: str = "medium"


@dataclass(frozen=True)
class AskedTools:
    """shown: as the response shows them."""

    tools: tuple[tool_schemas.Tool, ...] = ()
    shown: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class AskedChoice:
    """shown: as the response shows it."""

    choice: tool_schemas.ToolChoice
    shown: Any


def _text(value: object) -> AskedText:
    fields = Fields(value, "text")
    given = fields.of(dict, "an object", "format", None)
    verbosity = fields.one_of("verbosity", _VERBOSITIES, "medium")
    fields.no_more()
    if given is None:
        return AskedText(verbosity=verbosity)
    format = Fields(given, "text.format")
    kind = format.one_of("type", ("text", "json_object", "json_schema"))
    if kind == "json_schema":
        schema = {name: inner for name, inner in given.items() if name != "type" and inner is not None}
        constraint = read_named_schema(dict(schema), "text.format")
        shown = {"type": kind, "description": None, "strict": None, **schema}
        return AskedText(shown, constraint, verbosity)
    format.no_more()
    asked = AskedConstraint(Constraint.json_object(), "text.format") if kind == "json_object" else None
    return AskedText({"type": kind}, asked, verbosity)


def _tools(value: object) -> AskedTools:
    given = items_of(value, "tools", "a list of tools", most=tool_schemas.MAX_TOOLS)
    nested = []
    for place, tool in enumerate(given):
        fields = Fields(tool, f"tools[{place}]")
        if (kind := fields.text("type")) != "function":
            raise UnsupportedParameter(
                f"Tools of type '{shortened(kind)}' are not supported by this server, only 'function'.",
                param=f"tools[{place}].type",
            )
        fields.without_effect("defer_loading", False)
        function = {name: inner for name, inner in tool.items() if name not in ("type", "defer_loading")}
        nested.append({"type": "function", "function": function})
    with params_renamed(own_param):
        tools = tool_schemas.tools(nested)
    shown = tuple(
        {
            "type": "function",
            "name": tool.name,
            "description": tool.definition["function"].get("description"),
            "parameters": tool.parameters,
            "strict": tool.strict,
        }
        for tool in tools
    )
    return AskedTools(tools, shown)


def _tool_choice(value: object) -> AskedChoice:
    if isinstance(value, str):
        return AskedChoice(tool_schemas.tool_choice(value), value)
    fields = Fields(value, "tool_choice", "a string or an object")
    kind = fields.text("type")
    nested: dict[str, Any]
    if kind == "function":
        nested = {"type": kind, "function": _without_type(value)}
    elif kind == "allowed_tools":
        allowed = _without_type(value)
        if isinstance(named := allowed.get("tools"), list):
            allowed["tools"] = [_reference(tool) for tool in named]
        nested = {"type": kind, "allowed_tools": allowed}
    else:
        raise UnsupportedParameter(
            f"A 'tool_choice' of type '{shortened(kind)}' is not supported by this server, only 'function' and "
            "'allowed_tools'.",
            param="tool_choice.type",
        )
    with params_renamed(own_param):
        choice = tool_schemas.tool_choice(nested)
    return AskedChoice(choice, value)


def _without_type(value: object) -> dict[str, Any]:
    return {name: inner for name, inner in value.items() if name != "type"} if isinstance(value, dict) else {}


def _reference(tool: object) -> object:
    """A function in a list of allowed ones, in the chat's form."""
    if not isinstance(tool, dict) or "type" not in tool:
        return tool
    return {"type": tool["type"], "function": _without_type(tool)}


def _reasoning(value: object) -> Effort | None:
    fields = Fields(value, "reasoning")
    effort: Effort | None = fields.one_of("effort", EFFORTS, None)
    # The best summary there is: none. Thinking comes whole.
    fields.without_effect("summary", "auto")
    fields.without_effect("generate_summary", "auto")
    fields.no_more()
    return effort


def _include(value: object) -> bool:
    """Whether log probabilities are asked for."""
    names = items_of(value, "include", "a list of strings", most=16)
    for place, name in enumerate(names):
        where = f"include[{place}]"
        if not isinstance(name, str):
            raise wrong_type(where, "a string", name)
        if name != _LOGPROBS:
            raise UnsupportedParameter(
                f"'{where}' is '{shortened(name)}', which is not supported by this server, only '{_LOGPROBS}'.",
                param=where,
            )
    return bool(names)


def _metadata(value: object) -> Mapping[str, str]:
    if not isinstance(value, dict):
        raise wrong_type("metadata", "an object", value)
    if len(value) > 16:
        raise InvalidRequest(f"'metadata' has {len(value)} entries, at most 16 are accepted.", param="metadata")
    for name, text in value.items():
        where = f"metadata.{shortened(name)}"
        if not isinstance(text, str):
            raise wrong_type(where, "a string", text)
        if not 1 <= len(name) <= 64 or len(text) > 512:
            raise InvalidRequest(
                f"'{where}' has {len(name)} characters in its name and {len(text)} in its value, expected 1 to 64 and "
                "at most 512.",
                param=where,
            )
    return value


def own_param(name: str) -> str:
    """A parameter of chats by its name here."""
    if name.startswith(("tools[", "tool_choice.")):
        return name.replace(".function.", ".").replace(".allowed_tools.", ".").removesuffix(".function")
    if name == "reasoning_effort":
        return "reasoning.effort"
    return _PARAMS.get(name, name)


_Penalty = Annotated[float, Field(ge=-2, le=2)]


class ResponseStreamOptions(Strict):
    include_obfuscation: bool = False

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return with_accepted(handler.resolve_ref_schema(handler(schema)), {})


class ResponseRequest(RequestBody):
    """/v1/responses"""

    without_effect: ClassVar[Mapping[str, tuple[object, ...]]] = _WITHOUT_EFFECT
    depending: ClassVar[Mapping[str, str]] = {"stream_options": "stream"}

    model: str
    input: Annotated[tuple[Item | Reference, ...], PlainValidator(read_input, json_schema_input_type=described.Input)]
    instructions: str | None = None
    previous_response_id: str | None = Field(None, min_length=1, max_length=256)
    store: bool = True
    stream: bool = False
    stream_options: ResponseStreamOptions | None = None
    include: Annotated[bool, PlainValidator(_include, json_schema_input_type=described.Include)] = False
    max_output_tokens: int | None = Field(None, ge=1)
    max_tool_calls: int | None = Field(None, ge=1, description="Of built-in tools, of which there are none.")
    metadata: Annotated[Mapping[str, str], PlainValidator(_metadata, json_schema_input_type=described.Metadata)] = (
        Field(default_factory=dict)
    )
    parallel_tool_calls: bool = True
    reasoning: Annotated[
        Effort | None, PlainValidator(_reasoning, json_schema_input_type=described.ReasoningOptions)
    ] = None
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=-1)
    min_p: float | None = Field(None, ge=0, le=1)
    seed: int | None = Field(None, ge=-(2**63), le=2**63 - 1)
    priority: int = Field(0, ge=-(2**31), le=2**31 - 1)
    presence_penalty: _Penalty | None = None
    frequency_penalty: _Penalty | None = None
    text: Annotated[AskedText, PlainValidator(_text, json_schema_input_type=described.TextOptions)] = Field(
        default_factory=AskedText
    )
    tools: Annotated[AskedTools, PlainValidator(_tools, json_schema_input_type=described.ToolList)] = Field(
        default_factory=AskedTools
    )
    tool_choice: Annotated[
        AskedChoice | None, PlainValidator(_tool_choice, json_schema_input_type=described.AnyToolChoice)
    ] = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    truncation: Literal["auto", "disabled"] = "disabled"
    chat_template_kwargs: dict[str, str | int | float | bool] = Field(default_factory=dict, max_length=16)
    cache_salt: str | None = Field(None, min_length=1, max_length=MAX_CACHE_SALT)
    user: str | None = Field(None, description=HINT)
    safety_identifier: str | None = Field(None, description=HINT)
    prompt_cache_key: str | None = Field(None, description=HINT)
    prompt_cache_retention: Literal["in-memory", "in_memory", "24h"] | None = Field(None, description=HINT)

    @property
    def scored(self) -> bool:
        """Whether log probabilities are asked for."""
        return self.include or bool(self.top_logprobs)
