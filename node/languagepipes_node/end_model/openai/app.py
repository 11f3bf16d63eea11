"""The API as one ASGI application: routes, the guard in front of them, and errors as OpenAI objects."""

from __future__ import annotations

from fastapi import FastAPI

from languagepipes_node.end_model.openai.auth import ApiKeys
from languagepipes_node.end_model.openai.bridge import EngineBridge, EngineHandle
from languagepipes_node.end_model.text import TextCodec


def create_app(
    *,
    engine: EngineHandle,
    bridge: EngineBridge,
    text: TextCodec,
    served_name: str,
    max_context_length: int,
    api_keys: ApiKeys,
    system_fingerprint: str | None = None,
    max_request_bytes: int | None = None,
) -> FastAPI:
    """The OpenAI API for one model.

    bridge: the one whose `deliver` the engine was given. max_context_length: tokens of prompt and answer together.
    system_fingerprint: shown in every answer; the plan hash, say. max_request_bytes: largest body; default: 1 MiB or
    32 bytes a token of context, whichever is more.
    """
    raise NotImplementedError
