"""Why a grammar did not compile, for people, and which part of a schema it was."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

from languagepipes_node.end_model.structured.constraint import Constraint, ConstraintError
from languagepipes_node.end_model.structured.json_schema import Schema, check
from languagepipes_node.end_model.structured.lark import embedded

# Attempts at parts of a schema, each of which takes a millisecond or so.
_ATTEMPTS = 100
_ATTEMPT_SECONDS = 1.0
_MAX_ERROR = 4000
_TOO_LARGE = re.compile(
    r"fuel exhausted|too large|too big|TooComplex|too many|assertion failed|limit|deeply nested", re.IGNORECASE
)
_NO_MATCH = re.compile(r"Unsatisfiable|NoExtension|empty|no match", re.I)
_KEYWORDS = (
    "pattern", "patternProperties", "multipleOf", "oneOf", "minProperties", "maxProperties", "format", "minimum",
    "maximum", "exclusiveMinimum", "exclusiveMaximum", "minLength", "maxLength", "minItems", "maxItems", "enum",
    "const",
)  # fmt: skip
_LIST_KEYWORDS = ("anyOf", "oneOf", "allOf", "prefixItems", "items")
_OBJECT_KEYWORDS = ("properties", "patternProperties", "$defs")
_KEYWORDS_OF_ONE = ("items", "additionalItems", "additionalProperties")
_TRACE = re.compile(r"(\n\s*\d+ \||\n<|\n  while processing).*", re.S)


def blame(constraint: Constraint, error: str, attempt: Callable[[str], str]) -> ConstraintError:
    """The refusal for llguidance's `error`. attempt: compiles a grammar and returns its error, empty for none."""
    path = ""
    if constraint.kind == "json_schema":
        schema = json.loads(constraint.text)
        path, error = _smallest_part(schema, error, attempt)
    # What it quotes may be long, and hold any words.
    error = error if len(error) <= _MAX_ERROR else error[: _MAX_ERROR // 2] + error[-_MAX_ERROR // 2 :]
    if "in regex" not in error and "regex parse error" not in error and _TOO_LARGE.search(error):
        return ConstraintError(
            "It takes more states or work than this server spends on a grammar: make it smaller, or less nested.",
            path=path,
            unsupported=True,
        )
    if _NO_MATCH.search(error):
        return ConstraintError("No text matches it.", path=path)
    return ConstraintError(f"It cannot be kept: {_shown(error)}.", path=path, unsupported=True)


def _shown(error: str) -> str:
    """The library's sentence without its place in our text, its trace, and what it quotes at length."""
    text = _TRACE.sub("", re.sub(r"^(at )?\d+\(\d+\): ", "", error))
    text = re.sub(r"^failed to compile JSON schema: ", "", text)
    if "regex parse error" in text:
        text = "the regular expression cannot be read: " + text.rpartition("error: ")[2]
    if "oneOf" in text:
        text = "the alternatives of 'oneOf' must exclude each other by their types or constants; send 'anyOf' instead"
    text = " ".join(text.split())
    return text[:300].rstrip(".")


def _smallest_part(schema: Schema, error: str, attempt: Callable[[str], str]) -> tuple[str, str]:
    """The deepest part that does not compile by itself either, and its error."""
    definitions: dict[str, Any] = {}
    if isinstance(schema, dict):
        definitions = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
    path, part, left = "", schema, _ATTEMPTS
    until = time.monotonic() + _ATTEMPT_SECONDS
    while isinstance(part, dict):
        for step, inner in _parts(part):
            if left == 0 or time.monotonic() > until:
                return path, error
            left -= 1
            if (reason := _error_of(inner, definitions, attempt)) is not None:
                path, part, error = path + step, inner, reason
                break
        else:
            return path + _keyword(part, error), error
    return path, error


def _error_of(part: Any, definitions: dict[str, Any], attempt: Callable[[str], str]) -> str | None:
    if not isinstance(part, dict):
        return None
    try:
        text = embedded(check({**part, **definitions}))
    except ConstraintError:
        return None  # a reference to a place that is not there any more
    return attempt('%llguidance {"no_forcing": true}\nstart: ' + text) or None


def _parts(schema: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for keyword, value in schema.items():
        if keyword in _OBJECT_KEYWORDS and isinstance(value, dict):
            yield from ((f".{keyword}.{name}", inner) for name, inner in value.items())
        elif keyword in _LIST_KEYWORDS and isinstance(value, list):
            yield from ((f".{keyword}[{place}]", inner) for place, inner in enumerate(value))
        elif keyword in _KEYWORDS_OF_ONE and isinstance(value, dict):
            yield f".{keyword}", value


def _keyword(schema: dict[str, Any], error: str) -> str:
    """The keyword that `error` is about, where that is clear."""
    if "regex" in error or "look" in error:
        return next((f".{name}" for name in ("pattern", "patternProperties") if name in schema), "")
    named = [name for name in _KEYWORDS if name in schema and re.search(rf"\b{name}\b", error)]
    if named:
        return f".{named[0]}"
    present = [name for name in _KEYWORDS if name in schema]
    return f".{present[0]}" if len(present) == 1 else ""
