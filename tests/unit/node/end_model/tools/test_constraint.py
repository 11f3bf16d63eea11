"""Whatever the grammar of tools allows is read as calls of the tools, with arguments that match their schemas."""

from __future__ import annotations

import functools
import json
import random

import jsonschema
import pytest
from languagepipes_node.end_model.reasoning.splitter import MARKS
from languagepipes_node.end_model.structured import Constraint, ConstraintError
from languagepipes_node.end_model.structured.compiler import Grammars
from languagepipes_node.end_model.tools.constraint import (
    AnswerShape,
    CalledTool,
    ToolConstraintError,
    constraint_for,
)
from languagepipes_node.end_model.tools.events import ArgumentText, CallBegin, Text
from languagepipes_node.end_model.tools.families import FAMILIES
from support import chat_templates
from support.tool_model import codec_of

SMALL = {
    "type": "object",
    "properties": {
        "kind": {"enum": ["a", "b c", 'd"e']},
        "count": {"type": "integer", "minimum": -5, "maximum": 120},
        "flag": {"type": ["boolean", "null"]},
        "list": {"type": "array", "items": {"type": "boolean"}, "maxItems": 2},
        "deep": {
            "type": "object",
            "properties": {"x": {"const": 1}},
            "required": ["x"],
            "additionalProperties": False,
        },
        "size": {"$ref": "#/$defs/Size"},
    },
    "required": ["kind", "deep"],
    "additionalProperties": False,
    "$defs": {"Size": {"enum": ["1", "2"]}},
}
EMPTY = {"type": "object", "properties": {}, "additionalProperties": False}
TOOLS = [CalledTool(0, "small", SMALL, True), CalledTool(1, "empty", EMPTY, True)]
SCHEMAS = {"small": SMALL, "empty": EMPTY}
# (family, template, whether its marks are special tokens); harmony's always are.
ENFORCED = [
    pytest.param(family, template, special, id=f"{number}-{family}-{'tokens' if special else 'text'}")
    for number, (family, template) in enumerate(chat_templates.OF_FAMILIES)
    for special in (False, True)
    if special or family != "harmony"
]
EVERY_FAMILY = pytest.mark.parametrize(("family", "template", "special"), ENFORCED)
AS_TOKENS = pytest.mark.parametrize("special", [False, True], ids=["text", "special tokens"])


@functools.cache
def tokens_of(family: str, special: bool):
    marks = FAMILIES[family].markers | {"<think>", "</think>"}
    # No tokenizer has special tokens of these.
    codec = codec_of("", sorted(marks - {"<function=", '{"name"'}) if special else [])
    return codec, Grammars(codec, known_ids=codec.vocabulary_size)


def shape(family: str, template: str, special: bool, **options) -> AnswerShape:
    codec, _ = tokens_of(family, special)
    names = {*FAMILIES[family].markers, "<think>", "</think>"}
    ids = {
        text: number
        for text in names
        for number in codec.special_ids([text])
        if codec.token_bytes(number).decode() == text
    }
    return AnswerShape(family, ids, template, harmony=family == "harmony", **options)


def drawn(family: str, special: bool, constraint: Constraint, seed: int) -> str:
    """Tokens drawn from all that may come next, stop tokens rarely, until the answer ends."""
    codec, grammars = tokens_of(family, special)
    state = grammars.compile(constraint).start(codec.stop_token_ids)
    randomness = random.Random(seed)
    shown = codec.special_ids(FAMILIES[family].markers)
    detokenizer = codec.detokenizer((), shown)
    text = ""
    for _ in range(3000):
        allowed = [token for token, forbidden in enumerate(state.mask()) if not forbidden]
        stops = [token for token in allowed if token in codec.stop_token_ids]
        if stops and randomness.random() < 0.3:
            return text + detokenizer.finish()
        token = randomness.choice([token for token in allowed if token not in codec.stop_token_ids] or stops)
        if token in codec.stop_token_ids:
            return text + detokenizer.finish()
        state.accept(token)
        text += detokenizer.push(token)
        if state.is_over:
            return text + detokenizer.finish()
    raise AssertionError("the answer has no end")


