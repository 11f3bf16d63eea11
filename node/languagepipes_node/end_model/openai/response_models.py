"""What the server answers, as OpenAI's API names it. `/openapi.json` is made of these.

Chunks are written as bytes by the routes, field by field (one costs 2 µs); schemathesis holds them against these.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel

from languagepipes_node.end_model.requests import FinishReason

ChatFinishReason = FinishReason | Literal["tool_calls"]


class CompletionTokensDetails(BaseModel):
    """reasoning_tokens: those of the model's thinking, the marks around it included."""

    reasoning_tokens: int


class PromptTokensDetails(BaseModel):
    cached_tokens: int


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails


class TokenLogprob(BaseModel):
    token: str
    logprob: float
    bytes: list[int]


class ScoredChatToken(TokenLogprob):
    top_logprobs: list[TokenLogprob]


class ChatLogprobs(BaseModel):
    content: list[ScoredChatToken]
    refusal: None


class FunctionCall(BaseModel):
    """`arguments` is the text of a JSON object."""

    name: str
    arguments: str


class MessageToolCall(BaseModel):
    id: str
    type: Literal["function"]
    function: FunctionCall


class AssistantMessage(BaseModel):
    """`content` is null where there are calls and no content. Thinking, if there is any, stands in `reasoning` and in
    `reasoning_content`."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning: str = ""
    reasoning_content: str = ""
    tool_calls: list[MessageToolCall] = []


class ChatChoice(BaseModel):
    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: ChatFinishReason
    token_ids: list[int] | None = None


class PromptLogprob(BaseModel):
    """rank: how many tokens are as likely or likelier, itself included."""

    logprob: float
    rank: int
    decoded_token: str


# By token id: the prompt's token, and the likeliest ones. Of a prompt's first token there is nothing to say.
PromptLogprobs = list[dict[str, PromptLogprob] | None]


class ChatCompletion(BaseModel):
    """A whole answer to a chat."""

    id: str
    created: int
    model: str
    system_fingerprint: str | None
    object: Literal["chat.completion"]
    choices: list[ChatChoice]
    usage: Usage
    prompt_token_ids: list[int] | None = None
    prompt_logprobs: PromptLogprobs | None = None


class DeltaFunctionCall(BaseModel):
    """The name in the first chunk of a call; pieces of the arguments in all of them."""

    name: str = ""
    arguments: str


class DeltaToolCall(BaseModel):
    """A piece of the call number `index`. The first has its id, type and name."""

    index: int
    id: str = ""
    type: Literal["function"] = "function"
    function: DeltaFunctionCall


class ChatDelta(BaseModel):
    """What a chunk adds: the role at the start, then thinking, content or calls, nothing at the end."""

    role: Literal["assistant"] = "assistant"
    content: str | None = ""
    refusal: None = None
    reasoning: str = ""
    reasoning_content: str = ""
    tool_calls: list[DeltaToolCall] = []


class ChatChunkChoice(BaseModel):
    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None
    finish_reason: ChatFinishReason | None
    token_ids: list[int] | None = None


class ChatCompletionChunk(BaseModel):
    """A part of a streamed answer to a chat. `usage` is there if `stream_options` asks for it."""

    id: str
    created: int
    model: str
    system_fingerprint: str | None
    object: Literal["chat.completion.chunk"]
    choices: list[ChatChunkChoice]
    usage: Usage | None = None
    obfuscation: str = ""
    prompt_token_ids: list[int] | None = None


class TextLogprobs(BaseModel):
    """With `echo`, a prompt's first token has null for its numbers: nothing comes before it."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class TextChoice(BaseModel):
    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: FinishReason
    prompt_token_ids: list[int] | None = None
    token_ids: list[int] | None = None
    prompt_logprobs: PromptLogprobs | None = None


class Completion(BaseModel):
    """A whole answer to a prompt."""

    id: str
    created: int
    model: str
    system_fingerprint: str | None
    object: Literal["text_completion"]
    choices: list[TextChoice]
    usage: Usage


class TextChunkChoice(BaseModel):
    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: FinishReason | None
    prompt_token_ids: list[int] | None = None
    token_ids: list[int] | None = None


class CompletionChunk(BaseModel):
    """A part of a streamed answer to a prompt. `usage` is there if `stream_options` asks for it."""

    id: str
    created: int
    model: str
    system_fingerprint: str | None
    object: Literal["text_completion"]
    choices: list[TextChunkChoice]
    usage: Usage | None = None
    obfuscation: str = ""


class Model(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["languagepipes"] = "languagepipes"
    max_model_len: int


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[Model]


class Health(BaseModel):
    status: Literal["ok"] = "ok"


class Version(BaseModel):
    version: str


class Readiness(BaseModel):
    """The ring is joined."""

    status: Literal["ready"] = "ready"


class NotReady(BaseModel):
    """The ring is not joined."""

    status: Literal["not ready"] = "not ready"
    reason: str
