"""What a lost epoch does to requests: which wait for the ring, for how long, and which of them may have broken it.

Pure: it knows neither frames nor links. The engine reports what happened; here is what follows. docs/recovery.md says
it for users.
"""

from __future__ import annotations

from dataclasses import dataclass

# In flight at so many losses, with nothing returned in between: from then on a sequence is tried apart.
_SUSPECT_AFTER = 2
# Alone in flight at so many losses: it breaks the ring. Not one, since a member may have been lost by chance.
_GUILTY_AFTER = 2


@dataclass
class Setbacks:
    """What lost epochs did to one sequence.

    losses: how often it was in flight when the ring was lost, since a frame of it returned. replays: the same, since
    its last token. suspect: it is sent alone. alone: how often the ring was lost while it was the only one in flight.
    """

    losses: int = 0
    replays: int = 0
    suspect: bool = False
    alone: int = 0

    def lost(self, *, alone: bool, blamed: bool) -> None:
        """The ring was lost while a frame of this sequence was out. alone: and of no other. blamed: a member named this
        frame as the one that it could not compute."""
        self.losses += 1
        self.replays += 1
        if self.suspect and alone:
            self.alone += _GUILTY_AFTER if blamed else 1
        self.suspect = self.suspect or blamed or self.losses >= _SUSPECT_AFTER

    @property
    def guilty(self) -> bool:
        """Whether it, and nothing else, breaks the ring."""
        return self.alone >= _GUILTY_AFTER

    def returned(self) -> None:
        """A frame of it returned: the ring bears it."""
        self.losses = self.alone = 0
        self.suspect = False

    def got_a_token(self) -> None:
        self.replays = 0


class Outage:
    """How long there has been no ring, and how long requests wait for one. Times are of time.monotonic().

    max_wait_seconds: of an outage, not of a request: who comes late is not kept waiting for a ring that others have
    given up. from_first_request: the ring may be down because nobody asks; then that time begins when somebody waits,
    and again after those who waited have given up.
    """

    def __init__(self, *, max_wait_seconds: float, now: float, from_first_request: bool = False) -> None:
        self._max_wait_seconds = max_wait_seconds
        self._from_first_request = from_first_request
        self._since: float | None = now
        self._waited_since: float | None = None  # since when somebody waits for the ring
        self.reason = "the ring has not been joined yet"
        self.code = "start"

    @property
    def down(self) -> bool:
        return self._since is not None

    def begin(self, reason: str, code: str, *, now: float) -> bool:
        """The ring is lost, or could not be joined again; True if that is news."""
        news = reason != self.reason or not self.down
        self.reason = reason
        if self._since is None:
            self._since, self.code = now, code
        return news

    def end(self, *, now: float) -> float:
        """The ring is whole; how long it was missed, in seconds."""
        since = self._waited_since if self._from_first_request else self._since
        seconds = 0.0 if since is None else now - since
        self._since, self._waited_since, self.reason = None, None, ""
        return seconds

    def expired(self, *, waiting: int, now: float) -> bool:
        """Whether nobody waits any longer. waiting: how many wait now."""
        if self._since is None:
            return False
        if not waiting:
            self._waited_since = None
        elif self._waited_since is None:
            self._waited_since = now
        since = self._waited_since if self._from_first_request else self._since
        return since is not None and now - since >= self._max_wait_seconds
