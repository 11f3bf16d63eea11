"""Who may open an epoch: the decisions of the handshake, pure. The two communicators act on them.

Two claimants to a replica cannot both be right: the higher epoch counter decides, at each member for itself.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from languagepipes_api.names import WIRE_VERSION

from languagepipes_node.wire.close import Close, CloseCode, close
from languagepipes_node.wire.hello import Hello
from languagepipes_node.wire.ring import NO_EPOCH, Epoch, Ring


def validate_hello(ring: Ring, hello: Hello, highest: Epoch) -> Close | None:
    """Why a member refuses a hello, or None if it accepts. `highest`: the highest epoch that it has seen.

    The End Model validates the hello that returned by the same rules, but for the epoch, which must be its own.
    """
    me, plan = ring.me, ring.plan

    def refuse(code: CloseCode, message: str, seen: Epoch = NO_EPOCH) -> Close:
        return close(me, code, f"refused: {message}", seen)

    if hello.wire != WIRE_VERSION:
        return refuse("wire_version", f"wire version {hello.wire} is not {WIRE_VERSION}")
    mine = (ring.identity.namespace, ring.identity.pipe, ring.identity.replica)
    theirs = (hello.namespace, hello.pipe, hello.replica)
    if theirs != mine:
        return refuse(
            "pipe",
            f"pipe {theirs[0]}/{theirs[1]} replica {theirs[2]} is not {mine[0]}/{mine[1]} replica {mine[2]}",
        )
    # What differs is reported before the hash, which only shows that something does.
    if len(hello.stages) != len(plan.stages):
        return refuse("stations", f"the hello's plan has {len(hello.stages)} stages, not {len(plan.stages)}")
    for member, layers in zip(ring.members[1:], hello.stages, strict=True):
        if tuple(layers) != member.layers:
            return refuse("layers", f"{member} is to run layers {_span(layers)}, not {_span(member.layers)}")
    # The members before this one; for the End Model, whose hello returned, all of them.
    expected = ring.members[: ring.identity.index or None]
    if len(hello.entries) != len(expected):
        return refuse("stations", f"the hello passed {len(hello.entries)} members, {len(expected)} come before")
    for entry, member in zip(hello.entries, expected, strict=True):
        if entry.index != member.index:
            return refuse("stations", f"member {entry.index} stands in the place of {member}")
        if tuple(entry.layers) != member.layers:
            return refuse("layers", f"{member} runs layers {_span(entry.layers)}, not {_span(member.layers)}")
        if entry.dtype != plan.dtype:
            return refuse("dtype", f"{member} sends {entry.dtype}, not {plan.dtype}")
        if entry.kv_blocks != plan.kv_blocks:
            return refuse("kv_blocks", f"{member} has {entry.kv_blocks} KV blocks, the plan has {plan.kv_blocks}")
    if hello.plan != plan.hash:
        return refuse("plan_hash", f"plan hash {hello.plan} is not {plan.hash}")
    if ring.identity.index == 0:
        if hello.epoch != highest:
            return refuse("stale_epoch", f"epoch {hello.epoch} is not the one being opened, {highest}", highest)
    elif hello.counter <= highest.counter:
        return refuse("stale_epoch", f"epoch {hello.epoch} is not above epoch {highest}", highest)
    return None


class Decision(enum.Enum):
    """What an End Model does after its epoch was refused."""

    RETRY_ABOVE = "retry above"
    EXIT = "exit"
    GIVE_UP = "give up"


@dataclass
class EndEpochs:
    """The epochs of one End Model process. `held`: whether it ever had the ring. patience_seconds: how long it leaves
    the ring to another End Model that lives.
    """

    id: bytes
    highest: int = 0
    held: bool = False
    patience_seconds: float = 0.0
    _waits_since: float | None = None

    def next(self) -> Epoch:
        """An epoch above all that this process opened or learned of."""
        self.highest += 1
        return Epoch(self.highest, self.id)

    def decide(self, close_reason: Close, *, opened: Epoch, now: float) -> Decision:
        """What to do now that an epoch of ours ended for this reason. Records the counter that the reason names.

        An End Model that held the ring and learns of a higher counter under another id has been replaced: a newer
        End Model of the replica runs. One that never held it was just started, so it is the newer one, and opens a
        higher epoch: at once if the older one's links are gone, else after `patience_seconds`, since that one may be
        completing what it has begun. now: of time.monotonic().
        """
        if close_reason.code not in ("stale_epoch", "held", "superseded"):
            return Decision.GIVE_UP
        seen = close_reason.seen
        if seen.counter >= opened.counter and seen.id != self.id and self.held:
            return Decision.EXIT
        if close_reason.code == "held":
            if self._waits_since is None:
                self._waits_since = now
            if now - self._waits_since < self.patience_seconds:
                self.highest = opened.counter - 1  # not above the other one's by mere attempts
                return Decision.GIVE_UP
        self.highest = max(self.highest, seen.counter)
        return Decision.RETRY_ABOVE


def _span(layers: tuple[int, ...] | list[int]) -> str:
    return " and ".join(f"[{layers[place]}, {layers[place + 1]})" for place in range(0, len(layers) - 1, 2))
