"""POST /v1/messages and /v1/messages/count_tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import orjson
from fastapi import APIRouter, Depends, Header, Request, Response

from languagepipes_node.end_model.openai.chat import count_prompt, prepare
from languagepipes_node.end_model.openai.generation import (
    GENERATION_ERRORS,
    EventStream,
    WholeAnswer,
    answer_whole,
    streamed_events,
)
from languagepipes_node.end_model.openai.http import JsonRoute, Outcome
from languagepipes_node.end_model.openai.messages.errors import in_this_form
from languagepipes_node.end_model.openai.messages.objects import MessageObject, MessageStreamEvent, TokenCount
from languagepipes_node.end_model.openai.messages.output import MessageFormat
from languagepipes_node.end_model.openai.messages.schemas import (
    CountTokensRequest,
    MessagesRequest,
    own_param,
)
from languagepipes_node.end_model.openai.reading import params_renamed
from languagepipes_node.end_model.openai.service import CurrentService, require_served_model

_ERRORS = in_this_form(GENERATION_ERRORS)


async def dated_version(
    anthropic_version: Annotated[
        str | None,
        Header(pattern="^[0-9]{4}-[0-9]{2}-[0-9]{2}$", description="What is served is the same in all of them."),
    ] = None,
) -> None:
    """FastAPI's dependency: the API's version, if a client names one, is a date."""


router = APIRouter(
    route_class=JsonRoute,
    tags=["messages"],
    dependencies=[Depends(require_served_model), Depends(dated_version)],
)


@router.post("/messages", response_model=MessageObject, responses=streamed_events(MessageStreamEvent) | _ERRORS)
async def create_message(request: Request, body: MessagesRequest, service: CurrentService) -> WholeAnswer | EventStream:
    """Answer messages: as one object, or as server-sent events with `stream`."""
    with params_renamed(_renaming(body)):
        generation = await prepare(service, request, body.chat(service.served_name, service.chat))
    format = MessageFormat(
        model=service.served_name,
        input_tokens=generation.prompt_tokens,
        show_thinking=body.thinking.shown,
        request_id=Outcome.of(request.scope).request_id,
    )
    if body.stream:
        return EventStream(service, generation, format)
    return await answer_whole(service, generation, format, request.receive)


@router.post("/messages/count_tokens", response_model=TokenCount, responses=_ERRORS)
async def count_message_tokens(request: Request, body: CountTokensRequest, service: CurrentService) -> Response:
    """How many tokens the model would read."""
    with params_renamed(_renaming(body)):
        tokens = await count_prompt(service, request, body.chat(service.served_name, service.chat))
    return Response(orjson.dumps({"input_tokens": tokens}), media_type="application/json")


def _renaming(body: CountTokensRequest) -> Callable[[str], str]:
    places = body.places

    def rename(name: str) -> str:
        if name.startswith("messages["):
            return places[int(name[len("messages[") : name.index("]")])]
        return own_param(name)

    return rename
