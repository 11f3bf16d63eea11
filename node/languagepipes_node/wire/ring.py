"""What a ring consists of: its members as the plan has them, one member's view of it, and epochs.

It knows no messages and no connections.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from languagepipes_api.names import Identity
from languagepipes_api.plan import Plan


class Epoch(NamedTuple):
    """One session of a replica's connections. The counter decides; the id (8 bytes) names the End Model
    process.

    Counter 0 is no epoch: it is what a member has seen that has seen none.
    """

    counter: int
    id: bytes

    def __str__(self) -> str:
        return f"{self.counter}/{self.id.hex()}"


NO_EPOCH = Epoch(0, bytes(8))


@dataclass(frozen=True)
class RingMember:
    """One member of the ring as the plan has it. index 0 is the End Model; layers as in `Entry`."""

    index: int
    name: str
    layers: tuple[int, ...]

    def __str__(self) -> str:
        return "end-model" if self.index == 0 else f"stage {self.index} ({self.name})"


def members(plan: Plan) -> tuple[RingMember, ...]:
    """All members of a plan in ring order, the End Model first."""
    local, tail = plan.end_model.local_layers, plan.end_model.tail_layers
    end_model = RingMember(0, "end-model", (local.start, local.stop, tail.start, tail.stop))
    return (
        end_model,
        *(
            RingMember(place, stage.name[:64] or "stage", (stage.layers.start, stage.layers.stop))
            for place, stage in enumerate(plan.stages, start=1)
        ),
    )


@dataclass(frozen=True)
class Ring:
    """A member's own view of the ring: its identity, and all members as the plan has them."""

    identity: Identity
    plan: Plan

    @property
    def members(self) -> tuple[RingMember, ...]:
        return members(self.plan)

    @property
    def me(self) -> RingMember:
        return self.members[self.identity.index]

    @property
    def predecessor(self) -> RingMember:
        return self.members[self.identity.index - 1]

    @property
    def successor(self) -> RingMember:
        everyone = self.members
        return everyone[(self.identity.index + 1) % len(everyone)]

    def identity_of(self, member: RingMember) -> Identity:
        mine = self.identity
        if member.index == 0:
            return Identity(mine.namespace, mine.pipe, mine.replica, "end-model")
        return Identity(mine.namespace, mine.pipe, mine.replica, "stage", member.index)
