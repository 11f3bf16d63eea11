"""`languagepipes chat`: talk to a pipe, or to any server with the OpenAI API, from a terminal."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ChatOptions:
    """url: the server's address with or without /v1. model: default, the first that the server lists.
    api_key: default, the environment's OPENAI_API_KEY. message: one question, answered once; None talks until the end
    of input. Sampling fields that are None are left to the server.
    """

    url: str = "http://127.0.0.1:8000"
    model: str | None = None
    api_key: str | None = None
    message: str | None = None
    system: str | None = None
    max_tokens: int | None = None
    temperature: float | None = None


def run(options: ChatOptions) -> int:
    """Chat until the end of input. Returns the process's exit status: 0, or 1 after an error (told on stderr)."""
    raise NotImplementedError
