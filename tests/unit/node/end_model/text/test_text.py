# ruff: noqa: E501 (a table's row is read as one line)
"""Tokenizer, chat template, detokeniser and stop strings, without HTTP."""

from __future__ import annotations

import json
import random
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from languagepipes_node.end_model.text import (
    NoChatTemplate,
    StopStrings,
    TemplateError,
    TextCodec,
    TokenizerError,
)
from support.scripted_engine import CHATML, CORPUS, SMOLLM2, model_files, train_tokenizer
from tokenizers import Tokenizer, decoders, models, normalizers, trainers

TEXTS = [
    "The capital of France is Paris.",
    "naïve 東京 🧠🎉 👩‍👩‍👧‍👦 🇫🇷",
    "a\ufffdb and a lone \ufffd",
    "  two spaces\n\n\ttab\r\n",
    "مرحبا बहुत สวัสดี",
    "<|im_end|> in the middle",
]


def sentencepiece_like() -> TextCodec:
    """Llama 2's kind of tokenizer: words begin with ▁, bytes fall back to <0xNN>, and a text's first space goes."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))],
        limit_alphabet=60,
        show_progress=False,
    )
    tokenizer.train_from_iterator([text.encode("ascii", "ignore").decode() for text in CORPUS], trainer)
    # Byte tokens must decode, so only the three others are special.
    description = json.loads(tokenizer.to_str())
    description["added_tokens"] = [token for token in description["added_tokens"] if token["id"] < 3]
    return TextCodec.load({"tokenizer.json": json.dumps(description).encode()}.__getitem__)


def pieces(codec: TextCodec, prompt: tuple[int, ...], tokens: tuple[int, ...]) -> list[str]:
    detokenizer = codec.detokenizer(prompt)
    return [*(detokenizer.push(token) for token in tokens), detokenizer.finish()]


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_joined_are_the_text(codec, text):
    tokens = codec.encode(text)
    assert "".join(pieces(codec, (), tokens)) == codec.decode(tokens)


@pytest.mark.parametrize("text", TEXTS)
def test_smollm2s_pieces_joined_are_the_text_and_end_between_characters(smollm2, text):
    tokens = smollm2.encode(text)
    shown = pieces(smollm2, (), tokens)
    assert "".join(shown) == smollm2.decode(tokens)
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in shown)


def test_any_tokens_at_all_give_the_text_that_the_tokenizer_gives(smollm2):
    randomness = random.Random(7)
    for _ in range(300):
        tokens = tuple(randomness.randrange(smollm2.vocabulary_size) for _ in range(randomness.randrange(1, 40)))
        assert "".join(pieces(smollm2, (), tokens)) == smollm2.decode(tokens)


def test_a_sentencepiece_answer_keeps_the_space_that_it_begins_with():
    codec = sentencepiece_like()
    for text in ("The quick brown fox", "fox 🧠 jumps", "é", "the 🎉"):
        prompt = codec.encode("The capital")
        tokens = codec.encode("The capital " + text)[len(prompt) :]
        assert codec.decode(prompt + tokens) == "The capital " + text
        shown = pieces(codec, prompt, tokens)
        assert "".join(shown) == " " + text
        assert not any("\ufffd" in piece for piece in shown)


def test_bytes_that_never_become_a_character_do_not_hold_back_what_follows():
    codec = sentencepiece_like()
    lone = 3 + 0xE2
    tokens = (lone,) * 20 + codec.encode(" The fox")
    shown = pieces(codec, codec.encode("The"), tokens)
    assert "".join(shown).endswith("The fox")
    assert any(shown[:16])


def test_special_tokens_are_not_shown_and_other_added_tokens_are(codec):
    assert "".join(pieces(codec, (), (1, 400, 2))) == "<think>"


def test_an_id_past_the_vocabulary_shows_nothing(codec):
    assert pieces(codec, (), (100_000,)) == ["", ""]


def test_a_tokens_bytes_are_its_own_even_if_they_are_no_character(codec, smollm2):
    for chosen in (codec, smollm2):
        for text in ("🧠", "The fox", "é"):
            tokens = chosen.encode(text)
            assert b"".join(map(chosen.token_bytes, tokens)) == text.encode()
    assert codec.token_bytes(2) == b"<|im_end|>"


def test_a_long_prompt_does_not_hold_up_other_threads(codec):
    text = "The quick brown fox jumps over the lazy dog. " * 20_000
    longest, last, stop = 0.0, time.perf_counter(), threading.Event()

    def tick():
        nonlocal longest, last
        while not stop.wait(0.002):
            now = time.perf_counter()
            longest, last = max(longest, now - last), now

    ticker = threading.Thread(target=tick)
    ticker.start()
    started = time.perf_counter()
    codec.encode(text)
    taken = time.perf_counter() - started
    stop.set()
    ticker.join()
    assert longest < taken / 2


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "user", "content": "What is the capital of France?"}],
        [{"role": "system", "content": "Be brief. "}, {"role": "user", "content": " hello\n"}],
        [
            {"role": "user", "content": "naïve 🎉"},
            {"role": "assistant", "content": ""},
            {"role": "user", "content": "<|im_end|>\n{{ messages }}"},
        ],
    ],
)
def test_smollm2s_chat_is_rendered_and_tokenised_as_transformers_does(smollm2, messages):
    from transformers import PreTrainedTokenizerFast

    reference = PreTrainedTokenizerFast.from_pretrained(str(SMOLLM2))
    text = reference.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert smollm2.render_chat(messages, {}) == text
    assert list(smollm2.encode_chat(messages, {})) == reference(text, add_special_tokens=False)["input_ids"]


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
    ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "took longer than"),
    ("{% for i in range(99999) %}aaaaaaaaaa{% endfor %}", "wrote more than"),
    ("{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}", "recurs"),
]  # fmt: skip


@pytest.mark.parametrize(("template", "message"), REFUSED)
def test_a_template_that_misbehaves_is_an_error_and_no_more(template, message):
    codec = TextCodec.load(model_files(train_tokenizer(), chat_template=template).__getitem__)
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


def test_a_model_without_a_template_says_so():
    codec = TextCodec.load(model_files(train_tokenizer(), chat_template=None).__getitem__)
    with pytest.raises(NoChatTemplate, match="use /v1/completions"):
        codec.render_chat([{"role": "user", "content": "hi"}], {})


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", None, "has no tokenizer.json"),
        ("tokenizer.json", b"{}", "tokenizer.json cannot be read"),
        ("tokenizer.json", b"\xff\xfe", "tokenizer.json cannot be read"),
        ("tokenizer_config.json", b"[", "tokenizer_config.json is no JSON"),
        ("tokenizer_config.json", b"[]", "tokenizer_config.json holds a JSON list"),
        ("tokenizer_config.json", b'{"chat_template": "{% for %}"}', "does not compile"),
        ("tokenizer_config.json", b'{"chat_template": 3}', "the chat template is a int"),
        ("tokenizer_config.json", b'{"chat_template": [3]}', "the chat template"),
        ("chat_template.jinja", b"\xff", "chat_template.jinja"),
        ("generation_config.json", b'{"eos_token_id": "two"}', "eos_token_id is 'two'"),
        ("generation_config.json", b'{"eos_token_id": [-1]}', "eos_token_id"),
        ("generation_config.json", b'{"eos_token_id": true}', "eos_token_id"),
    ],
)
def test_wrong_files_are_named(name, content, message):
    files = model_files(train_tokenizer())
    if content is None:
        del files[name]
    else:
        files[name] = content
    with pytest.raises(TokenizerError, match=message):
        TextCodec.load(files.__getitem__)


def test_stop_tokens_come_from_both_configurations(codec, smollm2):
    assert codec.stop_token_ids == {0, 2}
    assert smollm2.stop_token_ids == {2}


def cut(stops: list[str], parts: list[str]) -> tuple[str, bool]:
    """What is shown of a text that comes in `parts`."""
    matcher = StopStrings(stops)
    shown = ""
    for part in parts:
        text, stopped = matcher.push(part)
        shown += text
        if stopped:
            return shown, True
    return shown + matcher.finish(), False


@pytest.mark.parametrize(
    ("stops", "text", "shown", "stopped"),
    [
        (["abc"], "xxabcyy", "xx", True),
        (["abc"], "xxab", "xxab", False),
        (["aab"], "aaab", "a", True),
        (["abab"], "aababab", "a", True),
        (["abcd", "bc"], "xabcd", "xa", True),
        (["bc", "abc"], "xabc", "x", True),
        (["\n\n"], "line\nline\n\nmore", "line\nline", True),
        (["🎉"], "a🎉b", "a", True),
        ([], "anything", "anything", False),
    ],
)
def test_stop_strings_are_found_however_the_text_is_cut(stops, text, shown, stopped):
    assert cut(stops, [text]) == (shown, stopped)
    assert cut(stops, list(text)) == (shown, stopped)


@given(
    stops=st.lists(st.text("ab", min_size=1, max_size=4), max_size=4),
    parts=st.lists(st.text("abc", max_size=5), max_size=8),
)
def test_stop_strings_do_not_depend_on_where_the_text_is_cut(stops, parts):
    text = "".join(parts)
    assert cut(stops, parts) == cut(stops, list(text)) == cut(stops, [text])
    shown, stopped = cut(stops, parts)
    assert text.startswith(shown)
    assert not any(stop in shown for stop in stops)
    assert stopped == any(stop in text for stop in stops)
