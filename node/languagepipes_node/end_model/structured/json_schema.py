"""A JSON Schema checked keyword by keyword, and written again as the grammar library is given it.

Draft 2020-12, with the older spellings of tuples and of exclusive bounds. What the library would not keep, or would
keep in part, is refused with its place; annotations are left out, since they ask for nothing. It knows no tokens.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeAlias
from urllib.parse import unquote

from languagepipes_node.end_model.structured.constraint import ConstraintError
from languagepipes_node.end_model.structured.formats import FORMATS, LONGEST

Schema: TypeAlias = dict[str, Any] | bool

MAX_DEPTH = 64
_MAX_SUBSCHEMAS = 10_000
_MAX_REFERENCES = 500
# Of one regular expression, and of all in a schema: compiling takes in proportion to the square.
MAX_PATTERN = 8 * 1024
_MAX_PATTERNS = 32 * 1024
# Of one object: each is compared with each.
_MAX_PATTERN_PROPERTIES = 16
# Larger integers are no float64, which is what bounds are computed with.
_MAX_INTEGER = 2**53
# Counts beyond this are refused: no context holds so many.
_MAX_COUNT = 1_000_000
_TYPES = ("null", "boolean", "number", "integer", "string", "array", "object")

_NOT_KEPT = "cannot be kept by this server: leave it out"
_UNSUPPORTED = {
    "not": "it excludes values",
    "if": "it depends on other values",
    "then": "it depends on other values",
    "else": "it depends on other values",
    "dependentRequired": "it depends on other properties",
    "dependentSchemas": "it depends on other properties",
    "dependencies": "it depends on other properties",
    "contains": "it counts items",
    "minContains": "it counts items",
    "maxContains": "it counts items",
    "propertyNames": "names are limited by patternProperties only",
    "unevaluatedItems": "it depends on other schemas",
    "unevaluatedProperties": "it depends on other schemas; additionalProperties is kept",
    "$dynamicRef": "only '$ref' is kept",
    "$recursiveRef": "only '$ref' is kept",
}
_DRAFTS = re.compile(r"https?://json-schema\.org/(draft-0[467]|draft/(2019-09|2020-12))/schema#?")


def check(schema: Schema) -> Schema:
    """The schema with all that asks for something and nothing else, its references resolved to `#/$defs/rN`.

    Raises ConstraintError.
    """
    return _Checker(schema).checked()


class _Checker:
    def __init__(self, root: Schema) -> None:
        self._root = root
        self._names: dict[str, str] = {}  # a reference's target → its name among the definitions
        self._definitions: dict[str, Schema] = {}
        self._seen = 0
        self._pattern_characters = 0
        self._depth = 0
        self._keywords: dict[str, Callable[[Any, str], Any]] = {
            "type": self._type,
            "const": self._value,
            "enum": self._enum,
            "$ref": self._ref,
            "anyOf": self._schemas,
            "oneOf": self._schemas,
            "allOf": self._schemas,
            "items": self._items,
            "additionalItems": self._schema,
            "prefixItems": self._schemas,
            "minItems": _count,
            "maxItems": _count,
            "properties": self._properties,
            "patternProperties": self._pattern_properties,
            "additionalProperties": self._schema,
            "required": _required,
            "minProperties": _count,
            "maxProperties": _count,
            "minLength": _count,
            "maxLength": _count,
            "pattern": self._pattern,
            "format": _format,
            "minimum": _number,
            "maximum": _number,
            "exclusiveMinimum": _exclusive,
            "exclusiveMaximum": _exclusive,
            "multipleOf": _multiple,
        }

    def checked(self) -> Schema:
        schema = self._schema(self._root, "")
        if isinstance(schema, bool):
            if not schema:
                raise ConstraintError("The schema is false, which no value matches.")
            return schema
        if self._definitions:
            schema = {**schema, "$defs": self._definitions}
        _refuse_endless(schema, self._definitions, self._places())
        return schema

    def _places(self) -> dict[str, str]:
        return {name: _path_of(target) for target, name in self._names.items()}

    def _schema(self, schema: Any, path: str) -> Schema:
        if isinstance(schema, bool):
            return schema
        if not isinstance(schema, dict):
            raise ConstraintError("A schema must be an object or a boolean.", path=path)
        self._seen += 1
        if self._seen > _MAX_SUBSCHEMAS:
            raise ConstraintError(
                f"The schema has more than {_MAX_SUBSCHEMAS} subschemas.", path=path, unsupported=True
            )
        if self._depth >= MAX_DEPTH:
            raise ConstraintError(
                f"The schema is nested deeper than {MAX_DEPTH} levels, references included.",
                path=path,
                unsupported=True,
            )
        self._depth += 1
        try:
            return self._object_schema(schema, path)
        finally:
            self._depth -= 1

    def _object_schema(self, schema: dict[str, Any], path: str) -> Schema:
        self._check_identity(schema, path)
        _check_order(schema, path)
        checked: dict[str, Any] = {}
        for keyword, value in schema.items():
            place = f"{path}.{keyword}"
            if keyword in _UNSUPPORTED:
                reason = _UNSUPPORTED[keyword]
                raise ConstraintError(f"The keyword '{keyword}' {_NOT_KEPT} ({reason}).", path=place, unsupported=True)
            if keyword == "uniqueItems":
                if value is not False:
                    raise ConstraintError(
                        f"The keyword '{keyword}' {_NOT_KEPT} (it compares items).", path=place, unsupported=True
                    )
            elif keyword in self._keywords:
                checked[keyword] = self._keywords[keyword](value, place)
        _check_names_that_may_repeat(checked, path)
        _state_exclusive_bounds(checked)
        _state_format(checked)
        return checked

    def _check_identity(self, schema: dict[str, Any], path: str) -> None:
        if path and isinstance(schema.get("$id"), str):
            raise ConstraintError(
                f"The keyword '$id' {_NOT_KEPT} (references are resolved from the root).",
                path=f"{path}.$id",
                unsupported=True,
            )
        draft = schema.get("$schema")
        if draft is not None and not (isinstance(draft, str) and _DRAFTS.fullmatch(draft)):
            raise ConstraintError(
                "'$schema' must be the address of draft 4, 6, 7, 2019-09 or 2020-12 of JSON Schema.",
                path=f"{path}.$schema",
                unsupported=True,
            )

    def _type(self, value: Any, path: str) -> Any:
        types = [value] if isinstance(value, str) else value
        if not isinstance(types, list) or not types or not all(name in _TYPES for name in types):
            raise ConstraintError(f"'type' must be one or several of {', '.join(_TYPES)}.", path=path)
        return value

    def _enum(self, value: Any, path: str) -> Any:
        if not isinstance(value, list) or not value:
            raise ConstraintError("'enum' must be a list of at least one value.", path=path)
        for place, item in enumerate(value):
            self._value(item, f"{path}[{place}]")
        return value

    def _value(self, value: Any, path: str) -> Any:
        """A value that an answer may have to be."""
        if isinstance(value, int) and abs(value) > _MAX_INTEGER:
            raise ConstraintError(f"Integers beyond ±2^53 {_NOT_KEPT}.", path=path, unsupported=True)
        if isinstance(value, list):
            for place, item in enumerate(value):
                self._value(item, f"{path}[{place}]")
        elif isinstance(value, dict):
            for name, item in value.items():
                self._value(item, f"{path}.{name}")
        return value

    def _schemas(self, value: Any, path: str) -> list[Schema]:
        if not isinstance(value, list) or not value:
            raise ConstraintError(f"'{path.rpartition('.')[2]}' must be a list of at least one schema.", path=path)
        return [self._schema(item, f"{path}[{place}]") for place, item in enumerate(value)]

    def _items(self, value: Any, path: str) -> Any:
        return self._schemas(value, path) if isinstance(value, list) else self._schema(value, path)

    def _properties(self, value: Any, path: str) -> dict[str, Schema]:
        if not isinstance(value, dict):
            raise ConstraintError(f"'{path.rpartition('.')[2]}' must be an object of schemas.", path=path)
        return {name: self._schema(item, f"{path}.{name}") for name, item in value.items()}

    def _pattern_properties(self, value: Any, path: str) -> dict[str, Schema]:
        checked = self._properties(value, path)
        if len(checked) > _MAX_PATTERN_PROPERTIES:
            raise ConstraintError(
                f"'patternProperties' has {len(checked)} patterns, at most {_MAX_PATTERN_PROPERTIES} are kept.",
                path=path,
                unsupported=True,
            )
        for pattern in checked:
            self._pattern(pattern, path)
        return checked

    def _pattern(self, value: Any, path: str) -> str:
        pattern = _string(value, path)
        self._pattern_characters += len(pattern)
        if len(pattern) > MAX_PATTERN or self._pattern_characters > _MAX_PATTERNS:
            raise ConstraintError(
                f"A regular expression may have {MAX_PATTERN} characters, all of a schema {_MAX_PATTERNS} together.",
                path=path,
                unsupported=True,
            )
        return pattern

    def _ref(self, value: Any, path: str) -> str:
        if not isinstance(value, str):
            raise ConstraintError("'$ref' must be a string.", path=path)
        if value == "#":
            return value
        if not value.startswith("#/"):
            raise ConstraintError(
                "'$ref' must begin with '#/': nothing outside the schema is read, and anchors are not looked up.",
                path=path,
                unsupported=True,
            )
        if value not in self._names:
            if len(self._names) >= _MAX_REFERENCES:
                raise ConstraintError(
                    f"The schema refers to more than {_MAX_REFERENCES} places.", path=path, unsupported=True
                )
            target = self._target(value, path)
            name = self._names[value] = f"r{len(self._names)}"
            self._definitions[name] = True  # until it is known: it may refer to itself
            self._definitions[name] = self._schema(target, _path_of(value))
        return f"#/$defs/{self._names[value]}"

    def _target(self, reference: str, path: str) -> Any:
        target: Any = self._root
        for step in _steps(reference):
            if isinstance(target, dict) and step in target:
                target = target[step]
            elif isinstance(target, list) and step.isdecimal() and int(step) < len(target):
                target = target[int(step)]
            else:
                raise ConstraintError("'$ref' names a place that the schema does not have.", path=path)
        return target


def _steps(reference: str) -> list[str]:
    """The names of a JSON pointer in a URI fragment (RFC 6901, section 6)."""
    return [unquote(step).replace("~1", "/").replace("~0", "~") for step in reference[2:].split("/")]


def _path_of(reference: str) -> str:
    return "".join(f"[{step}]" if step.isdecimal() else f".{step}" for step in _steps(reference))


def _count(value: Any, path: str) -> int:
    name = path.rpartition(".")[2]
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ConstraintError(f"'{name}' must be an integer of at least 0.", path=path)
    if value > _MAX_COUNT:
        raise ConstraintError(f"'{name}' is {value}, at most {_MAX_COUNT} is kept.", path=path, unsupported=True)
    return value


def _number(value: Any, path: str) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise ConstraintError(f"'{path.rpartition('.')[2]}' must be a number.", path=path)
    if isinstance(value, int) and abs(value) > _MAX_INTEGER:
        raise ConstraintError(f"Integers beyond ±2^53 {_NOT_KEPT}.", path=path, unsupported=True)
    return value


def _exclusive(value: Any, path: str) -> float | bool:
    """A number, or draft 4's boolean."""
    return value if isinstance(value, bool) else _number(value, path)


