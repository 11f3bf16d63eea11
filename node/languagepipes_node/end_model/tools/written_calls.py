"""Earlier calls as their model wrote them, for templates that write content alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import orjson


def with_calls(family: str, content: str, calls: Sequence[Mapping[str, Any]]) -> str:
    """`content` with the calls behind it. family: one of `FORMATS`. calls: in OpenAI's form, `arguments` JSON text."""
    return FORMATS[family](content, [call["function"] for call in calls])


def _hermes(content: str, functions: Sequence[Mapping[str, Any]]) -> str:
    calls = [
        f'<tool_call>\n{{"name": {_text(function["name"])}, "arguments": {function["arguments"]}}}\n</tool_call>'
        for function in functions
    ]
    return "\n".join([content, *calls] if content else calls)


def _llama3(content: str, functions: Sequence[Mapping[str, Any]]) -> str:
    calls = "; ".join(
        f'{{"name": {_text(function["name"])}, "parameters": {function["arguments"]}}}' for function in functions
    )
    return f"{content}\n{calls}" if content else calls


def _text(name: str) -> str:
    return orjson.dumps(name).decode()


FORMATS: Mapping[str, Callable[[str, Sequence[Mapping[str, Any]]], str]] = {
    "hermes": _hermes,
    "llama3-json": _llama3,
}
