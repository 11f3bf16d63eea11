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
    if family != "gemma" and (special or family != "harmony")
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


def test_formats_without_a_grammar_are_refused():
    form = shape("gemma", chat_templates.GEMMA4, False)
    with pytest.raises(ConstraintError, match="cannot be held to a grammar"):
        constraint_for(form, TOOLS, mode="required", single=True, content=None)
    form = shape("llama3-json", chat_templates.LLAMA3, False)
    with pytest.raises(ConstraintError, match="both JSON objects"):
        constraint_for(form, TOOLS, mode="auto", single=True, content=Constraint.json_schema({}))


@pytest.mark.parametrize(
    ("family", "template"),
    [("qwen-xml", chat_templates.QWEN_XML), ("glm", chat_templates.GLM)],
    ids=["qwen-xml", "glm"],
)
def test_as_many_tools_as_a_request_may_hold_are_kept(family, template):
    """20 arguments each: more rules and characters than a grammar that a client writes may have."""
    schema = {"type": "object", "properties": {f"argument_{number}": {"type": "string"} for number in range(20)}}
    tools = [CalledTool(place, f"a_tool_with_the_number_{place}", schema, True) for place in range(128)]
    constraint = constraint_for(shape(family, template, True), tools, mode="required", single=True, content=None)
    _, grammars = tokens_of(family, True)
    grammars.compile(constraint)
    with pytest.raises(ConstraintError, match="characters beside its schemas"):
        grammars.compile(Constraint("grammar", constraint.text))
    with pytest.raises(ConstraintError, match="rules, at most 2000"):
        grammars.compile(Constraint("grammar", "start: r0\n" + "".join(f'r{i}: "a"\n' for i in range(2001))))
