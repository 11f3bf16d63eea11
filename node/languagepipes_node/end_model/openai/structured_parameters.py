"""`response_format`, `structured_outputs` and `guided_*`: what an answer must match, as clients ask for it.

https://platform.openai.com/docs/guides/structured-outputs, https://docs.vllm.ai/en/stable/features/structured_outputs
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field, PlainValidator

from languagepipes_node.end_model.openai.errors import ApiError, InvalidRequest, UnsupportedParameter
from languagepipes_node.end_model.structured import Constraint, ConstraintError
from languagepipes_node.end_model.structured.structural_tags import StructuralTag, grammar_of_tags

_NAME = r"^[a-zA-Z0-9_-]{1,64}$"
_MAX_PARAM = 256
_MAX_TAGS = 128


@dataclass(frozen=True)
class AskedConstraint:
    """A constraint, and the parameter that asked for it. None: any text is asked for."""

    constraint: Constraint | None
    param: str

    def refusal(self, error: ConstraintError) -> ApiError:
        """`error` as the client sees it, with the place in its request."""
        param = self.param + error.path
        param = param if len(param) <= _MAX_PARAM else param[:_MAX_PARAM] + "…"
        kind = UnsupportedParameter if error.unsupported else InvalidRequest
        return kind(f"'{param}': {error.message}", param=param)


def only_one(*asked: AskedConstraint | None) -> AskedConstraint | None:
    """The one that asks for anything, if any. Raises InvalidRequest if there are several."""
    given = [one for one in asked if one is not None and one.constraint is not None]
    if len(given) > 1:
        raise InvalidRequest(
            f"'{given[0].param}' and '{given[1].param}' both say what the answer must match: send one of them.",
            param=given[1].param,
        )
    return given[0] if given else None


# What the parameters are described with in /openapi.json; `_response_format` and the others below read them.


def _nulls_count_as_absent(schema: dict[str, Any]) -> None:
    schema["additionalProperties"] = {"type": "null"}


class _Described(BaseModel):
    model_config = ConfigDict(json_schema_extra=_nulls_count_as_absent)


class TextFormat(_Described):
    """Any text."""

    type: Literal["text"]


class JsonObjectFormat(_Described):
    """A JSON object."""

    type: Literal["json_object"]


class JsonSchema(_Described):
    """`strict` is a promise that is kept in any case."""

    name: str = Field(pattern=_NAME)
    schema_: dict[str, Any] = Field(alias="schema", description="JSON Schema, draft 2020-12.")
    description: str | None = None
    strict: bool | None = None


class JsonSchemaFormat(_Described):
    """JSON that matches a schema."""

    type: Literal["json_schema"]
    json_schema: JsonSchema


class TagStructure(_Described):
    """From `begin` on, JSON that matches `schema`, then `end`."""

    begin: Annotated[str, Field(min_length=1)]
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    end: str | None = None


class StructuralTags(_Described):
    """Any text, in which whatever follows a trigger is one of the structures."""

    type: Literal["structural_tag"] | None = None
    structures: Annotated[list[TagStructure], Field(min_length=1, max_length=_MAX_TAGS)]
    triggers: Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1, max_length=_MAX_TAGS)]


class StructuralTagFormat(StructuralTags):
    """The same, as a response_format."""

    type: Literal["structural_tag"]


_Filled = Annotated[str, Field(min_length=1)]
_ResponseFormats = TextFormat | JsonObjectFormat | JsonSchemaFormat | StructuralTagFormat
_SchemaOrText = dict[str, Any] | str
_Choices = Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1)]


class StructuredOutputs(_Described):
    """vLLM's parameter: exactly one of the kinds. `json` may be text too."""

    model_config = ConfigDict(json_schema_extra=lambda schema: _describe_kinds(schema))

    json_: _SchemaOrText | None = Field(None, alias="json")
    regex: _Filled | None = None
    choice: _Choices | None = None
    grammar: _Filled | None = None
    json_object: Literal[True] | None = None
    structural_tag: StructuralTags | str | None = None
    disable_any_whitespace: Literal[False] | None = None
    disable_additional_properties: Literal[False] | None = None


_KINDS = ("json", "regex", "choice", "grammar", "json_object", "structural_tag")
_OPTIONS = ("disable_any_whitespace", "disable_additional_properties", "whitespace_pattern")


