"""Token ids to text, one at a time."""

from __future__ import annotations

import pytest
from support.tiny_tokenizer import TEXTS, pieces, sentencepiece_like


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


@pytest.mark.parametrize("byte_level", [True, False])
def test_special_tokens_that_are_wanted_are_shown_in_their_place(codec, byte_level):
    special = "<|im_end|>" if byte_level else "</s>"
    codec = codec if byte_level else sentencepiece_like()
    (marker,) = codec.special_ids([special, special + "x"])
    detokenizer = codec.detokenizer((), frozenset({marker}))
    text = codec.encode("The fox")
    shown = [detokenizer.push(token) for token in (*text, marker, *text)] + [detokenizer.finish()]
    assert "".join(shown).replace(" ", "") == f"Thefox{special}Thefox"
    assert shown[len(text)] == special


def test_special_ids_are_those_that_a_text_begins_with(codec):
    assert codec.special_ids(["<|im_end|>thought", "|im_start|>"]) == {2}
    assert codec.special_ids([]) == frozenset()


def test_special_tokens_are_shown_where_they_are_wanted(codec):
    for chosen in (codec, sentencepiece_like()):
        special = 1
        tokens = (*chosen.encode("The fox"), special, *chosen.encode(" jumps"))
        detokenizer = chosen.detokenizer((), skip_special_tokens=False)
        shown = "".join([*(detokenizer.push(token) for token in tokens), detokenizer.finish()])
        assert chosen.token_bytes(special).decode() in shown
        assert shown.startswith("The fox")
