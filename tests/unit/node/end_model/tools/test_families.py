"""Each family's template writes calls, and its parser reads them back, however the text is cut."""

from __future__ import annotations

import json
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from languagepipes_api.plan import ToolParser
from languagepipes_node.end_model.text import ChatTemplate
from languagepipes_node.end_model.tools.arguments import MAX_CALLS
from languagepipes_node.end_model.tools.events import ArgumentText, CallBegin, Event, Reasoning, Text
from languagepipes_node.end_model.tools.families import FAMILIES, detect
from support import chat_templates
from support.chat_templates import OF_FAMILIES

TOOLS = {
    "get_weather": {
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "days": {"type": "integer"},
            "exact": {"type": "number"},
            "metric": {"type": "boolean"},
            "where": {"type": "object"},
            "names": {"type": "array", "items": {"type": "string"}},
            "note": {"type": ["string", "null"]},
            "code": {"type": "string"},
            "size": {"$ref": "#/$defs/Size"},
            "maybe": {"anyOf": [{"$ref": "#/$defs/Size"}, {"type": "null"}]},
            "loop": {"$ref": "#/$defs/Loop"},
        },
        "$defs": {"Size": {"enum": ["1", "2"]}, "Loop": {"$ref": "#/$defs/Loop"}},
    },
    "now": {"type": "object", "properties": {}},
}
PLAIN = {"city": "Paris", "days": 3}
RICH = {
    "city": "Zürich 東京 🎉 'single'",
    "days": -4,
    "exact": 2.5,
    "metric": True,
    "where": {"lat": 47.4, "deep": {"list": [1, None, False, {"a": "b, c: {d}"}]}},
    "names": ["a", "", "c\nd"],
    "note": None,
    "code": 'if a < b:\n\treturn "x"  # \\ {[<tag>]}',
}
BY_TEMPLATE = pytest.mark.parametrize(
    ("family", "template"), OF_FAMILIES, ids=[f"{number}-{name}" for number, (name, _) in enumerate(OF_FAMILIES)]
)


def written(template: str, calls: list[tuple[str, dict]], content: str = "") -> str:
    """What a model of the template's family writes: its part of the rendered history."""
    as_string = template is chat_templates.DEEPSEEK_V3
    message = {
        "role": "assistant",
        "content": content,
        "tool_calls": [
            {
                "id": f"abcdefgh{number}",
                "type": "function",
                "function": {
                    "name": name,
                    "arguments": json.dumps(arguments, ensure_ascii=False) if as_string else arguments,
                },
            }
            for number, (name, arguments) in enumerate(calls)
        ],
    }
    user = {"role": "user", "content": "?"}
    chat = ChatTemplate(template, {})
    answer = chat.render([user, message], {}).removeprefix(chat.render([user], {}))
    return answer.removesuffix("[assistant]").removesuffix("<|start|>assistant").removesuffix("[end]\n")


def read(family: str, pieces: list[str], **options) -> tuple[str, list[tuple[str, str]], str]:
    """(content, calls, thinking)"""
    parser = FAMILIES[family].make(TOOLS, **options)
    return joined([event for piece in pieces for event in parser.feed(piece)] + parser.finish())


def merged(events: list[Event]) -> list[tuple[type[Event], str]]:
    """Events of one kind that follow each other as one; ids are left out."""
    found: list[tuple[type[Event], str]] = []
    for event in events:
        text = event.name if isinstance(event, CallBegin) else event.text
        if found and found[-1][0] is type(event) is not CallBegin:
            text = found.pop()[1] + text
        found.append((type(event), text))
    return found


def joined(events: list[Event]) -> tuple[str, list[tuple[str, str]], str]:
    """(content, calls, thinking)"""
    calls: list[list[str]] = []
    content = thinking = ""
    for event in events:
        match event:
            case Text(text):
                content += text
            case Reasoning(text):
                thinking += text
            case CallBegin(_, name):
                calls.append([name, ""])
            case ArgumentText(text):
                calls[-1][1] += text
    return content, [(name, arguments) for name, arguments in calls], thinking