def _multiple(value: Any, path: str) -> float:
    if _number(value, path) <= 0:
        raise ConstraintError("'multipleOf' must be larger than 0.", path=path)
    # The automaton has a state for each remainder.
    if value > 10_000:
        raise ConstraintError(f"'multipleOf' above 10000 {_NOT_KEPT}.", path=path, unsupported=True)
    return float(value) if isinstance(value, float) else value


def _string(value: Any, path: str) -> str:
    if not isinstance(value, str):
        raise ConstraintError(f"'{path.rpartition('.')[2]}' must be a string.", path=path)
    return value


def _format(value: Any, path: str) -> str:
    if _string(value, path) not in FORMATS:
        shown = value if len(value) <= 64 else value[:64] + "…"
        raise ConstraintError(
            f"The format '{shown}' is not kept by this server: leave it out, or use one of {', '.join(FORMATS)}.",
            path=path,
            unsupported=True,
        )
    return str(value)


def _required(value: Any, path: str) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise ConstraintError("'required' must be a list of names.", path=path)
    return value


def _check_order(schema: dict[str, Any], path: str) -> None:
    """Raises ConstraintError if a lower bound exceeds its upper one."""
    for least, most in (("minLength", "maxLength"), ("minItems", "maxItems"), ("minProperties", "maxProperties")):
        low, high = schema.get(least), schema.get(most)
        if isinstance(low, int | float) and isinstance(high, int | float) and low > high:
            raise ConstraintError(
                f"'{least}' is {low} and '{most}' is {high}: no value matches.", path=f"{path}.{least}"
            )


