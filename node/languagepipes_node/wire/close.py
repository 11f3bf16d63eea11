"""`Close`, the message that says why a link ends, and what both messages of the wire have in common.

It knows neither frames nor what to do with a close reason: that is decided in `epochs.py`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

import msgpack
from pydantic import BaseModel, ConfigDict, Field

from languagepipes_node.wire.ring import NO_EPOCH, Epoch, RingMember

CloseCode = Literal[
    # refusals of a hello
    "wire_version",
    "plan_hash",
    "pipe",
    "stations",
    "layers",
    "dtype",
    "kv_blocks",
    "stale_epoch",
    "held",
    "not_predecessor",
    "malformed",
    # ends of a link
    "silence",
    "lost",
    "unreachable",
    "bad_frame",
    "superseded",
    "shutdown",
    "deadline",
    "step_failed",
]
CLOSE_CODES: tuple[str, ...] = get_args(CloseCode)

Counter = Annotated[int, Field(ge=0, lt=2**63)]
EightBytes = Annotated[bytes, Field(min_length=8, max_length=8)]


class Message(BaseModel):
    # Aliases are the names that wire version 1 uses.
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, validate_by_name=True, validate_by_alias=True)

    def pack(self) -> bytes:
        """The message as msgpack."""
        packed: bytes = msgpack.packb(self.fields(), use_bin_type=True)
        return packed

    def fields(self) -> dict[str, Any]:
        """What is packed, by the names on the wire."""
        return self.model_dump(by_alias=True)


class Close(Message):
    """Why a link ends: the last frame each way, handed on unchanged, so that the End Model learns the root
    cause.

    member: who noticed, for people. seen_counter, seen_id: with stale_epoch, held and superseded, the epoch
    that holds. step: with step_failed, the step that this member could not compute; 0 otherwise, and then not packed.
    """

    code: CloseCode
    member: Annotated[
        str, Field(min_length=1, max_length=64, validation_alias="station", serialization_alias="station")
    ]
    message: Annotated[str, Field(min_length=1, max_length=400)]
    seen_counter: Counter = 0
    seen_id: EightBytes = NO_EPOCH.id
    step: Counter = 0

    def fields(self) -> dict[str, Any]:
        fields = super().fields()
        if not self.step:  # as it was before there was such a field
            del fields["step"]
        return fields

    @property
    def seen(self) -> Epoch:
        return Epoch(self.seen_counter, self.seen_id)

    def __str__(self) -> str:
        return f"{self.member}: {self.message}"


def close(member: RingMember, code: CloseCode, message: str, seen: Epoch = NO_EPOCH, *, step: int = 0) -> Close:
    """A Close in a member's name; a message that is too long is cut."""
    return Close(
        code=code,
        member=str(member)[:64],
        message=message if len(message) <= 400 else message[:399] + "…",
        seen_counter=seen.counter,
        seen_id=seen.id,
        step=min(step, 2**63 - 1),
    )