def parsed(calls: list[tuple[str, str]]) -> list[tuple[str, dict]]:
    return [(name, json.loads(arguments)) for name, arguments in calls]


def test_the_families_are_those_that_a_pipe_may_name():
    assert {"auto", *FAMILIES} == set(get_args(ToolParser))


@BY_TEMPLATE
def test_the_family_is_known_by_its_template(family, template):
    assert detect(template) == family


@BY_TEMPLATE
@pytest.mark.parametrize("arguments", [PLAIN, RICH, {}], ids=["plain", "rich", "none"])
def test_a_call_is_read_back(family, template, arguments):
    content, calls, _ = read(family, [written(template, [("get_weather", arguments)])])
    assert parsed(calls) == [("get_weather", arguments)]
    assert content.strip() == ""


@BY_TEMPLATE
def test_several_calls_are_read_back_in_order(family, template):
    expected = [("get_weather", PLAIN), ("now", {}), ("get_weather", RICH)]
    content, calls, _ = read(family, [written(template, expected)])
    assert parsed(calls) == expected
    assert content.strip() == ""


@BY_TEMPLATE
def test_a_call_is_the_same_wherever_the_text_is_cut(family, template):
    text = written(template, [("get_weather", RICH), ("now", {})])
    whole = read(family, [text])
    assert len(whole[1]) == 2
    assert read(family, list(text)) == whole
    for place in range(len(text) + 1):
        assert read(family, [text[:place], text[place:]]) == whole


@BY_TEMPLATE
def test_text_before_and_after_calls_is_content(family, template):
    text = written(template, [("get_weather", PLAIN)], content="Let me see.")
    before, calls, _ = read(family, list(text))
    assert (before, parsed(calls)) == ("Let me see.", [("get_weather", PLAIN)])
    if family != "harmony":
        content, calls, _ = read(family, list(text + "\nDone."))
        assert (content, parsed(calls)) == ("Let me see.\nDone.", [("get_weather", PLAIN)])


@BY_TEMPLATE
def test_an_answer_of_one_call_ends_with_the_first(family, template):
    text = written(template, [("now", {}), ("get_weather", PLAIN)])
    for pieces in ([text], list(text)):
        _, calls, _ = read(family, pieces, single=True)
        assert parsed(calls) == [("now", {})]


@BY_TEMPLATE
def test_a_call_of_a_tool_that_was_not_offered_is_content(family, template):
    text = written(template, [("get_weather", PLAIN)]).replace("get_weather", "set_weather")
    content, calls, _ = read(family, list(text))
    assert calls == []
    assert "set_weather" in content
    assert "Paris" in content


@BY_TEMPLATE
@pytest.mark.parametrize("arguments", [PLAIN, RICH], ids=["plain", "rich"])
def test_an_answer_that_is_cut_off_in_a_call_keeps_the_call_and_what_there_is_of_it(family, template, arguments):
    text = written(template, [("get_weather", arguments)])
    [(_, whole)] = read(family, [text])[1]
    begun = False
    for place in range(len(text)):
        parser = FAMILIES[family].make(TOOLS)
        events = parser.feed(text[:place]) + parser.finish()
        content, calls, _ = joined(events)
        if place % 16 == 0:
            assert (content, calls) == read(family, list(text[:place]))[:2]
        if begun or calls:
            begun = True
            [(name, partial)] = calls
            assert (name, content.strip()) == ("get_weather", "")
            assert whole.startswith(partial)
            assert parser.broken == (partial != whole)
        else:
            assert not parser.broken
    assert begun


@BY_TEMPLATE
def test_what_was_given_out_is_never_taken_back(family, template):
    """The events of every beginning begin those of the whole, and arguments of text come letter by letter."""
    text = written(template, [("get_weather", RICH), ("now", {})], content="I look.")
    parser = FAMILIES[family].make(TOOLS)
    pieces = [event for letter in text for event in parser.feed(letter)] + parser.finish()
    whole = merged(pieces)
    for place in range(0, len(text), 31):
        parser = FAMILIES[family].make(TOOLS)
        begun = merged([event for letter in text[:place] for event in parser.feed(letter)])
        *before, last = begun or [None]
        assert before == whole[: len(before)]
        assert last is None or last[0] == whole[len(before)][0]
        assert last is None or whole[len(before)][1].startswith(last[1])
    arguments = [event.text for event in pieces if isinstance(event, ArgumentText)]
    start = arguments.index("Z")
    assert arguments[start : start + 6] == list("Zürich")


