# ruff: noqa: E501 (a table's row is read as one line)
"""Chat templates: as transformers renders them, and what a template may not do."""

from __future__ import annotations

import json

import pytest
from languagepipes_node.end_model.text import NoChatTemplate, TemplateError, TextCodec, TokenizerError
from support.tiny_tokenizer import CHATML, model_files, train_tokenizer

# What Hub templates use beyond plain Jinja: https://huggingface.co/docs/transformers/chat_templating_writing
TEMPLATES = [
    CHATML,
    "{{ bos_token }}{%- for m in messages -%}\n    {%- if m.role == 'user' %}\n[INST] {{ m.content | trim }} [/INST]\n{%- endif %}\n{%- endfor %}\n",
    "{%- set ns = namespace(seen=false, last=messages|length - 1) -%}\n{%- for m in messages[::-1] %}{% set index = ns.last - loop.index0 %}{% if m.role == 'user' and not ns.seen %}{% set ns.seen = true %}{{ index }}:{{ m.content }}{% break %}{% endif %}{% endfor %}",
    "{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}{% generation %}{{ m.content }}{% endgeneration %}\n{% endfor %}x",
    "{{ messages | tojson }}|{{ messages | tojson(indent=2) }}|{{ tools is none }}|{{ documents is defined and documents }}",
    "{%- macro show(m) -%}<{{ m['role'] }}>{{ m.get('content', '') }}{%- endmacro -%}\n{% for m in messages %}\n    {{ show(m) }}\n{% endfor %}{{ enable_thinking is defined and enable_thinking }}",
    "{% set d = dict(a=1) %}{{ d.a }}{{ messages|map(attribute='content')|join(', ') }}{{ messages|selectattr('role', 'equalto', 'user')|list|length }}{{ strftime_now('%Y')|length }}",
    "{% for m in messages %}{{ m.content.split('</think>')[-1].lstrip('\\n') }}{{ m.content.startswith('h') }}{{ loop.last }}{% endfor %}",
]


@pytest.mark.parametrize("template", TEMPLATES)
def test_templates_render_as_in_transformers(template):
    from transformers.utils.chat_template_utils import render_jinja_template

    codec = TextCodec.load(model_files(train_tokenizer(), chat_template=template).__getitem__)
    messages = [
        {"role": "system", "content": 'Be <brief> & "nice"'},
        {"role": "user", "content": "hello <think>x</think>\nü"},
    ]
    expected, _ = render_jinja_template(
        [messages],
        chat_template=template,
        add_generation_prompt=True,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        enable_thinking=True,
    )
    assert codec.render_chat(messages, {"enable_thinking": True}) == expected[0]


REFUSED = [
    ("{{ raise_exception('roles must alternate') }}", "refused the messages: roles must alternate"),
    ("{{ messages[0].content.nothing.at_all }}", "has no attribute 'nothing'"),
    ("{{ messages[0].content + 1 }}", "TypeError"),
    ("{{ ''.__class__.__mro__ }}", "unsafe"),
    ("{{ messages.append(1) }}", "unsafe"),
    ("{{ messages[0].update({'role': 'x'}) }}", "unsafe"),
    ("{{ namespace(__class__=1) }}", "underscore"),
    ("{{ lipsum() }}", "undefined"),
    ("{% include 'x' %}", "refused the messages"),
    ("{% for i in range(10000000) %}{% endfor %}", "OverflowError"),
    ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "took longer than 0.05 s"),
    ("{% for i in range(99999) %}aaaaaaaaaa{% endfor %}", "wrote more than"),
    ("{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}", "recurs"),
]  # fmt: skip


@pytest.mark.parametrize(("template", "message"), REFUSED)
def test_a_template_that_misbehaves_is_an_error_and_no_more(template, message):
    codec = TextCodec.load(model_files(train_tokenizer(), chat_template=template).__getitem__)
    assert codec.template is not None
    # It is rendered three times: with a string, with parts, and what was asked for.
    codec.template.render_seconds = 0.05 if "took longer than" in message else 60
    messages = [{"role": "user", "content": "hi"}]
    with pytest.raises(TemplateError, match=message):
        codec.render_chat(messages, {})
    assert messages == [{"role": "user", "content": "hi"}]


