"""How long prompts and answers are to be: fixed, or drawn from a distribution."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Protocol

FORMS = "N, LOW-HIGH (uniform), or normal:MEAN:STDDEV"


class Lengths(Protocol):
    """Numbers of tokens, each at least 1."""

    def draw(self, source: random.Random) -> int: ...

    @property
    def typical(self) -> int:
        """The mean."""


@dataclass(frozen=True)
class Fixed:
    tokens: int

    def draw(self, source: random.Random) -> int:
        return self.tokens

    @property
    def typical(self) -> int:
        return self.tokens

    def __str__(self) -> str:
        return str(self.tokens)


@dataclass(frozen=True)
class Uniform:
    """low and high are both drawn."""

    low: int
    high: int

    def draw(self, source: random.Random) -> int:
        return source.randint(self.low, self.high)

    @property
    def typical(self) -> int:
        return (self.low + self.high) // 2

    def __str__(self) -> str:
        return f"{self.low}-{self.high}"


@dataclass(frozen=True)
class Normal:
    """Rounded; what would be below 1 becomes 1, what would be above twice the mean becomes that."""

    mean: int
    deviation: int

    def draw(self, source: random.Random) -> int:
        return min(max(1, round(source.gauss(self.mean, self.deviation))), 2 * self.mean)

    @property
    def typical(self) -> int:
        return self.mean

    def __str__(self) -> str:
        return f"normal:{self.mean}:{self.deviation}"


def parse_lengths(text: str) -> Lengths:
    """Raises ValueError."""
    if text.isdecimal() and int(text) >= 1:
        return Fixed(int(text))
    low, dash, high = text.partition("-")
    if dash and low.isdecimal() and high.isdecimal() and 1 <= int(low) <= int(high):
        return Uniform(int(low), int(high))
    kind, _, numbers = text.partition(":")
    mean, _, deviation = numbers.partition(":")
    if kind == "normal" and mean.isdecimal() and deviation.isdecimal() and int(mean) >= 1:
        return Normal(int(mean), int(deviation))
    raise ValueError(f"{text!r} is no number of tokens: use {FORMS}")