@BY_TEMPLATE
def test_an_answer_that_ends_behind_a_tools_name_is_a_call_of_it(family, template):
    text = written(template, [("get_weather", PLAIN)])
    behind = {"hermes": '", ', "llama3-json": '", ', "harmony": "<|message|>", "deepseek": "\n", "qwen-xml": ">"}
    mark = behind.get(family, "{" if family == "gemma" else '", ' if '"name"' in text else "[ARGS]")
    mark = {"glm": "<arg_key>"}.get(family, "<｜tool▁sep｜>" if template is chat_templates.DEEPSEEK_V31 else mark)
    cut = text[: text.index(mark, text.index("get_weather")) + len(mark)]
    for pieces in ([cut], list(cut)):
        content, calls, _ = read(family, pieces)
        assert (content.strip(), calls) == ("", [("get_weather", "")])


@BY_TEMPLATE
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_no_text_is_lost_and_nothing_is_raised(family, template, data):
    """Pieces of calls in any order: what is not read as a call is content, and cuts change nothing."""
    text = written(template, [("get_weather", PLAIN), ("now", {})])
    marks = [*sorted(FAMILIES[family].markers), "{", "}", '"', "get_weather", ">", "\n", " ", "x", ":", text]
    parts = data.draw(st.lists(st.one_of(st.sampled_from(marks), st.text(max_size=3)), max_size=12))
    answer = "".join(parts)
    whole = read(family, [answer])
    assert read(family, list(answer)) == whole
    parser = FAMILIES[family].make(TOOLS)
    parser.feed(answer)
    parser.finish()
    if family != "harmony" and not whole[1]:
        assert whole[0] == answer
    if not parser.broken:
        for _, arguments in whole[1]:
            assert isinstance(json.loads(arguments), dict)


@pytest.mark.parametrize(
    ("family", "text"),
    [
        ("hermes", '<tool_call>{"name": "now", "arguments": [1]}</tool_call>'),
        ("hermes", '<tool_call>{"name": ["now"], "arguments": {}}</tool_call>'),
        ("hermes", '<tool_call>{"arguments": {}}</tool_call>'),
        ("hermes", "<tool_call>" + '{"a":' * 5000 + "1" + "}" * 5000 + "</tool_call>"),
        ("hermes", '<tool_call>{"name": "now" "arguments": {}}</tool_call>'),
        ("hermes", '<tool_call>{"name" "now"}</tool_call>'),
        ("hermes", '<tool_call>{1: "now", "name": "now"}</tool_call>'),
        ("hermes", '<tool_call>{"name": "now", "parameters": "[]"}</tool_call>'),
        ("hermes", '<tool_call>{"name": "now", "arguments": nonsense}</tool_call>'),
        ("hermes", '<tool_call>{"arguments": {"a": NaN}, "name": "now"}</tool_call>'),
        ("hermes", '<tool_call>{"arguments": {}, "name": "later"}</tool_call>'),
        ("gemma", '<start_function_call>call:now{"\\ud800":1}<end_function_call>'),
        ("llama3-json", '{"city": "Paris"}'),
        ("llama3-json", '{"name": "Bob", "age": 3} is the answer'),
        ("llama3-json", '<|python_tag|>brave_search.call(query="x")'),
        ("mistral", "[TOOL_CALLS][]"),
        ("qwen-xml", "<function=now>text</function>"),
        ("glm", "<tool_call>now<arg_key>a</arg_key>b</tool_call>"),
        ("gemma", "<start_function_call>call:now{a}<end_function_call>"),
        ("deepseek", "<｜tool▁calls▁begin｜>now<｜tool▁calls▁end｜>"),
    ],
)
def test_a_malformed_call_is_content_as_it_stands(family, text):
    assert read(family, [text])[:2] == (text, [])
    assert read(family, list(text))[:2] == (text, [])


