"""SmolLM2's own tokenizer and chat template, converted from its GGUF file, beside transformers'."""

from __future__ import annotations

import random

import pytest
from support.scripted_engine import CONVERTED
from support.tiny_tokenizer import TEXTS, pieces


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


def test_smollm2s_tokens_bytes_are_its_own_even_if_they_are_no_character(smollm2):
    for text in ("🧠", "The fox", "é"):
        tokens = smollm2.encode(text)
        assert b"".join(map(smollm2.token_bytes, tokens)) == text.encode()


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

    reference = PreTrainedTokenizerFast.from_pretrained(str(CONVERTED))
    text = reference.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert smollm2.render_chat(messages, {}) == text
    assert list(smollm2.encode_chat(messages, {})) == reference(text, add_special_tokens=False)["input_ids"]


def test_smollm2s_stop_tokens_come_from_both_configurations(smollm2):
    # <|im_end|>, which the file names, and <|endoftext|>, where llama.cpp ends too.
    assert smollm2.stop_token_ids == {2, 0}
