"""POST /v1/completions (https://platform.openai.com/docs/api-reference/completions)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import orjson
from starlette.types import Receive, Scope, Send

from languagepipes_node.end_model.openai.answers import Piece, ScoredToken
from languagepipes_node.end_model.openai.errors import InvalidRequest
from languagepipes_node.end_model.openai.generation import (
    ResponseFormat,
    Service,
    Usage,
    event_end,
    plan_generation,
    read_request,
    respond,
)
from languagepipes_node.end_model.openai.schemas import CompletionRequest, parse, prompts
from languagepipes_node.end_model.text import TextCodec

_OBJECT = "text_completion"
_DEFAULT_MAX_TOKENS = 16  # OpenAI's


class Completions:
    """The route, as an ASGI application."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        service = self._service
        fields = await read_request(service, scope, receive)
        raw_prompt = fields.pop("prompt", None)
        request = parse(CompletionRequest, fields)
        given = prompts(raw_prompt)
        loop = asyncio.get_running_loop()
        tokenised = await loop.run_in_executor(service.workers, _tokenise, service.text, given)
        generation = plan_generation(
            service,
            request,
            tokenised,
            prompt_param="prompt",
            max_tokens=("max_tokens", request.max_tokens) if request.max_tokens is not None else None,
            default_max_tokens=_DEFAULT_MAX_TOKENS,
            logprobs=request.logprobs,
        )
        include_usage = request.stream_options is not None and request.stream_options.include_usage
        format = CompletionFormat(service, include_usage=include_usage, scored=request.logprobs is not None)
        await respond(service, generation, format, scope, receive, send)


class CompletionFormat(ResponseFormat):
    """`text_completion` objects, whole and in events."""

    def __init__(self, service: Service, *, include_usage: bool, scored: bool) -> None:
        super().__init__(service, prefix="cmpl", include_usage=include_usage)
        self._scored = scored
        self._start = self.event_start(_OBJECT)
        self._index = self._start + b'{"index":'
        self._end = event_end(self.usage_field)

    def opening(self, index: int) -> bytes:
        return b""

    def event(self, index: int, piece: Piece) -> bytes:
        if not (piece.text or piece.scored or piece.finish):
            return b""
        logprobs = orjson.dumps(self._logprobs(piece.scored)) if piece.scored else b"null"
        finish = b'"' + piece.finish.encode() + b'"' if piece.finish is not None else b"null"
        return (
            self._index + str(index).encode() + b',"text":' + orjson.dumps(piece.text) + b',"logprobs":' + logprobs
            + b',"finish_reason":' + finish + b"}" + self._end
        )  # fmt: skip

    def usage_event(self, usage: Usage) -> bytes:
        return self._start + event_end(b',"usage":' + orjson.dumps(usage.to_json()))

    def whole(self, choices: Sequence[Sequence[Piece]], usage: Usage) -> bytes:
        return orjson.dumps(
            {
                **self.head,
                "object": _OBJECT,
                "choices": [self._choice(index, pieces) for index, pieces in enumerate(choices)],
                "usage": usage.to_json(),
            }
        )

    def _choice(self, index: int, pieces: Sequence[Piece]) -> dict[str, Any]:
        scored = [token for piece in pieces for token in piece.scored]
        return {
            "index": index,
            "text": "".join(piece.text for piece in pieces),
            "logprobs": self._logprobs(scored) if self._scored else None,
            "finish_reason": pieces[-1].finish,
        }

    def _logprobs(self, scored: Sequence[ScoredToken]) -> dict[str, Any]:
        codec = self.service.text
        return {
            "tokens": [_token_text(codec, token.token) for token in scored],
            "token_logprobs": [max(token.logprobs.logprob, -9999.0) for token in scored],
            "top_logprobs": [
                {_token_text(codec, other): max(logprob, -9999.0) for other, logprob in token.logprobs.top}
                for token in scored
            ],
            "text_offset": [token.offset for token in scored],
        }


def _token_text(codec: TextCodec, token: int) -> str:
    return codec.token_bytes(token).decode(errors="replace")


def _tokenise(codec: TextCodec, given: tuple[str | tuple[int, ...], ...]) -> list[tuple[int, ...]]:
    """Raises InvalidRequest for ids that the tokenizer does not have."""
    tokenised = []
    for prompt in given:
        if isinstance(prompt, str):
            tokenised.append(codec.encode(prompt))
            continue
        wrong = next((token for token in prompt if not 0 <= token < codec.vocabulary_size), None)
        if wrong is not None:
            raise InvalidRequest(
                f"'prompt' holds token id {wrong}, expected 0 to {codec.vocabulary_size - 1}.", param="prompt"
            )
        tokenised.append(prompt)
    return tokenised
