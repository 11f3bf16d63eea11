"""Schemas and grammars that cannot be kept are refused with their place, and cost other clients nothing."""

# ruff: noqa: E501

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from languagepipes_node.end_model.structured import compiler
from support.scripted_engine import Served, forever
from support.waiting import eventually

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
UNSUPPORTED, VALUE, TYPE, MISSING, UNKNOWN = (
    "unsupported_parameter", "invalid_value", "invalid_type", "missing_required_parameter", "unknown_parameter",
)  # fmt: skip
SCHEMA = "response_format.json_schema.schema"


def asked(schema: Any, **more: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, **more}}}


def within(schema: Any) -> dict[str, Any]:
    """As a property `x` that has to be there."""
    return asked({"type": "object", "properties": {"x": schema}, "required": ["x"]})


def structured(**kinds: Any) -> dict[str, Any]:
    return {"structured_outputs": kinds}


def choices_of(groups: int) -> dict[str, Any]:
    """4 ** groups combinations."""
    options = [
        [
            {"type": "object", "properties": {f"p{i}_{j}": {"type": "string"}}, "required": [f"p{i}_{j}"]}
            for j in range(4)
        ]
        for i in range(groups)
    ]
    return {"allOf": [{"anyOf": group} for group in options]}


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "null"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


CHAIN = {"$ref": "#/$defs/d0", "$defs": {f"d{i}": {"$ref": f"#/$defs/d{i + 1}"} for i in range(70)} | {"d70": {}}}
ENDLESS = {"type": "object", "properties": {"next": {"$ref": "#"}}, "required": ["next"]}
TAG = {"begin": "<a>", "schema": {"type": "integer"}, "end": "</a>"}

