"""How /openapi.json describes the nested parts of a request to /v1/messages, which `blocks` and `schemas` read."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Union

from pydantic import Field, GetJsonSchemaHandler, WithJsonSchema
from pydantic_core import CoreSchema

from languagepipes_node.end_model.openai.fields import Strict, with_accepted
from languagepipes_node.end_model.openai.tool_schemas import MAX_TOOLS


class _Described(Strict):
    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return with_accepted(handler.resolve_ref_schema(handler(schema)), {})


_Object = Annotated[dict[str, Any], WithJsonSchema({"type": "object"})]
_Hint = Annotated[dict[str, Any], WithJsonSchema({"type": "object", "description": "A hint, which asks for nothing."})]
_AnyList = Annotated[list[Any], WithJsonSchema({"type": "array"})]
_CallId = Annotated[str, Field(min_length=1, max_length=256)]
_Name = Annotated[str, Field(pattern="^[a-zA-Z0-9_-]{1,64}$")]
_Nothing = Annotated[list[Any], WithJsonSchema({"type": "array", "maxItems": 0})]


class TextBlockParam(_Described):
    """`citations` may be sent back as they came; a list of none, that is."""

    type: Literal["text"]
    text: str
    cache_control: _Hint = Field(default_factory=dict)
    citations: _Nothing = Field(default_factory=list)


class ToolUseBlockParam(_Described):
    """An earlier call."""

    type: Literal["tool_use"]
    id: _CallId
    name: _CallId
    input: _Object
    cache_control: _Hint = Field(default_factory=dict)
    caller: _Hint = Field(default_factory=dict)


class ThinkingBlockParam(_Described):
    """Earlier thinking. `signature` is not looked at."""

    type: Literal["thinking"]
    thinking: str
    signature: str = ""


class ToolResultBlockParam(_Described):
    """What a tool returned, or with `is_error`, how it failed."""

    type: Literal["tool_result"]
    tool_use_id: _CallId
    content: str | list[TextBlockParam] = ""
    is_error: bool = False
    cache_control: _Hint = Field(default_factory=dict)


class UserMessage(_Described):
    """Results come before text."""

    role: Literal["user"]
    content: str | Annotated[list[TextBlockParam | ToolResultBlockParam], Field(min_length=1)]


class EarlierAnswer(_Described):
    """An earlier answer."""

    role: Literal["assistant"]
    content: str | list[TextBlockParam | ToolUseBlockParam | ThinkingBlockParam]


Messages = Annotated[
    list[Union[UserMessage, EarlierAnswer]],  # noqa: UP007 (read by pydantic)
    Field(min_length=1, max_length=4096),
]
System = str | list[TextBlockParam]


class InputSchemaTool(_Described):
    """`input_schema` is a JSON Schema of an object; `strict` holds the input to it."""

    type: Literal["custom"] = "custom"
    name: _Name
    description: str = ""
    input_schema: _Object
    strict: bool = False
    cache_control: _Hint = Field(default_factory=dict)
    defer_loading: Literal[False] = False
    eager_input_streaming: bool = False
    input_examples: _Nothing = Field(default_factory=list)
    allowed_callers: Annotated[list[str], WithJsonSchema({"enum": [["direct"]]})] = Field(default_factory=list)


ToolList = Annotated[list[InputSchemaTool], Field(max_length=MAX_TOOLS)]


class AutoOrAny(_Described):
    type: Literal["auto", "any"]
    disable_parallel_tool_use: bool = False


class OneTool(_Described):
    type: Literal["tool"]
    name: _Name
    disable_parallel_tool_use: bool = False


class NoTool(_Described):
    type: Literal["none"]


AnyToolChoice = Union[AutoOrAny, OneTool, NoTool]  # noqa: UP007


class ThinkingEnabled(_Described):
    """`budget_tokens` is a target that the model is not told of."""

    type: Literal["enabled"]
    budget_tokens: Annotated[int, Field(ge=1024)]
    display: Literal["summarized", "omitted"] = "summarized"


class ThinkingAdaptive(_Described):
    type: Literal["adaptive"]
    display: Literal["summarized", "omitted"] = "summarized"


class ThinkingDisabled(_Described):
    type: Literal["disabled"]


Thinking = Union[ThinkingEnabled, ThinkingAdaptive, ThinkingDisabled]  # noqa: UP007


class SchemaFormat(_Described):
    type: Literal["json_schema"]
    schema_: _Object = Field(alias="schema")


class OutputConfig(_Described):
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: SchemaFormat | None = None


class Metadata(_Described):
    user_id: Annotated[str, Field(max_length=256)] = ""


StopSequences = Annotated[list[Annotated[str, Field(min_length=1, max_length=512)]], Field(max_length=64)]