def _check_names_that_may_repeat(schema: dict[str, Any], path: str) -> None:
    """A generated object may repeat a name that no `properties` lists, and then has fewer properties than it seems."""
    least = schema.get("minProperties", 0)
    open_ended = schema.get("additionalProperties", True) is not False or schema.get("patternProperties")
    if open_ended and least > max(1, len(set(schema.get("required", [])))):
        raise ConstraintError(
            f"'minProperties' above 1 {_NOT_KEPT}, or list the properties in 'required' (names that 'properties' does"
            " not list may be repeated).",
            path=f"{path}.minProperties",
            unsupported=True,
        )


def _state_exclusive_bounds(schema: dict[str, Any]) -> None:
    """Draft 4's booleans as the numbers that they stand for."""
    for bound, exclusive in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
        if isinstance(switch := schema.get(exclusive), bool):
            del schema[exclusive]
            if switch and bound in schema:
                schema[exclusive] = schema.pop(bound)


def _state_format(schema: dict[str, Any]) -> None:
    """A format that is stated here, as the pattern that it is."""
    name = schema.get("format", "")
    pattern = FORMATS.get(name)
    if pattern is None:
        return
    del schema["format"]
    if name in LONGEST:
        schema["maxLength"] = min(LONGEST[name], schema.get("maxLength", LONGEST[name]))
    if "pattern" in schema:
        schema["allOf"] = [*schema.get("allOf", []), {"pattern": pattern}]
    else:
        schema["pattern"] = pattern


