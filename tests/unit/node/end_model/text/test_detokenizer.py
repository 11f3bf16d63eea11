"""Token ids to text, one at a time."""

from __future__ import annotations

import json

import pytest
from languagepipes_node.end_model.text import TextCodec
from support.tiny_tokenizer import CORPUS, TEXTS, pieces
from tokenizers import Tokenizer, decoders, models, normalizers, trainers


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


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_joined_are_the_text(codec, text):
    tokens = codec.encode(text)
    assert "".join(pieces(codec, (), tokens)) == codec.decode(tokens)


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


def test_tokens_that_show_nothing_do_not_make_a_sentencepiece_answer_slower_with_each():
    """Who decodes by windows looks at the window for each token: it must not grow with what shows nothing."""
    codec = sentencepiece_like()
    detokenizer = codec.detokenizer(codec.encode("The capital"))
    assert [detokenizer.push(token) for token in (100_000, 2) * 50] == [""] * 100
    assert len(detokenizer._window) < 20
    fox = codec.encode("The capital fox")[len(codec.encode("The capital")) :]
    assert "".join(map(detokenizer.push, fox)) + detokenizer.finish() == " fox"
