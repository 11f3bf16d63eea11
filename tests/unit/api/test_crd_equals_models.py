"""The CRD says what the models say, found by walking both; and it is a CRD that an API server takes."""

from __future__ import annotations

import json
import types
from collections.abc import Iterator
from datetime import datetime
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
from languagepipes_api.resource_model import ResourceModel
from languagepipes_api.spec import LanguagePipe, PipeSpec
from languagepipes_api.status import LanguagePipeStatus
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined
from support.generated_files import assert_up_to_date
from support.paths import CRD

FILE = CRD
Json = Any


def root_schema(crd: Json) -> Json:
    return crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]


def walk(model: type[BaseModel], schema: Json, path: str) -> Iterator[tuple[str, FieldInfo, Json]]:
    """Every field of the model, and of the models below, with what the CRD says at its path."""
    assert set(schema["properties"]) == {field.alias or name for name, field in model.model_fields.items()}, path
    assert set(schema.get("required", ())) == {
        field.alias or name for name, field in model.model_fields.items() if field.is_required()
    }, path
    for name, field in model.model_fields.items():
        alias = field.alias or name
        below = schema["properties"][alias]
        yield f"{path}.{alias}", field, below
        inner = model_in(field.annotation)
        if inner is not None:
            yield from walk(inner, below.get("items", below), f"{path}.{alias}")


def model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(model_in, get_args(annotation))), None)


def everything(crd: Json) -> list[tuple[str, FieldInfo, Json]]:
    properties = root_schema(crd)["properties"]
    return [
        *walk(PipeSpec, properties["spec"], "spec"),
        *walk(LanguagePipeStatus, properties["status"], "status"),
    ]


def plain(annotation: Any, metadata: list[Any]) -> tuple[Any, list[Any]]:
    """The type without None and Annotated, and all constraints on the way."""
    if get_origin(annotation) is Annotated:
        inner, *more = get_args(annotation)
        for item in more:
            metadata = metadata + (item.metadata if isinstance(item, FieldInfo) else [item])
        return plain(inner, metadata)
    if get_origin(annotation) in (Union, types.UnionType):
        variants = [variant for variant in get_args(annotation) if variant is not type(None)]
        if len(variants) == 1:
            return plain(variants[0], metadata)
    return annotation, metadata


def bounds(kind: Any, metadata: list[Any]) -> dict[str, Any]:
    """The constraints in JSON Schema's words."""
    found: dict[str, Any] = {}
    entries = {tuple: "Items", dict: "Properties"}.get(get_origin(kind) or kind, "Length")
    for item in metadata:
        match item:
            case annotated_types.Ge(ge):
                found["minimum"] = ge
            case annotated_types.Le(le):
                found["maximum"] = le
            case annotated_types.MinLen(length):
                found[f"min{entries}"] = length
            case annotated_types.MaxLen(length):
                found[f"max{entries}"] = length
            case _ if getattr(item, "pattern", None):
                found["pattern"] = item.pattern
    return found


# Later versions may have other words there; clients made from this schema must go on.
OPEN = ("status.phase", "status.history.outcome")


def test_every_field_has_the_models_type_bounds_enum_default_and_description(crd: Json) -> None:
    names = {str: "string", int: "integer", bool: "boolean", datetime: "string"}
    for path, field, schema in everything(crd):
        kind, metadata = plain(field.annotation, list(field.metadata))
        if path.endswith((".memory", ".size", ".sizeLimit", ".ephemeralStorage")):
            assert schema["x-kubernetes-int-or-string"] is True
            continue
        assert schema["description"] == field.description, path
        if path in OPEN:
            assert (schema["type"], "enum" in schema) == ("string", False), path
            assert max(map(len, get_args(kind))) < schema["maxLength"], path
            continue
        written = {key: schema[key] for key in schema if key.startswith(("min", "max", "pattern"))}
        assert written == bounds(kind, metadata), path
        if get_origin(kind) is Literal:
            assert (schema["type"], tuple(schema["enum"])) == ("string", get_args(kind)), path
        elif get_origin(kind) is tuple:
            assert schema["type"] == "array", path
        elif get_origin(kind) is dict:
            values = schema["additionalProperties"]
            assert schema["type"] == "object", path
            assert values.get("x-kubernetes-int-or-string") or values["type"] == "string", path
        elif isinstance(kind, type) and issubclass(kind, BaseModel):
            assert schema["type"] == "object", path
        else:
            assert schema["type"] == names[kind], path
        if field.default_factory is not None and get_origin(kind) is not dict:
            assert schema["default"] == {}, path
        elif get_origin(kind) is dict or field.default in (None, (), PydanticUndefined):
            assert "default" not in schema, path
        else:
            assert schema["default"] == field.default, path