def test_a_good_call_after_a_malformed_one_is_a_call():
    text = '<tool_call>nonsense</tool_call><tool_call>{"name": "now", "arguments": {}}</tool_call>'
    assert read("hermes", list(text)) == ("<tool_call>nonsense</tool_call>", [("now", "{}")], "")


@pytest.mark.parametrize("sign", ["\n", "\t", "\x00"])
def test_a_control_character_at_a_strings_end_is_no_escape_of_its_quote(sign):
    call = f'<tool_call>{{"name": "now", "arguments": {{}}, "id": "1{sign}"}}</tool_call>'
    for pieces in ([call * 2], list(call * 2)):
        assert read("hermes", pieces) == ("", [("now", "{}")] * 2, "")


def test_arguments_keep_the_digits_that_the_model_wrote():
    text = '<tool_call>{"name": "get_weather", "arguments": {"exact": 1.10, "days": 1e2}}</tool_call>'
    assert read("hermes", [text])[1] == [("get_weather", '{"exact": 1.10, "days": 1e2}')]


def test_arguments_in_a_string_are_read_as_the_object_that_it_holds():
    text = '<tool_call>{"name": "now", "arguments": "{\\"a\\": 1}"}</tool_call>'
    assert read("hermes", [text])[1] == [("now", '{"a": 1}')]


@pytest.mark.parametrize(
    ("key", "raw", "expected"),
    [
        ("city", "12", "12"),
        ("city", "null", "null"),
        ("days", "12", 12),
        ("days", "many", "many"),
        ("metric", "True", True),
        ("note", "null", None),
        ("note", "12", "12"),
        ("where", '{"a": [1]}', {"a": [1]}),
        ("size", "1", "1"),
        ("maybe", "1", "1"),
        ("maybe", "null", None),
        ("loop", "1", 1),
        ("unknown", "12", 12),
        ("unknown", "word", "word"),
        ("code", "<b>\n</parameter>\n</b>", "<b>\n</parameter>\n</b>"),
    ],
)
def test_values_without_quotes_have_the_type_of_the_schema(key, raw, expected):
    text = f"<tool_call>\n<function=get_weather>\n<parameter={key}>\n{raw}\n</parameter>\n</function>\n</tool_call>"
    assert parsed(read("qwen-xml", list(text))[1]) == [("get_weather", {key: expected})]


def test_harmony_tells_thinking_preamble_and_answer_apart():
    text = (
        "<|channel|>analysis<|message|>Hmm, the user asks.<|end|>"
        "<|start|>assistant<|channel|>commentary<|message|>I look.<|end|>"
        "<|start|>assistant to=functions.now<|channel|>commentary json<|message|>{}"
    )
    for pieces in ([text], list(text)):
        assert read("harmony", pieces) == ("I look.", [("now", "{}")], "Hmm, the user asks.")


def test_ids_of_mistral_have_the_nine_characters_that_its_templates_ask_for():
    parser = FAMILIES["mistral"].make(TOOLS)
    events = parser.feed("[TOOL_CALLS]now[ARGS]{}")
    assert len(events[0].id) == 9
    assert events[0].id.isalnum()


@pytest.mark.parametrize(
    ("written", "given"),
    [
        (r'"\ud800"', r'"\ufffd"'),
        (r'"\udc00\ud83d"', r'"\ufffd\ufffd"'),
        (r'"\ud83d\ude00"', r'"\ud83d\ude00"'),
        (r'"\ud83d\ud83d\ude00\n\\ud800"', r'"\ufffd\ud83d\ude00\n\\ud800"'),
        ('"a\nb\tc\x01"', r'"a\nb\tc\u0001"'),
    ],
)
def test_what_no_string_of_json_may_hold_is_escaped_in_arguments(written, given):
    for family, head, tail in (
        ("hermes", '<tool_call>{"name": "now", "arguments": ', "}</tool_call>"),
        ("hermes", '<tool_call>{"name": "now", "parameters": ', "}</tool_call>"),
        ("harmony", "<|channel|>commentary to=functions.now<|message|>", "<|call|>"),
        ("mistral", "[TOOL_CALLS]now[ARGS]", ""),
    ):
        text = f'{head}{{"a": {written}}}{tail}'
        for pieces in ([text], list(text)):
            assert read(family, pieces) == ("", [("now", f'{{"a": {given}}}')], "")


