"""POST /v1/completions (https://platform.openai.com/docs/api-reference/completions)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import orjson
from fastapi import APIRouter, Depends, Request

from languagepipes_node.end_model.openai.admission import Asker
from languagepipes_node.end_model.openai.answers import Piece, ScoredToken
from languagepipes_node.end_model.openai.generation import (
    GENERATION_ERRORS,
    CurrentService,
    EventStream,
    ResponseFormat,
    Service,
    answer_whole,
    event_end,
    plan_generation,
    require_served_model,
    reserve_seats,
    streamed,
)
from languagepipes_node.end_model.openai.http import JsonRoute
from languagepipes_node.end_model.openai.prompts import PromptReader
from languagepipes_node.end_model.openai.response_models import (
    Completion,
    CompletionChunk,
    TextChoice,
    TextLogprobs,
    Usage,
)
from languagepipes_node.end_model.openai.schemas import CompletionRequest
from languagepipes_node.end_model.text import TextCodec

_OBJECT = "text_completion"
_DEFAULT_MAX_TOKENS = 16  # OpenAI's


router = APIRouter(route_class=JsonRoute, tags=["completions"], dependencies=[Depends(require_served_model)])


@router.post("/completions", response_model=Completion, responses=streamed(CompletionChunk) | GENERATION_ERRORS)
async def create_completion(
    request: Request, body: CompletionRequest, service: CurrentService
) -> Completion | EventStream:
    """Continue one prompt or several: as one object, or as server-sent events with `stream`."""
    asker = Asker.of(request.scope)
    seats = reserve_seats(service, asker, body, prompts=len(body.prompt))
    # One by one: other clients' prompts take turns with these.
    tokenised = [
        await service.workers.run_for(request, partial(_tokenise, service.prompts, prompt)) for prompt in body.prompt
    ]
    generation = plan_generation(
        service,
        asker,
        seats,
        body,
        tokenised,
        prompt_param="prompt",
        max_tokens=("max_tokens", body.max_tokens) if body.max_tokens is not None else None,
        default_max_tokens=_DEFAULT_MAX_TOKENS,
        logprobs=body.logprobs,
    )
    include_usage = body.stream_options is not None and body.stream_options.include_usage
    format = CompletionFormat(service, include_usage=include_usage, scored=body.logprobs is not None)
    if body.stream:
        return EventStream(service, generation, format)
    return await answer_whole(service, generation, format, request.receive)


class CompletionFormat(ResponseFormat[Completion]):
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
        logprobs = self._logprobs(piece.scored).model_dump_json().encode() if piece.scored else b"null"
        finish = b'"' + piece.finish.encode() + b'"' if piece.finish is not None else b"null"
        return (
            self._index + str(index).encode() + b',"text":' + orjson.dumps(piece.text) + b',"logprobs":' + logprobs
            + b',"finish_reason":' + finish + b"}" + self._end
        )  # fmt: skip

    def usage_event(self, usage: Usage) -> bytes:
        return self._start + event_end(b',"usage":' + usage.model_dump_json().encode())

    def whole(self, choices: Sequence[Sequence[Piece]], usage: Usage) -> Completion:
        return Completion(
            **self.head,
            object="text_completion",
            choices=[self._choice(index, pieces) for index, pieces in enumerate(choices)],
            usage=usage,
        )

    def _choice(self, index: int, pieces: Sequence[Piece]) -> TextChoice:
        scored = [token for piece in pieces for token in piece.scored]
        finish = pieces[-1].finish
        assert finish is not None  # noqa: S101 (an answer is whole when it is finished)
        return TextChoice(
            index=index,
            text="".join(piece.text for piece in pieces),
            logprobs=self._logprobs(scored) if self._scored else None,
            finish_reason=finish,
        )

    def _logprobs(self, scored: Sequence[ScoredToken]) -> TextLogprobs:
        codec = self.service.text
        return TextLogprobs(
            tokens=[_token_text(codec, token.token) for token in scored],
            token_logprobs=[max(token.logprobs.logprob, -9999.0) for token in scored],
            top_logprobs=[
                {_token_text(codec, other): max(logprob, -9999.0) for other, logprob in token.logprobs.top}
                for token in scored
            ],
            text_offset=[token.offset for token in scored],
        )


def _token_text(codec: TextCodec, token: int) -> str:
    return codec.token_bytes(token).decode(errors="replace")


def _tokenise(prompts: PromptReader, prompt: str | tuple[int, ...]) -> tuple[int, ...]:
    """Raises InvalidRequest for ids that the model does not have."""
    if isinstance(prompt, str):
        return prompts.encode(prompt, param="prompt")
    prompts.check(prompt, param="prompt")
    return prompt
