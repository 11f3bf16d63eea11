"""What FastAPI's own description of the API lacks or has too much of, put right: `/openapi.json` says what is served.

https://fastapi.tiangolo.com/how-to/extending-openapi/
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from pydantic.json_schema import models_json_schema

from languagepipes_node.end_model.openai.chat import settable_variables
from languagepipes_node.end_model.openai.messages.objects import MessageStreamEvent
from languagepipes_node.end_model.openai.response_models import ChatCompletionChunk, CompletionChunk
from languagepipes_node.end_model.openai.responses.objects import ResponseEvent
from languagepipes_node.end_model.openai.service import Service

# FastAPI's wrong bodies (answered with 400 here, as in OpenAI's API), and dataclasses behind validators.
_UNUSED = (
    "HTTPValidationError", "ValidationError", "ChatMessage", "AskedConstraint", "Constraint", "Tool", "ToolCall",
    "ToolChoice", "Item", "Reference", "PlacedMessage", "AskedText", "AskedChoice", "AskedTools", "CallChoice",
    "AskedOutput", "AskedThinking",
)  # fmt: skip
# Of streams, which FastAPI does not look into.
_CHUNKS = (ChatCompletionChunk, CompletionChunk, ResponseEvent, MessageStreamEvent)


def describe(app: FastAPI) -> None:
    """Make `app.openapi` complete the description that FastAPI makes, once. `app.state.service`: what is served."""
    made = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _complete(made(), app.state.service)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _complete(document: dict[str, Any], service: Service) -> dict[str, Any]:
    schemas = document["components"]["schemas"]
    _, chunks = models_json_schema(
        [(chunk, "serialization") for chunk in _CHUNKS],
        ref_template="#/components/schemas/{model}",
    )
    document["components"]["schemas"] = dict(sorted((schemas | chunks["$defs"]).items()))
    for name in _UNUSED:
        document["components"]["schemas"].pop(name, None)
    for path in document["paths"].values():
        for operation in path.values():
            operation["responses"].pop("422", None)
    _narrow(schemas["ChatCompletionRequest"]["properties"], schemas["CompletionRequest"]["properties"], service)
    for name in ("TokenizeRequest", "DetokenizeRequest"):
        schemas[name]["properties"]["model"]["anyOf"][0]["const"] = service.served_name
    _narrow_tools(schemas["TokenizeRequest"]["properties"], service)
    _narrow_template_variables(schemas["TokenizeRequest"]["properties"], service)
    schemas["DetokenizeRequest"]["properties"]["tokens"]["items"]["maximum"] = service.text.vocabulary_size - 1
    _narrow_other_forms(schemas, service)
    return document


def _narrow(chat: dict[str, Any], completion: dict[str, Any], service: Service) -> None:
    """What depends on the model and the server's settings, so that no request is described that is always refused."""
    for fields in (chat, completion):
        fields["model"]["const"] = service.served_name
        if service.bridge.max_sequences is not None:
            choices = fields["n"]["anyOf"][0]
            choices["maximum"] = min(choices["maximum"], service.bridge.max_sequences)
        _narrow_priority(fields, service)
        fields["stop_token_ids"]["anyOf"][0]["items"]["maximum"] = service.prompts.known_ids - 1
        fields["truncate_prompt_tokens"]["anyOf"][0]["maximum"] = service.max_context_length
        fields["logit_bias"]["anyOf"][0]["propertyNames"] = {"pattern": "^[0-9]{1,9}$"}
        for name in ("max_tokens", "max_completion_tokens"):
            if name in fields:
                fields[name]["anyOf"][0]["maximum"] = service.max_context_length - 1
    _narrow_tools(chat, service)
    _narrow_tool_choice(chat, service)
    chat["reasoning_effort"] = {"title": "Reasoning Effort", "enum": [*service.chat.efforts, None]}
    _narrow_template_variables(chat, service)


def _narrow_priority(fields: dict[str, Any], service: Service) -> None:
    if not service.takes_priorities:
        what = "This server takes none: see spec.server.schedulingPolicy."
        fields["priority"] = {"title": "Priority", "description": what, "enum": [0, None]}


def _narrow_tools(fields: dict[str, Any], service: Service) -> None:
    """None where the model takes none."""
    if not service.chat.takes_tools:
        fields["tools"] = {"title": "Tools", "description": "This model takes none.", "enum": [[], None]}


def _narrow_tool_choice(fields: dict[str, Any], service: Service) -> None:
    if not service.chat.takes_tools:
        fields["tool_choice"] = {"title": "Tool Choice", "enum": ["none", "auto", None]}


def _narrow_other_forms(schemas: dict[str, Any], service: Service) -> None:
    """The same of /v1/responses and /v1/messages."""
    response, message = schemas["ResponseRequest"]["properties"], schemas["MessagesRequest"]["properties"]
    most = service.max_context_length - 1
    response["max_output_tokens"]["anyOf"][0]["maximum"] = most
    message["max_tokens"]["maximum"] = most
    for fields in (response, message, schemas["CountTokensRequest"]["properties"]):
        fields["model"]["const"] = service.served_name
        _narrow_tools(fields, service)
    _narrow_tool_choice(response, service)
    _narrow_priority(response, service)
    schemas["ReasoningOptions"]["properties"]["effort"] = {"title": "Effort", "enum": [*service.chat.efforts, None]}
    _narrow_template_variables(response, service)


def _narrow_template_variables(fields: dict[str, Any], service: Service) -> None:
    """Only what the model's template reads."""
    variables = sorted(settable_variables(service.text))
    template_variables = fields["chat_template_kwargs"]["anyOf"][0]
    # A null counts as absent, whatever its name, and is not counted.
    template_variables.pop("maxProperties", None)
    value, absent = template_variables["additionalProperties"], {"type": "null"}
    template_variables["properties"] = {name: {"anyOf": [value, absent]} for name in variables}
    template_variables["additionalProperties"] = absent
