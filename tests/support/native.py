"""What tests of the native kernels share."""

from __future__ import annotations

from languagepipes_node.model import kernels


def levels(least: int = kernels.AVX2) -> list[int]:
    """The instruction sets that this processor has, from `least` on: each can be forced with `kernels.use_level`."""
    own = kernels.library()[1] if kernels.available() else 0
    return [level for level in kernels.LEVELS if least <= level <= own] or [least]
