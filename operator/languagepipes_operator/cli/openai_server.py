"""What the commands that talk to an OpenAI server share: its address, its errors, and how its text is shown."""

from __future__ import annotations

import os
import re
from typing import Any
from urllib.parse import urlsplit

CONNECT_SECONDS = 10.0
# What a server sends must not be able to steer the terminal: no control characters but newline and tab.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def api_root(url: str) -> str:
    """The address of the API, with `/v1/` at its end, from one with or without it. Raises ValueError: it is no URL, or
    has a user's name or password, which would be shown wherever the address is."""
    root = url.rstrip("/")
    if "@" in urlsplit(root).netloc:
        raise ValueError("the URL has a user's name or password: leave it out, and give a key with --api-key")
    if urlsplit(root).scheme not in ("http", "https") or not urlsplit(root).hostname:
        raise ValueError(f"{url!r} is no URL: expected http://HOST:PORT or https://HOST")
    return f"{root}/" if root.endswith("/v1") else f"{root}/v1/"


def authorization(api_key: str | None) -> dict[str, str]:
    """The headers with this key, or with the environment's OPENAI_API_KEY; none without a key. Raises ValueError."""
    key = api_key or os.environ.get("OPENAI_API_KEY")
    if not key:
        return {}
    if not key.isprintable():
        name = "--api-key" if api_key else "OPENAI_API_KEY"
        raise ValueError(f"{name} has a line break or another control character: leave it out")
    return {"Authorization": f"Bearer {key}"}


def error_message(body: Any) -> str:
    """The message of an error object, as JSON; empty if there is none."""
    error = body.get("error") if isinstance(body, dict) else None
    message = error.get("message") if isinstance(error, dict) else error
    return str(message) if message else ""


def without_control_characters(text: str) -> str:
    return _CONTROL.sub("", text)