def _refuse_endless(root: dict[str, Any], definitions: dict[str, Schema], places: dict[str, str]) -> None:
    """Raises ConstraintError if no finite value matches: then an answer would never be complete.

    Definitions that a finite value is known for are collected until there are no more (a least fixed point).
    """
    finite: set[str] = set()
    named = {f"#/$defs/{name}": schema for name, schema in definitions.items()} | {"#": root}
    while found := {ref for ref in named.keys() - finite if _is_finite(named[ref], finite)}:
        finite |= found
    if "#" not in finite:
        culprit = next((places[name] for name in definitions if f"#/$defs/{name}" not in finite), "")
        raise ConstraintError("The schema refers to itself without end: no finite value matches it.", path=culprit)


def _is_finite(schema: Schema, finite: set[str]) -> bool:
    """Whether some finite value may match, if one matches each of the references in `finite`."""
    if isinstance(schema, bool):
        return schema
    if "$ref" in schema and schema["$ref"] not in finite:
        return False
    if not all(_is_finite(part, finite) for part in schema.get("allOf", ())):
        return False
    for choices in ("anyOf", "oneOf"):
        if choices in schema and not any(_is_finite(part, finite) for part in schema[choices]):
            return False
    if "const" in schema or "enum" in schema:
        return True
    types = schema.get("type", _TYPES)
    types = {types} if isinstance(types, str) else set(types)
    if types - {"array", "object"}:
        return True
    return ("array" in types and _has_finite_items(schema, finite)) or (
        "object" in types and _has_finite_properties(schema, finite)
    )


def _has_finite_items(schema: dict[str, Any], finite: set[str]) -> bool:
    items = schema.get("items", True)
    first = items if isinstance(items, list) else schema.get("prefixItems", [])
    rest = schema.get("additionalItems", True) if isinstance(items, list) else items
    least = schema.get("minItems", 0)
    needed = [*first[:least], *([rest] if least > len(first) else [])]
    return all(_is_finite(item, finite) for item in needed)


def _has_finite_properties(schema: dict[str, Any], finite: set[str]) -> bool:
    properties = schema.get("properties", {})
    other = True if schema.get("patternProperties") else schema.get("additionalProperties", True)
    return all(_is_finite(properties.get(name, other), finite) for name in schema.get("required", ()))
