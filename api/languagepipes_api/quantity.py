"""Amounts of memory as Kubernetes writes them (`12Gi`, `500M`, `1e9`), and as people read them (`12.1 GiB`).

The syntax is that of resource.Quantity (k8s.io/apimachinery/pkg/api/resource), without signs and without the
suffixes below one (n, u, m): no amount of memory needs them.
"""

from __future__ import annotations

import re
from fractions import Fraction

QUANTITY_PATTERN = r"^([0-9]+([.][0-9]*)?|[.][0-9]+)([kMGTPE]|[KMGTPE]i|[eE][+]?[0-9]{1,2})?$"
QUANTITY_MAX_LENGTH = 32

_QUANTITY = re.compile(QUANTITY_PATTERN.removesuffix("$") + r"\Z", re.ASCII)
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
    mantissa, _, suffix = match.groups(default="")
    # "1E" is an exa-byte, "1E3" a thousand bytes: an exponent has digits.
    multiplier = _MULTIPLIERS.get(suffix)
    if multiplier is None:
        multiplier = 10 ** int(suffix[1:])
    return -int(-Fraction(mantissa) * multiplier // 1)


def format_bytes(count: int) -> str:
    """`count` bytes in the largest binary unit that keeps it at or above one, with at most one decimal."""
    value = float(count)
    unit = 0
    # 1023.96 MiB would print as "1024 MiB".
    while unit < len(_UNITS) - 1 and (value >= 1024 or (unit and round(value, 1) >= 1024)):
        value /= 1024
        unit += 1
    return f"{count} B" if unit == 0 else f"{value:.1f}".removesuffix(".0") + f" {_UNITS[unit]}"
