"""Does the API server serve the resource that this operator knows? An older CRD drops fields in silence.

Asked of the OpenAPI document, which whoever is authenticated may read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from languagepipes_api.names import API_GROUP, API_VERSION, KIND
from languagepipes_api.spec import LanguagePipe

from languagepipes_operator.kube.client import Kube
from languagepipes_operator.kube.errors import NotFound

_PATH = f"/openapi/v3/apis/{API_GROUP}/{API_VERSION}"
_REMEDY = "install the CRD of this version (kubectl apply --server-side -f crds/, or the chart with crds.enabled)"
_SHOWN = 5


async def problem_with_schema(kube: Kube) -> str | None:
    """A sentence with the remedy, or None if all is well. Raises KubeError."""
    try:
        document = await kube.get_path(_PATH)
    except NotFound:
        return f"the API server has no {KIND} ({API_GROUP}/{API_VERSION}): {_REMEDY}"
    served = _served(document)
    if served is None:
        return f"the API server has no {KIND} ({API_GROUP}/{API_VERSION}): {_REMEDY}"
    missing = missing_fields(served)
    if not missing:
        return None
    shown = ", ".join(missing[:_SHOWN]) + (f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else "")
    return (
        f"the CustomResourceDefinition of {KIND} is older than this operator: it lacks {shown}; nothing is written "
        f"until it has them: {_REMEDY}"
    )


def missing_fields(served: Mapping[str, Any]) -> list[str]:
    """Fields that the models have and the served schema has not, as dotted paths; only the topmost of each branch. And
    values that a field may have by the models alone ("status.phase: Paused"): a status with one would be refused.
    """
    wanted = LanguagePipe.model_json_schema(by_alias=True)
    properties = served.get("properties", {})
    return [
        path
        for part in ("spec", "status")
        for path in _missing(wanted["properties"][part], properties.get(part), wanted.get("$defs", {}), part)
    ]


def _served(document: Mapping[str, Any]) -> Mapping[str, Any] | None:
    for schema in document.get("components", {}).get("schemas", {}).values():
        for kind in schema.get("x-kubernetes-group-version-kind", ()):
            if (kind.get("group"), kind.get("version"), kind.get("kind")) == (API_GROUP, API_VERSION, KIND):
                return dict(schema)
    return None


def _missing(
    wanted: Mapping[str, Any], served: Mapping[str, Any] | None, definitions: Mapping[str, Any], path: str
) -> Iterator[str]:
    if served is None:
        yield path
        return
    for schema in _branches(wanted, definitions):
        allowed = served.get("enum")
        if allowed is not None:
            yield from (f"{path}: {value}" for value in schema.get("enum", ()) if value not in allowed)
        for name, inner in schema.get("properties", {}).items():
            yield from _missing(inner, served.get("properties", {}).get(name), definitions, f"{path}.{name}")
        if "items" in schema:
            yield from _missing(schema["items"], served.get("items"), definitions, f"{path}[]")


def _branches(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The schema with its references followed and its alternatives laid out."""
    if "$ref" in schema:
        yield from _branches(definitions[schema["$ref"].rsplit("/", 1)[1]], definitions)
        return
    yield schema
    for alternative in (*schema.get("anyOf", ()), *schema.get("allOf", ())):
        yield from _branches(alternative, definitions)
