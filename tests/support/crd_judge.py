"""The API server's judgement of a resource, from the CRD alone: defaults, schema, unknown fields, CEL rules."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import celpy
import jsonschema

Json = Any


class ApiServer:
    """Judges like the API server with strict field validation: null fields vanish, then defaults, schema, CEL."""

    def __init__(self, crd: Json) -> None:
        self.schema: Json = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
        self._environment = celpy.Environment()
        self._programs: dict[str, Any] = {}

    def admit(self, resource: Json) -> Json:
        """The resource as it would be stored."""
        return self._defaulted(_without_nulls(copy.deepcopy(resource)), self.schema)

    def problems(self, resource: Json) -> list[str]:
        """Why it is refused: schema errors, or else the messages of the rules that it breaks."""
        stored = self.admit(resource)
        errors = [error.message for error in jsonschema.Draft202012Validator(self.schema).iter_errors(stored)]
        errors += [f"unknown field {path}" for path in self._unknown(stored, self.schema, "")]
        return errors or list(self._broken(stored, self.schema))

    def _defaulted(self, value: Json, schema: Json) -> Json:
        if isinstance(value, dict):
            for name, field in schema.get("properties", {}).items():
                if name not in value and "default" in field:
                    value[name] = copy.deepcopy(field["default"])
                if name in value:
                    value[name] = self._defaulted(value[name], field)
        elif isinstance(value, list) and "items" in schema:
            return [self._defaulted(item, schema["items"]) for item in value]
        return value

    def _unknown(self, value: Json, schema: Json, path: str) -> Iterator[str]:
        if isinstance(value, dict) and "properties" in schema:
            for name, item in value.items():
                if name in schema["properties"]:
                    yield from self._unknown(item, schema["properties"][name], f"{path}.{name}")
                else:
                    yield f"{path}.{name}"
        elif isinstance(value, list):
            for item in value:
                yield from self._unknown(item, schema.get("items", {}), f"{path}[]")

    def _broken(self, value: Json, schema: Json) -> Iterator[str]:
        for rule in schema.get("x-kubernetes-validations", ()):
            if not self._holds(rule["rule"], value):
                yield rule["message"]
        if isinstance(value, dict):
            for name, item in value.items():
                yield from self._broken(item, schema.get("properties", {}).get(name, {}))
        elif isinstance(value, list):
            for item in value:
                yield from self._broken(item, schema.get("items", {}))

    def _holds(self, rule: str, value: Json) -> bool:
        if rule not in self._programs:
            self._programs[rule] = self._environment.program(self._environment.compile(rule))
        return bool(self._programs[rule].evaluate({"self": celpy.json_to_cel(value)}))


def _without_nulls(value: Json) -> Json:
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value