def test_a_models_own_files_win_in_transformers_order():
    files = model_files(train_tokenizer(), chat_template="from config")
    assert TextCodec.load(files.__getitem__).render_chat([], {}) == "from config"
    files["chat_template.json"] = b'{"chat_template": "from json"}'
    assert TextCodec.load(files.__getitem__).render_chat([], {}) == "from json"
    files["chat_template.jinja"] = b"from jinja"
    assert TextCodec.load(files.__getitem__).render_chat([], {}) == "from jinja"
    named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "by name"}]
    files = model_files(train_tokenizer(), chat_template=None)
    files["tokenizer_config.json"] = json.dumps({"chat_template": named}).encode()
    assert TextCodec.load(files.__getitem__).render_chat([], {}) == "by name"


def test_the_template_for_tools_is_taken_where_there_are_tools_or_calls():
    named = [
        {"name": "default", "template": "{{ mood }}plain"},
        {"name": "tool_use", "template": "{{ zeal }}{{ (tools or []) | length }} tools"},
    ]
    files = model_files(train_tokenizer(), chat_template=None)
    files["tokenizer_config.json"] = json.dumps({"chat_template": named}).encode()
    codec = TextCodec.load(files.__getitem__)
    question = {"role": "user", "content": "hi"}
    call = {"role": "assistant", "content": "", "tool_calls": [{"id": "a"}]}
    assert codec.render_chat([question], {}) == "plain"
    assert codec.render_chat([question], {}, [{"type": "function"}]) == "1 tools"
    assert codec.render_chat([question, call], {}) == "0 tools"
    assert {"mood", "zeal"} <= codec.template.variables
    assert "plain" in codec.template.source
    assert "tools" in codec.template.source
    files["tokenizer_config.json"] = json.dumps({"chat_template": named[1:]}).encode()
    assert TextCodec.load(files.__getitem__).render_chat([question], {}) == "0 tools"
    files["tokenizer_config.json"] = json.dumps(
        {"chat_template": [named[0], {"name": "tool_use", "template": 1}]}
    ).encode()
    with pytest.raises(TokenizerError, match="is a int, expected a string"):
        TextCodec.load(files.__getitem__)


def test_a_model_without_a_template_says_so():
    codec = TextCodec.load(model_files(train_tokenizer(), chat_template=None).__getitem__)
    with pytest.raises(NoChatTemplate, match="use /v1/completions"):
        codec.render_chat([{"role": "user", "content": "hi"}], {})


# As templates of models that see images read a message, from the shortest to the most careful.
PARTS_ALONE = [
    "{% for m in messages %}<{{ m.role }}>{% for p in m.content %}{% if p.type == 'text' %}{{ p.text }}{% endif %}{% endfor %}|{% endfor %}",
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'][0]['text'] }}|{% endfor %}",
    "{% for m in messages %}<{{ m.role }}>{{ m.content | selectattr('type', 'equalto', 'text') | map(attribute='text') | join }}|{% endfor %}",
    "{% macro show(parts) %}{% for p in parts %}{% if 'text' in p %}{{ p['text'] }}{% endif %}{% endfor %}{% endmacro %}{% for m in messages %}<{{ m.role }}>{{ show(m.content) }}|{% endfor %}",
]
EITHER = "{% for m in messages %}<{{ m.role }}>{% if m.content is string %}{{ m.content }}{% else %}parts{% endif %}|{% endfor %}"


@pytest.mark.parametrize("template", [*PARTS_ALONE, EITHER])
def test_text_reaches_the_prompt_also_where_a_template_reads_parts_alone(template):
    codec = TextCodec.load(model_files(train_tokenizer(), chat_template=template).__getitem__)
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is two and two?"}]
    assert codec.render_chat(messages, {}) == "<system>Be brief.|<user>What is two and two?|"


def test_templates_that_read_strings_get_strings():
    for template in (*TEMPLATES, EITHER):
        codec = TextCodec.load(model_files(train_tokenizer(), chat_template=template).__getitem__)
        assert codec.template is not None
        assert not codec.template.wants_parts


def test_a_long_text_in_parts_is_within_the_bound_of_what_a_template_may_write():
    codec = TextCodec.load(model_files(train_tokenizer(), chat_template=PARTS_ALONE[0]).__getitem__)
    long = "word " * 200_000
    assert codec.render_chat([{"role": "user", "content": long}], {}) == f"<user>{long}|"
