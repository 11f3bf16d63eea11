"""What of JSON Schema is kept: nothing of the standard is passed over, and what is kept means what it meant."""

from __future__ import annotations

import pytest
from jsonschema_specifications import REGISTRY
from languagepipes_node.end_model.structured import ConstraintError
from languagepipes_node.end_model.structured.json_schema import check

VOCABULARIES = ("core", "applicator", "unevaluated", "validation", "format-annotation", "content", "meta-data")
DRAFT = "https://json-schema.org/draft/2020-12/meta/"
# They ask for nothing of a value.
ANNOTATIONS = {
    "$schema", "$id", "$anchor", "$dynamicAnchor", "$vocabulary", "$comment", "$defs", "title", "description",
    "default", "deprecated", "readOnly", "writeOnly", "examples", "contentEncoding", "contentMediaType",
    "contentSchema",
}  # fmt: skip
VALUES = {
    "$ref": "#/$defs/a", "type": "string", "const": 1, "enum": [1], "allOf": [{}], "anyOf": [{}], "oneOf": [{}],
    "items": {}, "prefixItems": [{}], "properties": {"a": {}}, "patternProperties": {"^a": {}},
    "additionalProperties": {}, "required": ["a"], "minProperties": 1, "maxProperties": 1, "minItems": 1, "maxItems": 1,
    "minLength": 1, "maxLength": 1, "pattern": "a", "format": "uri", "minimum": 1, "maximum": 1, "exclusiveMinimum": 1,
    "exclusiveMaximum": 1, "multipleOf": 1,
}  # fmt: skip


def test_every_keyword_of_the_standard_is_kept_or_refused_or_an_annotation():
    keywords = {
        name for vocabulary in VOCABULARIES for name in REGISTRY.contents(DRAFT + vocabulary).get("properties", {})
    }
    assert len(keywords) == 57
    for keyword in sorted(keywords - ANNOTATIONS):
        if keyword in VALUES:
            checked = check({keyword: VALUES[keyword], "$defs": {"a": {"type": "null"}}})
            assert keyword in checked
        else:
            with pytest.raises(ConstraintError) as caught:
                check({keyword: True})
            assert caught.value.path == f".{keyword}"
            assert caught.value.unsupported
    assert check(dict.fromkeys(ANNOTATIONS, "http://json-schema.org/draft-07/schema#")) == {}


@pytest.mark.parametrize(
    ("schema", "checked"),
    [
        ({"type": "string", "title": "A", "x-order": 1}, {"type": "string"}),
        ({"uniqueItems": False}, {}),
        ({"minLength": 2.0}, {"minLength": 2}),
        # Draft 4's bounds.
        ({"minimum": 3, "exclusiveMinimum": True}, {"exclusiveMinimum": 3}),
        ({"maximum": 3, "exclusiveMaximum": False}, {"maximum": 3}),
        # A format that is stated here, beside a pattern of the client's.
        (
            {"format": "hostname", "pattern": "^a", "maxLength": 9},
            {"pattern": "^a", "maxLength": 9, "allOf": [{"pattern": check({"format": "hostname"})["pattern"]}]},
        ),
        # References, also to themselves and by names that a pointer escapes.
        (
            {"$ref": "#/definitions/a~1b%20c", "definitions": {"a/b c": {"items": {"$ref": "#/definitions/a~1b%20c"}}}},
            {"$ref": "#/$defs/r0", "$defs": {"r0": {"items": {"$ref": "#/$defs/r0"}}}},
        ),
        (
            {
                "properties": {"next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}},
                "required": ["next"],
                "type": "object",
            },
            {
                "properties": {"next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}},
                "required": ["next"],
                "type": "object",
            },
        ),
        ({"prefixItems": [{"const": 1}], "items": False}, {"prefixItems": [{"const": 1}], "items": False}),
    ],
)
def test_what_is_kept_is_written_as_the_library_reads_it(schema, checked):
    assert check(schema) == checked


@pytest.mark.parametrize(
    ("schema", "path"),
    [
        ({"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}, ""),
        ({"type": "array", "minItems": 1, "items": {"$ref": "#"}}, ""),
        ({"type": "array", "minItems": 2, "prefixItems": [{}], "items": {"$ref": "#"}}, ""),
        ({"allOf": [{"$ref": "#/$defs/a"}], "$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}, False]}}}, ".$defs.a"),
        ({"type": "object", "additionalProperties": {"$ref": "#"}, "required": ["x"]}, ""),
    ],
)
def test_a_schema_that_no_finite_value_matches_is_refused(schema, path):
    with pytest.raises(ConstraintError, match="without end") as caught:
        check(schema)
    assert caught.value.path == path


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {"a": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}}, "required": ["a"]},
        {"type": ["object", "null"], "properties": {"a": {"$ref": "#"}}, "required": ["a"]},
        {"type": "array", "items": {"$ref": "#"}},
        {"type": "array", "minItems": 1, "prefixItems": [{}], "items": {"$ref": "#"}},
        {"properties": {"a": {"$ref": "#"}}, "required": ["a"]},
        {"anyOf": [{"$ref": "#"}, {"const": 1}]},
    ],
)
def test_a_schema_that_refers_to_itself_and_has_an_end_is_kept(schema):
    assert check(schema) == schema
