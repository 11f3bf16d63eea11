"""What FastAPI's own description of the API lacks or has too much of, put right: `/openapi.json` says what is served.

https://fastapi.tiangolo.com/how-to/extending-openapi/
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from pydantic.json_schema import models_json_schema

from languagepipes_node.end_model.openai.response_models import ChatCompletionChunk, CompletionChunk

_REQUESTS = ("ChatCompletionRequest", "CompletionRequest")


def describe(app: FastAPI, *, served_name: str) -> None:
    """Make `app.openapi` complete the description that FastAPI makes, once."""
    made = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _complete(made(), served_name)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _complete(document: dict[str, Any], served_name: str) -> dict[str, Any]:
    schemas = document["components"]["schemas"]
    _, chunks = models_json_schema(
        [(ChatCompletionChunk, "serialization"), (CompletionChunk, "serialization")],
        ref_template="#/components/schemas/{model}",
    )
    document["components"]["schemas"] = dict(sorted((schemas | chunks["$defs"]).items()))
    # Wrong bodies are answered with 400, as in OpenAI's API, and never with FastAPI's 422.
    for name in ("HTTPValidationError", "ValidationError"):
        document["components"]["schemas"].pop(name, None)
    for path in document["paths"].values():
        for operation in path.values():
            operation["responses"].pop("422", None)
    for name in _REQUESTS:
        schemas[name]["properties"]["model"]["const"] = served_name
    return document
