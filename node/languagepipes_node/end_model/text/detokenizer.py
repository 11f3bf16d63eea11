"""Token ids to text, one at a time, whole characters only: exact for byte-level tokenizers, by windows for others."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Any, Protocol

# Enough context for a decoder to know whether a token starts a word, and few enough to decode in microseconds.
_CONTEXT_TOKENS = 6
# More pending tokens than any character has bytes: what has not become text by then never will.
_MAX_PENDING_TOKENS = 12


class Detokenizer(Protocol):
    """Token ids to text, one at a time: the pieces, joined, are the text of all tokens, each piece whole characters."""

    def push(self, token: int) -> str:
        """The text that `token` completes: often a word, empty while a character is incomplete."""
        ...

    def finish(self) -> str:
        """What is left at the end: U+FFFD for a character that never became complete, or nothing."""
        ...


class ByteLevelDetokenizer:
    """For byte-level tokenizers (Qwen, Llama 3, SmolLM): every token is bytes, whatever stands beside it. Exact."""

    def __init__(self, token_bytes: tuple[bytes, ...], special_ids: frozenset[int]) -> None:
        self._token_bytes = token_bytes
        self._special_ids = special_ids
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        # A model's head may have more rows than the tokenizer has tokens.
        if token in self._special_ids or token >= len(self._token_bytes):
            return ""
        return self._decoder.decode(self._token_bytes[token])

    def finish(self) -> str:
        return self._decoder.decode(b"", final=True)


class PrefixDetokenizer:
    """For any other tokenizer: decode a window of tokens with and without the new one; the difference is its text.

    The window starts some tokens back, because a token's spelling may depend on what stands before it (a leading
    space is dropped at the start of a text). The method is that of Hugging Face's text-generation-inference.
    """

    def __init__(
        self,
        tokenizer: Any,
        special_ids: frozenset[int],
        prompt: Sequence[int],
        shown: frozenset[int] = frozenset(),
        *,
        keep_special_tokens: bool = False,
    ) -> None:
        """special_ids: tokens that are left out; none where special tokens are kept as text. shown: special tokens
        whose text is given out, each by itself: in a window the tokenizer may leave them out."""
        self._tokenizer = tokenizer
        self._special_ids = special_ids
        self._shown_ids = shown
        self._skip_special_tokens = not keep_special_tokens
        self._window = list(prompt[-_CONTEXT_TOKENS:])
        self._shown = len(self._window)  # tokens of the window whose text was given out

    def push(self, token: int) -> str:
        # Neither is text (a model's head may have more rows than the tokenizer has tokens), and a window that gives out
        # no text grows with every token.
        if token in self._special_ids or self._tokenizer.id_to_token(token) is None:
            return ""
        if token in self._shown_ids:
            return self.finish() + str(self._tokenizer.id_to_token(token))
        self._window.append(token)
        before = self._decode(self._window[: self._shown])
        after = self._decode(self._window)
        incomplete = after.endswith("\ufffd") and len(self._window) - self._shown < _MAX_PENDING_TOKENS
        if incomplete or len(after) <= len(before):
            return ""
        return self._give_out(before, after)

    def finish(self) -> str:
        before = self._decode(self._window[: self._shown])
        after = self._decode(self._window)
        return self._give_out(before, after) if len(after) > len(before) else ""

    def _give_out(self, before: str, after: str) -> str:
        self._window = self._window[max(0, len(self._window) - _CONTEXT_TOKENS) :]
        self._shown = len(self._window)
        return after[len(before) :]

    def _decode(self, tokens: list[int]) -> str:
        return str(self._tokenizer.decode(tokens, skip_special_tokens=self._skip_special_tokens))


def is_byte_level(decoder: Any) -> bool:
    if not isinstance(decoder, dict):
        return False
    if decoder.get("type") == "Sequence":
        parts = decoder.get("decoders") or []
        return len(parts) == 1 and is_byte_level(parts[0])
    return decoder.get("type") == "ByteLevel"


def space_mark(decoder: Any) -> str | None:
    """The character that stands for a space in tokens of SentencePiece's kind; None for any other tokenizer."""
    if not isinstance(decoder, dict):
        return None
    if decoder.get("type") == "Metaspace":
        return str(decoder.get("replacement", "▁"))
    if decoder.get("type") == "Replace" and decoder.get("content") == " ":
        mark = (decoder.get("pattern") or {}).get("String")
        return mark if isinstance(mark, str) and len(mark) == 1 else None
    if decoder.get("type") == "Sequence":
        return next((mark for part in decoder.get("decoders") or [] if (mark := space_mark(part))), None)
    return None


def byte_table(vocabulary: dict[str, int], size: int) -> tuple[bytes, ...]:
    """Each token's bytes. A token with a character outside GPT-2's byte alphabet stands for its own UTF-8."""
    alphabet = _byte_alphabet()
    table = [b""] * size
    for token, number in vocabulary.items():
        try:
            table[number] = bytes([alphabet[character] for character in token])
        except KeyError:
            table[number] = token.encode()
    return tuple(table)


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins for the 256 bytes (openai/gpt-2, src/encoder.py: bytes_to_unicode)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    alphabet = {chr(byte): byte for byte in printable}
    return alphabet | {chr(256 + place): byte for place, byte in enumerate(others)}
