"""How /openapi.json describes the nested parts of a request to /v1/responses, which `items` and `schemas` read."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Union

from pydantic import Field, GetJsonSchemaHandler, WithJsonSchema
from pydantic_core import CoreSchema

from languagepipes_node.end_model.openai.fields import Strict, with_accepted
from languagepipes_node.end_model.openai.tool_schemas import MAX_TOOLS
from languagepipes_node.end_model.reasoning.effort import Effort


class _Described(Strict):
    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return with_accepted(handler.resolve_ref_schema(handler(schema)), {})


_Id = Annotated[str, Field(max_length=256)]
_CallId = Annotated[str, Field(min_length=1, max_length=256)]
_Status = Literal["in_progress", "completed", "incomplete"]
_Nothing = Annotated[None, WithJsonSchema({"type": "null"})]
_AnyList = Annotated[list[Any], WithJsonSchema({"type": "array"})]
_Name = Annotated[str, Field(pattern="^[a-zA-Z0-9_-]{1,64}$")]


class InputText(_Described):
    type: Literal["input_text", "text"]
    text: str


class OutputText(_Described):
    """`annotations`, `logprobs` and what the openai client adds may be sent back as they came."""

    type: Literal["output_text"]
    text: str
    annotations: _AnyList = Field(default_factory=list)
    logprobs: _AnyList = Field(default_factory=list)
    parsed: Any = None


class PlainText(_Described):
    type: Literal["text"]
    text: str


class Refusal(_Described):
    type: Literal["refusal"]
    refusal: str


class InputMessage(_Described):
    """Several text parts are joined by line breaks."""

    type: Literal["message"] = "message"
    role: Literal["user", "system", "developer"]
    content: str | Annotated[list[InputText], Field(min_length=1)]
    id: _Id = ""
    status: _Status = "completed"


class OutputMessage(_Described):
    """An earlier answer."""

    type: Literal["message"] = "message"
    role: Literal["assistant"]
    content: str | Annotated[list[OutputText | PlainText | Refusal], Field(min_length=1)]
    id: _Id = ""
    status: _Status = "completed"
    phase: Literal["commentary", "final_answer"] | None = None


class FunctionCallItem(_Described):
    """`arguments` is the text of a JSON object, or empty."""

    type: Literal["function_call"]
    call_id: _CallId
    name: _CallId
    arguments: str
    parsed_arguments: Any = None
    id: _Id = ""
    status: _Status = "completed"


class FunctionCallOutputItem(_Described):
    """What a function returned."""

    type: Literal["function_call_output"]
    call_id: _CallId
    output: str | Annotated[list[InputText], Field(min_length=1)]
    id: _Id = ""
    status: _Status = "completed"


class SummaryText(_Described):
    type: Literal["summary_text"]
    text: str


class ReasoningText(_Described):
    type: Literal["reasoning_text"]
    text: str


class ReasoningItem(_Described):
    """Earlier thinking: `content`, or where there is none, `summary`."""

    type: Literal["reasoning"]
    summary: list[SummaryText]
    content: list[ReasoningText] = Field(default_factory=list)
    id: _Id = ""
    status: _Status = "completed"
    encrypted_content: _Nothing = None


class ItemReference(_Described):
    """An item of a stored response."""

    type: Literal["item_reference"]
    id: _Id


InputItem = Union[  # noqa: UP007 (read by pydantic)
    InputMessage, OutputMessage, FunctionCallItem, FunctionCallOutputItem, ReasoningItem, ItemReference
]
Input = Annotated[str, Field(min_length=1)] | Annotated[list[InputItem], Field(min_length=1, max_length=2048)]
Include = Annotated[list[Literal["message.output_text.logprobs"]], Field(max_length=16)]
Metadata = Annotated[
    dict[Annotated[str, Field(min_length=1, max_length=64)], Annotated[str, Field(max_length=512)]],
    Field(max_length=16),
]


class ReasoningOptions(_Described):
    effort: Effort | None = None
    summary: Literal["auto"] | None = None
    generate_summary: Literal["auto"] | None = None


class AnyText(_Described):
    type: Literal["text", "json_object"]


class NamedSchema(_Described):
    """`strict` is a promise that is kept in any case."""

    type: Literal["json_schema"]
    name: _Name
    schema_: Annotated[dict[str, Any], WithJsonSchema({"type": "object"})] = Field(alias="schema")
    description: str | None = None
    strict: bool | None = None


class TextOptions(_Described):
    format: AnyText | NamedSchema | None = None
    verbosity: Literal["low", "medium", "high"] = "medium"


class FlatFunctionTool(_Described):
    """`parameters` is a JSON Schema of an object; `strict` holds the arguments to it, and is false where left out."""

    type: Literal["function"]
    name: _Name
    description: str = ""
    parameters: Annotated[dict[str, Any], WithJsonSchema({"type": "object"})] = Field(default_factory=dict)
    strict: bool = False
    defer_loading: Literal[False] = False


class FlatFunctionReference(_Described):
    type: Literal["function"]
    name: _Name


class FlatAllowedTools(_Described):
    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: list[FlatFunctionReference] = Field(min_length=1, max_length=MAX_TOOLS)


ToolList = Annotated[list[FlatFunctionTool], Field(max_length=MAX_TOOLS)]
AnyToolChoice = Union[  # noqa: UP007 (read by pydantic)
    Literal["none", "auto", "required"], FlatFunctionReference, FlatAllowedTools
]
