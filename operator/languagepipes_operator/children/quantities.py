"""Quantities as the API server writes them, so that what is read back equals what was sent.

The rules are resource.Quantity's (k8s.io/apimachinery/pkg/api/resource): no fractions, the largest suffix that keeps
the number whole, and the family of suffixes (binary, decimal, exponent) that it was written in. In requests and limits
fractions below one thousandth are rounded up (k8s.io/kubernetes/pkg/apis/core/v1).
"""

from __future__ import annotations

import math
import re
from fractions import Fraction

_QUANTITY = re.compile(r"((?:[0-9]+(?:[.][0-9]*)?|[.][0-9]+))([numkMGTPE]|[KMGTPE]i|[eE][+-]?[0-9]+)?", re.ASCII)
_BINARY = {f"{suffix}i": Fraction(1024) ** power for power, suffix in enumerate("KMGTPE", start=1)}
_DECIMAL = {
    suffix: Fraction(1000) ** power
    for power, suffix in enumerate(("n", "u", "m", "", "k", "M", "G", "T", "P", "E"), -3)
}
_LEAST = Fraction(1, 1000)


def value_of(quantity: int | float | str) -> Fraction:
    """Its value; fractions below one thousandth are rounded up. Raises ValueError for what is no quantity."""
    return _parse(str(quantity))[0]


def canonical(quantity: int | float | str) -> str:
    """The same amount as the API server writes it: "1024Mi" is "1Gi", "0.5" is "500m", 1 is "1"."""
    value, suffix = _parse(str(quantity))
    if suffix not in _DECIMAL and suffix not in _BINARY:
        return _scaled(value, {f"e{3 * power}" if power else "": scale for power, scale in _exponents()})
    # Below 1 KiB there is no binary suffix to write it with.
    if suffix in _BINARY and abs(value) >= 1024 and value.denominator == 1:
        return _scaled(value, {"": Fraction(1), **_BINARY})
    return _scaled(value, _DECIMAL)


def of_bytes(count: int, *, unit: int = 2**20) -> str:
    """`count` bytes rounded up to whole units (MiB), canonical."""
    return canonical(f"{math.ceil(Fraction(count, unit)) * unit // 1024}Ki")


def _exponents() -> list[tuple[int, Fraction]]:
    return [(power, Fraction(1000) ** power) for power in range(-3, 7)]


def _parse(text: str) -> tuple[Fraction, str]:
    match = _QUANTITY.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is no quantity; write it like 500m, 2 or 12Gi")
    number, suffix = Fraction(match[1]), match[2] or ""
    if suffix in _BINARY:
        scale = _BINARY[suffix]
    elif suffix in _DECIMAL:
        scale = _DECIMAL[suffix]
    else:
        scale = Fraction(10) ** int(suffix[1:])
    value = number * scale
    return math.ceil(value / _LEAST) * _LEAST, suffix


def _scaled(value: Fraction, suffixes: dict[str, Fraction]) -> str:
    if value == 0:
        return "0"
    for suffix, scale in sorted(suffixes.items(), key=lambda item: item[1], reverse=True):
        if (value / scale).denominator == 1:
            return f"{value / scale}{suffix}"
    raise AssertionError(f"{value} is a whole number of thousandths")
