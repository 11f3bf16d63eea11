"""Grammars over the tokenizers that models come with: byte-level, SentencePiece's kind, and neither."""

from __future__ import annotations

import json
import random

import jsonschema
import pytest
from languagepipes_node.end_model.structured import Constraint, ConstraintError
from languagepipes_node.end_model.structured.compiler import Grammars
from languagepipes_node.end_model.text import TextCodec
from support.tiny_tokenizer import CORPUS, model_files, train_tokenizer
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

SCHEMA = {
    "type": "object",
    "properties": {"the name": {"type": "string", "maxLength": 20}, "größe": {"enum": ["東京", " é ", "🎉"]}},
    "required": ["the name", "größe"],
    "additionalProperties": False,
}
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def sentencepiece(decoder: object) -> Tokenizer:
    """As Llama 2's and Gemma's: ▁ stands for a space, and bytes have tokens of their own."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    special = ["<unk>", "<s>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=[*special, *BYTES], show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    trained = json.loads(tokenizer.to_str())
    # Bytes are tokens of the model and nothing more.
    trained["added_tokens"] = [token for token in trained["added_tokens"] if token["content"] in special]
    tokenizer = Tokenizer.from_str(json.dumps(trained))
    tokenizer.decoder = decoder
    return tokenizer


def answer(codec: TextCodec, seed: int) -> str:
    """Tokens drawn at random from what the mask allows, as text behind a prompt."""
    known_ids = codec.vocabulary_size
    state = Grammars(codec, known_ids=known_ids).compile(Constraint.json_schema(SCHEMA)).start(codec.stop_token_ids)
    detokenizer = codec.detokenizer(codec.encode("The prompt."))
    randomness = random.Random(seed)
    text = ""
    while not state.is_over:
        token = randomness.choice([token for token, forbidden in enumerate(state.mask()) if not forbidden])
        text += detokenizer.push(token)
        state.accept(token)
    return text + detokenizer.finish()


@pytest.mark.parametrize(
    "tokenizer",
    [
        train_tokenizer(),
        sentencepiece(decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])),
        sentencepiece(decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(), decoders.Fuse()])),
    ],
    ids=["byte-level", "sentencepiece", "metaspace"],
)
def test_answers_match_with_every_kind_of_tokenizer(tokenizer):
    files = model_files(tokenizer)
    files["generation_config.json"] = b"{}"
    codec = TextCodec.load(files.__getitem__)
    for seed in range(10):
        jsonschema.validate(json.loads(answer(codec, seed)), SCHEMA)


def test_a_tokenizer_whose_tokens_are_no_bytes_is_named():
    tokenizer = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1, "##b": 2}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece()
    codec = TextCodec.load({**model_files(tokenizer), "generation_config.json": b"{}"}.__getitem__)
    with pytest.raises(ConstraintError, match="neither byte-level nor of the SentencePiece kind") as caught:
        Grammars(codec, known_ids=3).compile(Constraint.json_object())
    assert caught.value.unsupported


def test_ids_that_the_model_lacks_and_stop_tokens_that_no_tokenizer_calls_special_are_no_text():
    tokenizer = train_tokenizer()
    tokenizer.add_tokens([AddedToken("<stop>", special=False)])
    files = model_files(tokenizer) | {"generation_config.json": b'{"eos_token_id": [401, 5000]}'}
    codec = TextCodec.load(files.__getitem__)
    assert codec.vocabulary_size == 402
    for known_ids in (402, 390):
        state = Grammars(codec, known_ids=known_ids).compile(Constraint.json_object()).start(codec.stop_token_ids)
        for token in codec.encode('{"a": "<'):
            state.accept(token)
        forbidden = state.mask()
        assert forbidden.shape == (known_ids,)
        assert not forbidden[codec.encode("a")[0]]
        assert known_ids < 402 or forbidden[401]
