"""The two messages that are not frames of numbers: `Hello`, which opens an epoch, and `Close`, which says why
a link ends. msgpack, capped in size, strict in schema. Deciding what to do with them is in `epochs.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, get_args

import msgpack
from languagepipes_api.names import WIRE_VERSION, Identity
from languagepipes_api.plan import Dtype, Plan
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from languagepipes_node.wire.errors import HelloError

# 64 stages at about 130 bytes each, and room to spare.
MAX_MESSAGE_BYTES = 32 * 1024
MAX_MEMBERS = 65

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
]
CLOSE_CODES: tuple[str, ...] = get_args(CloseCode)


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

_Counter = Annotated[int, Field(ge=0, lt=2**63)]
_Layer = Annotated[int, Field(ge=0, lt=2**31)]
_EightBytes = Annotated[bytes, Field(min_length=8, max_length=8)]
_Name = Annotated[str, Field(min_length=1, max_length=64)]


class _Message(BaseModel):
    # Aliases are the names that wire version 1 uses.
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, validate_by_name=True, validate_by_alias=True)

    def pack(self) -> bytes:
        """The message as msgpack."""
        packed: bytes = msgpack.packb(self.model_dump(by_alias=True), use_bin_type=True)
        return packed


class Entry(_Message):
    """What one member says of itself. index: 0 for the End Model, else the stage's place. layers: half-open.

    kv_id: random per KV allocation; seen: the highest epoch counter before this hello.
    """

    index: Annotated[int, Field(ge=0, lt=MAX_MEMBERS)]
    name: _Name
    layers: Annotated[list[_Layer], Field(min_length=2, max_length=4)]
    dtype: Dtype
    kv_id: _EightBytes
    kv_blocks: Annotated[int, Field(ge=1, lt=2**31)]
    seen: _Counter


class Hello(_Message):
    """Opens an epoch: sent by the End Model, carried round the ring, one entry added by every member.

    stages: the layer range of every stage in the End Model's plan, so that one of another plan can say what differs.
    """

    wire: Annotated[int, Field(ge=0, lt=2**16)]
    plan: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
    namespace: Annotated[str, Field(min_length=1, max_length=63)]
    pipe: Annotated[str, Field(min_length=1, max_length=63)]
    replica: Annotated[int, Field(ge=0, lt=2**31, validation_alias="chain", serialization_alias="chain")]
    counter: Annotated[int, Field(ge=1, lt=2**63)]
    id: _EightBytes
    stages: Annotated[
        list[Annotated[list[_Layer], Field(min_length=2, max_length=2)]],
        Field(min_length=1, max_length=MAX_MEMBERS - 1),
    ]
    entries: Annotated[list[Entry], Field(min_length=1, max_length=MAX_MEMBERS)]

    @property
    def epoch(self) -> Epoch:
        return Epoch(self.counter, self.id)

    def with_entry(self, entry: Entry) -> Hello:
        return self.model_copy(update={"entries": [*self.entries, entry]})


class Close(_Message):
    """Why a link ends: the last frame each way, handed on unchanged, so that the End Model learns the root
    cause.

    member: who noticed, for people. seen_counter, seen_id: with stale_epoch and superseded, the epoch that
    holds.
    """

    code: CloseCode
    member: Annotated[
        str, Field(min_length=1, max_length=64, validation_alias="station", serialization_alias="station")
    ]
    message: Annotated[str, Field(min_length=1, max_length=400)]
    seen_counter: _Counter = 0
    seen_id: _EightBytes = NO_EPOCH.id

    @property
    def seen(self) -> Epoch:
        return Epoch(self.seen_counter, self.seen_id)

    def __str__(self) -> str:
        return f"{self.member}: {self.message}"


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


def close(member: RingMember, code: CloseCode, message: str, seen: Epoch = NO_EPOCH) -> Close:
    """A Close in a member's name; a message that is too long is cut."""
    return Close(
        code=code,
        member=str(member)[:64],
        message=message if len(message) <= 400 else message[:399] + "…",
        seen_counter=seen.counter,
        seen_id=seen.id,
    )


def new_hello(plan: Plan, identity: Identity, epoch: Epoch) -> Hello:
    """A hello without entries yet; `with_entry` adds the End Model's."""
    return Hello.model_construct(
        wire=WIRE_VERSION,
        plan=plan.hash,
        namespace=identity.namespace,
        pipe=identity.pipe,
        replica=identity.replica,
        counter=epoch.counter,
        id=epoch.id,
        stages=[[stage.layers.start, stage.layers.stop] for stage in plan.stages],
        entries=[],
    )


def parse_hello(data: bytes | bytearray | memoryview) -> Hello:
    """Raises HelloError naming the field."""
    return _parse(Hello, "hello", data)


def parse_close(data: bytes | bytearray | memoryview) -> Close:
    """Raises HelloError naming the field."""
    return _parse(Close, "close", data)


_M = TypeVar("_M", bound=_Message)


def _parse(model: type[_M], what: str, data: bytes | bytearray | memoryview) -> _M:
    if len(data) > MAX_MESSAGE_BYTES:
        raise HelloError(f"{what} has {len(data)} bytes, at most {MAX_MESSAGE_BYTES} are read")
    try:
        fields: Any = msgpack.unpackb(
            data,
            raw=False,
            strict_map_key=True,
            max_str_len=2048,
            max_bin_len=8,
            max_array_len=MAX_MEMBERS,
            max_map_len=16,
            max_ext_len=0,
        )
    except (ValueError, RecursionError) as error:  # msgpack's own errors are ValueErrors
        raise HelloError(f"{what} is not msgpack within its bounds: {str(error)[:100]}") from error
    except Exception as error:
        if not type(error).__module__.startswith("msgpack"):
            raise
        raise HelloError(f"{what} is not msgpack within its bounds: {type(error).__name__}") from error
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part)[:40] for part in first["loc"]) or what
        raise HelloError(f"{what}: field {where}: {first['msg']}") from error
