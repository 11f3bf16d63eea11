"""Text to token ids: the tokenizer's files, bytes of a token, stop tokens."""

from __future__ import annotations

import threading
import time

import pytest
from languagepipes_node.end_model.text import TextCodec, TokenizerError
from support.tiny_tokenizer import model_files, sentencepiece_like, train_tokenizer


def test_a_tokens_bytes_are_its_own_even_if_they_are_no_character(codec):
    for text in ("🧠", "The fox", "é"):
        tokens = codec.encode(text)
        assert b"".join(map(codec.token_bytes, tokens)) == text.encode()
    assert codec.token_bytes(2) == b"<|im_end|>"


def test_a_sentencepiece_tokens_bytes_have_the_space_that_it_begins_with():
    codec = sentencepiece_like()
    tokens = codec.encode("The quick brown fox 🧠")
    assert b"".join(map(codec.token_bytes, tokens)).decode() == " The quick brown fox 🧠"


def test_no_two_tokens_have_one_name(codec):
    for chosen in (codec, sentencepiece_like()):
        names = [chosen.token_name(token) for token in range(chosen.vocabulary_size + 2)]
        assert len(set(names)) == len(names)
    assert codec.token_name(codec.encode("The")[0]) == "The"
    assert codec.token_name(codec.encode("🧠")[0]).startswith("bytes:\\xf0")


def test_special_tokens_are_found_by_their_text(codec):
    assert codec.special_token("<|im_end|>") == 2
    assert codec.special_token("<think>") is None  # added, and text
    assert codec.special_token("The") is None


def test_a_long_prompt_does_not_hold_up_other_threads(codec):
    text = "The quick brown fox jumps over the lazy dog. " * 20_000

    def share_of_the_longest_wait():
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
        return longest / taken

    # Whoever holds the interpreter does so each time; a busy machine makes a thread wait now and then.
    assert any(share_of_the_longest_wait() < 1 / 2 for _ in range(5))


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


def test_stop_tokens_come_from_both_configurations(codec):
    assert codec.stop_token_ids == {0, 2}
