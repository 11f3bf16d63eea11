"""Opening epochs: who is refused and told why, who takes over, who must go."""

from __future__ import annotations

import dataclasses
import threading
import time
from contextlib import ExitStack

import numpy as np
import pytest
from languagepipes_api.plan import LayerRange, Plan
from languagepipes_node.wire.end_model_communicator import EndModelCommunicator
from languagepipes_node.wire.errors import RingDown, SupersededError
from languagepipes_node.wire.frame import Kind
from languagepipes_node.wire.handshake import dial
from languagepipes_node.wire.hello import new_hello, own_entry, parse_close
from languagepipes_node.wire.link import read_control
from languagepipes_node.wire.ring import NO_EPOCH, Epoch, Ring
from languagepipes_node.wire.stage_communicator import StageCommunicator
from languagepipes_node.wire.transport import Connection
from support.memory_network import MemoryNetwork
from support.waiting import eventually
from support.wire_ring import (
    FAST,
    RunningRing,
    StageLoop,
    TransportMaker,
    build_ring,
    free_addresses,
    identity,
    make_plan,
    one_token,
)


def ring_with_stage_two_of(plan: Plan, other: Plan, transports: TransportMaker, stack: ExitStack) -> RunningRing:
    """Everyone follows `plan` but stage 2."""
    addresses = free_addresses(transports(0), 4)
    plans = [plan, plan, other, plan]
    end = EndModelCommunicator(
        identity(0), plan, None, addresses[0], addresses[1], timing=FAST, transport=transports(0)
    )
    stack.callback(end.close)
    loops = []
    for index in (1, 2, 3):
        communicator = StageCommunicator(
            identity(index), plans[index], None, addresses[index], addresses[(index + 1) % 4],
            timing=FAST, transport=transports(index),
        )  # fmt: skip
        loops.append(StageLoop(communicator))
        stack.callback(loops[-1].close)
    return RunningRing(end, loops)


def with_layers(plan: Plan, place: int, layers: LayerRange) -> Plan:
    stages = list(plan.stages)
    stages[place] = dataclasses.replace(stages[place], layers=layers)
    return dataclasses.replace(plan, stages=tuple(stages))


PLAN = make_plan()


@pytest.mark.parametrize(
    ("other", "code", "why"),
    [
        (make_plan(revision="r2"), "plan_hash", "plan hash {plan} is not {other}"),
        (make_plan(dtype="bfloat16"), "dtype", "end-model sends float32, not bfloat16"),
        (make_plan(kv_blocks=31), "kv_blocks", "end-model has 32 KV blocks, the plan has 31"),
        (
            with_layers(PLAN, 0, LayerRange(1, 3)),
            "layers",
            "stage 1 (s1) is to run layers [1, 2), not [1, 3)",
        ),
        (
            with_layers(PLAN, 1, LayerRange(2, 4)),
            "layers",
            "stage 2 (s2) is to run layers [2, 3), not [2, 4)",
        ),
        (
            dataclasses.replace(PLAN, stages=(*PLAN.stages, PLAN.stages[-1])),
            "stations",
            "the hello's plan has 3 stages, not 4",
        ),
        (dataclasses.replace(PLAN, wire_version=2), "plan_hash", "plan hash {plan} is not {other}"),
    ],
    ids=["revision", "dtype", "kv blocks", "a neighbour's layers", "its own layers", "stages", "wire version"],
)
def test_a_stage_of_another_plan_refuses_and_the_end_model_learns_who_and_why(
    other: Plan, code: str, why: str, transports: TransportMaker, stack: ExitStack
) -> None:
    ring = ring_with_stage_two_of(PLAN, other, transports, stack)
    with pytest.raises(RingDown) as raised:
        ring.end.connect()
    assert raised.value.reason == f"stage 2 (s2): refused: {why.format(plan=PLAN.hash, other=other.hash)}"
    assert raised.value.code == code
    eventually(lambda: ring.loops[0].communicator.state.epoch is None)
    assert ring.loops[0].communicator.state.reason == raised.value.reason


def test_an_absent_stage_is_named(transports: TransportMaker, stack: ExitStack) -> None:
    addresses = free_addresses(transports(0), 2)
    end = EndModelCommunicator(
        identity(0), make_plan(stages=1), None, addresses[0], addresses[1], timing=FAST, transport=transports(0)
    )
    stack.callback(end.close)
    with pytest.raises(RingDown) as raised:
        end.connect()
    assert raised.value.reason == (f"end-model: stage 1 (s1) at {addresses[1]} cannot be reached: Connection refused")
    with pytest.raises(RingDown, match="cannot be reached"):
        end.send(1, one_token(), np.zeros((1, 8), np.float32), 1)
    with pytest.raises(RingDown, match="cannot be reached"):
        end.receive(0.1)


def test_a_stage_that_does_not_take_its_turn_is_not_waited_for_longer_than_the_time_to_connect(
    transports: TransportMaker, stack: ExitStack
) -> None:
    addresses = free_addresses(transports(0), 2)
    plan, timing = make_plan(stages=1), dataclasses.replace(FAST, connect_seconds=0.3)
    stage = StageCommunicator(
        identity(1), plan, None, addresses[1], addresses[0], timing=timing, transport=transports(1)
    )
    stage.start()  # and nobody calls receive: a step takes its time
    stack.callback(stage.close)
    end = EndModelCommunicator(
        identity(0), plan, None, addresses[0], addresses[1], timing=timing, transport=transports(0)
    )
    stack.callback(end.close)
    with pytest.raises(RingDown, match=r"end-model: the hello did not return within 0\.3 s"):
        end.connect()


