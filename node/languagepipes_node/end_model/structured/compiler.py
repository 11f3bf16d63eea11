"""Constraints compiled in threads of their own, within limits of size and work, and kept for whoever asks next.

A schema compiles in a millisecond, or in a second where it uses all that the limits allow; llguidance lets other
threads run meanwhile.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import TypeVar

from llguidance import LLMatcher, LLParserLimits

from languagepipes_node.end_model.structured.blame import blame
from languagepipes_node.end_model.structured.constraint import Constraint, ConstraintError, GrammarExhausted
from languagepipes_node.end_model.structured.lark import grammar_of
from languagepipes_node.end_model.structured.state import CompiledGrammar
from languagepipes_node.end_model.structured.vocabulary import Vocabulary
from languagepipes_node.end_model.text import TextCodec, TokenizerError

T = TypeVar("T")
MAX_BYTES = 256 * 1024
# Compiling again costs little; the states that an intricate grammar has gathered take up to 50 MB.
_KEPT = 16
# The library walks rules and references by recursion. The memory is taken only where it is used.
_STACK_BYTES = 256 * 1024 * 1024
_stack_size = threading.Lock()


def limits() -> LLParserLimits:
    """Work in one step of an answer: 15 ms or so at the most. States: 1 to 2 KiB each, while a grammar is kept."""
    return LLParserLimits(
        max_items_in_row=2_000,
        initial_lexer_fuel=1_000_000,
        step_lexer_fuel=200_000,
        step_max_items=50_000,
        max_lexer_states=20_000,
        max_grammar_size=300_000,
        verbose_errors=False,
    )


class Grammars:
    """Compiles constraints for one model. For any thread.

    codec: the model's text side. known_ids: one more than the largest id that its tokenizer and its head both have.
    Made once, before requests come: reading 150,000 tokens takes a second, and lets no other thread run.
    """

    def __init__(self, codec: TextCodec, *, known_ids: int) -> None:
        self._vocabulary = _vocabulary_of(codec, known_ids)
        self._kept: OrderedDict[Constraint, CompiledGrammar | ConstraintError] = OrderedDict()
        self._guard = threading.Lock()

    def known(self, constraint: Constraint) -> CompiledGrammar | None:
        """What was compiled already, at once. Raises ConstraintError if that failed."""
        with self._guard:
            kept = self._kept.get(constraint)
            if kept is None or (isinstance(kept, CompiledGrammar) and kept.worn):
                return None
            self._kept.move_to_end(constraint)
        if isinstance(kept, ConstraintError):
            raise kept.again()
        return kept

    def compile(self, constraint: Constraint) -> CompiledGrammar:
        """Takes up to seconds the first time. Raises ConstraintError."""
        size = len(constraint.text.encode())
        if size > MAX_BYTES:
            raise ConstraintError(f"It has {size} bytes, at most {MAX_BYTES} are compiled.", unsupported=True)
        if (known := self.known(constraint)) is not None:
            return known
        compiled: CompiledGrammar | ConstraintError
        try:
            compiled = self._compiled(constraint)
        except ConstraintError as error:
            compiled = error.again()
        with self._guard:
            self._kept[constraint] = compiled
            self._kept.move_to_end(constraint)
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        if isinstance(compiled, ConstraintError):
            raise compiled.again()
        return compiled

    def _compiled(self, constraint: Constraint) -> CompiledGrammar:
        vocabulary = self._vocabulary
        if isinstance(vocabulary, ConstraintError):
            raise vocabulary.again()
        grammar = grammar_of(constraint)

        def attempt(text: str) -> CompiledGrammar | str:
            """The grammar, or the library's error."""
            matcher = LLMatcher(vocabulary.tokenizer, text, log_level=0, limits=limits())
            if matcher.is_error():
                return str(matcher.get_error())
            compiled = CompiledGrammar(matcher, vocabulary)
            try:
                compiled.start(vocabulary.stop_token_ids).mask()
            except GrammarExhausted as error:  # no text can even begin
                return error.detail
            return compiled

        def compile_or_blame() -> CompiledGrammar:
            compiled = attempt(grammar)
            if isinstance(compiled, CompiledGrammar):
                return compiled
            raise blame(constraint, compiled, lambda text: error if isinstance(error := attempt(text), str) else "")

        return _with_large_stack(compile_or_blame)


def _vocabulary_of(codec: TextCodec, known_ids: int) -> Vocabulary | ConstraintError:
    """The vocabulary, or why no answer can be held to a grammar."""
    try:
        return Vocabulary.of(codec, known_ids=known_ids)
    except TokenizerError as error:
        return ConstraintError(f"This model's answers cannot be held to a grammar: {error}.", unsupported=True)


def _with_large_stack(work: Callable[[], T]) -> T:
    results: list[T] = []
    failures: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:
            failures.append(error)

    with _stack_size:
        before = threading.stack_size(_STACK_BYTES)
        try:
            thread = threading.Thread(target=run, name="compile grammar")
            thread.start()
        finally:
            threading.stack_size(before)
    thread.join()
    if failures:
        raise failures[0]
    return results[0]
