"""What /v1/messages answers. `/openapi.json` is made of these; `output` writes them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, WithJsonSchema


class DirectCaller(BaseModel):
    type: Literal["direct"]


class TextBlock(BaseModel):
    type: Literal["text"]
    text: str
    citations: None


class ToolUseBlock(BaseModel):
    type: Literal["tool_use"]
    id: str
    name: str
    input: Annotated[dict[str, Any], WithJsonSchema({"type": "object"})]
    caller: DirectCaller


class ThinkingBlock(BaseModel):
    """The model's thinking, as it is; empty if `display` is omitted. `signature` is a digest of it."""

    type: Literal["thinking"]
    thinking: str
    signature: str


StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"]


class ThinkingTokens(BaseModel):
    thinking_tokens: int


class MessageUsage(BaseModel):
    """Nothing is cached. `output_tokens` has those of thinking too."""

    input_tokens: int
    output_tokens: int
    output_tokens_details: ThinkingTokens
    cache_creation_input_tokens: int
    cache_read_input_tokens: int
    cache_creation: None
    inference_geo: None
    server_tool_use: None
    service_tier: Literal["standard"]


class MessageObject(BaseModel):
    """An answer."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[TextBlock | ToolUseBlock | ThinkingBlock]
    stop_reason: StopReason
    stop_sequence: str | None
    stop_details: None
    container: None
    usage: MessageUsage


class TokenCount(BaseModel):
    input_tokens: int


class MessageStreamEvent(BaseModel):
    """An event of a stream: `message_start`, `ping`, `content_block_start`, `content_block_delta`,
    `content_block_stop`, `message_delta`, and at the end `message_stop` or `error`. Its fields are those of Anthropic's
    reference."""

    type: Literal[
        "message_start", "ping", "content_block_start", "content_block_delta", "content_block_stop", "message_delta",
        "message_stop", "error",
    ]  # fmt: skip
