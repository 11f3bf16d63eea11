"""JSON in what models write: values that stand without quotes. Nothing is written anew that can be passed on as it is,
so that numbers keep their digits."""

from __future__ import annotations

import json
from typing import Any

from languagepipes_node.end_model.tools.source import Malformed

_MAX_REFERENCES = 16
_NAMES = {"True": "true", "False": "false", "None": "null"}


def _no_constant(name: str) -> Any:
    raise ValueError(name)


_ENCODER = json.JSONEncoder(ensure_ascii=False)
_DECODER = json.JSONDecoder(parse_constant=_no_constant)  # NaN and Infinity are no JSON


def decode(text: str) -> Any:
    """Raises Malformed."""
    try:
        return _DECODER.decode(text)
    except (ValueError, RecursionError) as error:
        raise Malformed from error


def encodable(text: str) -> str:
    """The same. Raises Malformed if it has half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise Malformed from error
    return text


def string(text: str) -> str:
    return _ENCODER.encode(text)


def typed(raw: str, schema: Any, root: Any = None) -> str:
    """A value that a model wrote without quotes, as JSON of a type that its schema allows; else as a string. root: what
    the schema's references point into."""
    types = types_of(schema, root)
    if types == {"string"}:
        return string(raw)
    text = raw.strip()
    text = _NAMES.get(text, text) if not types or types & {"boolean", "null"} else text
    try:
        value = decode(text)
    except Malformed:
        return string(raw)
    return text if not types or _type(value) & types else string(raw)


def resolved(schema: Any, root: Any) -> Any:
    """What a schema that is a reference within `root` refers to; any other schema as it is."""
    for _ in range(_MAX_REFERENCES):
        reference = schema.get("$ref") if isinstance(schema, dict) else None
        if not isinstance(reference, str) or not reference.startswith("#/"):
            break
        schema = root
        for step in reference[2:].split("/"):
            schema = schema.get(step.replace("~1", "/").replace("~0", "~")) if isinstance(schema, dict) else None
    return schema


def types_of(schema: Any, root: Any = None) -> set[str]:
    """The JSON types that a schema allows; none where it does not say."""
    schema = resolved(schema, root)
    if not isinstance(schema, dict):
        return set()
    named = schema.get("type")
    if isinstance(named, str):
        return {named}
    if isinstance(named, list):
        return {name for name in named if isinstance(name, str)}
    for combined in ("anyOf", "oneOf"):
        if isinstance(alternatives := schema.get(combined), list):
            # A reference among them is followed once: a schema may refer to itself.
            each = [types_of(resolved(alternative, root)) for alternative in alternatives]
            return set().union(*each) if all(each) else set()
    if isinstance(values := schema.get("enum"), list):
        return set().union(*(_type(value) for value in values))
    return _type(schema["const"]) if "const" in schema else set()


def _type(value: Any) -> set[str]:
    match value:
        case bool():
            return {"boolean"}
        case int():
            return {"integer", "number"}
        case float():
            return {"integer", "number"} if value.is_integer() else {"number"}
        case str():
            return {"string"}
        case list():
            return {"array"}
        case dict():
            return {"object"}
        case _:
            return {"null"}
