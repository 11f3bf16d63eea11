"""What a chat template wants is found out by rendering it."""

from __future__ import annotations

import pytest
from languagepipes_node.end_model.text import ChatTemplate
from languagepipes_node.end_model.tools.template import TemplateTools, probe
from support import chat_templates
from support.tiny_tokenizer import CHATML

CALL = {"id": "call_1", "type": "function", "function": {"name": "now", "arguments": '{"zone": "UTC"}'}}
HISTORY = [
    {"role": "user", "content": "?"},
    {"role": "assistant", "content": "", "reasoning": "Hm.", "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "call_1", "content": "12:00"},
]


def found(source: str) -> TemplateTools:
    return probe(ChatTemplate(source, {}))


@pytest.mark.parametrize(
    ("template", "arguments"),
    [
        (chat_templates.HERMES, "object"),
        (chat_templates.QWEN_XML, "object"),
        (chat_templates.LLAMA3, "object"),
        (chat_templates.MISTRAL_ARRAY, "object"),
        (chat_templates.HARMONY, "object"),
        (chat_templates.GLM, "object"),
        (chat_templates.FUNCTION_GEMMA, "object"),
        (chat_templates.DEEPSEEK_V3, "string"),
        (chat_templates.DEEPSEEK_V31, "object"),
    ],
)
def test_templates_that_know_tools_and_the_form_of_their_arguments(template, arguments):
    tools = found(template)
    assert (tools.takes_tools, tools.shows_calls, tools.arguments) == (True, True, arguments)
    assert not tools.one_call
    assert tools.nine_character_ids == (template is chat_templates.MISTRAL_ARRAY)


def test_a_template_without_tools_knows_none_and_one_that_only_tests_for_them_too():
    assert found(CHATML) == TemplateTools(takes_tools=False, shows_calls=False)
    assert not found("{% if tools %}{% endif %}" + CHATML).takes_tools
    assert not found("{{ raise_exception('never') }}{{ tools }}").takes_tools


def test_null_content_is_given_where_a_template_asks_for_it_and_not_where_it_would_be_written():
    asks = "{% for m in messages %}{% if m.content is none %}{{ m.tool_calls | tojson }}{% else %}{{ m.content }}{% endif %}{% endfor %}"  # noqa: E501
    assert found(asks).null_content is None
    assert found(chat_templates.HERMES.replace("message.content or ''", "message.content")).null_content == ""


def test_a_template_that_joins_a_description_gets_an_empty_one():
    joins = (
        "{% for tool in tools or [] %}{{ '// ' + tool.function.description + tool.function.name }}{% endfor %}" + CHATML
    )
    tools = found(joins)
    assert tools.takes_tools
    assert tools.tools([{"type": "function", "function": {"name": "f"}}])[0]["function"]["description"] == ""
    plain = {"type": "function", "function": {"name": "f"}}
    assert found(chat_templates.HERMES).tools([plain]) == [plain]


PYTHONIC = "{% for tool in tools or [] %}{{ tool }}{% endfor %}Say None if there is none."
CONTENT_ALONE = PYTHONIC + CHATML


def test_what_a_template_writes_of_its_own_says_nothing_of_how_it_writes_calls():
    tools = found(PYTHONIC + chat_templates.HERMES)
    assert (tools.takes_tools, tools.shows_calls, tools.arguments) == (True, True, "object")
    assert found(PYTHONIC + chat_templates.HERMES.replace(" | tojson", "")).arguments == "string"


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("hermes", 'I look.\n<tool_call>\n{"name": "now", "arguments": {"zone": "UTC"}}\n</tool_call>'),
        ("llama3-json", 'I look.\n{"name": "now", "parameters": {"zone": "UTC"}}'),
    ],
)
def test_calls_are_written_into_content_where_a_template_leaves_them_out(family, expected):
    tools = probe(ChatTemplate(CONTENT_ALONE, {}), family)
    assert (tools.takes_tools, tools.shows_calls, tools.calls_in_content) == (True, True, family)
    written = tools.messages([HISTORY[0], HISTORY[1] | {"content": "I look."}, HISTORY[2]])
    assert written[1]["content"] == expected
    assert "tool_calls" not in written[1]
    assert written[2]["content"] == "12:00"
    assert probe(ChatTemplate(CONTENT_ALONE, {}), "mistral").shows_calls is False
    no_results = CONTENT_ALONE.replace(
        "{% for message in messages %}", "{% for message in messages if message.role != 'tool' %}"
    )
    assert probe(ChatTemplate(no_results, {}), family).shows_calls is False
    assert probe(ChatTemplate(chat_templates.HERMES, {}), family).calls_in_content is None


def test_messages_take_the_form_that_was_found():
    written = TemplateTools(True, True, "object", None, nine_character_ids=True).messages(HISTORY)
    call = written[1]["tool_calls"][0]
    assert call["function"]["arguments"] == {"zone": "UTC"}
    assert len(call["id"]) == 9
    assert written[2] == {"role": "tool", "tool_call_id": call["id"], "content": "12:00", "name": "now"}
    assert written[1]["content"] is None
    assert (written[1]["reasoning"], written[1]["reasoning_content"], written[1]["thinking"]) == ("Hm.",) * 3
    written = TemplateTools(True, True, "string", "").messages(HISTORY)
    assert written[1]["tool_calls"] == [CALL]
    assert written[1]["content"] == ""


def test_integers_in_arguments_keep_their_digits():
    call = {"id": "call_1", "type": "function", "function": {"name": "now", "arguments": f'{{"id": {10**30}}}'}}
    written = TemplateTools(True, True).messages([HISTORY[0], {"role": "assistant", "tool_calls": [call]}])
    assert written[1]["tool_calls"][0]["function"]["arguments"] == {"id": 10**30}


def test_results_stand_in_the_order_of_their_calls():
    calls = [CALL | {"id": id} for id in "abc"]
    results = [{"role": "tool", "tool_call_id": id, "content": id} for id in "cab"]
    turn = [HISTORY[0], {"role": "assistant", "content": "", "tool_calls": calls}, *results]
    written = TemplateTools(True, True).messages([*turn, {"role": "assistant", "content": "Late."}, *turn])
    assert [message["content"] for message in written] == ["?", "", *"abc", "Late.", "?", "", *"abc"]


def test_results_follow_their_own_call_where_a_message_holds_one_call():
    calls = [CALL | {"id": id} for id in "abc"]
    results = [{"role": "tool", "tool_call_id": id, "content": id} for id in "cab"]
    last = {"role": "user", "content": "And?"}
    history = [HISTORY[0], {"role": "assistant", "content": "I look.", "tool_calls": calls}, *results, last]
    written = TemplateTools(True, True, one_call=True).messages(history)
    assert [message["role"] for message in written] == ["user", *["assistant", "tool"] * 3, "user"]
    assert [message["content"] for message in written] == ["?", "I look.", "a", "", "b", "", "c", "And?"]
    assert [message["tool_calls"][0]["id"] for message in written[1:7:2]] == ["a", "b", "c"]
