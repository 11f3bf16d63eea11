"""Reading a model's small files for its text side: absent, wrong, or as expected. It knows no tokenizer."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeAlias

from languagepipes_node.end_model.text.errors import TokenizerError

# Returns a named file's bytes or raises KeyError.
Files: TypeAlias = Callable[[str], bytes]


def optional_file(files: Files, name: str) -> bytes | None:
    try:
        return files(name)
    except KeyError:
        return None


def json_object(files: Files, name: str) -> dict[str, Any]:
    raw = optional_file(files, name)
    if raw is None:
        return {}
    try:
        value = json.loads(raw)
    except ValueError as error:
        raise TokenizerError(f"{name} is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise TokenizerError(f"{name} holds a JSON {type(value).__name__}, not an object")
    return value


def token_text(value: Any) -> str | None:
    """A special token's text, which the config gives as a string or as an AddedToken object."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) and value else None
