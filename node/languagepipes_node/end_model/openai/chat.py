"""POST /v1/chat/completions (https://platform.openai.com/docs/api-reference/chat)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import orjson
from fastapi import APIRouter, Depends, Request

from languagepipes_node.end_model.openai.admission import Asker
from languagepipes_node.end_model.openai.answer_grammars import answer_grammar
from languagepipes_node.end_model.openai.answers import AnswerFinish, Piece, ScoredToken
from languagepipes_node.end_model.openai.chat_messages import DeltaWriter, MessageWriter
from languagepipes_node.end_model.openai.chat_support import Offer
from languagepipes_node.end_model.openai.choice_format import ResponseFormat, event_end
from languagepipes_node.end_model.openai.errors import InvalidRequest, UnsupportedParameter
from languagepipes_node.end_model.openai.generation import (
    GENERATION_ERRORS,
    EventStream,
    WholeAnswer,
    answer_whole,
    streamed,
)
from languagepipes_node.end_model.openai.http import JsonRoute
from languagepipes_node.end_model.openai.logprobs import chat_logprobs
from languagepipes_node.end_model.openai.planning import Generation, plan_generation, reserve_seats
from languagepipes_node.end_model.openai.prompt_logprobs import ShownPromptLogprobs
from languagepipes_node.end_model.openai.response_models import ChatCompletion, ChatCompletionChunk, Usage
from languagepipes_node.end_model.openai.sampling_request import prompt_limit
from languagepipes_node.end_model.openai.schemas import ChatCompletionRequest, StreamOptions
from languagepipes_node.end_model.openai.service import CurrentService, Service, require_served_model
from languagepipes_node.end_model.openai.token_ids import ShownIds
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
    generation = await prepare(service, request, body)
    read = generation.new_reader is not None
    format = ChatFormat(service, options=body.stream_options, scored=body.logprobs, read=read)
    if body.return_token_ids:
        format.ids = ShownIds([generation.sequences[0].prompt], generation.per_prompt, in_choice=False)
    if body.prompt_logprobs is not None:
        prompts = [generation.sequences[0].prompt]
        format.prompt_logprobs = ShownPromptLogprobs(
            service.logprobs, prompts, generation.per_prompt, in_choice=False, alternatives=body.prompt_logprobs
        )
    if body.stream:
        return EventStream(service, generation, format)
    return await answer_whole(service, generation, format, request.receive)


async def count_prompt(service: Service, request: Request, body: ChatCompletionRequest) -> int:
    """How many tokens the prompt of a chat has. Raises ApiError and ClientGone."""
    check_template_variables(service.text, body)
    offer = service.chat.offer(body)
    variables = service.chat.template_variables(body)
    seats = reserve_seats(service, Asker.of(request.scope), body, prompts=1)
    with seats:
        tokenise = partial(_tokenise, service, body, offer, variables, keep_last=None)
        prompt = await service.workers.run_for(request, tokenise)
    return len(prompt.tokens)


async def prepare(service: Service, request: Request, body: ChatCompletionRequest) -> Generation:
    """From a chat to what is to be generated: for every route that answers chats. Raises ApiError and ClientGone."""
    check_template_variables(service.text, body)
    offer = service.chat.offer(body)
    variables = service.chat.template_variables(body)
    asker = Asker.of(request.scope)
    seats = reserve_seats(service, asker, body, prompts=1)
    limit = _max_tokens(body)
    keep_last = prompt_limit(body, context=service.max_context_length, answer_tokens=limit[1] if limit else None)
    tokenise = partial(_tokenise, service, body, offer, variables, keep_last=keep_last)
    prompt = await service.workers.run_for(request, tokenise)
    asked = body.constraint
    grammar = await answer_grammar(service, request, offer, asked, inside=prompt.inside)
    generation = plan_generation(
        service,
        asker,
        seats,
        body,
        [prompt.tokens],
        prompt_param="messages",
        max_tokens=limit,
        default_max_tokens=None,
        logprobs=_alternatives(body),
        grammar=grammar,
    )
    reader = service.chat.reader(offer, inside=prompt.inside)
    return replace(generation, new_reader=reader, special=service.chat.special(offer))


class ChatFormat(ResponseFormat[bytes]):
    """`chat.completion` and `chat.completion.chunk` objects."""

    def __init__(self, service: Service, *, options: StreamOptions | None, scored: bool, read: bool) -> None:
        """read: answers may hold thinking and calls."""
        super().__init__(service, prefix="chatcmpl", whole_object=_WHOLE, options=options)
        self._scored = scored
        self._deltas: defaultdict[int, DeltaWriter] = defaultdict(DeltaWriter)
        self._messages: defaultdict[int, MessageWriter] = defaultdict(MessageWriter)
        self._no_content = b"null" if read else b'""'
        start = self.event_start(_CHUNK)
        end = event_end(self.usage_field)
        self._start = start
        self._index = start + b'{"index":'
        self._content = b',"delta":{"content":'
        self._no_more = b'},"logprobs":null,"finish_reason":null}' + end
        self._end = end

    def opening(self, index: int) -> bytes:
        delta = b',"delta":{"role":"assistant","content":' + self._no_content
        return self._index + str(index).encode() + delta + b',"refusal":null' + self._no_more

    def event(self, index: int, piece: Piece) -> bytes:
        number = str(index).encode()
        events = b""
        if piece.events is not None:
            events = self._read_events(index, piece)
        elif piece.scored:
            logprobs = b"".join(chat_logprobs([self.scored(token) for token in piece.scored]))
            text = orjson.dumps(piece.text)
            events = (
                self._index + number + self._content + text + b'},"logprobs":' + logprobs
                + b',"finish_reason":null}' + self._end
            )  # fmt: skip
        elif piece.text:
            events = self._index + number + self._content + orjson.dumps(piece.text) + self._no_more
        if piece.finish is not None:
            if piece.events is not None and not self._deltas[index].said:
                events += self.empty_event(index)  # what clients put together is then no message without content
            finish = b',"delta":{},"logprobs":null,"finish_reason":"' + piece.finish.encode() + b'"}'
            events += self._index + number + finish + self._end
        return events

    def _read_events(self, index: int, piece: Piece) -> bytes:
        """An event for each delta. Log probabilities come with the first, or with one of their own."""
        start = self._index + str(index).encode() + b',"delta":'
        deltas = list(self._deltas[index].deltas(piece.events or ()))
        logprobs = b"null"
        if piece.scored:
            logprobs = b"".join(chat_logprobs([self.scored(token) for token in piece.scored]))
            deltas = deltas or [b'{"content":""}']
        events = b""
        for delta in deltas:
            events += start + delta + b',"logprobs":' + logprobs + b',"finish_reason":null}' + self._end
            logprobs = b"null"
        return events

    def collect(self, index: int, piece: Piece) -> None:
        if piece.events is not None:
            self._messages[index].collect(piece.events)

    def empty_event(self, index: int) -> bytes:
        return self._index + str(index).encode() + self._content + b'""' + self._no_more

    def usage_event(self, usage: Usage) -> bytes:
        return self._start + event_end(b',"usage":' + usage.model_dump_json().encode())

    def scored(self, token: ScoredToken) -> bytes:
        return self.service.logprobs.chat_token(token)

    def choice(
        self, index: int, text: str, scored: Sequence[bytes], finish: AnswerFinish, extra: Iterable[bytes] = ()
    ) -> Iterator[bytes]:
        message = b'{"role":"assistant","content":' + orjson.dumps(text) + b',"refusal":null}'
        if index in self._messages:
            message = self._messages.pop(index).message()
        yield b'{"index":' + str(index).encode() + b',"message":' + message + b',"logprobs":'
        yield from chat_logprobs(scored) if self._scored else (b"null",)
        yield b',"finish_reason":"' + finish.encode() + b'"'
        yield from extra
        yield b"}"


class ChatPrompt(NamedTuple):
    """inside: an answer begins within thinking."""

    tokens: tuple[int, ...]
    inside: bool


def _tokenise(
    service: Service,
    request: ChatCompletionRequest,
    offer: Offer | None,
    variables: Mapping[str, Any],
    *,
    keep_last: int | None,
) -> ChatPrompt:
    """Raises InvalidRequest if the template cannot render the messages, or the model lacks a token of what it wrote."""
    text = render(service, request, offer, variables)
    tokens = service.prompts.encode(text, param="messages", add_special_tokens=False, keep_last=keep_last)
    return ChatPrompt(tokens, service.chat.opens_thinking(text))


def render(service: Service, request: ChatCompletionRequest, offer: Offer | None, variables: Mapping[str, Any]) -> str:
    """The messages through the chat template. Raises InvalidRequest if it cannot render them."""
    codec = service.text
    template = codec.template
    # OpenAI's newer name for the system role, which few templates know.
    developer = "developer" if template is not None and template.knows_developer_role else "system"
    messages = service.chat.messages(request.messages, developer=developer)
    tools = None if offer is None else service.chat.template.tools([tool.definition for tool in offer.tools])
    try:
        rendered = codec.render_chat(messages, variables, tools)
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
    return rendered


def settable_variables(codec: TextCodec) -> frozenset[str]:
    """The template's variables that a request may set."""
    variables = codec.template.variables if codec.template is not None else frozenset()
    return frozenset(name for name in variables if not _is_given(name))


def _is_given(name: str) -> bool:
    """Whether the server gives this variable to the template."""
    return name in ("messages", "tools", "documents", "add_generation_prompt") or name.endswith("_token")


def check_template_variables(codec: TextCodec, request: ChatCompletionRequest) -> None:
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
