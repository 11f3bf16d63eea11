"""Masks computed beside the engine's thread. It knows no grammar library."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from languagepipes_node.end_model.structured.constraint import GrammarExhausted, GrammarState


class MaskWorkers:
    """Computes masks beside the engine's thread, while the ring computes the frame that will need them."""

    def __init__(self, threads: int = 2) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="masks")

    def prepare(self, states: Sequence[GrammarState]) -> None:
        """Begin with the masks of `states`. Whoever asks one for its mask before that is done, computes it."""
        if states:
            self._pool.submit(_prepare_all, states)


def _prepare_all(states: Sequence[GrammarState]) -> None:
    for state in states:
        with contextlib.suppress(GrammarExhausted):  # raised again where the mask is asked for
            state.prepare()
