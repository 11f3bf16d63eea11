"""What all models of bodies share: what may be absent, and how a wrong value is reported."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import orjson
from pydantic import BaseModel, ConfigDict, WithJsonSchema

from languagepipes_node.end_model.openai.errors import InvalidRequest

HINT = "A hint, which asks this server for nothing."


AnyObject = Annotated[dict[str, Any], WithJsonSchema({"type": "object"})]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


def with_accepted(schema: dict[str, Any], without_effect: Mapping[str, tuple[object, ...]]) -> dict[str, Any]:
    """The schema of an object with all that is accepted: null for what may be absent, and what asks for nothing."""
    properties = schema["properties"]
    for name, field in properties.items():
        if "additionalProperties" in field:
            field["additionalProperties"] = or_null(field["additionalProperties"])
        if name not in schema.get("required", []):
            properties[name] = or_null(field)
    for name, accepted in without_effect.items():
        distinct = [value for place, value in enumerate(accepted) if value not in accepted[:place]]
        properties[name] = {
            "title": name.replace("_", " ").title(),
            "description": "Not served: accepted with the values that ask for nothing.",
            "enum": [*distinct, None],
        }
    schema["additionalProperties"] = {"type": "null"}
    return schema


def or_null(schema: dict[str, Any]) -> dict[str, Any]:
    null = {"type": "null"}
    if null in schema.get("anyOf", []):
        return schema
    shown: dict[str, Any] = {key: schema.pop(key) for key in ("title", "default", "description") if key in schema}
    alternatives = schema.get("anyOf", [schema])
    return {"anyOf": [*alternatives, null], **shown}


def without_nulls(value: dict[str, Any]) -> dict[str, Any]:
    return {name: field for name, field in value.items() if field is not None}


def drop_provider_fields(fields: dict[str, Any], where: str) -> None:
    """Take out LiteLLM's `provider_specific_fields`: copies of what stands beside them. Raises InvalidRequest if they
    are no object."""
    name = "provider_specific_fields"
    if not isinstance(copies := fields.pop(name, {}), dict):
        raise wrong_type(f"{where}.{name}", "an object", copies)


def is_one_of(value: object, accepted: Sequence[object]) -> bool:
    # True == 1 in Python, not in JSON.
    return any(type(value) is type(candidate) and value == candidate for candidate in accepted)


def json_type(value: object) -> str:
    names = {dict: "object", list: "array", str: "string", bool: "boolean", int: "number", float: "number"}
    return names.get(type(value), "null")


def shortened(text: str) -> str:
    return text if len(text) <= 64 else text[:64] + "…"


def missing(param: str) -> InvalidRequest:
    return InvalidRequest(f"Missing required parameter: '{param}'.", param=param, code="missing_required_parameter")


def wrong_type(param: str, expected: str, value: object) -> InvalidRequest:
    return InvalidRequest(
        f"'{param}' is a JSON {json_type(value)}, expected {expected}.", param=param, code="invalid_type"
    )


def unsupported(name: str, accepted: tuple[object, ...]) -> str:
    if not accepted:
        return f"The parameter '{name}' is not supported by this server: leave it out."
    values = " or ".join(orjson.dumps(value).decode() for value in accepted)
    return f"The parameter '{name}' is not supported by this server: leave it out, or send {values}."


def unknown(name: str, known: set[str], *, inside: str | None = None) -> InvalidRequest:
    param = f"{inside}.{shortened(name)}" if inside else shortened(name)
    close = difflib.get_close_matches(name[:64], sorted(known), n=1, cutoff=0.6)
    hint = f" Did you mean '{close[0]}'?" if close else ""
    return InvalidRequest(f"Unknown parameter: '{param}'.{hint}", param=param, code="unknown_parameter")