@pytest.mark.parametrize(
    ("family", "text", "arguments", "content"),
    [
        ("hermes", '<tool_call>{"name": "now", "arguments": {"a": NaN}}</tool_call>', '{"a": NaN}', ""),
        ("hermes", '<tool_call>{"name": "now", "arguments": {"a": 1,}}</tool_call>', '{"a": 1,}', ""),
        ("hermes", '<tool_call>{"name": "now", "arguments": {"a": </tool_call> b', '{"a": ', "</tool_call> b"),
        ("hermes", '<tool_call>{"name": "now", "arguments": {},}</tool_call>', "{}", ""),
        ("hermes", '<tool_call>{"name": "now", "arguments": {}</tool_call>', "{}", ""),
        ("hermes", '<tool_call>{"name": "now", "arguments": {}, 1}</tool_call>', "{}", ", 1}</tool_call>"),
        (
            "mistral",
            '[TOOL_CALLS][{"name": "now", "arguments": {}}, {"name": "later", "arguments": {}}]',
            "{}",
            ', {"name": "later", "arguments": {}}]',
        ),
        ("harmony", "<|channel|>commentary to=functions.now<|message|>{'a'}<|call|>", "{", "'a'}"),
        ("harmony", "<|channel|>commentary to=functions.now<|message|>{} and<|call|>", "{}", "and"),
        ("qwen-xml", "<function=now><parameter=a>\n1\n</parameter> b", "", "1\n</parameter> b"),
        ("glm", "<tool_call>now<arg_key>a</arg_key><arg_value>1</arg_value>b</tool_call>", '{"a": 1', "b</tool_call>"),
        ("gemma", "<start_function_call>call:now{a:1 b}", '{"a": 1', " b}"),
    ],
)
def test_a_call_that_has_begun_stays_one_and_what_follows_its_fault_is_content(family, text, arguments, content):
    for pieces in ([text], list(text)):
        shown, calls, _ = read(family, pieces)
        if family == "qwen-xml":  # nothing follows that shows the value's end
            assert (shown, calls) == ("", [("now", arguments)])
        else:
            assert (shown, calls) == (content, [("now", arguments)])


@pytest.mark.parametrize(
    "text",
    [
        '{"name": "get_weather", "arguments": {"city": "Paris", "days": 3}}',
        '{"arguments": {"city": "Paris", "days": 3}, "name": "get_weather"}',
        '{"id": "1", "parameters": {"city": "Paris", "days": 3}, "more": [{"name": "x"}], "name": "get_weather"}',
        '{\n  "name": "get_weather",\n  "id": 7,\n  "arguments": {\n    "city": "Paris",\n    "days": 3\n  }\n}',
        '{"name": "get_weather", "arguments": "{\\"city\\": \\"Paris\\", \\"days\\": 3}", "name": "now"}',
        '{"arguments": "{\\"city\\": \\"Paris\\", \\"days\\": 3}", "name": "get_weather"}',
        '{"name": "get_weather", "arguments": null, "parameters": {"city": "Paris", "days": 3}}',
        '{"name": "get_weather", "parameters": {"city": "Paris", "days": 3}, "arguments": null}',
    ],
)
@pytest.mark.parametrize(("family", "mark"), [("hermes", "<tool_call>{}</tool_call>"), ("mistral", "[TOOL_CALLS][{}]")])
def test_a_calls_members_may_come_in_any_order(family, mark, text):
    text = mark.replace("{}", text)
    whole = read(family, [text])
    assert (whole[0], parsed(whole[1])) == ("", [("get_weather", PLAIN)])
    for place in range(len(text) + 1):
        assert read(family, [text[:place], text[place:]]) == whole


