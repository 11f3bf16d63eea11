"""POST /v1/responses, and what becomes of stored ones."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any, Literal

import orjson
from fastapi import APIRouter, Depends, Path, Query, Request, Response

from languagepipes_node.end_model.openai.admission import Asker
from languagepipes_node.end_model.openai.chat import count_prompt, prepare
from languagepipes_node.end_model.openai.errors import (
    InternalError,
    InvalidRequest,
    ResponseNotFound,
    UnknownRoute,
    UnsupportedParameter,
    documented,
)
from languagepipes_node.end_model.openai.fields import is_one_of, unknown, unsupported
from languagepipes_node.end_model.openai.generation import (
    GENERATION_ERRORS,
    EventStream,
    WholeAnswer,
    answer_whole,
    streamed_events,
)
from languagepipes_node.end_model.openai.http import JsonRoute
from languagepipes_node.end_model.openai.planning import Generation
from languagepipes_node.end_model.openai.reading import params_renamed
from languagepipes_node.end_model.openai.responses.items import conversation, resolved
from languagepipes_node.end_model.openai.responses.objects import (
    DeletedResponse,
    InputItemList,
    ResponseEvent,
    ResponseObject,
)
from languagepipes_node.end_model.openai.responses.output import Place, ResponseFormat
from languagepipes_node.end_model.openai.responses.schemas import ResponseRequest, own_param
from languagepipes_node.end_model.openai.responses.store import ResponseStore, StoredResponse
from languagepipes_node.end_model.openai.responses.truncation import answer_room, truncated
from languagepipes_node.end_model.openai.schemas import ChatCompletionRequest
from languagepipes_node.end_model.openai.service import CurrentService, Service, require_served_model
from languagepipes_node.end_model.openai.turns import PlacedMessage

_FOUND_ERRORS = documented(InvalidRequest, ResponseNotFound, InternalError)

create = APIRouter(route_class=JsonRoute, tags=["responses"], dependencies=[Depends(require_served_model)])
stored = APIRouter(tags=["responses"])


async def current_store(request: Request) -> ResponseStore:
    """FastAPI's dependency: the responses that `create_app` made room for."""
    store: ResponseStore = request.app.state.responses
    return store


CurrentStore = Annotated[ResponseStore, Depends(current_store)]
ResponseId = Annotated[str, Path(max_length=256)]


@create.post(
    "/responses",
    response_model=ResponseObject,
    responses=streamed_events(ResponseEvent) | GENERATION_ERRORS,
)
async def create_response(
    request: Request, body: ResponseRequest, service: CurrentService, store: CurrentStore
) -> WholeAnswer | EventStream:
    """Answer an input: as one object, or as server-sent events with `stream`."""
    if body.stream_options is not None and not body.stream:
        raise InvalidRequest("'stream_options' is only allowed when 'stream' is true.", param="stream_options")
    owner = Asker.of(request.scope).owner
    earlier: StoredResponse | None = None
    if body.previous_response_id is not None:
        earlier = store.find(body.previous_response_id, owner, param="previous_response_id")
    parent = None if earlier is None else earlier.turn
    history = [] if parent is None else parent.history
    items = resolved(body.input, lambda id, param: store.find_item(id, owner, param=param))
    read = partial(conversation, body.instructions, history, items)
    placed, added = await service.workers.run_for(request, read)
    if body.truncation == "auto":
        placed = await _truncated(service, request, body, placed)
    with params_renamed(_renaming(placed)):
        generation = await prepare(service, request, _chat(service.served_name, body, placed))
    place = None
    if body.store and store.keeps:
        place = Place(store, owner, parent, added, [item.kept for item in items])
    obfuscates = body.stream_options is not None and body.stream_options.include_obfuscation
    shown = _shown(body, generation, stored=place is not None)
    format = ResponseFormat(service, shown, place=place, obfuscates=obfuscates)
    if body.stream:
        return EventStream(service, generation, format)
    return await answer_whole(service, generation, format, request.receive)


async def _truncated(
    service: Service, request: Request, body: ResponseRequest, placed: Sequence[PlacedMessage]
) -> tuple[PlacedMessage, ...]:
    """The conversation without its oldest parts, if it does not fit the context."""
    room = answer_room(body.max_output_tokens, context=service.max_context_length)

    async def count(kept: Sequence[PlacedMessage]) -> int:
        with params_renamed(_renaming(kept)):
            return await count_prompt(service, request, _chat(service.served_name, body, kept))

    return await truncated(placed, most=service.max_context_length - room, count=count)


@create.post("/responses/compact", include_in_schema=False)
async def compact_response() -> None:
    """Not served: open models have no form of compacted conversations."""
    raise UnknownRoute(
        "POST /v1/responses/compact is not served: send what is to be kept of a conversation as 'input' again, or let "
        "'truncation' 'auto' leave out its oldest turns."
    )


@stored.get("/responses/{response_id}", response_model=ResponseObject, responses=_FOUND_ERRORS)
async def retrieve_response(
    request: Request,
    response_id: ResponseId,
    store: CurrentStore,
    stream: Annotated[Literal["false"] | None, Query(description="Streams cannot be taken up again.")] = None,
) -> Response:
    """A stored response."""
    _check_query(request, {"stream": ("false",), "include": (), "include[]": (), "starting_after": ()})
    return _json(_found(request, store, response_id).body)


