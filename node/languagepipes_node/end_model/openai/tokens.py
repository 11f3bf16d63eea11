"""POST /tokenize and /detokenize, vLLM's: a text or a chat to token ids, and back. They compute nothing.

The ids are those that a completion or a chat with the same fields would be computed from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Annotated, Any, ClassVar

import orjson
from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, Field, GetJsonSchemaHandler, PlainValidator, model_validator
from pydantic_core import CoreSchema

from languagepipes_node.end_model.openai.chat import check_template_variables, render
from languagepipes_node.end_model.openai.errors import (
    BodyTooLarge,
    ContextLengthExceeded,
    InternalError,
    InvalidRequest,
    ModelNotFound,
    RequestTimeout,
    UnsupportedMediaType,
    documented,
)
from languagepipes_node.end_model.openai.fields import json_type, wrong_type
from languagepipes_node.end_model.openai.generation import WholeAnswer
from languagepipes_node.end_model.openai.http import JsonRoute
from languagepipes_node.end_model.openai.message_schemas import Messages
from languagepipes_node.end_model.openai.schemas import ChatCompletionRequest, RequestBody, TemplateVariables, Tools
from languagepipes_node.end_model.openai.service import CurrentService, Service, require_served_model

_ERRORS = documented(InvalidRequest, ModelNotFound, RequestTimeout, BodyTooLarge, UnsupportedMediaType, InternalError)
_KINDS = ("prompt", "messages")
_LISTED_AT_ONCE = 10_000  # tokens

router = APIRouter(route_class=JsonRoute, tags=["tokens"], dependencies=[Depends(require_served_model)])


def _list(value: object) -> list[Any]:
    if not isinstance(value, list):
        raise InvalidRequest(
            f"'tokens' must be a valid list, got a JSON {json_type(value)}.", param="tokens", code="invalid_type"
        )
    return value


class TokenizeRequest(RequestBody):
    """Either a prompt, as for /v1/completions, or messages, as for /v1/chat/completions.

    add_special_tokens: whether the tokenizer adds its own (a BOS, say); left out: for a prompt, since a chat template
    writes them itself.
    """

    without_effect: ClassVar = {
        "add_generation_prompt": (True,),
        "chat_template": (),
        "continue_final_message": (False,),
    }

    model: str | None = None
    prompt: str | None = None
    messages: Messages | None = None
    add_special_tokens: bool | None = None
    chat_template_kwargs: TemplateVariables = Field(default_factory=dict)
    return_token_strs: bool = False
    tools: Tools = ()

    @model_validator(mode="before")
    @classmethod
    def _of_one_kind(cls, fields: Any) -> Any:
        """Raises InvalidRequest unless there is a prompt or there are messages."""
        if isinstance(fields, dict):
            given = [name for name in _KINDS if name in fields]
            if not given:
                raise InvalidRequest(
                    "Missing required parameter: 'prompt' or 'messages'.",
                    param="prompt",
                    code="missing_required_parameter",
                )
            if len(given) > 1:
                raise InvalidRequest("'prompt' and 'messages' are both there: send one of them.", param="messages")
            if fields.get("tools") and "messages" not in fields:
                raise InvalidRequest("'tools' are only allowed with 'messages'.", param="tools")
        return fields

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        described = super().__get_pydantic_json_schema__(schema, handler)
        there = [{"required": [kind], "not": {"properties": {kind: {"type": "null"}}}} for kind in _KINDS]
        no_tools = {"properties": {"tools": {"anyOf": [{"type": "null"}, {"type": "array", "maxItems": 0}]}}}
        there[0] |= no_tools
        return described | {"oneOf": there}


class DetokenizeRequest(RequestBody):
    """Token ids of the model's tokenizer, as many as the model's context has room for.

    They are counted before they are looked at: pydantic would hold the event loop for tens of milliseconds.
    """

    model: str | None = None
    tokens: Annotated[list[Any], PlainValidator(_list, json_schema_input_type=list[Annotated[int, Field(ge=0)]])]


class Tokens(BaseModel):
    """token_strs: the tokens as the vocabulary spells them, on request."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class DetokenizedText(BaseModel):
    """The text of the tokens, special ones included."""

    prompt: str


@router.post("/tokenize", response_model=Tokens, responses=_ERRORS)
async def tokenize(request: Request, body: TokenizeRequest, service: CurrentService) -> WholeAnswer:
    """The token ids of a prompt or of a chat."""
    return WholeAnswer(await service.workers.run_for(request, partial(_tokenize, service, body)))


@router.post("/detokenize", response_model=DetokenizedText, responses=_ERRORS)
async def detokenize(request: Request, body: DetokenizeRequest, service: CurrentService) -> WholeAnswer:
    """The text of token ids."""
    if len(body.tokens) > service.max_context_length:
        raise ContextLengthExceeded(
            f"This model's maximum context length is {service.max_context_length} tokens, and 'tokens' has "
            f"{len(body.tokens)}. Please send them in parts.",
            param="tokens",
        )
    return WholeAnswer(await service.workers.run_for(request, partial(_detokenize, service, body)))


def _tokenize(service: Service, body: TokenizeRequest) -> list[bytes]:
    """`Tokens` as JSON, in parts. Raises InvalidRequest if the template cannot render the messages, the tools cannot be
    offered, or the text is longer than any that the context has room for."""
    text, special = body.prompt, True
    if body.messages is not None:
        chat = ChatCompletionRequest.model_construct(
            messages=body.messages, tools=body.tools, chat_template_kwargs=body.chat_template_kwargs
        )
        check_template_variables(service.text, chat)
        offer, variables = service.chat.offer(chat), service.chat.template_variables(chat)
        text, special = render(service, chat, offer, variables), False
    assert text is not None  # noqa: S101 (one of both is there)
    service.prompts.check_length(text, param="prompt" if body.messages is None else "messages")
    chosen = special if body.add_special_tokens is None else body.add_special_tokens
    tokens = service.text.encode(text, add_special_tokens=chosen)
    counts = orjson.dumps({"count": len(tokens), "max_model_len": service.max_context_length})
    parts = [counts[:-1], b',"tokens":', *_listed(tokens, list), b',"token_strs":']
    parts += _listed(tokens, service.text.spellings) if body.return_token_strs else [b"null"]
    return [*parts, b"}"]


def _listed(tokens: Sequence[int], shown: Callable[[Sequence[int]], list[Any]]) -> Iterator[bytes]:
    """A JSON list, in parts that each hold Python's lock for a short time."""
    yield b"["
    for start in range(0, len(tokens), _LISTED_AT_ONCE):
        part = orjson.dumps(shown(tokens[start : start + _LISTED_AT_ONCE]))
        yield (b"," if start else b"") + part[1:-1]
    yield b"]"


def _detokenize(service: Service, body: DetokenizeRequest) -> list[bytes]:
    """`DetokenizedText` as JSON. Raises InvalidRequest for ids that the tokenizer does not have."""
    size = service.text.vocabulary_size
    for place, token in enumerate(body.tokens):
        if type(token) is not int:
            raise wrong_type(f"tokens[{place}]", "an integer", token)
        if token < 0:
            where = f"tokens[{place}]"
            raise InvalidRequest(f"'{where}' must be greater than or equal to 0, got {token}.", param=where)
        if token >= size:
            raise InvalidRequest(f"'tokens' holds token id {token}, expected 0 to {size - 1}.", param="tokens")
    return [orjson.dumps({"prompt": service.text.decode(body.tokens, skip_special_tokens=False)})]