def allows(family: str, special: bool, constraint: Constraint, text: str) -> bool:
    """Whether the text, token by token as the tokenizer spells it, may be a whole answer."""
    codec, grammars = tokens_of(family, special)
    state = grammars.compile(constraint).start(codec.stop_token_ids)
    for token in codec.encode(text, add_special_tokens=False):
        if state.mask()[token]:
            return False
        state.accept(token)
    return state.is_over or any(not state.mask()[stop] for stop in codec.stop_token_ids)


def read(family: str, text: str) -> tuple[str, list[tuple[str, dict]]]:
    parser = FAMILIES[family].make(SCHEMAS)
    events = parser.feed(text) + parser.finish()
    names = [event.name for event in events if isinstance(event, CallBegin)]
    arguments = [json.loads(event.text) for event in events if isinstance(event, ArgumentText)]
    content = "".join(event.text for event in events if isinstance(event, Text))
    return content, list(zip(names, arguments, strict=True))


@EVERY_FAMILY
@pytest.mark.parametrize("single", [False, True], ids=["several", "single"])
def test_a_call_that_is_demanded_is_made_and_matches(family, template, special, single):
    constraint = constraint_for(shape(family, template, special), TOOLS, mode="required", single=single, content=None)
    counts = set()
    for seed in range(12):
        text = drawn(family, special, constraint, seed)
        content, calls = read(family, text)
        assert content.strip() == "", text
        assert calls, text
        counts.add(len(calls))
        for name, arguments in calls:
            jsonschema.validate(arguments, SCHEMAS[name], jsonschema.Draft202012Validator)
    assert max(counts) == 1 if single or family == "harmony" else max(counts) > 1


@EVERY_FAMILY
def test_a_strict_tool_is_held_to_its_schema_and_content_is_free(family, template, special):
    tools = [CalledTool(0, "small", SMALL, True), CalledTool(1, "empty", {}, False)]
    form = shape(family, template, special)
    constraint = constraint_for(form, tools, mode="auto", single=False, content=None)
    required = constraint_for(form, tools[:1], mode="required", single=True, content=None)
    call = drawn(family, special, required, 3)
    final = "<|channel|>final<|message|>" if family == "harmony" else ""
    assert allows(family, special, constraint, f"{final}Hello world, how are you?")
    assert allows(family, special, constraint, call)
    if family != "harmony":
        assert allows(family, special, constraint, f"Hello world, {call}")
    assert '"d' in call or "a" in call
    broken = call.replace("small", "smaller")
    assert not allows(family, special, constraint, broken)
    assert not allows(family, special, constraint, f"{final}Hello {broken}") or family == "harmony"


@AS_TOKENS
def test_thinking_may_come_before_a_call_and_must_where_the_prompt_began_it(special):
    tools = [CalledTool(0, "empty", EMPTY, True)]
    call = '<tool_call>\n{"name": "empty", "arguments": {}}\n</tool_call>'
    for inside, good, bad in (
        (False, [call, f"<think>\nHello world\n</think>\n\n{call}"], ["Hello", f"Hello</think>{call}", "<think>Hello"]),
        (True, [f"Hello world</think>{call}", f"\n\n</think>\n{call}"], [call, "Hello"]),
    ):
        form = shape("hermes", chat_templates.HERMES, special, marks=MARKS[0], inside=inside)
        constraint = constraint_for(form, tools, mode="required", single=True, content=None)
        assert all(allows("hermes", special, constraint, text) for text in good)
        assert not any(allows("hermes", special, constraint, text) for text in bad)


