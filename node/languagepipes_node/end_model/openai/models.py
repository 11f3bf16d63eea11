"""GET /v1/models and /v1/models/{model}: the one model that is served."""

from __future__ import annotations

from typing import Any

import orjson
from starlette.types import Receive, Scope, Send

from languagepipes_node.end_model.openai.errors import ModelNotFound
from languagepipes_node.end_model.openai.generation import Service
from languagepipes_node.end_model.openai.http import send_json


class Models:
    """Both routes, as one ASGI application."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        service = self._service
        model: dict[str, Any] = {
            "id": service.served_name,
            "object": "model",
            "created": service.created,
            "owned_by": "languagepipes",
            "max_model_len": service.max_context_length,
        }
        name = scope.get("path_params", {}).get("model")
        if name is None:
            await send_json(send, orjson.dumps({"object": "list", "data": [model]}))
        elif name == service.served_name:
            await send_json(send, orjson.dumps(model))
        else:
            raise ModelNotFound(
                f"The model '{name[:128]}' does not exist. This server serves '{service.served_name}'.",
                param="model",
            )
