"""POST /v1/completions (https://platform.openai.com/docs/api-reference/completions)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
    WholeAnswer,
    answer_whole,
    event_end,
    plan_generation,
    require_served_model,
    reserve_seats,
    streamed,
)
from languagepipes_node.end_model.openai.http import JsonRoute
from languagepipes_node.end_model.openai.logprobs import TextToken, text_logprobs
from languagepipes_node.end_model.openai.prompts import PromptReader
from languagepipes_node.end_model.openai.response_models import Completion, CompletionChunk, Usage
from languagepipes_node.end_model.openai.schemas import CompletionRequest
from languagepipes_node.end_model.requests import FinishReason

_OBJECT = "text_completion"
_DEFAULT_MAX_TOKENS = 16  # OpenAI's


router = APIRouter(route_class=JsonRoute, tags=["completions"], dependencies=[Depends(require_served_model)])


@router.post("/completions", response_model=Completion, responses=streamed(CompletionChunk) | GENERATION_ERRORS)
async def create_completion(
    request: Request, body: CompletionRequest, service: CurrentService
) -> WholeAnswer | EventStream:
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


class CompletionFormat(ResponseFormat[TextToken]):
    """`text_completion` objects, whole and in events."""

    def __init__(self, service: Service, *, include_usage: bool, scored: bool) -> None:
        super().__init__(service, prefix="cmpl", whole_object=_OBJECT, include_usage=include_usage)
        self._scored = scored
        self._start = self.event_start(_OBJECT)
        self._index = self._start + b'{"index":'
        self._end = event_end(self.usage_field)

    def opening(self, index: int) -> bytes:
        return b""

    def event(self, index: int, piece: Piece) -> bytes:
        if not (piece.text or piece.scored or piece.finish):
            return b""
        scored = [self.scored(token) for token in piece.scored]
        logprobs = b"".join(text_logprobs(scored)) if scored else b"null"
        finish = b'"' + piece.finish.encode() + b'"' if piece.finish is not None else b"null"
        return (
            self._index + str(index).encode() + b',"text":' + orjson.dumps(piece.text) + b',"logprobs":' + logprobs
            + b',"finish_reason":' + finish + b"}" + self._end
        )  # fmt: skip

    def usage_event(self, usage: Usage) -> bytes:
        return self._start + event_end(b',"usage":' + usage.model_dump_json().encode())

    def scored(self, token: ScoredToken) -> TextToken:
        return self.service.logprobs.text_token(token)

    def choice(self, index: int, text: str, scored: Sequence[TextToken], finish: FinishReason) -> Iterator[bytes]:
        yield b'{"index":' + str(index).encode() + b',"text":' + orjson.dumps(text) + b',"logprobs":'
        yield from text_logprobs(scored) if self._scored else (b"null",)
        yield b',"finish_reason":"' + finish.encode() + b'"}'


def _tokenise(prompts: PromptReader, prompt: str | tuple[int, ...]) -> tuple[int, ...]:
    """Raises InvalidRequest for ids that the model does not have."""
    if isinstance(prompt, str):
        return prompts.encode(prompt, param="prompt")
    prompts.check(prompt, param="prompt")
    return prompt