@AS_TOKENS
def test_content_that_must_match_comes_behind_thinking_and_in_place_of_calls(special):
    content = Constraint.json_schema({"type": "integer"})
    form = shape("hermes", chat_templates.HERMES, special, marks=MARKS[0], inside=True)
    alone = constraint_for(form, [], mode="auto", single=False, content=content)
    assert allows("hermes", special, alone, "Hello</think>\n\n12")
    assert not allows("hermes", special, alone, "12")
    form = shape("hermes", chat_templates.HERMES, special)
    both = constraint_for(form, TOOLS, mode="auto", single=False, content=content)
    assert allows("hermes", special, both, "12")
    assert allows("hermes", special, both, '<tool_call>\n{"name": "empty", "arguments": {}}\n</tool_call>')
    assert not allows("hermes", special, both, "twelve")
    assert constraint_for(form, [], mode="auto", single=False, content=content) is content
    harmony = shape("harmony", chat_templates.HARMONY, special)
    constraint = constraint_for(harmony, [], mode="auto", single=False, content=content)
    thought = "<|channel|>analysis<|message|>Hello<|end|><|start|>assistant"
    assert allows("harmony", special, constraint, f"{thought}<|channel|>final<|message|>12")
    assert not allows("harmony", special, constraint, "12")


def test_thinking_may_begin_with_a_mark_of_which_a_part_is_a_special_token():
    """As Gemma 4's does."""
    marks = MARKS[3]
    codec = codec_of("", ["<|channel>", "<channel|>"])
    grammars = Grammars(codec, known_ids=codec.vocabulary_size)
    form = AnswerShape(None, codec.special_tokens(marks), "", marks=marks)
    content = Constraint.json_schema({"type": "integer"})
    constraint = constraint_for(form, [], mode="auto", single=False, content=content)

    def allowed(text: str) -> bool:
        state = grammars.compile(constraint).start(codec.stop_token_ids)
        for token in codec.encode(text, add_special_tokens=False):
            if state.mask()[token]:
                return False
            state.accept(token)
        return True

    assert allowed("<|channel>thought\nHello<channel|>12")
    assert allowed("12")
    assert not allowed("<|channel>final\nHello<channel|>12")
    assert not allowed("<|channel>thought\nHello<channel|>twelve")


