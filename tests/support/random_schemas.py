"""Random JSON Schemas whose every value is short, for tests of answers that must match one."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

NAMES = ("name", "age", "ok", "x y", 'quo"te', "größe", "tags", "id")
PATTERNS = (r"^[a-z]{2,5}$", r"^\d{3}-\d{2}$", "^(yes|no)$", r"^[A-Z][a-z]{1,4}( [A-Z][a-z]{1,4})?$")
FORMATS = ("date", "ipv4", "uuid", "time")
SMALL = st.one_of(st.integers(-99, 99), st.booleans(), st.none(), st.sampled_from(["a", 'b"c', "é", "", "long text"]))


@st.composite
def _strings(draw: st.DrawFn) -> dict[str, Any]:
    kind = draw(st.sampled_from(["length", "pattern", "format"]))
    if kind == "pattern":
        return {"type": "string", "pattern": draw(st.sampled_from(PATTERNS))}
    if kind == "format":
        return {"type": "string", "format": draw(st.sampled_from(FORMATS))}
    least = draw(st.integers(0, 3))
    return {"type": "string", "minLength": least, "maxLength": least + draw(st.integers(0, 6))}


@st.composite
def _numbers(draw: st.DrawFn) -> dict[str, Any]:
    least = draw(st.integers(-1000, 1000))
    schema: dict[str, Any] = {"type": "integer", "minimum": least, "maximum": least + draw(st.integers(0, 500))}
    if draw(st.booleans()):
        schema["multipleOf"] = draw(st.integers(1, 7))
        schema["maximum"] = least + 7 + draw(st.integers(0, 500))
    return schema


SCALARS = st.one_of(
    _strings(),
    _numbers(),
    st.just({"type": "boolean"}),
    st.just({"type": "null"}),
    st.builds(lambda value: {"const": value}, SMALL),
    st.builds(lambda values: {"enum": values}, st.lists(SMALL, min_size=1, max_size=4)),
)


@st.composite
def _arrays(draw: st.DrawFn, inner: st.SearchStrategy[Any]) -> dict[str, Any]:
    if draw(st.booleans()):
        return {"type": "array", "prefixItems": draw(st.lists(inner, min_size=1, max_size=2)), "items": False}
    least = draw(st.integers(0, 2))
    return {"type": "array", "items": draw(inner), "minItems": least, "maxItems": least + draw(st.integers(0, 2))}


@st.composite
def _objects(draw: st.DrawFn, inner: st.SearchStrategy[Any]) -> dict[str, Any]:
    properties = draw(st.dictionaries(st.sampled_from(NAMES), inner, max_size=3))
    required = [name for name in properties if draw(st.booleans())]
    schema: dict[str, Any] = {"type": "object", "properties": properties, "required": required}
    return {**schema, "additionalProperties": False}


def _compound(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(
        _arrays(inner),
        _objects(inner),
        st.builds(lambda parts: {"anyOf": parts}, st.lists(inner, min_size=1, max_size=3)),
    )


def schemas() -> st.SearchStrategy[dict[str, Any]]:
    """Objects, at the top, of at most some ten values."""
    return _objects(st.recursive(SCALARS, _compound, max_leaves=6))
