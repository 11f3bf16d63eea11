"""POST /v1/completions (https://platform.openai.com/docs/api-reference/completions)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial

import orjson
from fastapi import APIRouter, Depends, Request

from languagepipes_node.end_model.openai.admission import Asker
from languagepipes_node.end_model.openai.answers import AnswerFinish, Piece, ScoredToken
from languagepipes_node.end_model.openai.choice_format import ResponseFormat, event_end
from languagepipes_node.end_model.openai.errors import InvalidRequest
from languagepipes_node.end_model.openai.generation import (
    GENERATION_ERRORS,
    EventStream,
    WholeAnswer,
    answer_whole,
    streamed,
)
from languagepipes_node.end_model.openai.http import JsonRoute
from languagepipes_node.end_model.openai.logprobs import TextToken, text_logprobs
from languagepipes_node.end_model.openai.planning import compile_grammar, plan_generation, reserve_seats
from languagepipes_node.end_model.openai.prompt_logprobs import ShownPromptLogprobs
from languagepipes_node.end_model.openai.prompts import PromptReader
from languagepipes_node.end_model.openai.response_models import Completion, CompletionChunk, Usage
from languagepipes_node.end_model.openai.sampling_request import generated_choices, prompt_limit
from languagepipes_node.end_model.openai.schemas import CompletionRequest, StreamOptions
from languagepipes_node.end_model.openai.service import CurrentService, Service, require_served_model
from languagepipes_node.end_model.openai.token_ids import ShownIds

_OBJECT = "text_completion"
_DEFAULT_MAX_TOKENS = 16  # OpenAI's
# Of all prompts of a request, once for each answer: their numbers are kept until the answer is sent, some 0.5 KB each.
_MOST_SCORED_TOKENS = 131_072

router = APIRouter(route_class=JsonRoute, tags=["completions"], dependencies=[Depends(require_served_model)])


@router.post("/completions", response_model=Completion, responses=streamed(CompletionChunk) | GENERATION_ERRORS)
async def create_completion(
    request: Request, body: CompletionRequest, service: CurrentService
) -> WholeAnswer | EventStream:
    """Continue one prompt or several: as one object, or as server-sent events with `stream`."""
    asker = Asker.of(request.scope)
    seats = reserve_seats(service, asker, body, prompts=len(body.prompt))
    answer_tokens = _DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens
    keep_last = prompt_limit(body, context=service.max_context_length, answer_tokens=answer_tokens)
    grammar = await compile_grammar(service, request, body.constraint)
    # One by one: other clients' prompts take turns with these.
    tokenise = partial(_tokenise, service.prompts, keep_last=keep_last, echo=body.echo)
    prompts = [await service.workers.run_for(request, partial(tokenise, prompt)) for prompt in body.prompt]
    _check_scored_tokens(service, body, sum(len(tokens) for tokens, _ in prompts))
    generation = plan_generation(
        service,
        asker,
        seats,
        body,
        [tokens for tokens, _ in prompts],
        prompt_param="prompt",
        max_tokens=("max_tokens", body.max_tokens) if body.max_tokens is not None else None,
        default_max_tokens=_DEFAULT_MAX_TOKENS,
        logprobs=body.logprobs,
        grammar=grammar,
        echoes=[text for _, text in prompts] if body.echo else None,
    )
    format = CompletionFormat(service, options=body.stream_options, scored=body.logprobs is not None)
    if body.return_token_ids:
        format.ids = ShownIds([tokens for tokens, _ in prompts], generation.per_prompt, in_choice=True)
    if body.prompt_logprobs is not None:
        format.prompt_logprobs = ShownPromptLogprobs(
            service.logprobs,
            [tokens for tokens, _ in prompts],
            generation.per_prompt,
            in_choice=True,
            alternatives=body.prompt_logprobs,
        )
    if body.stream:
        return EventStream(service, generation, format)
    return await answer_whole(service, generation, format, request.receive)


class CompletionFormat(ResponseFormat[TextToken]):
    """`text_completion` objects, whole and in events."""

    def __init__(self, service: Service, *, options: StreamOptions | None, scored: bool) -> None:
        super().__init__(service, prefix="cmpl", whole_object=_OBJECT, options=options)
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

    def empty_event(self, index: int) -> bytes:
        return self._index + str(index).encode() + b',"text":"","logprobs":null,"finish_reason":null}' + self._end

    def usage_event(self, usage: Usage) -> bytes:
        return self._start + event_end(b',"usage":' + usage.model_dump_json().encode())

    def scored(self, token: ScoredToken) -> TextToken:
        return self.service.logprobs.text_token(token)

    def choice(
        self, index: int, text: str, scored: Sequence[TextToken], finish: AnswerFinish, extra: Iterable[bytes] = ()
    ) -> Iterator[bytes]:
        yield b'{"index":' + str(index).encode() + b',"text":' + orjson.dumps(text) + b',"logprobs":'
        yield from text_logprobs(scored) if self._scored else (b"null",)
        yield b',"finish_reason":"' + finish.encode() + b'"'
        yield from extra
        yield b"}"


def _check_scored_tokens(service: Service, body: CompletionRequest, prompt_tokens: int) -> None:
    """One prompt that fits the context is never too long. Raises InvalidRequest."""
    if not body.echo or body.logprobs is None:
        return
    choices, _ = generated_choices(body)
    scored, limit = choices * prompt_tokens, max(_MOST_SCORED_TOKENS, service.max_context_length)
    if scored > limit:
        raise InvalidRequest(
            f"'echo' with 'logprobs' asks for log probabilities of {scored} prompt tokens ({prompt_tokens} in the "
            f"prompts, times {choices} answers to each), at most {limit} in one request: send fewer prompts in each.",
            param="prompt",
        )


def _tokenise(
    prompts: PromptReader, prompt: str | tuple[int, ...], *, keep_last: int | None, echo: bool
) -> tuple[tuple[int, ...], str]:
    """(token ids, with `echo` their text). Raises InvalidRequest for ids that the model does not have."""
    if isinstance(prompt, str):
        tokens = prompts.encode(prompt, param="prompt", keep_last=keep_last)
        whole = keep_last is None or len(tokens) < keep_last
        return tokens, "" if not echo else prompt if whole else prompts.text.decode(tokens)
    prompts.check(prompt, param="prompt")
    tokens = prompt if keep_last is None else prompt[-keep_last:]
    return tokens, prompts.text.decode(tokens) if echo else ""
