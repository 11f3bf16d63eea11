"""A model's tokens as the grammar library is given them: bytes, which of them are special, and which end an answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from llguidance import LLTokenizer

from languagepipes_node.end_model.text import TextCodec


@dataclass(frozen=True)
class Vocabulary:
    """stop_token_ids: those of the model, which it is given at the end of an answer. size: ids that can be sampled.
    encode: the tokens that the model's tokenizer makes of a text."""

    tokenizer: Any
    stop_token_ids: frozenset[int]
    size: int
    encode: Callable[[str], Sequence[int]]

    @classmethod
    def of(cls, codec: TextCodec, *, known_ids: int) -> Vocabulary:
        """known_ids: one more than the largest id that the tokenizer and the model both know. Takes up to seconds.

        Raises TokenizerError if the tokenizer's tokens are not bytes of a text.
        """
        tokens, special = codec.spelling()
        stops = frozenset(token for token in codec.stop_token_ids if token < known_ids)
        # A stop token is never text, whatever the tokenizer calls it.
        spelled = _SpelledTokens(tokens[:known_ids], sorted(token for token in special | stops if token < known_ids))
        tokenizer = LLTokenizer(spelled, eos_token=sorted(stops)) if stops else LLTokenizer(spelled)  # type: ignore[arg-type]
        return cls(tokenizer, stops, known_ids, partial(codec.encode, add_special_tokens=False))


class _SpelledTokens:
    """What LLTokenizer reads of a tokenizer. Without a stop token it makes one up, beyond all ids."""

    is_tokenizer_wrapper = True
    eos_token_id: int | None = None
    bos_token_id: int | None = None

    def __init__(self, tokens: Sequence[bytes], special_token_ids: Sequence[int]) -> None:
        self.tokens, self.special_token_ids = tokens, special_token_ids

    def __call__(self, text: str) -> list[int]:
        # Grammars are compiled with `no_forcing`, so that nothing is ever tokenised here.
        raise NotImplementedError