@stored.delete("/responses/{response_id}", response_model=DeletedResponse, responses=_FOUND_ERRORS)
async def delete_response(request: Request, response_id: ResponseId, store: CurrentStore) -> Response:
    """Forget a stored response. Responses that go on from it keep what they were made of."""
    _check_query(request, {})
    store.delete(response_id, Asker.of(request.scope).owner, param="response_id")
    return _json(orjson.dumps({"id": response_id, "object": "response", "deleted": True}))


@stored.post("/responses/{response_id}/cancel", response_model=ResponseObject, responses=_FOUND_ERRORS)
async def cancel_response(request: Request, response_id: ResponseId, store: CurrentStore) -> Response:
    """Always refused: there are no background responses. To stop a response, close its connection."""
    _found(request, store, response_id)
    raise InvalidRequest(
        "Only responses that were created with 'background' true can be cancelled, which this server does not serve: "
        "close the connection of a response to stop it.",
        param="response_id",
        code="invalid_value",
    )


@stored.get("/responses/{response_id}/input_items", response_model=InputItemList, responses=_FOUND_ERRORS)
async def list_input_items(
    request: Request,
    response_id: ResponseId,
    store: CurrentStore,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    order: Annotated[Literal["asc", "desc"], Query()] = "desc",
    after: Annotated[str | None, Query(max_length=256)] = None,
) -> Response:
    """The input of a stored response, without that of the responses before it."""
    _check_query(request, {"limit": None, "order": None, "after": None, "include": (), "include[]": ()})
    items = _found(request, store, response_id).items
    ids = list(items) if order == "asc" else list(reversed(items))
    if after is not None:
        if after not in items:
            raise InvalidRequest(
                f"'after' is '{after[:64]}', which is no item of this response's input.", param="after"
            )
        ids = ids[ids.index(after) + 1 :]
    page = ids[:limit]
    listed = {
        "object": "list",
        "data": [orjson.Fragment(items[id]) for id in page],
        "first_id": page[0] if page else None,
        "last_id": page[-1] if page else None,
        "has_more": len(ids) > len(page),
    }
    return _json(orjson.dumps(listed))


def _found(request: Request, store: ResponseStore, id: str) -> StoredResponse:
    return store.find(id, Asker.of(request.scope).owner, param="response_id")


def _json(body: bytes) -> Response:
    return Response(body, media_type="application/json")


def _check_query(request: Request, known: dict[str, tuple[str, ...] | None]) -> None:
    """known: parameters, with the values that are accepted; None: any. Raises InvalidRequest."""
    for name, value in request.query_params.multi_items():
        if name not in known:
            raise unknown(name, set(known))
        accepted = known[name]
        if accepted is not None and not is_one_of(value, accepted):
            raise UnsupportedParameter(unsupported(name, accepted), param=name)


def _chat(model: str, body: ResponseRequest, placed: Sequence[PlacedMessage]) -> ChatCompletionRequest:
    """The chat that is asked for. Its fields are checked already."""
    asked: dict[str, Any] = {
        "model": model,
        "messages": tuple(one.message for one in placed),
        "tools": body.tools.tools,
        "parallel_tool_calls": body.parallel_tool_calls,
        "chat_template_kwargs": body.chat_template_kwargs,
        "logprobs": body.scored,
        "stream": body.stream,
        "priority": body.priority,
    }
    optional = {
        "max_completion_tokens": body.max_output_tokens,
        "reasoning_effort": body.reasoning,
        "response_format": body.text.constraint,
        "tool_choice": None if body.tool_choice is None else body.tool_choice.choice,
        "top_logprobs": body.top_logprobs if body.scored else None,
        "temperature": body.temperature,
        "top_p": body.top_p,
        "top_k": body.top_k,
        "min_p": body.min_p,
        "seed": body.seed,
        "presence_penalty": body.presence_penalty,
        "frequency_penalty": body.frequency_penalty,
        "cache_salt": body.cache_salt,
    }
    asked |= {name: value for name, value in optional.items() if value is not None}
    return ChatCompletionRequest.model_construct(**asked)


def _renaming(placed: Sequence[PlacedMessage]) -> Any:
    def rename(name: str) -> str:
        if name.startswith("messages["):
            return placed[int(name[len("messages[") : name.index("]")])].where
        return own_param(name)

    return rename


def _shown(body: ResponseRequest, generation: Generation, *, stored: bool) -> dict[str, Any]:
    """What a response shows of its request."""
    sampling = generation.sequences[0].sampling
    return {
        "background": False,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "max_tool_calls": body.max_tool_calls,
        "metadata": body.metadata,
        "parallel_tool_calls": body.parallel_tool_calls,
        "previous_response_id": body.previous_response_id,
        "prompt_cache_key": body.prompt_cache_key,
        "reasoning": {"effort": body.reasoning, "summary": None},
        "safety_identifier": body.safety_identifier,
        "service_tier": "default",
        "store": stored,
        "temperature": sampling.temperature,
        "text": {"format": body.text.format, "verbosity": body.text.verbosity},
        "tool_choice": "auto" if body.tool_choice is None else body.tool_choice.shown,
        "tools": body.tools.shown,
        "top_logprobs": body.top_logprobs or 0,
        "top_p": sampling.top_p,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "truncation": body.truncation,
        "user": body.user,
    }
