"""What a GGUF file leaves out of its vocabulary: where turns end, whether texts begin with BOS, how they are split."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from languagepipes_node.weights.gguf_config import _ends_by_name
from languagepipes_node.weights.gguf_tokenizer import build_tokenizer, splitting_note
from tokenizers import Tokenizer

TOKENS = ["<|begin|>", "<|endoftext|>", "<|im_end|>", "<EOT>", "a", "b"]
KINDS = [3, 3, 3, 1, 1, 1]


def metadata(**changes: Any) -> dict[str, Any]:
    found = {
        "model": "gpt2",
        "pre": "llama-bpe",
        "tokens": TOKENS,
        "token_type": np.array(KINDS),
        "merges": ["a b"],
        "bos_token_id": 0,
        "eos_token_id": 1,
    }
    found["tokens"] = [*TOKENS, "ab"]
    found["token_type"] = np.array([*KINDS, 1])
    found |= changes
    return {f"tokenizer.ggml.{name}": value for name, value in found.items() if value is not None}


def tokens_of(text: str, **changes: Any) -> list[int]:
    tokenizer, config = build_tokenizer(metadata(**changes), vocabulary_size=8, file="m.gguf")
    ids = Tokenizer.from_str(tokenizer).encode(text).ids
    assert json.dumps(config["add_bos_token"]) == ("true" if ids[0] == 0 else "false")
    return list(ids)


@pytest.mark.parametrize(
    ("pre", "add_bos", "expected"),
    [
        # llama.cpp's default of each pre-tokenizer (src/llama-vocab.cpp), and the file's own word before it
        ("llama-bpe", None, [0, 6]),
        ("llama3", None, [0, 6]),
        ("llama-v3", None, [0, 6]),
        ("smaug-bpe", None, [6]),
        ("qwen2", None, [6]),
        ("smollm", None, [6]),
        (None, None, [6]),
        ("llama-bpe", False, [6]),
        ("qwen2", True, [0, 6]),
    ],
)
def test_texts_begin_with_bos_where_llama_cpp_begins_them_so(
    pre: str | None, add_bos: bool | None, expected: list[int]
) -> None:
    assert tokens_of("ab", pre=pre, add_bos_token=add_bos) == expected


def test_a_vocabulary_without_bos_begins_texts_with_none() -> None:
    tokenizer, _ = build_tokenizer(metadata(bos_token_id=None), vocabulary_size=8, file="m.gguf")
    assert Tokenizer.from_str(tokenizer).encode("ab").ids == [6]


def test_special_tokens_that_end_turns_are_known_by_name() -> None:
    # <EOT> is ordinary text here, and <|begin|> ends nothing.
    assert _ends_by_name(metadata()) == [1, 2]
    assert _ends_by_name(metadata(token_type=None)) == []
    assert _ends_by_name({}) == []


def test_a_file_that_does_not_name_its_pre_tokenizer_is_told() -> None:
    assert splitting_note(metadata(), file="m.gguf") is None
    note = splitting_note(metadata(pre=None), file="m.gguf")
    assert note is not None
    assert note.startswith("m.gguf: the metadata key tokenizer.ggml.pre is missing")