def test_arguments_of_text_that_stands_without_quotes_come_as_they_are_written_and_others_when_they_are_whole():
    parser = FAMILIES["qwen-xml"].make(TOOLS)

    def pieces(text: str) -> list[str]:
        return [event.text for event in parser.feed(text) if isinstance(event, ArgumentText)]

    assert pieces("<tool_call>\n<function=get_weather>\n<parameter=city>\nPa") == ['{"city": "Pa']
    assert pieces("ris </para") == ["ris "]
    assert pieces("meter> is a tag\n</parameter>\n") == ["</parameter> is a tag"]
    assert pieces("<parameter=days>") == ['"']
    assert pieces("\n1") == []
    assert pieces("2\n</parameter>\n<parameter=city>\nRome\n</parameter>\n</function>") == [', "days": 12}']


@pytest.mark.parametrize(
    ("family", "text"),
    [
        ("hermes", '<tool_call>{"name": "now", "arguments": null}</tool_call>'),
        ("hermes", '<tool_call>{"name": "now", "arguments": ""}</tool_call>'),
        ("hermes", '<tool_call>{"name": "now", "arguments": " \\n"}</tool_call>'),
        ("hermes", '<tool_call>{"name": "now", "arguments": null, "parameters": {}}</tool_call>'),
        ("hermes", '<tool_call>{"name": "now"}</tool_call>'),
        ("llama3-json", '{"name": "now", "parameters": null}'),
        ("mistral", '[TOOL_CALLS][{"name": "now", "arguments": null}]'),
        ("harmony", "<|channel|>commentary to=functions.now<|message|><|call|>"),
    ],
)
def test_a_call_without_arguments_has_an_empty_object(family, text):
    for pieces in ([text], list(text)):
        assert read(family, pieces) == ("", [("now", "{}")], "")


@pytest.mark.parametrize("family", ["hermes", "mistral", "harmony"])
def test_an_answer_ends_with_as_many_calls_as_a_message_may_hold(family):
    call = '{"name": "now", "arguments": {}}'
    text = {
        "hermes": f"<tool_call>{call}</tool_call>" * (MAX_CALLS + 5),
        "mistral": f"[TOOL_CALLS][{', '.join([call] * (MAX_CALLS + 5))}]",
        "harmony": "<|channel|>commentary to=functions.now<|message|>{}<|call|><|start|>assistant" * (MAX_CALLS + 5),
    }[family]
    parser = FAMILIES[family].make(TOOLS)
    calls = [event for event in parser.feed(text) if isinstance(event, CallBegin)]
    assert len(calls) == MAX_CALLS
    assert parser.done
    assert parser.finish() == []


CALL = '<tool_call>{"name": "now", "arguments": {}}'
FUNCTION = "<function=now>\n</function>\n"
DEEPSEEK_CALL = "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>now<｜tool▁sep｜>{}"


@pytest.mark.parametrize(
    ("family", "text"),
    [
        ("hermes", CALL),
        ("hermes", f"{CALL}\n"),
        ("hermes", f"{CALL}\n</tool_"),
        ("hermes", f"{CALL}}}"),
        ("hermes", f"{CALL}}}\n}}\n</tool_"),
        ("hermes", f"{CALL}}}\n</tool_call>"),
        ("qwen-xml", f"<tool_call>\n{FUNCTION}</to"),
        ("qwen-xml", f"{FUNCTION}</tool_call>"),
        ("qwen-xml", f"{FUNCTION}</tool_"),
        ("deepseek", f"{DEEPSEEK_CALL}<｜tool▁ca"),
        ("deepseek", f"{DEEPSEEK_CALL}<｜tool▁call▁end｜><｜tool"),
        ("gemma", "<start_function_call>call:now{}<end_fun"),
        ("harmony", "<|channel|>commentary to=functions.now<|message|>{}<|call|><|start|>assis"),
        ("harmony", "<|channel|>commentary to=functions.now<|message|>{}<|call|><|sta"),
    ],
)
def test_marks_behind_a_call_are_no_content_though_the_answer_is_cut_or_they_are_odd(family, text):
    for pieces in ([text], list(text)):
        assert read(family, pieces) == ("", [("now", "{}")], "")