def test_a_hello_that_comes_while_another_is_adopted_is_adopted_next(
    transports: TransportMaker, stack: ExitStack
) -> None:
    addresses = free_addresses(transports(0), 2)
    plan = make_plan(stages=1)
    ring = Ring(identity(0), plan)

    def say_hello(counter: int) -> Connection:
        epoch = Epoch(counter, b"endmodel")
        hello = new_hello(plan, identity(0), epoch).with_entry(own_entry(ring, kv_id=bytes(8), seen=NO_EPOCH))
        connection = dial(transports(0), addresses[1], ring, hello, FAST)
        stack.callback(connection.close, 0)
        return connection

    class RingMember(StageCommunicator):
        second: Connection | None = None

        def _drain(self) -> None:
            if self.second is None:
                self.second = say_hello(2)
                eventually(lambda: self._pending is not None)
            super()._drain()

    stage = RingMember(identity(1), plan, None, addresses[1], addresses[0], timing=FAST, transport=transports(1))
    stage.start()
    stack.callback(stage.close)
    say_hello(1)
    begin = time.monotonic()
    thread = threading.Thread(target=stage.receive, args=(3.0,))
    thread.start()
    stack.callback(thread.join)
    # Nobody listens where the hello is to go on to, so that whoever is adopted hears of it.
    eventually(lambda: stage.second is not None)
    assert stage.second is not None
    stage.second.set_timeout(3.0)
    _, body = read_control(stage.second, kinds=(Kind.CLOSE,))
    assert parse_close(body).code == "unreachable"
    assert time.monotonic() - begin < 2.0


def test_a_new_end_model_goes_above_what_the_stages_have_seen(transports: TransportMaker, stack: ExitStack) -> None:
    ring = build_ring(make_plan(), transports, stack)
    for _ in range(3):
        last = ring.end.connect().epoch
    address, first = ring.end.address, ring.loops[0].communicator.address
    ring.end.close()
    eventually(lambda: ring.loops[0].communicator.state.epoch is None)
    end = EndModelCommunicator(identity(0), make_plan(), None, address, first, timing=FAST, transport=transports(0))
    stack.callback(end.close)
    info = end.connect()
    assert info.epoch.counter > last.counter
    assert info.epoch.id != last.id
    end.send(1, one_token(), np.zeros((1, 8), np.float32), 1)
    assert end.receive(2.0) is not None


def test_a_new_end_model_leaves_the_ring_to_one_that_lives_until_that_is_gone(stack: ExitStack) -> None:
    """The older one completes what it has begun."""
    network = MemoryNetwork()
    ring = build_ring(make_plan(), lambda index: network.transport(identity(index)), stack)
    older = ring.end
    held = older.connect().epoch
    network.forget(network.find(older.address))
    newer = EndModelCommunicator(
        identity(0), make_plan(), None, older.address, ring.loops[0].communicator.address,
        timing=dataclasses.replace(FAST, patience_seconds=60.0), transport=network.transport(identity(0)),
    )  # fmt: skip
    stack.callback(newer.close)
    for step in range(1, 4):
        with pytest.raises(RingDown, match=rf"refused: epoch {held} of another End Model is open") as refused:
            newer.connect()
        assert refused.value.code == "held"
        older.send(step, one_token(), np.zeros((1, 8), np.float32), 1)
        returned = older.receive(2.0)
        assert returned is not None
        returned.release()
    older.close()
    eventually(lambda: ring.loops[0].communicator.state.epoch is None)
    assert newer.connect().epoch.counter > held.counter


def test_of_two_end_models_the_newer_wins_in_the_end_and_the_older_must_exit(stack: ExitStack) -> None:
    network = MemoryNetwork()
    ring = build_ring(make_plan(), lambda index: network.transport(identity(index)), stack)
    older = ring.end
    older.connect()
    # The name of the End Model now leads to another process.
    network.forget(network.find(older.address))
    newer = EndModelCommunicator(
        identity(0), make_plan(), None, older.address, ring.loops[0].communicator.address, timing=FAST,
        transport=network.transport(identity(0)),
    )  # fmt: skip
    stack.callback(newer.close)
    with pytest.raises(RingDown, match="of another End Model is open"):
        newer.connect()
    time.sleep(FAST.patience_seconds)
    epoch = newer.connect().epoch
    with pytest.raises(SupersededError, match=rf"stage 1 \(s1\): epoch {epoch} replaces"):
        older.receive(2.0)
    with pytest.raises(SupersededError, match=rf"refused: epoch {epoch} of another End Model is open"):
        older.connect()
    newer.send(1, one_token(), np.zeros((1, 8), np.float32), 1)
    assert newer.receive(2.0) is not None


def test_each_communicator_tells_what_it_is_in_the_hello(transports: TransportMaker, stack: ExitStack) -> None:
    ring = build_ring(make_plan(tail=True), transports, stack)
    entries = ring.end.connect().members
    assert [(entry.index, entry.layers, entry.dtype, entry.kv_blocks) for entry in entries] == [
        (0, [0, 1, 4, 5], "float32", 32),
        (1, [1, 2], "float32", 32),
        (2, [2, 3], "float32", 32),
        (3, [3, 4], "float32", 32),
    ]
    assert len({entry.kv_id for entry in entries}) == 4
    assert [entry.kv_id for entry in ring.end.connect().members] == [entry.kv_id for entry in entries]
