"""Drafts of how a sequence goes on, from its own tokens: what followed the last few of them where they stood before.

Prompt lookup decoding (Saxena, 2023, https://github.com/apoorvumang/prompt-lookup-decoding), which vLLM calls the
method "ngram". It pays where answers repeat: code and documents that are edited, quotations, lists, JSON. It knows
neither what a draft costs nor whether it was right.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# So many of the last tokens must have stood together before; up to LONGEST_MATCH the place where most of them did is
# taken, and of such places the latest.
SHORTEST_MATCH = 2
LONGEST_MATCH = 4
_FIRST_CAPACITY = 256


class NgramDrafter:
    """Of one sequence. Keeps its tokens once more, int32, so that looking costs microseconds: 4 bytes a token."""

    def __init__(self) -> None:
        self._ids = np.empty(_FIRST_CAPACITY, np.int32)
        self._length = 0

    def draft(self, tokens: Sequence[int], most: int) -> tuple[int, ...]:
        """What may follow `tokens`, at most `most` tokens; none if their end never stood in them before. tokens: all of
        the sequence's, those of the last call and more.

        A text that repeats itself is continued beyond its end: behind its last token the draft repeats itself too."""
        self._read(tokens)
        begin = self._match()
        if begin is None or most < 1:
            return ()
        period = self._length - begin
        following = tuple(tokens[begin : begin + most])
        return (following * -(-most // period))[:most] if period < most else following

    def _read(self, tokens: Sequence[int]) -> None:
        length = len(tokens)
        if length > len(self._ids):
            grown = np.empty(max(length, 2 * len(self._ids)), np.int32)
            grown[: self._length] = self._ids[: self._length]
            self._ids = grown
        self._ids[self._length : length] = tokens[self._length :]
        self._length = length

    def _match(self) -> int | None:
        """The index behind the latest of the longest earlier occurrences of the last tokens."""
        ids, last = self._ids, self._length - 1
        if last < SHORTEST_MATCH:
            return None
        ends = np.flatnonzero(ids[:last] == ids[last])
        for back in range(1, min(LONGEST_MATCH, last)):
            longer = ends[np.searchsorted(ends, back) :]
            longer = longer[ids[longer - back] == ids[last - back]]
            if not len(longer):
                if back < SHORTEST_MATCH:
                    return None
                break
            ends = longer
        return int(ends[-1]) + 1 if len(ends) else None
