"""A step that a stage cannot compute ends the epoch and nothing else: the End Model learns who, why and which step."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import ExitStack
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from languagepipes_node.model.batch import Batch
from languagepipes_node.model.errors import BatchError, DeviceFailed
from languagepipes_node.stage.loop import StageLoop
from languagepipes_node.wire.end_model_communicator import EndModelCommunicator
from languagepipes_node.wire.errors import RingDown
from languagepipes_node.wire.stage_communicator import StageCommunicator
from languagepipes_node.wire.tls_transport import TlsTransport
from support.relayed_link import RelayedLink, mbit
from support.waiting import eventually
from support.wire_ring import Pki, TransportMaker, free_addresses, identity, make_plan, one_token, tokens

SECRET = "0.123456789"


class LayersThatFail:
    """Layers that raise once, at a step of so many tokens, and otherwise hand the hidden states on."""

    device = torch.device("cpu")

    def __init__(self, error: BaseException | None = None, *, tokens: int = 1) -> None:
        self.error = error
        self.tokens = tokens

    def run(self, hidden: torch.Tensor, batch: Batch) -> torch.Tensor:
        if self.error is not None and batch.tokens == self.tokens:
            error, self.error = self.error, None
            raise error
        return hidden


class Ring:
    """An End Model and stages with the loop of production."""

    def __init__(self, end: EndModelCommunicator) -> None:
        self.end = end
        self.threads: list[threading.Thread] = []
        self.stages: list[StageCommunicator] = []

    def round(self, step: int, count: int = 1) -> None:
        batch = one_token() if count == 1 else tokens(count)
        width = self.end.limits.row_bytes
        self.end.send(step, batch, np.zeros((count, width), np.uint8), count)
        returned = self.end.receive(30.0)
        assert returned is not None
        returned.release()


MakeRing = Callable[..., Ring]


@pytest.fixture
def make_ring(stack: ExitStack) -> MakeRing:
    def make(
        transports: TransportMaker, layers: list[LayersThatFail], *, through: Callable[[str], str] = str, **plan: object
    ) -> Ring:
        a_plan = make_plan(stages=len(layers), **plan)  # type: ignore[arg-type]
        addresses = free_addresses(transports(0), len(layers) + 1)
        end = EndModelCommunicator(
            identity(0), a_plan, None, addresses[0], through(addresses[1]), transport=transports(0)
        )
        stack.callback(end.close)
        ring, stopping = Ring(end), threading.Event()
        for index, each in enumerate(layers, start=1):
            successor = through(addresses[(index + 1) % len(addresses)])
            communicator = StageCommunicator(
                identity(index), a_plan, None, addresses[index], successor, transport=transports(index)
            )
            communicator.start()
            loop = StageLoop(
                each,  # type: ignore[arg-type]
                communicator,
                hidden_size=a_plan.hidden_size,
                dtype=torch.float32,
                rows_only=index == len(layers) and not plan.get("tail"),
            )
            thread = threading.Thread(target=loop.run, args=(stopping,))
            thread.start()
            stack.callback(communicator.close)
            stack.callback(thread.join)
            ring.threads.append(thread)
            ring.stages.append(communicator)
        stack.callback(stopping.set)
        return ring

    return make


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (RuntimeError(f"mat1 and mat2 {SECRET}"), "RuntimeError at test_failed_steps.py:"),
        (MemoryError(SECRET), "MemoryError at test_failed_steps.py:"),
        (ValueError(SECRET), "ValueError at test_failed_steps.py:"),
        (BatchError("batch: it names no sequence"), "batch: it names no sequence"),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
            "CUDA out of memory. Tried to allocate 2.00 GiB.",
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_the_process_its_kv_and_the_ring_live_on_and_the_end_model_learns_which_step_it_was(
    error: Exception, shown: str, transports: TransportMaker, make_ring: MakeRing, caplog: pytest.LogCaptureFixture
) -> None:
    ring = make_ring(transports, [LayersThatFail(), LayersThatFail(error), LayersThatFail()])
    before = ring.end.connect()
    ring.round(6, count=2)
    with pytest.raises(RingDown) as raised:
        ring.round(7)
    assert (raised.value.code, raised.value.step) == ("step_failed", 7)
    assert raised.value.reason.startswith("stage 2 (s2): step 7 failed: ")
    assert shown in raised.value.reason
    assert SECRET not in raised.value.reason + caplog.text
    assert "step 7 failed" in caplog.text
    eventually(lambda: all(stage.state.epoch is None for stage in ring.stages))
    after = ring.end.connect()
    assert [entry.kv_id for entry in after.members] == [entry.kv_id for entry in before.members]
    ring.round(8)
    assert all(thread.is_alive() for thread in ring.threads)
    eventually(lambda: all(stage._slots.free == stage._slots.count for stage in ring.stages))


def test_an_end_of_the_ring_without_a_step_names_none(transports: TransportMaker, make_ring: MakeRing) -> None:
    ring = make_ring(transports, [LayersThatFail()])
    ring.end.connect()
    ring.end.drop("step 4 is over its deadline")
    with pytest.raises(RingDown) as raised:
        ring.end.receive(5.0)
    assert raised.value.step is None


def test_over_slow_links_the_reason_comes_before_the_frames_that_are_under_way(
    pki: Pki, stack: ExitStack, make_ring: MakeRing, caplog: pytest.LogCaptureFixture
) -> None:
    """A frame of 1 MiB takes 4 s a link, and several are under way behind the one that fails."""
    relays: list[RelayedLink] = []

    def through(address: str) -> str:
        relays.append(stack.enter_context(RelayedLink(address)))
        return relays[-1].address

    layers = [LayersThatFail(RuntimeError(), tokens=1), LayersThatFail()]
    ring = make_ring(
        lambda index: TlsTransport(pki.files(identity(index))), layers, through=through,
        hidden_size=4096, frame_tokens=64, tail=True,
    )  # fmt: skip
    caplog.set_level(logging.CRITICAL)
    ring.end.connect()
    for relay in relays:
        relay.bytes_per_second = mbit(2)
    failing = threading.Event()

    def send() -> None:
        width = ring.end.limits.row_bytes
        ring.end.send(1, one_token(), np.zeros((1, width), np.uint8), 1)
        failing.set()
        for step in (2, 3):
            ring.end.send(step, tokens(64), np.zeros((64, width), np.uint8), 64)
        while ring.end.receive(10.0) is not None:
            pass

    with pytest.raises(RingDown) as raised:
        send()
    assert failing.is_set()
    assert (raised.value.code, raised.value.step) == ("step_failed", 1)
    assert relays[0].forwarded < 2 * 64 * ring.end.limits.row_bytes  # it did not wait for them


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_what_is_no_failure_of_the_step_still_ends_the_loop(transports: TransportMaker, make_ring: MakeRing) -> None:
    ring = make_ring(transports, [LayersThatFail(SystemExit(3))])
    ring.end.connect()
    ring.end.send(1, one_token(), np.zeros((1, ring.end.limits.row_bytes), np.uint8), 1)
    eventually(lambda: not ring.threads[0].is_alive())


def test_a_gpu_that_takes_no_more_work_ends_the_stage_since_a_new_process_gets_a_working_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(device: torch.device) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "synchronize", refuse)
    told: list[str] = []
    inbound = SimpleNamespace(step=3, hidden=memoryview(bytearray(8)), batch=None)
    communicator = SimpleNamespace(
        receive=lambda seconds: inbound,
        computes=lambda inbound: True,
        fail=lambda inbound, message: told.append(f"{inbound.step} {message}"),
    )
    stack = SimpleNamespace(device=torch.device("cuda"), run=None)
    loop = StageLoop(stack, communicator, hidden_size=2, dtype=torch.float32, rows_only=False)  # type: ignore[arg-type]
    with pytest.raises(DeviceFailed, match="the GPU takes no more work after"):
        loop.step()
    assert len(told) == 1
