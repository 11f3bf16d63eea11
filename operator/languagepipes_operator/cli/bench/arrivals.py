"""When requests of an open loop are due."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator


def poisson(rate: float, source: random.Random) -> Iterator[float]:
    """Seconds after the start, without end: a Poisson process of `rate` events a second, so gaps are exponential."""
    return itertools.accumulate(iter(lambda: source.expovariate(rate), None))
