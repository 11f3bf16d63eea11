"""A small real tokenizer with the files that come beside it, and how a detokenizer cuts a text."""

from __future__ import annotations

import json
from collections.abc import Sequence

from languagepipes_node.end_model.text import TextCodec
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

CHATML = (
    "{% for message in messages %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CORPUS = [
    "The capital of France is Paris. The quick brown fox jumps over the lazy dog.",
    "user system assistant developer hello world, how are you today? I am fine, thank you.",
    "Größe, naïve café, crème brûlée, señor, 東京 日本語 中文, emoji 🎉🎉 👩‍👩‍👧‍👦 🇫🇷 done END STOP",
]
TEXTS = [
    "The capital of France is Paris.",
    "naïve 東京 🧠🎉 👩‍👩‍👧‍👦 🇫🇷",
    "a\ufffdb and a lone \ufffd",
    "  two spaces\n\n\ttab\r\n",
    "مرحبا बहुत สวัสดี",
    "<|im_end|> in the middle",
]


def train_tokenizer() -> Tokenizer:
    """A byte-level BPE tokenizer like Qwen's and Llama's, small enough that most characters take several tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_tokens([AddedToken("<think>", special=False, normalized=False)])
    return tokenizer


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


def model_files(tokenizer: Tokenizer, *, chat_template: str | None = CHATML) -> dict[str, bytes]:
    config: dict[str, object] = {"bos_token": "<|im_start|>", "eos_token": {"content": "<|im_end|>"}}
    if chat_template is not None:
        config["chat_template"] = chat_template
    return {
        "tokenizer.json": tokenizer.to_str().encode(),
        "tokenizer_config.json": json.dumps(config).encode(),
        "generation_config.json": b'{"eos_token_id": [0, 2]}',
    }


def pieces(codec: TextCodec, prompt: Sequence[int], tokens: Sequence[int]) -> list[str]:
    """What a detokenizer gives out for each token, and at the end."""
    detokenizer = codec.detokenizer(prompt)
    return [*(detokenizer.push(token) for token in tokens), detokenizer.finish()]
