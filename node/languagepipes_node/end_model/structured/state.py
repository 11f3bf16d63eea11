"""A grammar that llguidance compiled, and one sequence's place in it."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from languagepipes_node.end_model.structured.constraint import GrammarExhausted
from languagepipes_node.end_model.structured.vocabulary import Vocabulary

Bools = npt.NDArray[np.bool_]


class CompiledGrammar:
    """What `Grammars.compile` returns. Sequences of one grammar share the states of its lexer.

    worn: those have reached their limit; the next request compiles it again.
    """

    def __init__(self, matcher: Any, vocabulary: Vocabulary) -> None:
        self._matcher = matcher
        self.vocabulary = vocabulary
        self.worn = False
        self._copying = threading.Lock()

    def start(self, stop_token_ids: frozenset[int]) -> MatcherState:
        with self._copying:
            matcher = self._matcher.deep_copy()
        return MatcherState(self, matcher, stop_token_ids)


class MatcherState:
    """A `GrammarState`."""

    def __init__(self, grammar: CompiledGrammar, matcher: Any, stop_token_ids: frozenset[int]) -> None:
        vocabulary = grammar.vocabulary
        self._grammar = grammar
        self._matcher = matcher
        self._lock = threading.Lock()
        self._stops = np.array(sorted(vocabulary.stop_token_ids), np.int64)
        # Those of them that do not end this answer.
        self._withheld = np.array(sorted(vocabulary.stop_token_ids - stop_token_ids), np.int64)
        self._words = np.zeros((vocabulary.tokenizer.vocab_size + 31) // 32, np.uint32)
        self._forbidden: Bools | None = None
        self._over = False

    def prepare(self) -> None:
        with self._lock:
            if self._forbidden is None and not self._over:
                self._forbidden = self._compute()

    def mask(self) -> Bools:
        with self._lock:
            if self._forbidden is None:
                self._forbidden = self._compute()
            return self._forbidden

    def accept(self, token: int) -> None:
        if token in self._grammar.vocabulary.stop_token_ids:
            return
        with self._lock:
            self._forbidden = None
            if not self._matcher.consume_token(token):
                self._fail()
            self._over = self._matcher.is_stopped()

    def possible(self, tokens: Sequence[int]) -> int:
        with self._lock:
            if self._over:
                return 0
            count: int = self._matcher.validate_tokens(list(tokens))
            return count

    def forced(self) -> tuple[int, ...]:
        with self._lock:
            if self._over:
                return ()
            text: bytes = self._matcher.compute_ff_bytes()
        if not text:
            return ()
        return tuple(self._grammar.vocabulary.encode(text.decode(errors="ignore")))[:-1]

    @property
    def is_over(self) -> bool:
        return self._over

    def _compute(self) -> Bools:
        size = self._grammar.vocabulary.size
        self._matcher.unsafe_compute_mask_ptr(self._words.ctypes.data, self._words.nbytes)
        if self._matcher.is_error():
            self._fail()
        allowed = np.unpackbits(self._words.view(np.uint8), count=size, bitorder="little").view(np.bool_)
        forbidden = np.logical_not(allowed, out=allowed)
        forbidden[self._withheld] = True
        if not forbidden[self._stops].all() and not self._matcher.is_accepting():
            forbidden[self._stops] = True  # a grammar may name a stop token, which ends the answer all the same
        if forbidden.all():
            self._fail()
        return forbidden

    def _fail(self) -> None:
        self._grammar.worn = True
        reason = str(self._matcher.stop_reason())
        raise GrammarExhausted(
            f"the grammar of this answer could not be followed within its limits ({reason})",
            detail=str(self._matcher.get_error()) or "NoExtension",
        )
