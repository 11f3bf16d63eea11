"""Where a text that comes in pieces must end. It knows neither tokens nor models."""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Finds the first stop string to become complete in a text that comes in pieces, wherever the pieces are cut.

    Text that may yet turn out to belong to a stop string is held back; a stop string's own text is never given out.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """(text that may be shown, whether a stop string is complete). After True nothing more is to be shown."""
        if not self._stops:
            return text, False
        held = self._held + text
        # The earliest end wins, so that it does not matter whether the text came at once or letter by letter.
        ends = [(start + len(stop), start) for stop in self._stops if (start := held.find(stop)) >= 0]
        if ends:
            self._held = ""
            return held[: min(ends)[1]], True
        keep = self._tail_to_keep(held)
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep], False

    def finish(self) -> str:
        """What was held back and turned out to be no stop string."""
        held, self._held = self._held, ""
        return held

    def _tail_to_keep(self, text: str) -> int:
        longest = min(len(text), max(map(len, self._stops)) - 1)
        for length in range(longest, 0, -1):
            tail = text[-length:]
            if any(stop.startswith(tail) for stop in self._stops):
                return length
        return 0
