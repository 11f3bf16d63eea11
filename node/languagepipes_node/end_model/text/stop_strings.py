"""Where a text that comes in pieces must end. It knows neither tokens nor models.

All stop strings are looked for at once, a character at a time (Aho and Corasick, "Efficient string matching", 1975), so
that many of them cost no more than one.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Sequence


class _Node:
    """A beginning of stop strings. fail: the longest proper end of it that is one too. depth: its length. match: the
    length of the longest stop string that it ends with; 0: it ends with none."""

    __slots__ = ("depth", "fail", "match", "next")

    def __init__(self, depth: int) -> None:
        self.depth = depth
        self.match = 0
        self.next: dict[str, _Node] = {}
        self.fail = self

    def after(self, character: str, root: _Node) -> _Node:
        """The longest end of this and `character` that begins a stop string."""
        node = self
        while (found := node.next.get(character)) is None and node is not root:
            node = node.fail
        return root if found is None else found


@functools.lru_cache(maxsize=32)
def _automaton(stops: tuple[str, ...]) -> _Node:
    """The root of all beginnings. Choices of one request, and requests of one client, share it."""
    root = _Node(0)
    for stop in stops:
        node = root
        for character in stop:
            node = node.next.setdefault(character, _Node(node.depth + 1))
        node.match = len(stop)
    pending = deque(root.next.values())
    for node in pending:
        node.fail = root
    while pending:
        node = pending.popleft()
        node.match = node.match or node.fail.match
        for character, following in node.next.items():
            following.fail = node.fail.after(character, root)
            pending.append(following)
    return root


class StopStrings:
    """Finds the first stop string to become complete in a text that comes in pieces, wherever the pieces are cut.

    Text that may yet turn out to belong to a stop string is held back; a stop string's own text is given out with
    `include` alone.
    """

    def __init__(self, stops: Sequence[str], *, include: bool = False) -> None:
        self._root = _automaton(tuple(stops)) if stops else None
        self._node = self._root
        self._include = include
        self._held = ""
        self.matched: str | None = None  # the one that is complete

    def push(self, text: str, *, may_end: bool = True) -> tuple[str, bool]:
        """(text that may be shown, whether a stop string is complete). After True nothing more is to be shown.
        may_end: without it, a stop string that becomes complete in this text does not count; one that begins in it and
        becomes complete later does."""
        root, node = self._root, self._node
        if root is None or node is None or (node is root and root.next.keys().isdisjoint(text)):
            return text, False
        held = self._held + text
        # The earliest end wins, so that it does not matter whether the text came at once or letter by letter.
        for end, character in enumerate(text, start=len(self._held) + 1):
            node = node.after(character, root)
            if node.match and may_end:
                self._held = ""
                self.matched = held[end - node.match : end]
                return held[: end if self._include else end - node.match], True
        while not node.next and node is not root:
            node = node.fail  # a stop string that did not count: only an end of it can go on
        self._node = node
        self._held = held[len(held) - node.depth :]
        return held[: len(held) - node.depth], False

    def finish(self) -> str:
        """What was held back and turned out to be no stop string."""
        held, self._held = self._held, ""
        return held


def tail_to_keep(text: str, markers: Sequence[str]) -> int:
    """How many of the last characters may be the beginning of one of `markers`, of which there is at least one."""
    first = {marker[0] for marker in markers}
    longest = min(len(text), max(map(len, markers)) - 1)
    for length in range(longest, 0, -1):
        if text[-length] in first and any(marker.startswith(text[-length:]) for marker in markers):
            return length
    return 0
