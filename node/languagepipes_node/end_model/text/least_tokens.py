"""The least number of tokens that a text can have, from its length alone: for refusing a text without tokenising it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

# What NFC composes is shorter than what it was made of: ι (U+1FBE), ¨ and ´ are seven bytes, ΐ two. Rounded up.
_COMPOSED_BYTES = 4
_KEEPS_ALL = frozenset({"isolated", "mergedwithprevious", "mergedwithnext", "contiguous"})


@dataclass(frozen=True)
class LeastTokens:
    """bytes_per_token: the most bytes of a text that one token stands for. left_out: bytes that no token spells."""

    bytes_per_token: int
    left_out: bytes

    def of(self, text: str) -> int:
        """So many tokens `text` has at the very least."""
        return -(-len(text.encode().translate(None, self.left_out)) // self.bytes_per_token)


def least_tokens(description: dict[str, Any], token_bytes: Iterable[bytes]) -> LeastTokens | None:
    """What can be said of a byte-level tokenizer; None where that is nothing. description: its tokenizer.json.

    Something can be said of byte-level BPE whose every step keeps every byte: no pre-tokenizer that removes what it
    splits at, no unknown token, no added token that takes the spaces beside it along, no normalizer but NFC.
    """
    model = description.get("model") or {}
    alone = not any(model.get(name) for name in ("unk_token", "continuing_subword_prefix", "end_of_word_suffix"))
    swallowing = any(
        token.get("lstrip") or token.get("rstrip") for token in description.get("added_tokens") or [] if token
    )
    if model.get("type") != "BPE" or not alone or swallowing or not _keeps_bytes(description.get("pre_tokenizer")):
        return None
    known = set(token_bytes)
    left_out = bytes(byte for byte in range(256) if bytes([byte]) not in known)
    longest = max(map(len, known), default=0)
    if not longest:
        return None
    match _names(description.get("normalizer"), "normalizers"):
        case []:
            return LeastTokens(longest, left_out)
        case ["NFC"] if not left_out:  # else what is composed may be left out
            return LeastTokens(longest * _COMPOSED_BYTES, left_out)
        case _:
            return None


def _keeps_bytes(pre_tokenizer: Any) -> bool:
    parts = pre_tokenizer.get("pretokenizers") if isinstance(pre_tokenizer, dict) else None
    names = _names(pre_tokenizer, "pretokenizers")
    splits = [part for part in (parts or [pre_tokenizer]) if isinstance(part, dict) and part.get("type") == "Split"]
    return (
        "ByteLevel" in names
        and set(names) <= {"ByteLevel", "Digits", "Split"}
        and all(str(split.get("behavior")).lower() in _KEEPS_ALL for split in splits)
    )


def _names(part: Any, inside: str) -> list[str]:
    """The types of a tokenizer's part, those of a sequence one by one."""
    if not isinstance(part, dict):
        return []
    if part.get("type") != "Sequence":
        return [str(part.get("type"))]
    return [name for inner in part.get(inside) or [] for name in _names(inner, inside)]
