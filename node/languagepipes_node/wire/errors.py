"""What can go wrong on the wire.

WireError
├── FrameError          bytes that are no frame of this ring (ValueError too)
│   └── VersionError    the peer speaks another wire version
├── HelloError          a hello or close message that cannot be read (ValueError too)
├── LinkLost            one link ended; carries the close reason
├── RingDown            the ring is not whole; carries the root cause, for people
└── SupersededError     another End Model owns the replica: this process must exit

Messages name members, sizes and reasons; never a hidden state.
"""

from __future__ import annotations

from languagepipes_node.wire.close import Close


class WireError(Exception):
    """The root of everything raised by this package."""


class FrameError(WireError, ValueError):
    """A frame breaks the format or the limits of the plan. The message names the field, its value and the
    limit.
    """


class VersionError(FrameError):
    """The frame is of another wire version."""


class HelloError(WireError, ValueError):
    """A hello or close message is malformed."""


class LinkLost(WireError):
    """A link ended. `close_reason`: why, as the peer reported it or as seen from here."""

    def __init__(self, close_reason: Close) -> None:
        super().__init__(str(close_reason))
        self.close_reason = close_reason


class RingDown(WireError):
    """The ring is not whole. `code` is a machine reason (see close.CLOSE_CODES); the text is the root cause.

    step: with code "step_failed", the step that a member could not compute.
    """

    def __init__(self, reason: str, code: str = "lost", step: int | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.code = code
        self.step = step


class SupersededError(WireError):
    """The stages follow an End Model with a higher epoch: this one has lost its replica and must exit."""
