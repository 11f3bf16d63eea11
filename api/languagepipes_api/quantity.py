"""Amounts of memory and of other resources as Kubernetes writes them (`12Gi`, `500M`, `1e9`, `500m`), and as people
read them (`12.1 GiB`).

The syntax is that of resource.Quantity (k8s.io/apimachinery/pkg/api/resource), without signs. Of the suffixes below
one only `m` is taken, and for memory not even that: no amount needs the others.
"""

from __future__ import annotations

import re
from fractions import Fraction

QUANTITY_PATTERN = r"^([0-9]+([.][0-9]*)?|[.][0-9]+)([kMGTPE]|[KMGTPE]i|[eE][+]?[0-9]{1,2})?$"
RESOURCE_QUANTITY_PATTERN = r"^([0-9]+([.][0-9]*)?|[.][0-9]+)(m|[kMGTPE]|[KMGTPE]i|[eE][+]?[0-9]{1,2})?$"
QUANTITY_MAX_LENGTH = 32

_QUANTITY = re.compile(QUANTITY_PATTERN.removesuffix("$") + r"\Z", re.ASCII)
_RESOURCE_QUANTITY = re.compile(RESOURCE_QUANTITY_PATTERN.removesuffix("$") + r"\Z", re.ASCII)
_DECIMAL = {suffix: 1000**power for power, suffix in enumerate("kMGTPE", start=1)}
_BINARY = {f"{suffix}i": 1024**power for power, suffix in enumerate("KMGTPE", start=1)}
_MULTIPLIERS = {"": 1, **_DECIMAL, **_BINARY}
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")


def parse_quantity(amount: int | str) -> int:
    """Bytes in `amount`, a fraction of a byte rounded up, as Kubernetes does.

    Raises ValueError, with the value and examples, for anything that is not a quantity.
    """
    if isinstance(amount, bool) or (isinstance(amount, int) and amount < 0):
        raise ValueError(f"{amount!r} is no amount of memory; write it like 12Gi, 500M or 1e9")
    if isinstance(amount, int):
        return amount
    match = _QUANTITY.match(amount) if len(amount) <= QUANTITY_MAX_LENGTH else None
    if match is None:
        raise ValueError(f"{amount!r} is no amount of memory; write it like 12Gi, 500M or 1e9")
    return -int(-_value(match) // 1)


def parse_resource_quantity(amount: int | str) -> Fraction:
    """The exact amount of any resource: CPUs (`500m` is a half), bytes, devices.

    Raises ValueError, with the value and examples, for anything that is not a quantity.
    """
    if isinstance(amount, bool) or (isinstance(amount, int) and amount < 0):
        raise ValueError(f"{amount!r} is no quantity; write it like 2, 500m or 12Gi")
    if isinstance(amount, int):
        return Fraction(amount)
    match = _RESOURCE_QUANTITY.match(amount) if len(amount) <= QUANTITY_MAX_LENGTH else None
    if match is None:
        raise ValueError(f"{amount!r} is no quantity; write it like 2, 500m or 12Gi")
    return _value(match)


def _value(match: re.Match[str]) -> Fraction:
    mantissa, _, suffix = match.groups(default="")
    if suffix == "m":
        return Fraction(mantissa) / Fraction(1000)
    # "1E" is an exa-byte, "1E3" a thousand bytes: an exponent has digits.
    exponent = suffix[:1] in ("e", "E") and suffix[1:].removeprefix("+").isdecimal()
    return Fraction(mantissa) * Fraction(10 ** int(suffix[1:]) if exponent else _MULTIPLIERS[suffix])


def format_bytes(count: int) -> str:
    """`count` bytes in the largest binary unit that keeps it at or above one, with at most one decimal."""
    value = float(count)
    unit = 0
    # 1023.96 MiB would print as "1024 MiB".
    while unit < len(_UNITS) - 1 and (value >= 1024 or (unit and round(value, 1) >= 1024)):
        value /= 1024
        unit += 1
    return f"{count} B" if unit == 0 else f"{value:.1f}".removesuffix(".0") + f" {_UNITS[unit]}"
