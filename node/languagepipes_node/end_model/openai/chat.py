"""POST /v1/chat/completions (https://platform.openai.com/docs/api-reference/chat)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import orjson
from fastapi import APIRouter, Depends, Request

from languagepipes_node.end_model.openai.admission import Asker
from languagepipes_node.end_model.openai.answers import Piece, ScoredToken
from languagepipes_node.end_model.openai.errors import InvalidRequest, UnsupportedParameter
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
from languagepipes_node.end_model.openai.logprobs import chat_logprobs
from languagepipes_node.end_model.openai.prompts import PromptReader
from languagepipes_node.end_model.openai.response_models import ChatCompletion, ChatCompletionChunk, Usage
from languagepipes_node.end_model.openai.schemas import ChatCompletionRequest
from languagepipes_node.end_model.requests import FinishReason
from languagepipes_node.end_model.text import NoChatTemplate, TemplateError, TextCodec

_WHOLE, _CHUNK = "chat.completion", "chat.completion.chunk"


router = APIRouter(route_class=JsonRoute, tags=["chat"], dependencies=[Depends(require_served_model)])


@router.post(
    "/chat/completions", response_model=ChatCompletion, responses=streamed(ChatCompletionChunk) | GENERATION_ERRORS
)
async def create_chat_completion(
    request: Request, body: ChatCompletionRequest, service: CurrentService
) -> WholeAnswer | EventStream:
    """Answer a chat: as one object, or as server-sent events with `stream`."""
    _check_template_variables(service.text, body)
    asker = Asker.of(request.scope)
    seats = reserve_seats(service, asker, body, prompts=1)
    prompt = await service.workers.run_for(request, partial(_tokenise, service.prompts, body))
    generation = plan_generation(
        service,
        asker,
        seats,
        body,
        [prompt],
        prompt_param="messages",
        max_tokens=_max_tokens(body),
        default_max_tokens=None,
        logprobs=_alternatives(body),
    )
    include_usage = body.stream_options is not None and body.stream_options.include_usage
    format = ChatFormat(service, include_usage=include_usage, scored=body.logprobs)
    if body.stream:
        return EventStream(service, generation, format)
    return await answer_whole(service, generation, format, request.receive)


class ChatFormat(ResponseFormat[bytes]):
    """`chat.completion` and `chat.completion.chunk` objects."""

    def __init__(self, service: Service, *, include_usage: bool, scored: bool) -> None:
        super().__init__(service, prefix="chatcmpl", whole_object=_WHOLE, include_usage=include_usage)
        self._scored = scored
        start = self.event_start(_CHUNK)
        end = event_end(self.usage_field)
        self._start = start
        self._index = start + b'{"index":'
        self._content = b',"delta":{"content":'
        self._no_more = b'},"logprobs":null,"finish_reason":null}' + end
        self._end = end

    def opening(self, index: int) -> bytes:
        delta = b',"delta":{"role":"assistant","content":"","refusal":null},"logprobs":null,"finish_reason":null}'
        return self._index + str(index).encode() + delta + self._end

    def event(self, index: int, piece: Piece) -> bytes:
        number = str(index).encode()
        events = b""
        if piece.scored:
            logprobs = b"".join(chat_logprobs([self.scored(token) for token in piece.scored]))
            text = orjson.dumps(piece.text)
            events = (
                self._index + number + self._content + text + b'},"logprobs":' + logprobs
                + b',"finish_reason":null}' + self._end
            )  # fmt: skip
        elif piece.text:
            events = self._index + number + self._content + orjson.dumps(piece.text) + self._no_more
        if piece.finish is not None:
            finish = b',"delta":{},"logprobs":null,"finish_reason":"' + piece.finish.encode() + b'"}'
            events += self._index + number + finish + self._end
        return events

    def usage_event(self, usage: Usage) -> bytes:
        return self._start + event_end(b',"usage":' + usage.model_dump_json().encode())

    def scored(self, token: ScoredToken) -> bytes:
        return self.service.logprobs.chat_token(token)

    def choice(self, index: int, text: str, scored: Sequence[bytes], finish: FinishReason) -> Iterator[bytes]:
        message = b',"message":{"role":"assistant","content":' + orjson.dumps(text) + b',"refusal":null},"logprobs":'
        yield b'{"index":' + str(index).encode() + message
        yield from chat_logprobs(scored) if self._scored else (b"null",)
        yield b',"finish_reason":"' + finish.encode() + b'"}'


def _tokenise(prompts: PromptReader, request: ChatCompletionRequest) -> tuple[int, ...]:
    """Raises InvalidRequest if the template cannot render the messages, or the model lacks a token of what it wrote."""
    codec = prompts.text
    template = codec.template
    # OpenAI's newer name for the system role, which few templates know.
    developer = "developer" if template is not None and template.knows_developer_role else "system"
    plain = [
        {"role": developer if message.role == "developer" else message.role, "content": message.content}
        for message in request.messages
    ]
    try:
        rendered = codec.render_chat(plain, request.chat_template_kwargs)
    except NoChatTemplate as error:
        raise InvalidRequest(f"{error}.", param="messages", code="no_chat_template") from error
    except TemplateError as error:
        raise InvalidRequest(f"{error}.", param="messages", code="chat_template_error") from error
    for place, message in enumerate(request.messages):
        if message.role in ("system", "developer") and message.content.strip() not in rendered:
            raise UnsupportedParameter(
                f"The model's chat template leaves out this message of role '{message.role}'.",
                param=f"messages[{place}]",
            )
    return prompts.encode(rendered, param="messages", add_special_tokens=False)


def settable_variables(codec: TextCodec) -> frozenset[str]:
    """The template's variables that a request may set."""
    variables = codec.template.variables if codec.template is not None else frozenset()
    return frozenset(name for name in variables if not _is_given(name))


def _is_given(name: str) -> bool:
    """Whether the server gives this variable to the template."""
    return name in ("messages", "tools", "documents", "add_generation_prompt") or name.endswith("_token")


def _check_template_variables(codec: TextCodec, request: ChatCompletionRequest) -> None:
    settable = settable_variables(codec)
    for name in request.chat_template_kwargs:
        param = f"chat_template_kwargs.{name[:64]}"
        if _is_given(name):
            raise InvalidRequest(f"'{param}' cannot be set: the server gives it to the template.", param=param)
        if name not in settable:
            raise InvalidRequest(f"'{param}' is not read by the model's chat template: leave it out.", param=param)


def _max_tokens(request: ChatCompletionRequest) -> tuple[str, int] | None:
    old, new = request.max_tokens, request.max_completion_tokens
    if old is not None and new is not None and old != new:
        raise InvalidRequest(
            f"'max_tokens' is {old} and 'max_completion_tokens' is {new}: send one of them.",
            param="max_tokens",
        )
    if new is not None:
        return "max_completion_tokens", new
    return ("max_tokens", old) if old is not None else None


def _alternatives(request: ChatCompletionRequest) -> int | None:
    if request.top_logprobs is not None and not request.logprobs:
        raise InvalidRequest("'top_logprobs' is only allowed when 'logprobs' is true.", param="top_logprobs")
    return (request.top_logprobs or 0) if request.logprobs else None
