"""What the server answers, as OpenAI's API names it. `/openapi.json` is made of these.

Chunks are written as bytes by the routes, field by field (one costs 2 µs); schemathesis holds them against these.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel

from languagepipes_node.end_model.requests import FinishReason


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class TokenLogprob(BaseModel):
    token: str
    logprob: float
    bytes: list[int]


class ScoredChatToken(TokenLogprob):
    top_logprobs: list[TokenLogprob]


class ChatLogprobs(BaseModel):
    content: list[ScoredChatToken]
    refusal: None


class AssistantMessage(BaseModel):
    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(BaseModel):
    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason


class ChatCompletion(BaseModel):
    """A whole answer to a chat."""

    id: str
    created: int
    model: str
    system_fingerprint: str | None
    object: Literal["chat.completion"]
    choices: list[ChatChoice]
    usage: Usage


class ChatDelta(BaseModel):
    """What a chunk adds: the role at the start, then content, nothing at the end."""

    role: Literal["assistant"] = "assistant"
    content: str = ""
    refusal: None = None


class ChatChunkChoice(BaseModel):
    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason | None


class ChatCompletionChunk(BaseModel):
    """A part of a streamed answer to a chat. `usage` is there if `stream_options` asks for it."""

    id: str
    created: int
    model: str
    system_fingerprint: str | None
    object: Literal["chat.completion.chunk"]
    choices: list[ChatChunkChoice]
    usage: Usage | None = None


class TextLogprobs(BaseModel):
    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class TextChoice(BaseModel):
    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: FinishReason


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


class CompletionChunk(BaseModel):
    """A part of a streamed answer to a prompt. `usage` is there if `stream_options` asks for it."""

    id: str
    created: int
    model: str
    system_fingerprint: str | None
    object: Literal["text_completion"]
    choices: list[TextChunkChoice]
    usage: Usage | None = None


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


class Readiness(BaseModel):
    """The ring is joined."""

    status: Literal["ready"] = "ready"


class NotReady(BaseModel):
    """The ring is not joined."""

    status: Literal["not ready"] = "not ready"
    reason: str
