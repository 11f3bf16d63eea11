"""How much of an amount is there, for people. Pure."""

from __future__ import annotations

from languagepipes_api.quantity import format_bytes


def of_bytes(done: int, total: int) -> str:
    """Both in the unit of `total`, named once."""
    amount, unit = format_bytes(total).split()
    if done >= total:
        return f"{amount}/{amount} {unit}"
    power = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB").index(unit)
    # Rounded down: nothing is said to be there before it is.
    tenths = done * 10 // 1024**power
    digits = str(tenths // 10) if unit == "B" else f"{tenths // 10}.{tenths % 10}"
    return f"{digits.removesuffix('.0')}/{amount} {unit}"
