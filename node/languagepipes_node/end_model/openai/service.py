"""What the routes of one server share."""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from fastapi import Depends, Request

from languagepipes_node.end_model.openai.admission import FairWorkers
from languagepipes_node.end_model.openai.bridge import EngineBridge
from languagepipes_node.end_model.openai.chat_support import ChatSupport
from languagepipes_node.end_model.openai.errors import ModelNotFound
from languagepipes_node.end_model.openai.logprobs import LogprobWriter
from languagepipes_node.end_model.openai.prompts import PromptReader
from languagepipes_node.end_model.structured.compiler import Grammars
from languagepipes_node.end_model.text import SamplingDefaults, TextCodec


@dataclass(frozen=True)
class Service:
    """What the routes share. Rendering and tokenising run in `workers`, so that a long prompt holds up no stream."""

    bridge: EngineBridge
    text: TextCodec
    prompts: PromptReader
    grammars: Grammars
    served_name: str
    max_context_length: int
    max_request_bytes: int
    system_fingerprint: str | None = None
    defaults: SamplingDefaults = field(default_factory=SamplingDefaults)
    created: int = field(default_factory=lambda: int(time.time()))
    tool_parser: str = "auto"
    takes_priorities: bool = False  # of requests, or they are refused
    workers: FairWorkers = field(default_factory=FairWorkers)
    grammar_workers: FairWorkers = field(default_factory=FairWorkers)

    @functools.cached_property
    def chat(self) -> ChatSupport:
        return ChatSupport.of(self.text, self.tool_parser)

    @functools.cached_property
    def logprobs(self) -> LogprobWriter:
        return LogprobWriter(self.text)


async def current_service(request: Request) -> Service:
    """FastAPI's dependency: what `create_app` was given."""
    service: Service = request.app.state.service
    return service


CurrentService = Annotated[Service, Depends(current_service)]


async def require_served_model(request: Request, service: CurrentService) -> None:
    """FastAPI's dependency: a body that names another model is refused before anything else in it is. Raises
    ModelNotFound."""
    body = await request.json()
    if isinstance(body, dict):  # else it was looked at before it was validated
        check_served_model(body, service)


def check_served_model(fields: Mapping[str, Any], service: Service) -> None:
    """Raises ModelNotFound if a body names another model."""
    model = fields.get("model")
    if isinstance(model, str) and model != service.served_name:
        shown = model if len(model) <= 128 else model[:128] + "…"
        raise ModelNotFound(
            f"The model '{shown}' does not exist. This server serves '{service.served_name}'.", param="model"
        )