@AS_TOKENS
@pytest.mark.parametrize("broken", ["", "\n"], ids=["in a line", "in lines"])
def test_the_parts_of_glms_calls_may_stand_on_lines_of_their_own(special, broken):
    schema = {"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "integer"}}, "required": ["a"]}
    tools = [CalledTool(0, "small", schema, True)]
    constraint = constraint_for(
        shape("glm", chat_templates.GLM, special), tools, mode="required", single=True, content=None
    )
    parts = ["<tool_call>small", "<arg_key>a</arg_key>", "<arg_value>x y</arg_value>"]
    assert allows("glm", special, constraint, broken.join([*parts, "</tool_call>"]))
    parts += ["<arg_key>b</arg_key>", "<arg_value>12</arg_value>"]
    assert allows("glm", special, constraint, broken.join([*parts, "</tool_call>"]))
    assert not allows("glm", special, constraint, broken.join([*parts, "and </tool_call>"]))


def test_text_values_may_hold_anything_but_their_end():
    text = {"type": "object", "properties": {"code": {"type": "string"}}, "required": ["code"]}
    tools = [CalledTool(0, "small", text, True)]
    form = shape("qwen-xml", chat_templates.QWEN_XML, False)
    constraint = constraint_for(form, tools, mode="required", single=True, content=None)
    written = (
        "<tool_call>\n<function=small>\n<parameter=code>\nif a < b:\n  </p>\n\n</parameter>\n</function>\n</tool_call>"
    )
    assert allows("qwen-xml", False, constraint, written)
    assert not allows("qwen-xml", False, constraint, written.replace("=code", "=codes"))
    assert allows("qwen-xml", False, constraint, written.replace("if a", "<parameter>a"))
    for begun in ("  </p>", "if a"):
        assert not allows("qwen-xml", False, constraint, written.replace(begun, "<parameter=code>"))


def test_without_demand_and_strictness_any_text_will_do():
    form = shape("hermes", chat_templates.HERMES, False)
    loose = [CalledTool(0, "small", SMALL, False)]
    assert constraint_for(form, loose, mode="auto", single=True, content=None) is None
    assert constraint_for(form, [], mode="auto", single=True, content=None) is None


@pytest.mark.parametrize(
    ("family", "template", "schema", "path"),
    [
        ("hermes", chat_templates.HERMES, {"properties": {"a": {"not": {}}}}, ".properties.a.not"),
        ("qwen-xml", chat_templates.QWEN_XML, {"minProperties": 1}, ".minProperties"),
        (
            "qwen-xml",
            chat_templates.QWEN_XML,
            {"properties": {"a": {"type": "string", "pattern": "x"}}},
            ".properties.a",
        ),
        ("qwen-xml", chat_templates.QWEN_XML, {"properties": {"a>": {"type": "null"}}}, ".properties.a>"),
        ("glm", chat_templates.GLM, {"properties": {}, "required": ["a"]}, ".required"),
        *(
            ("gemma", chat_templates.GEMMA4, schema, path)
            for schema, path in (
                ({"properties": {"a": {"type": "string", "pattern": "x"}}}, ".properties.a.pattern"),
                ({"properties": {"a": {"type": "string", "maxLength": 3}}}, ".properties.a.maxLength"),
                ({"properties": {"a": {"items": {"not": {}}}}}, ".properties.a.items.not"),
                ({"properties": {"a": {"prefixItems": [{"type": "null"}]}}}, ".properties.a.prefixItems"),
                ({"properties": {"a": {"items": {"minLength": 1}}}}, ".properties.a.items.minLength"),
                ({"properties": {"a:b": {"type": "null"}}}, ".properties.a:b"),
                ({"properties": {"a": {"enum": ["x", '<|"|>']}}}, ".properties.a.enum"),
                ({"properties": {"a": {"oneOf": [{"type": "integer"}, {"type": "number"}]}}}, ".properties.a.oneOf"),
                ({"properties": {"a": {"allOf": [{"type": "null"}, {}]}}}, ".properties.a.allOf"),
                ({"properties": {"a": {"$ref": "#"}}}, ".properties.a.$ref"),
                ({"properties": {"a": {"type": "object", "required": ["b"]}}}, ".properties.a.required"),
                ({"minProperties": 1}, ".minProperties"),
                ({"patternProperties": {"a": {}}}, ".patternProperties"),
            )
        ),
    ],
)
def test_a_schema_that_cannot_be_kept_is_refused_with_its_place(family, template, schema, path):
    tools = [CalledTool(4, "small", schema, True)]
    with pytest.raises(ToolConstraintError) as refused:
        constraint_for(shape(family, template, False), tools, mode="required", single=True, content=None)
    assert (refused.value.place, refused.value.path, refused.value.unsupported) == (4, path, True)


@EVERY_FAMILY
def test_a_tool_that_is_not_strict_is_held_to_some_object_where_its_schema_cannot_be_kept(family, template, special):
    unkept = {"properties": {"tags": {"type": "array", "uniqueItems": True}}, "required": ["tags"], "not": {}}
    tools = [CalledTool(0, "small", unkept, True, strict=False), CalledTool(1, "empty", EMPTY, True)]
    form = shape(family, template, special)
    loose = [CalledTool(0, "small", unkept, False), tools[1]]
    assert constraint_for(form, tools, mode="required", single=True, content=None) == constraint_for(
        form, loose, mode="required", single=True, content=None
    )
    tools[0] = CalledTool(0, "small", unkept, True)
    with pytest.raises(ToolConstraintError):
        constraint_for(form, tools, mode="required", single=True, content=None)


def test_of_gemmas_tools_those_that_are_not_strict_and_not_kept_are_some_object():
    unkept = {"properties": {"a": {"type": "integer"}, "b": {"type": "string", "minLength": 2}}, "required": ["b"]}
    tools = [CalledTool(0, "small", unkept, True, strict=False), CalledTool(1, "empty", EMPTY, True)]
    form = shape("gemma", chat_templates.GEMMA4, True)
    constraint = constraint_for(form, tools, mode="required", single=False, content=None)
    for arguments, name, good in (("{}", "small", True), ("{x:[1]}", "small", True), ("{x:1}", "empty", False)):
        text = f"<|tool_call>call:{name}{arguments}<tool_call|>"
        assert allows("gemma", True, constraint, text) == good


def test_content_of_json_beside_calls_of_llama_3_is_refused():
    form = shape("llama3-json", chat_templates.LLAMA3, False)
    with pytest.raises(ConstraintError, match="both JSON objects"):
        constraint_for(form, TOOLS, mode="auto", single=True, content=Constraint.json_schema({}))


@pytest.mark.parametrize(
    ("family", "template"),
    [("qwen-xml", chat_templates.QWEN_XML), ("glm", chat_templates.GLM), ("gemma", chat_templates.GEMMA4)],
    ids=["qwen-xml", "glm", "gemma"],
)
def test_as_many_tools_as_a_request_may_hold_are_kept(family, template):
    """20 arguments each: more rules and characters than a grammar that a client writes may have."""
    schema = {"type": "object", "properties": {f"argument_{number}": {"type": "string"} for number in range(20)}}
    tools = [CalledTool(place, f"a_tool_with_the_number_{place}", schema, True) for place in range(128)]
    constraint = constraint_for(shape(family, template, True), tools, mode="required", single=True, content=None)
    _, grammars = tokens_of(family, True)
    grammars.compile(constraint)
    with pytest.raises(ConstraintError, match=r"characters beside its schemas|rules, at most 2000"):
        grammars.compile(Constraint("grammar", constraint.text))
    with pytest.raises(ConstraintError, match="rules, at most 2000"):
        grammars.compile(Constraint("grammar", "start: r0\n" + "".join(f'r{i}: "a"\n' for i in range(2001))))


GEMMA = [
    pytest.param(template, special, id=f"{name}-{'tokens' if special else 'text'}")
    for name, template in (("functiongemma", chat_templates.FUNCTION_GEMMA), ("gemma4", chat_templates.GEMMA4))
    for special in (False, True)
]
RICH = {
    "type": "object",
    "properties": {
        "text": {"type": "string"},
        "count": {"type": "integer"},
        "size": {"type": "number", "minimum": 0, "exclusiveMaximum": 10},
        "exact": {"type": ["number", "null"]},
        "kind": {"enum": ["a, b", "", 1, 2.5, None, True, [1, "x"], {"y": [], "z": "{}"}]},
        "some": {"type": "array", "items": {"type": "integer", "maximum": 9}, "minItems": 2, "maxItems": 3},
        "none": {"type": "array", "maxItems": 0},
        "few": {"type": "array", "items": {"type": "boolean"}, "maxItems": 1},
        "single": {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 1},
        "least": {"items": {"type": "boolean"}, "minItems": 1},
        "either": {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "null"}}]},
        "one": {"oneOf": [{"type": "boolean"}, {"type": "object", "additionalProperties": {"type": "boolean"}}]},
        "tree": {"$ref": "#/$defs/Tree"},
        "all": {"allOf": [{"const": "only"}]},
        "free": {"type": "object"},
        "empty": {"type": "object", "additionalProperties": False},
        "whatever": {},
    },
    "$defs": {
        "Tree": {
            "type": "object",
            "properties": {"leaf": {"type": "integer"}, "left": {"$ref": "#/$defs/Tree"}},
            "additionalProperties": False,
        }
    },
    "additionalProperties": False,
}