def test_every_string_list_map_and_number_is_bounded_so_that_cel_has_a_cost(crd: Json) -> None:
    for path, _, schema in everything(crd):
        match schema.get("type"):
            case "string":
                assert "maxLength" in schema or "enum" in schema or schema.get("format") == "date-time", path
            case "array":
                assert "maxItems" in schema, path
                assert "x-kubernetes-list-type" in schema, path
            case "object" if "additionalProperties" in schema:
                assert {"maxProperties"} <= set(schema), path
                assert "maxLength" in schema["additionalProperties"], path
            case "integer" if path.startswith("spec."):
                assert {"minimum", "maximum"} <= set(schema), path


def test_every_parent_of_a_default_has_a_default_unless_it_is_optional_on_purpose(crd: Json) -> None:
    spec = root_schema(crd)["properties"]["spec"]["properties"]
    for name, field in spec.items():
        has_default = any("default" in below for below in field.get("properties", {}).values())
        # model is required itself, so its children's defaults always come to pass; without autoscaling there is none.
        if has_default and name not in ("model", "autoscaling"):
            assert field["default"] == {}, name


def test_the_file_is_what_the_generator_writes() -> None:
    assert_up_to_date("generate_crd.py")


def test_every_rule_of_the_models_is_in_the_crd_with_its_message(crd: Json) -> None:
    def rules_of(model: type[BaseModel]) -> Iterator[tuple[str, str]]:
        if issubclass(model, ResourceModel):
            yield from ((rule.cel, rule.message) for rule in model.rules if rule.cel)
        for field in model.model_fields.values():
            if (inner := model_in(field.annotation)) is not None:
                yield from rules_of(inner)

    def written(node: Json) -> Iterator[tuple[str, str]]:
        yield from ((rule["rule"], rule["message"]) for rule in node.get("x-kubernetes-validations", ()))
        for below in [*node.get("properties", {}).values(), *([node["items"]] if "items" in node else [])]:
            yield from written(below)

    assert sorted(written(root_schema(crd))) == sorted(rules_of(LanguagePipe))


def test_it_stays_far_below_the_size_that_kubectl_apply_can_remember(crd: Json) -> None:
    # `kubectl apply` keeps the whole object as JSON in an annotation, and annotations end at 256 KiB.
    assert len(json.dumps(crd, separators=(",", ":"))) < 160 * 1024
    assert FILE.stat().st_size < 288 * 1024


def test_no_rule_compares_with_the_former_object(crd: Json) -> None:
    assert "oldSelf" not in str(crd)


def test_kubectl_get_shows_the_promised_columns(crd: Json) -> None:
    columns = crd["spec"]["versions"][0]["additionalPrinterColumns"]

    assert [column["name"] for column in columns if not column.get("priority")] == [
        "Model", "Phase", "Ready", "Reason", "Progress", "Stages", "Replicas", "Age",
    ]  # fmt: skip
    assert [column["name"] for column in columns if column.get("priority") == 1] == ["URL"]


def test_it_can_be_scaled_and_has_a_status_and_a_short_name(crd: Json) -> None:
    version = crd["spec"]["versions"][0]

    assert crd["spec"]["names"]["shortNames"] == ["lp"]
    assert version["subresources"] == {
        "status": {},
        "scale": {
            "specReplicasPath": ".spec.replicas",
            "statusReplicasPath": ".status.replicas",
            "labelSelectorPath": ".status.selector",
        },
    }
