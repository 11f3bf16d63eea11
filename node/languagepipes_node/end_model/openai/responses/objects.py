"""What /v1/responses answers. `/openapi.json` is made of these; `output` writes them."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Union

from pydantic import BaseModel, Field, WithJsonSchema

from languagepipes_node.end_model.openai.response_models import ScoredChatToken

_Object = Annotated[dict[str, Any], WithJsonSchema({"type": "object"})]
ItemStatus = Literal["in_progress", "completed", "incomplete"]


class OutputTextPart(BaseModel):
    """`logprobs` is empty unless the request asks for log probabilities."""

    type: Literal["output_text"]
    text: str
    annotations: list[_Object] = Field(max_length=0)
    logprobs: list[ScoredChatToken]


class InputTextPart(BaseModel):
    type: Literal["input_text"]
    text: str


class ReasoningTextPart(BaseModel):
    type: Literal["reasoning_text"]
    text: str


class SummaryTextPart(BaseModel):
    type: Literal["summary_text"]
    text: str


class MessageItem(BaseModel):
    id: str
    type: Literal["message"]
    role: Literal["assistant", "user", "system", "developer"]
    status: ItemStatus
    content: list[OutputTextPart | InputTextPart]
    phase: Literal["commentary", "final_answer"] | None = None


class FunctionCallObject(BaseModel):
    """`arguments` is the text of a JSON object; cut off if the status is incomplete."""

    id: str
    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str
    status: ItemStatus


class FunctionCallOutputObject(BaseModel):
    id: str
    type: Literal["function_call_output"]
    call_id: str
    output: str
    status: ItemStatus


class ReasoningObject(BaseModel):
    """The model's thinking, as it is."""

    id: str
    type: Literal["reasoning"]
    summary: list[SummaryTextPart]
    content: list[ReasoningTextPart]
    status: ItemStatus


OutputItem = Union[MessageItem, FunctionCallObject, ReasoningObject]  # noqa: UP007 (read by pydantic)
ListedItem = Union[  # noqa: UP007
    MessageItem, FunctionCallObject, FunctionCallOutputObject, ReasoningObject
]


class IncompleteDetails(BaseModel):
    reason: Literal["max_output_tokens"]


class FailureDetails(BaseModel):
    code: Literal["server_error", "rate_limit_exceeded"]
    message: str


class InputTokensDetails(BaseModel):
    cached_tokens: int


class OutputTokensDetails(BaseModel):
    reasoning_tokens: int


class ResponseUsage(BaseModel):
    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class ShownReasoning(BaseModel):
    effort: str | None
    summary: None


class ShownText(BaseModel):
    format: _Object
    verbosity: Literal["low", "medium", "high"]


class ShownTool(BaseModel):
    type: Literal["function"]
    name: str
    description: str | None
    parameters: _Object
    strict: bool


class ResponseObject(BaseModel):
    """A response. Sampling parameters are those that were used."""

    id: str
    object: Literal["response"]
    created_at: int
    completed_at: int | None
    status: Literal["completed", "incomplete", "failed", "in_progress"]
    error: FailureDetails | None
    incomplete_details: IncompleteDetails | None
    model: str
    output: list[OutputItem]
    usage: ResponseUsage | None
    background: Literal[False]
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: int | None
    metadata: dict[str, str]
    parallel_tool_calls: bool
    previous_response_id: str | None
    prompt_cache_key: str | None
    reasoning: ShownReasoning
    safety_identifier: str | None
    service_tier: Literal["default"]
    store: bool
    temperature: float
    text: ShownText
    tool_choice: str | _Object
    tools: list[ShownTool]
    top_logprobs: int
    top_p: float
    presence_penalty: float
    frequency_penalty: float
    truncation: Literal["auto", "disabled"]
    user: str | None


class InputItemList(BaseModel):
    object: Literal["list"]
    data: list[ListedItem]
    first_id: str | None
    last_id: str | None
    has_more: bool


class DeletedResponse(BaseModel):
    id: str
    object: Literal["response"]
    deleted: Literal[True]


class ResponseEvent(BaseModel):
    """An event of a stream: `response.created`, `response.in_progress`, `response.output_item.added` and `.done`,
    `response.content_part.added` and `.done`, `response.output_text.delta` and `.done`, `response.reasoning_text.delta`
    and `.done`, `response.function_call_arguments.delta` and `.done`; at the end `response.completed`, `.incomplete`,
    or `.failed` and `error`. Its fields are those of OpenAI's reference."""

    type: str
    sequence_number: int