def _describe_kinds(schema: dict[str, Any]) -> None:
    _nulls_count_as_absent(schema)
    schema["oneOf"] = [{"required": [kind], "properties": {kind: {"not": {"type": "null"}}}} for kind in _KINDS]


# Reading them. Each raises InvalidRequest, naming the place.


def _response_format(value: object) -> AskedConstraint:
    fields = _object(value, "response_format")
    kind = _taken(fields, "type", "response_format", _text)
    if kind == "structural_tag":
        return AskedConstraint(_tags(fields, "response_format"), "response_format")
    if kind == "json_schema":
        inside = "response_format.json_schema"
        described = _object(_taken(fields, "json_schema", "response_format", _any), inside)
        _no_more(fields, "response_format", ("type", "json_schema"))
        return read_named_schema(described, inside)
    _no_more(fields, "response_format", ("type", "json_schema"))
    if kind == "json_object":
        return AskedConstraint(Constraint.json_object(), "response_format")
    if kind == "text":
        return AskedConstraint(None, "response_format")
    raise InvalidRequest(
        "'response_format.type' must be one of text, json_object, json_schema, structural_tag.",
        param="response_format.type",
    )


def read_named_schema(fields: dict[str, Any], where: str) -> AskedConstraint:
    """A JSON schema with its name, `where` it stands in a request. Raises InvalidRequest."""
    name = _taken(fields, "name", where, _text)
    if not re.fullmatch(_NAME, name):
        raise InvalidRequest(f"'{where}.name' must be 1 to 64 letters, digits, '_' and '-'.", param=f"{where}.name")
    schema = _taken(fields, "schema", where, _schema)
    if "description" in fields:
        _taken(fields, "description", where, _text)
    if "strict" in fields:
        _taken(fields, "strict", where, _boolean)
    _no_more(fields, where, ("name", "schema", "description", "strict"))
    return AskedConstraint(_json_schema(schema, f"{where}.schema"), f"{where}.schema")


def _json_schema(schema: dict[str, Any], where: str) -> Constraint:
    try:
        return Constraint.json_schema(schema)
    except ConstraintError as error:
        raise AskedConstraint(None, where).refusal(error) from None


def _structured_outputs(value: object) -> AskedConstraint:
    where = "structured_outputs"
    fields = _object(value, where)
    for option in _OPTIONS:
        if option in fields and fields.pop(option) is not False:
            raise UnsupportedParameter(
                f"'{where}.{option}' is not supported by this server: leave it out.", param=f"{where}.{option}"
            )
    given = [kind for kind in _KINDS if kind in fields]
    _no_more(fields, where, (*_KINDS, *_OPTIONS), known=given)
    if len(given) != 1:
        found = " and ".join(given) if given else "none"
        raise InvalidRequest(f"'{where}' must have exactly one of {', '.join(_KINDS)}; it has {found}.", param=where)
    kind = given[0]
    return _of_kind(kind, fields[kind], f"{where}.{kind}")


def _of_kind(kind: str, value: object, where: str) -> AskedConstraint:
    match kind:
        case "json":
            constraint = _json_schema(_schema(_from_text(value, where), where), where)
        case "regex":
            constraint = Constraint.regex(_filled(value, where))
        case "choice":
            constraint = Constraint.choice(_texts(value, where))
        case "grammar":
            constraint = Constraint("grammar", _filled(value, where))
        case "json_object":
            if value is not True:
                raise InvalidRequest(f"'{where}' must be true, or absent.", param=where)
            constraint = Constraint.json_object()
        case _:
            constraint = _tags(_object(_from_text(value, where), where), where)
    return AskedConstraint(constraint, where)


def _guided(kind: str, value: object) -> AskedConstraint:
    """An older name of vLLM's."""
    return _of_kind(kind, value, f"guided_{kind}")


