"""Gemma's form of arguments as a grammar, made from a function's schema: `{KEY:<escape>TEXT<escape>,KEY:[1,2]}`.

The form has no place for what a text must look like, so that of text `type`, `enum` and `const` are kept. Objects have
their properties in one order, and those alone. What else a schema asks for is refused with its place.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import orjson

from languagepipes_node.end_model.structured import ConstraintError
from languagepipes_node.end_model.structured.json_schema import Schema, check
from languagepipes_node.end_model.tools import json_text

# What is read back as a name; see GemmaParser.
_NAME = re.compile(r"""[^\s:,{}<>"](?:[^:,{}\n]{0,62}[^\s:,{}])?""")
_OF_TYPES: Mapping[str, frozenset[str]] = {
    "object": frozenset({"properties", "required", "additionalProperties"}),
    "array": frozenset({"items", "minItems", "maxItems"}),
    "number": frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"}),
    "string": frozenset(),
    "boolean": frozenset(),
    "null": frozenset(),
}


class GemmaArguments:
    """Rules of one grammar, for the arguments of several tools.

    rules: where they are added. mark: a special token or a text as an expansion. quote: what text stands between.
    special: whether that is a token. alphabetical: whether names are, as the model's template writes them.
    """

    def __init__(
        self, rules: list[str], mark: Callable[[str], str], *, quote: str, special: bool, alphabetical: bool
    ) -> None:
        self._rules = rules
        self._quote, self._quote_text = mark(quote), quote
        self._alphabetical = alphabetical
        self._definitions: Mapping[str, Schema] = {}
        self._names: dict[str, str] = {}  # rules of the definitions of the tool at hand
        self._number = 0
        text = rf"G_TEXT: /(.|\n)*/ & ~/(.|\n)*{re.escape(quote)}(.|\n)*/"
        inside = f"G_TEXT {self._quote}" if special else "g_inside"
        self._shared = [text, f"g_text: {self._quote} {inside}"]
        if not special:
            self._shared.append(f"g_inside[lazy]: /(.|\\n)*/ {self._quote}")
        # As many digits as a float64 is sure to have a place for.
        self._shared += [
            "G_INTEGER: /-?(0|[1-9][0-9]{0,14})/",
            r"G_NUMBER: /-?(0|[1-9][0-9]{0,14})(\.[0-9]{1,15})?([eE][+-]?[0-9]{1,2})?/",
            'g_boolean: "true" | "false"',
            r"G_NAME: /[^\s:,{}\[\]<>\"]{1,64}/",
            'g_any: g_text | G_NUMBER | g_boolean | "null" | g_list | g_object',
            'g_list: "[" (g_any ("," g_any)*)? "]"',
            'g_object: "{" (G_NAME ":" g_any ("," G_NAME ":" g_any)*)? "}"',
        ]

    def any_object(self) -> str:
        self._share()
        return "g_object"

    def of(self, parameters: Mapping[str, Any]) -> str:
        """The expansion of arguments that match. Raises ConstraintError for what is not kept."""
        schema = check({**parameters, "type": "object"})
        assert isinstance(schema, dict)  # noqa: S101 (see above)
        self._share()
        self._definitions, self._names = schema.pop("$defs", {}), {}
        return self._value(schema, "")

    def _share(self) -> None:
        if self._shared[0] not in self._rules:  # the rules of a tool that is not kept are taken back
            self._rules += self._shared

    def _rule(self, expansion: str) -> str:
        name = self._new_name()
        self._rules.append(f"{name}: {expansion}")
        return name

    def _new_name(self) -> str:
        self._number += 1
        return f"g_{self._number}"

    def _value(self, schema: Schema, path: str) -> str:
        if isinstance(schema, bool):
            if not schema:
                raise _not_kept("false", path)
            return "g_any"
        for keyword in ("$ref", "enum", "const", "anyOf", "oneOf", "allOf"):
            if keyword in schema:
                _refuse_others(schema, {keyword, "type"}, path)
                return self._one_of(keyword, schema, f"{path}.{keyword}")
        named = schema.get("type")
        types = [named] if isinstance(named, str) else named or _meant(schema)
        if not types:
            _refuse_others(schema, (), path)
            return "g_any"
        _refuse_others(schema, {"type", *(keyword for kind in _kinds(types) for keyword in _OF_TYPES[kind])}, path)
        return _either(self._of_type(name, schema, path) for name in types)

    def _one_of(self, keyword: str, schema: Mapping[str, Any], path: str) -> str:
        """What a keyword asks for that says all of a value."""
        asked = schema[keyword]
        if keyword in ("enum", "const"):
            types = json_text.types_of({"type": schema["type"]}) if "type" in schema else None
            values = asked if keyword == "enum" else [asked]
            fitting = [value for value in values if types is None or json_text.types_of({"const": value}) & types]
            if not fitting:
                raise ConstraintError("No value is of the 'type'.", path=path)
            return _either(self._constant(value, path) for value in fitting)
        if "type" in schema:
            raise _not_kept("type", path.rpartition(".")[0])
        if keyword == "$ref":
            return self._reference(asked, path)
        if keyword == "allOf" and len(asked) > 1:
            raise _not_kept("allOf", path, "of several schemas ")
        if keyword == "oneOf":
            each = [_kinds(json_text.types_of(one, {"$defs": self._definitions})) for one in asked]
            if not all(each) or len(set().union(*each)) < sum(map(len, each)):
                raise _not_kept("oneOf", path, "of alternatives that may be of one type ")
        return _either(self._value(one, f"{path}[{place}]") for place, one in enumerate(asked))

    def _reference(self, reference: str, path: str) -> str:
        if reference not in self._names:
            if not reference.startswith("#/$defs/"):
                raise _not_kept("$ref", path, "to all of the schema ")
            name = self._names[reference] = self._new_name()
            self._rules.append(f"{name}: {self._value(self._definitions[reference.removeprefix('#/$defs/')], path)}")
        return self._names[reference]

    def _of_type(self, name: str, schema: Mapping[str, Any], path: str) -> str:
        match name:
            case "object":
                return self._object(schema, path)
            case "array":
                return self._array(schema, path)
            case "integer" | "number":
                asked = {keyword: schema[keyword] for keyword in sorted(_OF_TYPES["number"]) if keyword in schema}
                if asked:
                    return self._rule("%json " + orjson.dumps({"type": name, **asked}).decode())
                return "G_INTEGER" if name == "integer" else "G_NUMBER"
            case "string":
                return "g_text"
            case "boolean":
                return "g_boolean"
        return '"null"'

    def _array(self, schema: Mapping[str, Any], path: str) -> str:
        least, most = schema.get("minItems", 0), schema.get("maxItems")
        items = schema.get("items", True)
        if isinstance(items, list):
            raise _not_kept("items", f"{path}.items", "of several schemas ")
        if most == 0:
            return '"[" "]"'
        item = self._rule(self._value(items, f"{path}.items"))
        more = f'("," {item}){{{max(0, least - 1)},{"" if most is None else most - 1}}}'
        listed = item if most == 1 else f"{item} {more}"
        return f'"[" {listed} "]"' if least else f'"[" ({listed})? "]"'

    def _object(self, schema: Mapping[str, Any], path: str) -> str:
        properties, required = schema.get("properties", {}), schema.get("required", [])
        for name in required:
            if name not in properties:
                raise ConstraintError(
                    f"'{name}' is required and not among the properties, which is not kept in this model's format.",
                    path=f"{path}.required",
                    unsupported=True,
                )
        additional = schema.get("additionalProperties", True)
        if not properties:
            if additional is False:
                return '"{" "}"'
            value = self._rule(self._value(additional, f"{path}.additionalProperties"))
            return f'"{{" (G_NAME ":" {value} ("," G_NAME ":" {value})*)? "}}"'
        names = sorted(properties, key=str.lower) if self._alphabetical else list(properties)
        members = [self._member(name, properties[name], f"{path}.properties.{name}") for name in names]
        # What may follow a member, and what may be the first of all.
        rest, optional = "", True
        firsts: list[str] = []
        for name, member in reversed(list(zip(names, members, strict=True))):
            if name in required:
                firsts, optional = [], False
            firsts.insert(0, f"{member} {rest}")
            following = f'"," {member}' if name in required else f'("," {member})?'
            rest = self._rule(f"{following} {rest}")
        listed = _either(firsts)
        return f'"{{" {listed}{"?" if optional else ""} "}}"'

    def _member(self, name: str, schema: Schema, path: str) -> str:
        if not _NAME.fullmatch(name):
            raise ConstraintError(
                "A name with brackets, quotes, colons, commas or line breaks is not kept in this model's format.",
                path=path,
                unsupported=True,
            )
        return self._rule(f"{_string(f'{name}:')} {self._value(schema, path)}")

    def _constant(self, value: Any, path: str) -> str:
        match value:
            case str():
                if self._quote_text in value:
                    raise ConstraintError(
                        f"A text with '{self._quote_text}' is not kept in this model's format.",
                        path=path,
                        unsupported=True,
                    )
                return f"{self._quote} {_string(value) if value else ''} {self._quote}"
            case list():
                return f'"[" {_listed(self._constant(each, path) for each in value)} "]"'
            case dict():
                members = []
                for name, each in value.items():
                    if not _NAME.fullmatch(name):
                        raise _not_kept(name, path)
                    members.append(f"{_string(f'{name}:')} {self._constant(each, path)}")
                return f'"{{" {_listed(members)} "}}"'
        return _string(orjson.dumps(value).decode())


def _meant(schema: Mapping[str, Any]) -> list[str]:
    """The types that a schema without one speaks of."""
    return [name for name, keywords in _OF_TYPES.items() if keywords & schema.keys()]


def _kinds(types: Iterable[str]) -> set[str]:
    """Types, of which an integer is a number too."""
    return {"number" if name == "integer" else name for name in types}


def _refuse_others(schema: Mapping[str, Any], kept: Collection[str], path: str) -> None:
    for keyword in schema:
        if keyword not in kept:
            raise _not_kept(keyword, f"{path}.{keyword}")


def _not_kept(keyword: str, path: str, what: str = "") -> ConstraintError:
    return ConstraintError(f"'{keyword}' {what}is not kept in this model's format.", path=path, unsupported=True)


def _listed(expansions: Iterable[str]) -> str:
    return ' "," '.join(expansions)


def _either(expansions: Iterable[str]) -> str:
    return "(" + " | ".join(expansions) + ")"


def _string(text: str) -> str:
    return orjson.dumps(text).decode()