# body, param, code, a part of the message
WRONG: list[tuple[dict[str, Any], str, str, str]] = [
    # Keywords that cannot be kept, with their path.
    (within({"not": {"type": "string"}}), f"{SCHEMA}.properties.x.not", UNSUPPORTED, "'not' cannot be kept"),
    (within({"type": "array", "uniqueItems": True}), f"{SCHEMA}.properties.x.uniqueItems", UNSUPPORTED, "compares items"),
    (within({"if": {}, "then": {}}), f"{SCHEMA}.properties.x.if", UNSUPPORTED, "depends on other values"),
    (within({"contains": {"const": 1}}), f"{SCHEMA}.properties.x.contains", UNSUPPORTED, "counts items"),
    (within({"propertyNames": {"maxLength": 3}}), f"{SCHEMA}.properties.x.propertyNames", UNSUPPORTED, "patternProperties"),
    (asked({"dependentRequired": {"a": ["b"]}}), f"{SCHEMA}.dependentRequired", UNSUPPORTED, "other properties"),
    (asked({"unevaluatedProperties": False}), f"{SCHEMA}.unevaluatedProperties", UNSUPPORTED, "additionalProperties"),
    (asked({"anyOf": [{}, {"items": [{"not": {}}]}]}), f"{SCHEMA}.anyOf[1].items[0].not", UNSUPPORTED, "excludes"),
    (asked({"$ref": "#/$defs/a", "$defs": {"a": {"not": {}}}}), f"{SCHEMA}.$defs.a.not", UNSUPPORTED, "excludes values"),
    (within({"format": "idn-email"}), f"{SCHEMA}.properties.x.format", UNSUPPORTED, "The format 'idn-email' is not kept"),
    (within({"$ref": "https://example.com/s.json"}), f"{SCHEMA}.properties.x.$ref", UNSUPPORTED, "must begin with '#/'"),
    (within({"$dynamicRef": "#a"}), f"{SCHEMA}.properties.x.$dynamicRef", UNSUPPORTED, "only '$ref'"),
    (within({"$id": "https://example.com/s"}), f"{SCHEMA}.properties.x.$id", UNSUPPORTED, "from the root"),
    (asked({"$schema": "https://example.com/s"}), f"{SCHEMA}.$schema", UNSUPPORTED, "draft 4, 6, 7"),
    (within({"oneOf": [{"type": "string"}, {"minLength": 3}]}), f"{SCHEMA}.properties.x.oneOf", UNSUPPORTED, "anyOf"),
    (within({"type": "string", "pattern": "(?=a)b"}), f"{SCHEMA}.properties.x.pattern", UNSUPPORTED, "look-around"),
    (within({"type": "string", "pattern": r"(a)\1"}), f"{SCHEMA}.properties.x.pattern", UNSUPPORTED, "backreferences"),
    (within({"minProperties": 2}), f"{SCHEMA}.properties.x.minProperties", UNSUPPORTED, "may be repeated"),
    (within({"const": 2**53 + 1}), f"{SCHEMA}.properties.x.const", UNSUPPORTED, "2^53"),
    (within({"type": "integer", "minimum": 2**60}), f"{SCHEMA}.properties.x.minimum", UNSUPPORTED, "2^53"),
    (within({"patternProperties": {"^a": {}, "b": {"type": "null"}}}), f"{SCHEMA}.properties.x.patternProperties", UNSUPPORTED, "disjoint"),
    (within({"patternProperties": {f"^k{i}$": {} for i in range(17)}}), f"{SCHEMA}.properties.x.patternProperties", UNSUPPORTED, "at most 16"),
    # Values that are none of JSON Schema's.
    (within({"type": "strin"}), f"{SCHEMA}.properties.x.type", VALUE, "one or several of null, boolean"),
    (within({"type": []}), f"{SCHEMA}.properties.x.type", VALUE, "one or several of null"),
    (within({"enum": []}), f"{SCHEMA}.properties.x.enum", VALUE, "at least one value"),
    (within({"minLength": -1}), f"{SCHEMA}.properties.x.minLength", VALUE, "an integer of at least 0"),
    (within({"required": "a"}), f"{SCHEMA}.properties.x.required", VALUE, "a list of names"),
    (within({"properties": []}), f"{SCHEMA}.properties.x.properties", VALUE, "an object of schemas"),
    (within({"anyOf": []}), f"{SCHEMA}.properties.x.anyOf", VALUE, "at least one schema"),
    (within(5), f"{SCHEMA}.properties.x", VALUE, "an object or a boolean"),
    (within({"multipleOf": 0}), f"{SCHEMA}.properties.x.multipleOf", VALUE, "larger than 0"),
    (within({"$ref": "#/$defs/none"}), f"{SCHEMA}.properties.x.$ref", VALUE, "does not have"),
    (within({"type": "string", "pattern": "[a"}), f"{SCHEMA}.properties.x.pattern", UNSUPPORTED, "unclosed character class"),
    # Nothing matches.
    (within({"minLength": 3, "maxLength": 2}), f"{SCHEMA}.properties.x.minLength", VALUE, "no value matches"),
    (within({"type": "integer", "minimum": 3, "maximum": 2}), f"{SCHEMA}.properties.x.minimum", VALUE, "No text matches"),
    (within({"type": "string", "pattern": "^ab$", "minLength": 9}), f"{SCHEMA}.properties.x.pattern", VALUE, "No text matches"),
    (asked(ENDLESS), SCHEMA, VALUE, "without end"),
    (asked({"$ref": "#"}), SCHEMA, VALUE, "without end"),
    (asked({"$ref": "#/$defs/a", "$defs": {"a": {"type": "array", "minItems": 1, "items": {"$ref": "#/$defs/a"}}}}), f"{SCHEMA}.$defs.a", VALUE, "without end"),
    # Schemas that explode.
    (asked(choices_of(6)), SCHEMA, UNSUPPORTED, "more states or work"),
    (asked(choices_of(12)), SCHEMA, UNSUPPORTED, "more states or work"),
    (asked(nested(100)), SCHEMA + ".items" * 64, UNSUPPORTED, "nested deeper than 64"),
    (asked(CHAIN), f"{SCHEMA}.$defs.d63", UNSUPPORTED, "nested deeper than 64"),
    (within({"enum": [f"value number {i}" for i in range(20_000)]}), SCHEMA, UNSUPPORTED, "bytes, at most 262144"),
    (within({"anyOf": [{"const": i} for i in range(11_000)]}), f"{SCHEMA}.properties.x.anyOf[9998]", UNSUPPORTED, "10000 subschemas"),
    (within({"type": "integer", "multipleOf": 982451653}), f"{SCHEMA}.properties.x.multipleOf", UNSUPPORTED, "above 10000"),
    (within({"maxItems": 10**12}), f"{SCHEMA}.properties.x.maxItems", UNSUPPORTED, "at most 1000000"),
    # Regular expressions, choices and grammars.
    (structured(regex="(?<!a)b"), "structured_outputs.regex", UNSUPPORTED, "look-around"),
    (structured(regex="(a"), "structured_outputs.regex", UNSUPPORTED, "unclosed group"),
    (structured(regex=""), "structured_outputs.regex", VALUE, "is empty"),
    (structured(regex=r"[^\s\S]"), "structured_outputs.regex", VALUE, "No text matches"),
    (structured(regex="(" * 300 + "a" + ")" * 300), "structured_outputs.regex", UNSUPPORTED, "cannot be kept"),
    (structured(regex="[a-z]?" * 1_400), "structured_outputs.regex", UNSUPPORTED, "at most 8192"),
    (within({"pattern": "[a-z]?" * 1_400}), f"{SCHEMA}.properties.x.pattern", UNSUPPORTED, "8192"),
    (asked({"anyOf": [{"pattern": "[a-z]?" * 1000}] * 9}), f"{SCHEMA}.anyOf[5].pattern", UNSUPPORTED, "32768 together"),
    (structured(grammar="start: " + '"a"? ' * 6_600), "structured_outputs.grammar", UNSUPPORTED, "at most 32768"),
    (structured(choice=[]), "structured_outputs.choice", TYPE, "at least one string"),
    (structured(choice=["a", 1]), "structured_outputs.choice", TYPE, "at least one string"),
    (structured(choice=[f"c{i}" for i in range(10_001)]), "structured_outputs.choice", UNSUPPORTED, "at most 10000"),
    (structured(grammar="start: missing"), "structured_outputs.grammar", UNSUPPORTED, "unknown name"),
    (structured(grammar="start: r0" + "".join(f'\nr{i}: "a"' for i in range(2_000))), "structured_outputs.grammar", UNSUPPORTED, "at most 2000"),
    (structured(grammar='start: %json {"not": {}}'), "structured_outputs.grammar.not", UNSUPPORTED, "A schema in the grammar"),
    (structured(grammar='%llguidance {"no_forcing": false}\nstart: "a"'), "structured_outputs.grammar", UNSUPPORTED, "sets the options"),
    (structured(grammar='start: x "b"\nx[stop="a"]: /.*/'), "structured_outputs.grammar", UNSUPPORTED, "'stop' of a rule"),
    (structured(grammar="start: start"), "structured_outputs.grammar", VALUE, "No text matches"),
    (structured(grammar='start: <|im_end|> "a"'), "structured_outputs.grammar", VALUE, "No text matches"),
    (structured(regex="a\\"), "structured_outputs.regex", VALUE, "ends with a backslash"),
    (asked(nested(900)), SCHEMA, UNSUPPORTED, "nested too deeply"),
    (structured(json="{"), "structured_outputs.json", VALUE, "no valid JSON"),
    (structured(json=5), "structured_outputs.json", TYPE, "must be a JSON object"),
    (structured(json={"not": {}}), "structured_outputs.json.not", UNSUPPORTED, "excludes values"),
    (structured(), "structured_outputs", VALUE, "exactly one of json, regex"),
    (structured(regex="a", choice=["a"]), "structured_outputs", VALUE, "it has regex and choice"),
    (structured(regexp="a"), "structured_outputs.regexp", UNKNOWN, "Did you mean 'regex'"),
    (structured(regex="a", whitespace_pattern=" "), "structured_outputs.whitespace_pattern", UNSUPPORTED, "not supported"),
    (structured(json_object=False), "structured_outputs.json_object", VALUE, "must be true"),
    (structured(structural_tag={"type": "structural_tag", "format": {}}), "structured_outputs.structural_tag.format", UNSUPPORTED, "'structures' and 'triggers'"),
    (structured(structural_tag={"triggers": ["<b"], "structures": [TAG]}), "structured_outputs.structural_tag.structures[0].begin", VALUE, "none of the triggers"),
    ({"structured_outputs": "a"}, "structured_outputs", TYPE, "must be a JSON object"),
    # response_format itself.
    ({"response_format": "json"}, "response_format", TYPE, "must be a JSON object"),
    ({"response_format": {}}, "response_format.type", MISSING, "response_format.type"),
    ({"response_format": {"type": "xml"}}, "response_format.type", VALUE, "text, json_object"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", MISSING, "json_schema"),
    ({"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}}, "response_format.json_schema.name", MISSING, "name"),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}}, SCHEMA, MISSING, "schema"),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "a b", "schema": {}}}}, "response_format.json_schema.name", VALUE, "1 to 64"),
    (asked({}, strict="yes"), "response_format.json_schema.strict", TYPE, "a boolean"),
    (asked({}, strikt=True), "response_format.json_schema.strikt", UNKNOWN, "Did you mean 'strict'"),
    (asked([]), SCHEMA, TYPE, "must be a JSON object"),
    ({"response_format": {"type": "json_object", "schema": {}}}, "response_format.schema", UNKNOWN, "Unknown parameter"),
    ({"guided_regex": "(a"}, "guided_regex", UNSUPPORTED, "unclosed group"),
    ({"guided_json": {"not": {}}}, "guided_json.not", UNSUPPORTED, "excludes values"),
    ({"guided_decoding_backend": "outlines"}, "guided_decoding_backend", UNSUPPORTED, "not supported"),
    (structured(regex="a") | asked({}), "structured_outputs.regex", VALUE, "send one of them"),
]  # fmt: skip


def post(served: Served, path: str, body: dict[str, Any]) -> httpx.Response:
    prompt = {"messages": [{"role": "user", "content": "hi"}]} if path == CHAT else {"prompt": "hi"}
    return httpx.post(f"{served.url}{path}", json={"model": "tiny", **prompt, **body}, timeout=30)


@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_every_constraint_that_cannot_be_kept_is_a_400_that_names_its_place(serve, path):
    served = serve("x")
    found = []
    for body, param, code, message in WRONG:
        answer = post(served, path, body)
        error = answer.json()["error"] if answer.status_code != 200 else dict.fromkeys(("param", "code", "message"), "")
        param = param if len(param) <= 256 else param[:256] + "…"
        right = (answer.status_code, error["param"], error["code"]) == (400, param, code)
        if not (right and message in error["message"] and len(error["message"]) < 1000):
            found.append((json.dumps(body)[:150], answer.status_code, error))
    assert not found
    assert not served.engine.submissions


def test_a_wrong_schema_is_refused_again_without_compiling_it(serve, monkeypatch):
    served = serve("x")
    first = post(served, CHAT, asked(choices_of(6)))
    monkeypatch.setattr(compiler, "grammar_of", None)
    assert post(served, CHAT, asked(choices_of(6))).json() == first.json()


def test_nulls_count_as_absent(serve):
    served = serve("x")
    for body in (
        {"response_format": None},
        {"structured_outputs": None, "guided_json": None},
        {"response_format": {"type": "text", "json_schema": None}},
    ):
        assert post(served, CHAT, body).status_code == 200
        assert served.engine.submissions[-1].grammar is None
    body = asked({"type": "object"}, strict=None, description=None) | structured(
        regex=None, choice=None, json_object=True
    )
    assert post(served, CHAT, body).json()["error"]["param"] == "structured_outputs.json_object"
    assert post(served, CHAT, asked({"const": None}, strict=None)).status_code == 200
    assert served.engine.submissions[-1].grammar is not None


def test_the_event_loop_works_no_longer_than_20_ms_at_once_while_another_client_streams(serve, codec):
    """By the CPU time of its thread between two timers of 2 ms, the shortest of three tries on new servers: the collector
    of garbage, which goes through all that this process of tests holds, makes single ones longer."""
    properties = {f"p{i}": {"type": "string", "maxLength": i} for i in range(1500)}
    costly = [body for body, *_ in WRONG if len(json.dumps(body)) > 5000]
    costly += [asked(choices_of(5)), asked(choices_of(6)), asked({"type": "object", "properties": properties})]
    tries: list[list[float]] = []
    for _ in range(3):
        served = serve(forever(codec), pace_seconds=0.005, max_context_length=100_000)
        with streaming(served) as held:
            tries.append([longest(served, body, held) for body in costly])
    for body, *times in zip(costly, *tries, strict=True):
        assert min(times) < 0.020, (json.dumps(body)[:150], times)


def longest(served: Served, body: dict[str, Any], held: list[float]) -> float:
    """The loop's longest turn, in CPU seconds, while the server answers."""
    held.clear()
    post(served, CHAT, {**body, "max_tokens": 1})
    eventually(lambda: len(held) > 1)
    return max(held)


@contextlib.contextmanager
def streaming(served: Served) -> Iterator[list[float]]:
    """While another client streams: the CPU seconds that the server's loop worked between two timers."""
    held: list[float] = []
    over = threading.Event()
    seen = 0

    def stream() -> None:
        nonlocal seen
        with served.client.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": "hi"}], stream=True
        ) as chunks:
            for _ in chunks:
                seen += 1
                if over.is_set():
                    return

    thread = threading.Thread(target=stream)
    thread.start()
    try:
        eventually(lambda: seen > 5)
        loop = served.bridge._loop
        loop.call_soon_threadsafe(_watch, loop, held, over)
        yield held
        before = seen
        eventually(lambda: seen > before)
    finally:
        over.set()
        thread.join()


def _watch(loop: Any, held: list[float], over: threading.Event) -> None:
    before = time.thread_time()

    def look() -> None:
        held.append(time.thread_time() - before)
        if not over.is_set():
            _watch(loop, held, over)

    loop.call_later(0.002, look)