# What is drawn at random hardly ever spells the end of a free text.
@pytest.mark.parametrize(
    ("template", "special", "name"),
    [
        pytest.param(*gemma.values, name, id=f"{gemma.id}-{name}")
        for gemma in GEMMA
        for name in RICH["properties"]
        if gemma.values[1] or name not in ("text", "either", "free", "whatever")
    ],
)
def test_each_kind_of_value_is_held_in_gemmas_form(template, special, name):
    schema = {**RICH, "properties": {"before": {"type": "null"}, name: RICH["properties"][name]}, "required": [name]}
    tools = [CalledTool(0, "small", schema, True)]
    constraint = constraint_for(shape("gemma", template, special), tools, mode="required", single=True, content=None)
    for seed in range(6):
        text = drawn("gemma", special, constraint, seed)
        parser = FAMILIES["gemma"].make({"small": schema})
        events = parser.feed(text) + parser.finish()
        assert not parser.broken, text
        arguments = json.loads("".join(event.text for event in events if isinstance(event, ArgumentText)))
        jsonschema.validate(arguments, schema, jsonschema.Draft202012Validator)


@pytest.mark.parametrize(("template", "special"), GEMMA)
def test_properties_stand_in_one_order_with_commas_between_and_optional_ones_may_be_left_out(template, special):
    properties = {name: {"type": "integer"} for name in ("b", "a", "d", "c")}
    orders = (("b", "a", "d", "c"), template), (("a", "b", "c", "d"), template + "{# | dictsort #}")
    for order, written in orders:
        for required in ((), ("a",), ("d", "c"), ("b", "c")):
            schema = {"properties": properties, "required": list(required)}
            tools = [CalledTool(0, "small", schema, True)]
            form = shape("gemma", written, special)
            constraint = constraint_for(form, tools, mode="required", single=True, content=None)
            begin, end = ("<|tool_call>", "<tool_call|>") if "<|tool_call>" in template else (
                "<start_function_call>", "<end_function_call>"
            )  # fmt: skip
            for chosen in range(16):
                names = [name for place, name in enumerate(order) if chosen & 1 << place]
                text = f"{begin}call:small{{{','.join(f'{name}:{chosen}' for name in names)}}}{end}"
                assert allows("gemma", special, constraint, text) == set(required).issubset(names)
            assert not allows("gemma", special, constraint, f"{begin}call:small{{b:1,a:2,d:3,c:4,}}{end}")
            assert not allows("gemma", special, constraint, f"{begin}call:small{{{order[1]}:1,{order[0]}:1}}{end}")


@pytest.mark.parametrize(("template", "special"), GEMMA)
def test_text_in_gemmas_form_may_hold_anything_but_its_end(template, special):
    schema = {"properties": {"text": {"type": "string"}, "more": {}}, "required": ["text"]}
    tools = [CalledTool(0, "small", schema, True)]
    constraint = constraint_for(shape("gemma", template, special), tools, mode="required", single=True, content=None)
    begin, end, quote = "<start_function_call>", "<end_function_call>", "<escape>"
    if begin not in template:
        begin, end, quote = "<|tool_call>", "<tool_call|>", '<|"|>'
    for arguments, good in (
        (f'{{text:{quote}if a < b: {{"x"}}\n\t}},{quote}}}', True),
        (f"{{text:{quote}{quote}}}", True),
        (f"{{text:{quote}a{quote},more:{{x:[1,{quote},{quote},{{}}],y:null}}}}", True),
        (f"{{text:{quote}a{quote}b{quote}}}", False),
        ("{text:12}", False),
        ('{text:"a"}', False),
        (f"{{more:{quote}a{quote}}}", False),
    ):
        assert allows("gemma", special, constraint, f"{begin}call:small{arguments}{end}") == good
