"""What FastAPI's own description of the API lacks or has too much of, put right: `/openapi.json` says what is served.

https://fastapi.tiangolo.com/how-to/extending-openapi/
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from pydantic.json_schema import models_json_schema

from languagepipes_node.end_model.openai.chat import settable_variables
from languagepipes_node.end_model.openai.generation import Service
from languagepipes_node.end_model.openai.response_models import ChatCompletionChunk, CompletionChunk

# FastAPI's wrong bodies (answered with 400 here, as in OpenAI's API), and a dataclass behind a validator.
_UNUSED = ("HTTPValidationError", "ValidationError", "ChatMessage")


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
        [(ChatCompletionChunk, "serialization"), (CompletionChunk, "serialization")],
        ref_template="#/components/schemas/{model}",
    )
    document["components"]["schemas"] = dict(sorted((schemas | chunks["$defs"]).items()))
    for name in _UNUSED:
        document["components"]["schemas"].pop(name, None)
    for path in document["paths"].values():
        for operation in path.values():
            operation["responses"].pop("422", None)
    _narrow(schemas["ChatCompletionRequest"]["properties"], schemas["CompletionRequest"]["properties"], service)
    return document


def _narrow(chat: dict[str, Any], completion: dict[str, Any], service: Service) -> None:
    """What depends on the model and the server's settings, so that no request is described that is always refused."""
    for fields in (chat, completion):
        fields["model"]["const"] = service.served_name
        if service.bridge.max_sequences is not None:
            choices = fields["n"]["anyOf"][0]
            choices["maximum"] = min(choices["maximum"], service.bridge.max_sequences)
        fields["logit_bias"]["anyOf"][0]["propertyNames"] = {"pattern": "^[0-9]{1,9}$"}
        for name in ("max_tokens", "max_completion_tokens"):
            if name in fields:
                fields[name]["anyOf"][0]["maximum"] = service.max_context_length - 1
    variables = sorted(settable_variables(service.text))
    template_variables = chat["chat_template_kwargs"]["anyOf"][0]
    # A null counts as absent, whatever its name, and is not counted.
    template_variables.pop("maxProperties", None)
    value, absent = template_variables["additionalProperties"], {"type": "null"}
    template_variables["properties"] = {name: {"anyOf": [value, absent]} for name in variables}
    template_variables["additionalProperties"] = absent