def test_braces_behind_a_call_are_content_where_no_mark_follows():
    text = f"{CALL}}} of text"
    assert read("hermes", [text]) == read("hermes", list(text)) == ("} of text", [("now", "{}")], "")


def test_a_header_of_harmony_that_is_cut_is_not_shown():
    for header in ("<|channel|>", "<|channel|>ana", "<|start|>assistant<|channel|>final", "<|st"):
        assert read("harmony", list(header)) == ("", [], "")
        text = f"<|channel|>analysis<|message|>Hm.<|end|>{header}"
        assert read("harmony", list(text)) == ("", [], "Hm.")
    text = "<|channel|>commentary to=functions.now"
    assert read("harmony", [text]) == (text, [], "")


def qwen_xml(body: str) -> str:
    return f"<tool_call>\n<function=get_weather>\n{body}</function>\n</tool_call>"


def test_a_value_whose_end_is_missing_ends_where_the_next_argument_begins():
    text = qwen_xml("<parameter=city>\nParis\n<parameter=days>\n3\n</parameter>\n")
    for pieces in ([text], list(text)):
        content, calls, _ = read("qwen-xml", pieces)
        assert (content, parsed(calls)) == ("", [("get_weather", {"city": "Paris", "days": 3})])


@pytest.mark.parametrize("name", ["other", "city", "code"])
def test_a_value_may_hold_the_beginnings_of_arguments_that_cannot_come(name):
    value = f"a\n<parameter={name}>\nb"
    text = qwen_xml(f"<parameter=city>\nParis\n</parameter>\n<parameter=code>\n{value}\n</parameter>\n")
    for pieces in ([text], list(text)):
        assert parsed(read("qwen-xml", pieces)[1]) == [("get_weather", {"city": "Paris", "code": value})]


@pytest.mark.parametrize(
    ("family", "head", "most"),
    [
        ("mistral", "[TOOL_CALLS]", 64),
        ("gemma", "<start_function_call>call:", 64),
        ("gemma", "<start_function_call>call:now{a:", 256),
    ],
)
def test_what_is_too_long_for_a_name_or_a_number_is_content_at_once(family, head, most):
    """Else each piece of it would take as long as all that came before."""
    parser = FAMILIES[family].make(TOOLS)
    assert parser.feed(head + "x" * most) == []
    assert "".join(event.text for event in parser.feed("xx")) == head + "x" * (most + 2)


@pytest.mark.parametrize(("family", "template"), [(f, t) for f, t in OF_FAMILIES if f != "harmony"])
def test_nothing_is_kept_of_what_was_given_out(family, template):
    """Else each piece of a long call would take as long as all that came before."""
    text = written(template, [("get_weather", {"code": 'if x == "y":\n    pass\n' * 200})])
    parser = FAMILIES[family].make(TOOLS)
    kept = []
    for place in range(0, len(text), 3):
        parser.feed(text[place : place + 3])
        kept.append(len(parser.source.text))
    assert max(kept) < 160


def test_calls_of_llama_3_may_stand_on_lines_of_their_own_and_behind_text():
    call = '{"name": "now", "parameters": {}}'
    other = '{"name": "later", "parameters": {}}'
    for pieces in (lambda text: [text], list):
        assert read("llama3-json", pieces(f"{call}\n{call}")) == ("", [("now", "{}")] * 2, "")
        assert read("llama3-json", pieces(f"I look: {call}; {call}\nSo.")) == ("I look:\nSo.", [("now", "{}")] * 2, "")
        assert read("llama3-json", pieces(f"I look: {other}")) == (f"I look: {other}", [], "")
        assert read("llama3-json", pieces('A {"name" is begun')) == ('A {"name" is begun', [], "")
