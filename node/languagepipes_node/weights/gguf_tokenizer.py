"""tokenizer.json and tokenizer_config.json out of a GGUF file's vocabulary, with the tokenizers library.

Byte-level BPE only (`tokenizer.ggml.model` "gpt2"): what Llama 3, Qwen and SmolLM use. Which way text is split before
merging is named by `tokenizer.ggml.pre`; the patterns are those of the models' own tokenizer.json.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    normalizers,
    pre_tokenizers,
    processors,
)
from tokenizers.models import BPE

from languagepipes_node.weights.errors import BrokenFile, UnsupportedFile

_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4

_LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class _Splitting:
    pre_tokenizer: Callable[[], Any]
    unicode_normal_form: bool = False
    ignore_merges: bool = False
    adds_bos: bool = False  # where the file does not say


def _by_pattern(pattern: str) -> Callable[[], Any]:
    return lambda: pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def _byte_level() -> Any:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


def _digits_then_byte_level() -> Any:
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _byte_level()])


_LLAMA3 = _Splitting(_by_pattern(_LLAMA3_SPLIT), ignore_merges=True, adds_bos=True)
_QWEN2 = _Splitting(_by_pattern(_QWEN2_SPLIT), unicode_normal_form=True)
_SPLITTINGS: dict[str, _Splitting] = {
    "gpt-2": _Splitting(_byte_level),
    "default": _Splitting(_byte_level),
    "smollm": _Splitting(_digits_then_byte_level),
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "smaug-bpe": replace(_LLAMA3, adds_bos=False),
    "qwen2": _QWEN2,
    "deepseek-r1-qwen": _QWEN2,
}


def splitting_note(metadata: Mapping[str, Any], *, file: str) -> str | None:
    """What somebody should know of a file that does not say how its text is split; None where it does."""
    if metadata.get("tokenizer.ggml.pre") is not None:
        return None
    return (
        f"{file}: the metadata key tokenizer.ggml.pre is missing, so nothing says which pre-tokenizer the model has. "
        "Text is split as GPT-2 does, which may be wrong and then costs quality: use a file of a newer converter, or "
        "the model's safetensors repository"
    )


def build_tokenizer(metadata: Mapping[str, Any], *, vocabulary_size: int, file: str) -> tuple[str, dict[str, Any]]:
    """(tokenizer.json's text, tokenizer_config.json as an object). Raises UnsupportedFile or BrokenFile."""
    model = metadata.get("tokenizer.ggml.model")
    if model != "gpt2":
        raise UnsupportedFile(
            f"{file}: the tokenizer model {str(model)[:40]!r} is not read from GGUF (only byte-level BPE, 'gpt2'); "
            "use the model's safetensors repository"
        )
    pre = metadata.get("tokenizer.ggml.pre", "default")
    splitting = _SPLITTINGS.get(pre) if isinstance(pre, str) else None
    if splitting is None:
        raise UnsupportedFile(
            f"{file}: the pre-tokenizer {str(pre)[:40]!r} is not known ({', '.join(_SPLITTINGS)} are); "
            "use the model's safetensors repository"
        )
    tokens = _strings(metadata, "tokenizer.ggml.tokens", file)
    merges = _merges(_strings(metadata, "tokenizer.ggml.merges", file), file)
    if len(tokens) > vocabulary_size:
        raise BrokenFile(f"{file}: {len(tokens)} tokens but the embedding has {vocabulary_size} rows")
    vocabulary = {token: number for number, token in enumerate(tokens)}
    if len(vocabulary) != len(tokens):
        raise BrokenFile(f"{file}: tokenizer.ggml.tokens names a token twice")
    try:
        tokenizer = Tokenizer(
            BPE(vocab=vocabulary, merges=merges, fuse_unk=False, ignore_merges=splitting.ignore_merges)
        )
    except Exception as error:  # the library raises bare Exception for a merge outside the vocabulary
        raise BrokenFile(f"{file}: tokens and merges do not fit each other ({type(error).__name__})") from error
    if splitting.unicode_normal_form:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = splitting.pre_tokenizer()
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    _add_special(tokenizer, tokens, metadata, file)
    config = _config(metadata, tokens, file, adds_bos=splitting.adds_bos)
    if config["add_bos_token"]:
        _prepend(tokenizer, config, vocabulary)
    return tokenizer.to_str(), config


def _config(metadata: Mapping[str, Any], tokens: list[str], file: str, *, adds_bos: bool) -> dict[str, Any]:
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "add_bos_token": metadata.get("tokenizer.ggml.add_bos_token", adds_bos) is True,
        "add_eos_token": metadata.get("tokenizer.ggml.add_eos_token") is True,
    }
    for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        number = metadata.get(f"tokenizer.ggml.{key}_token_id")
        if number is None:
            continue
        if type(number) is not int or not 0 <= number < len(tokens):
            raise BrokenFile(f"{file}: tokenizer.ggml.{key}_token_id is {str(number)[:40]}, outside the vocabulary")
        config[f"{name}_token"] = tokens[number]
    template = metadata.get("tokenizer.chat_template")
    if isinstance(template, str):
        config["chat_template"] = template
    return config


def _add_special(tokenizer: Tokenizer, tokens: list[str], metadata: Mapping[str, Any], file: str) -> None:
    kinds = metadata.get("tokenizer.ggml.token_type")
    if kinds is None:
        return
    if not isinstance(kinds, np.ndarray) or len(kinds) != len(tokens):
        raise BrokenFile(f"{file}: tokenizer.ggml.token_type does not give one number for each of {len(tokens)} tokens")
    for number in np.flatnonzero((kinds == _CONTROL) | (kinds == _USER_DEFINED)).tolist():
        special = int(kinds[number]) == _CONTROL
        token = AddedToken(tokens[number], normalized=False, special=special)
        if special:
            tokenizer.add_special_tokens([token])
        else:
            tokenizer.add_tokens([token])


def _prepend(tokenizer: Tokenizer, config: Mapping[str, Any], vocabulary: Mapping[str, int]) -> None:
    bos = config.get("bos_token")
    if bos is None:
        return
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single=[bos, "$A"], pair=[bos, "$A", bos, "$B:1"], special_tokens=[(bos, vocabulary[bos])]
            ),
        ]
    )


def _strings(metadata: Mapping[str, Any], key: str, file: str) -> list[str]:
    value = metadata.get(key)
    if not isinstance(value, list) or not value:
        raise BrokenFile(f"{file}: the metadata key {key!r} is missing or no list of strings")
    return value


def _merges(lines: list[str], file: str) -> list[tuple[str, str]]:
    merges = []
    for line in lines:
        left, separator, right = line.partition(" ")
        if not separator or not left or not right or " " in right:
            raise BrokenFile(f"{file}: tokenizer.ggml.merges has an entry that is no pair")
        merges.append((left, right))
    return merges