def _tags(fields: dict[str, Any], where: str) -> Constraint:
    if fields.pop("type", "structural_tag") != "structural_tag":
        raise InvalidRequest(f"'{where}.type' must be structural_tag.", param=f"{where}.type")
    if "format" in fields:
        raise UnsupportedParameter(
            f"'{where}.format' is not supported by this server: send 'structures' and 'triggers'.",
            param=f"{where}.format",
        )
    triggers = _taken(fields, "triggers", where, _texts)
    given = _taken(fields, "structures", where, _any)
    _no_more(fields, where, ("type", "structures", "triggers"))
    if not isinstance(given, list) or not 1 <= len(given) <= _MAX_TAGS or len(triggers) > _MAX_TAGS:
        raise InvalidRequest(
            f"'{where}.structures' must be a list of 1 to {_MAX_TAGS} structures.", param=f"{where}.structures"
        )
    tags = [_tag(structure, f"{where}.structures[{place}]") for place, structure in enumerate(given)]
    try:
        return grammar_of_tags(tags, triggers)
    except ConstraintError as error:
        raise AskedConstraint(None, where).refusal(error) from None


def _tag(value: object, where: str) -> StructuralTag:
    fields = _object(value, where)
    begin = _taken(fields, "begin", where, _filled)
    schema = _schema(fields.pop("schema", {}), f"{where}.schema")
    end = _text(fields.pop("end", ""), f"{where}.end")
    _no_more(fields, where, ("begin", "schema", "end"))
    return StructuralTag(begin, schema, end)


def _object(value: object, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InvalidRequest(f"'{where}' must be a JSON object.", param=where, code="invalid_type")
    return {name: field for name, field in value.items() if field is not None}


def _any(value: object, where: str) -> Any:
    return value


def _text(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise InvalidRequest(f"'{where}' must be a string.", param=where, code="invalid_type")
    return value


def _filled(value: object, where: str) -> str:
    if not (text := _text(value, where)):
        raise InvalidRequest(f"'{where}' is empty.", param=where)
    return text


def _boolean(value: object, where: str) -> bool:
    if not isinstance(value, bool):
        raise InvalidRequest(f"'{where}' must be a boolean.", param=where, code="invalid_type")
    return value


def _schema(value: object, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InvalidRequest(f"'{where}' must be a JSON object.", param=where, code="invalid_type")
    return value


def _texts(value: object, where: str) -> list[str]:
    if not isinstance(value, list) or not value or not all(isinstance(text, str) and text for text in value):
        raise InvalidRequest(
            f"'{where}' must be a list of at least one string, none of them empty.", param=where, code="invalid_type"
        )
    return value


def _from_text(value: object, where: str) -> object:
    """vLLM takes an object and its text alike."""
    if not isinstance(value, str):
        return value
    try:
        return orjson.loads(value)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"'{where}' is no valid JSON: {error.msg}.", param=where) from None


def _taken(fields: dict[str, Any], name: str, where: str, read: Callable[[object, str], Any]) -> Any:
    if name not in fields:
        param = f"{where}.{name}"
        raise InvalidRequest(f"Missing required parameter: '{param}'.", param=param, code="missing_required_parameter")
    return read(fields.pop(name), f"{where}.{name}")


def _no_more(fields: Mapping[str, Any], where: str, names: tuple[str, ...], *, known: list[str] | None = None) -> None:
    """Raises InvalidRequest for a field that is left and not `known`, suggesting one of `names`."""
    for name in fields:
        if name in (known or ()):
            continue
        shown = name if len(name) <= 64 else name[:64] + "…"
        close = difflib.get_close_matches(name[:64], names, n=1, cutoff=0.6)
        hint = f" Did you mean '{close[0]}'?" if close else ""
        raise InvalidRequest(
            f"Unknown parameter: '{where}.{shown}'.{hint}", param=f"{where}.{shown}", code="unknown_parameter"
        )


ResponseFormat = Annotated[
    AskedConstraint | None, PlainValidator(_response_format, json_schema_input_type=_ResponseFormats)
]
StructuredOutputsField = Annotated[
    AskedConstraint | None, PlainValidator(_structured_outputs, json_schema_input_type=StructuredOutputs)
]
GuidedJson = Annotated[
    AskedConstraint | None, PlainValidator(partial(_guided, "json"), json_schema_input_type=_SchemaOrText)
]
GuidedRegex = Annotated[
    AskedConstraint | None, PlainValidator(partial(_guided, "regex"), json_schema_input_type=_Filled)
]
GuidedChoice = Annotated[
    AskedConstraint | None, PlainValidator(partial(_guided, "choice"), json_schema_input_type=_Choices)
]
GuidedGrammar = Annotated[
    AskedConstraint | None, PlainValidator(partial(_guided, "grammar"), json_schema_input_type=_Filled)
]
