"""`Hello`, the message that opens an epoch, and reading of both messages: msgpack, capped in size, strict in schema.

Deciding what to do with them is in `epochs.py`.
"""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

import msgpack
from languagepipes_api.names import WIRE_VERSION, Identity
from languagepipes_api.plan import Dtype, Plan
from pydantic import Field, ValidationError

from languagepipes_node.wire.close import Close, Counter, EightBytes, Message
from languagepipes_node.wire.errors import HelloError
from languagepipes_node.wire.ring import Epoch, Ring

# 64 stages at about 130 bytes each, and room to spare.
MAX_MESSAGE_BYTES = 32 * 1024
MAX_MEMBERS = 65

_Layer = Annotated[int, Field(ge=0, lt=2**31)]
_Name = Annotated[str, Field(min_length=1, max_length=64)]


class Entry(Message):
    """What one member reports of itself. index: 0 for the End Model, else the stage's place. layers: half-open.

    kv_id: random per KV allocation; seen: the highest epoch counter before this hello.
    """

    index: Annotated[int, Field(ge=0, lt=MAX_MEMBERS)]
    name: _Name
    layers: Annotated[list[_Layer], Field(min_length=2, max_length=4)]
    dtype: Dtype
    kv_id: EightBytes
    kv_blocks: Annotated[int, Field(ge=1, lt=2**31)]
    seen: Counter


class Hello(Message):
    """Opens an epoch: sent by the End Model, carried round the ring, one entry added by every member.

    stages: the layer range of every stage in the End Model's plan, so that a member of another plan can report what
    differs.
    """

    wire: Annotated[int, Field(ge=0, lt=2**16)]
    plan: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
    namespace: Annotated[str, Field(min_length=1, max_length=63)]
    pipe: Annotated[str, Field(min_length=1, max_length=63)]
    replica: Annotated[int, Field(ge=0, lt=2**31, validation_alias="chain", serialization_alias="chain")]
    counter: Annotated[int, Field(ge=1, lt=2**63)]
    id: EightBytes
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


def own_entry(ring: Ring, *, kv_id: bytes, seen: Epoch) -> Entry:
    """What this member adds to a hello that passes it."""
    me = ring.me
    return Entry(
        index=me.index,
        name=me.name,
        layers=list(me.layers),
        dtype=ring.plan.dtype,
        kv_id=kv_id,
        kv_blocks=ring.plan.kv_blocks,
        seen=seen.counter,
    )


def parse_hello(data: bytes | bytearray | memoryview) -> Hello:
    """Raises HelloError naming the field."""
    return _parse(Hello, "hello", data)


def parse_close(data: bytes | bytearray | memoryview) -> Close:
    """Raises HelloError naming the field."""
    return _parse(Close, "close", data)


_M = TypeVar("_M", bound=Message)


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
