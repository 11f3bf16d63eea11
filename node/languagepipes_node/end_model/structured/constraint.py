"""What an answer must match, and what the engine asks of it. Plain data and protocols; no grammar library is imported.

ConstraintError      it cannot be kept, with the place in the constraint that cannot
GrammarExhausted     an answer cannot be continued within the limits of its grammar
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import orjson

Kind = Literal["json_schema", "regex", "choice", "lark", "grammar"]


class ConstraintError(ValueError):
    """The constraint cannot be kept whole, so it is not kept at all.

    path: the place inside the constraint, as in a parameter's name (".properties.x.not", "[3]"), empty for all of it.
    unsupported: it is right, but this server cannot keep it; otherwise it is wrong.
    """

    def __init__(self, message: str, *, path: str = "", unsupported: bool = False) -> None:
        super().__init__(message)
        self.message = message
        self.path = path
        self.unsupported = unsupported

    def again(self) -> ConstraintError:
        """Another one like it: one that is kept is not raised itself, since it would keep what raised it alive."""
        return ConstraintError(self.message, path=self.path, unsupported=self.unsupported)


class GrammarExhausted(Exception):
    """The sequence cannot go on: its grammar took more than the limits of one step. The message says why.

    detail: the library's own words, which may quote the answer.
    """

    def __init__(self, message: str, *, detail: str = "") -> None:
        super().__init__(message)
        self.detail = detail


@dataclass(frozen=True)
class Constraint:
    """What the whole text of an answer must match. text: canonical, so that equal constraints are equal keys.

    json_schema: a JSON Schema, as JSON. regex: a regular expression of the whole text. choice: a JSON list of strings,
    one of which is the text. lark: a context-free grammar in llguidance's dialect of Lark
    (https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md), where `%json {…}` embeds a schema and
    `<|name|>` is a special token; each schema in it is checked as a json_schema is. grammar: Lark, or GBNF (what
    llama.cpp reads, and xgrammar's EBNF), as a client wrote it.
    """

    kind: Kind
    text: str

    @classmethod
    def json_schema(cls, schema: dict[str, Any] | bool) -> Constraint:
        """Properties keep their order: it is the order in which they are generated. Raises ConstraintError."""
        return cls("json_schema", schema_text(schema))

    @classmethod
    def json_object(cls) -> Constraint:
        """Any JSON object."""
        return cls.json_schema({"type": "object"})

    @classmethod
    def regex(cls, pattern: str) -> Constraint:
        return cls("regex", pattern)

    @classmethod
    def choice(cls, choices: Sequence[str]) -> Constraint:
        return cls("choice", orjson.dumps(list(choices)).decode())

    @classmethod
    def lark(cls, grammar: str) -> Constraint:
        return cls("lark", grammar)


def schema_text(schema: dict[str, Any] | bool) -> str:
    """The schema as JSON. Raises ConstraintError if it is nested too deeply for that."""
    try:
        return orjson.dumps(schema).decode()
    except orjson.JSONEncodeError:
        raise ConstraintError("It is nested too deeply.", unsupported=True) from None


class GrammarState(Protocol):
    """One sequence's place in a grammar. It belongs to the engine's thread.

    It advances once for each sampled token and never goes back: a sequence that is computed again keeps it.
    """

    def prepare(self) -> None:
        """Compute the mask, so that `mask` need not. Any thread, at any time."""
        ...

    def mask(self) -> npt.NDArray[np.bool_]:
        """Which tokens may not come next: bool [known ids], True for those. Stop tokens are allowed exactly where the
        text so far matches the whole grammar. The array is read only and valid until `accept`.

        Raises GrammarExhausted.
        """
        ...

    def accept(self, token: int) -> None:
        """Advance by a sampled token, which the mask allowed; a stop token changes nothing. Raises GrammarExhausted."""
        ...

    def possible(self, tokens: Sequence[int]) -> int:
        """How many of these tokens, none of them a stop token, the grammar accepts next, one after the other. The place
        stays where it is."""
        ...

    def forced(self) -> tuple[int, ...]:
        """How the tokenizer would write what has to come next, as far as the text is certain: a guess, since the same
        text may be sampled in other tokens. The last one is left out: what follows may join it."""
        ...

    @property
    def is_over(self) -> bool:
        """The text is complete and nothing can follow it: the sequence ends here, with no stop token sampled."""
        ...


class Grammar(Protocol):
    """A compiled constraint. Immutable; for any thread."""

    def start(self, stop_token_ids: frozenset[int]) -> GrammarState:
        """A new state at the start of an answer. stop_token_ids: what may end it."""
        ...
