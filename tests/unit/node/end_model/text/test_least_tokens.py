"""How many tokens a text has at the least, by its length: never more than it has, or a good prompt would be refused."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from languagepipes_node.end_model.text import TextCodec
from support.tiny_tokenizer import CORPUS, TEXTS, model_files, train_tokenizer
from tokenizers import AddedToken, Regex, Tokenizer, normalizers, pre_tokenizers

DECOMPOSED = "\u1fbe\u0308\u0301 \u212b e\u0323\u0302 \u1112\u1161\u11ab \u212a"


def codec_of(tokenizer: Tokenizer) -> TextCodec:
    return TextCodec.load(model_files(tokenizer).__getitem__)


def composing() -> Tokenizer:
    """Qwen's kind: NFC, then a split that keeps everything, then bytes."""
    tokenizer = train_tokenizer()
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\p{N}|\s+|[^\s\p{N}]+"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return tokenizer


def without_some_bytes() -> TextCodec:
    """SmolLM2's kind: its vocabulary lacks bytes, and leaves them out of a text."""
    description = json.loads(train_tokenizer().to_str())
    for symbol in ("!", "x", "Ã"):
        del description["model"]["vocab"][symbol]
    description["model"]["merges"] = []
    files = model_files(train_tokenizer()) | {"tokenizer.json": json.dumps(description).encode()}
    return TextCodec.load(files.__getitem__)


CODECS = {
    "byte-level": codec_of(train_tokenizer()),
    "composing": codec_of(composing()),
    "without some bytes": without_some_bytes(),
}


@pytest.mark.parametrize("name", CODECS)
@given(text=st.text() | st.lists(st.sampled_from([*TEXTS, *CORPUS, DECOMPOSED, "<think>", "<|im_end|>"])).map("".join))
@settings(deadline=None)
def test_a_text_has_at_least_as_many_tokens(name: str, text: str) -> None:
    codec = CODECS[name]
    assert codec.least_tokens(text) <= len(codec.encode(text))


def test_a_long_text_has_many(codec: TextCodec) -> None:
    assert codec.least_tokens("The quick brown fox" * 1000) > 500


def removing() -> Tokenizer:
    tokenizer = train_tokenizer()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(" ", "removed"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    return tokenizer


def stripping() -> Tokenizer:
    tokenizer = train_tokenizer()
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Strip()])
    return tokenizer


def swallowing() -> Tokenizer:
    tokenizer = train_tokenizer()
    tokenizer.add_tokens([AddedToken("<mask>", lstrip=True)])
    return tokenizer


@pytest.mark.parametrize("make", [removing, stripping, swallowing])
def test_nothing_is_said_of_tokenizers_that_leave_text_out(make) -> None:  # type: ignore[no-untyped-def]
    codec = codec_of(make())
    text = " " * 100_000 + "<mask>"
    assert codec.least_tokens(text) == 0


def test_bytes_that_a_tokenizer_cannot_spell_do_not_count() -> None:
    codec = CODECS["without some bytes"]
    assert codec.encode("!" * 10_000) == ()
    assert codec.least_tokens("!" * 10_000) == 0
    assert codec.least_tokens("!a" * 10_000) > 500
