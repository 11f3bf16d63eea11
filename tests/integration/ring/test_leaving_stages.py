"""SIGTERM to a stage: it serves the ring that it is in until that is closed, and no longer than its grace period."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import torch
from languagepipes_api.member_settings import MemberSettings
from languagepipes_api.names import Identity
from languagepipes_node.model.architecture import Architecture
from languagepipes_node.model.batch import Batch
from languagepipes_node.net.tls import TlsFiles
from languagepipes_node.stage.loop import StageLoop
from languagepipes_node.store.server import StoreServer
from languagepipes_node.wire.end_model_communicator import EndModelCommunicator
from languagepipes_node.wire.errors import RingDown
from languagepipes_node.wire.stage_communicator import StageCommunicator
from languagepipes_operator.certificates import authority as certificates
from support.filled_store import fill
from support.memory_network import MemoryNetwork
from support.ports import free_address
from support.thread_ring import plan_of
from support.waiting import eventually
from support.wire_ring import FAST, identity, make_plan, one_token

STORE = Identity("default", "p", -1, "store")
END = Identity("default", "p", 0, "end-model")
# Far below what a stage takes that waits for its time to be over, far above what one takes that does not.
SOON_SECONDS = 8.0


class Member:
    """One stage with layers, as the process that a pod runs, and the End Model's end of its ring."""

    def __init__(self, model: Path, root: Path, stack: ExitStack) -> None:
        state = fill(f"file://{model}", root / "cache")
        assert state.facts is not None
        architecture = Architecture.from_config(json.loads((model / "config.json").read_text()))
        self.plan = dataclasses.replace(
            plan_of(architecture, [(0, architecture.layer_count)], dtype="float32"), model_revision=state.facts.revision
        )
        ca = certificates.new_ca("default", "p")

        def tls(who: Identity) -> TlsFiles:
            directory = root / who.role
            certificates.write_tls_dir(directory, ca, certificates.issue(ca, who))
            return TlsFiles(directory)

        store = StoreServer("127.0.0.1:0", tls(STORE), STORE, state)
        store.start()
        stack.callback(store.stop)
        (root / "plan.json").write_text(json.dumps(self.plan.to_json()))
        end, stage, self.telemetry = free_address(), free_address(), free_address()
        settings = MemberSettings(
            role="stage", pipe="p", stage=1, tls_dir=root / "stage", telemetry_listen=self.telemetry,
            plan_file=root / "plan.json", store_address=f"127.0.0.1:{store.port}", ring_listen=stage, successor=end,
        )  # fmt: skip
        tls(settings.identity)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "languagepipes_node"],
            env={**os.environ, **settings.to_environment()},
            stderr=subprocess.PIPE,
            text=True,
        )
        stack.callback(self.process.communicate)
        stack.callback(self.process.kill)
        self.end = EndModelCommunicator(END, self.plan, tls(END), end, stage)
        stack.callback(self.end.close)
        eventually(lambda: self.ask("/readyz") == "ok\n", seconds=120, not_yet=(OSError,))

    def ask(self, path: str) -> str:
        with urllib.request.urlopen(f"http://{self.telemetry}{path}", timeout=5) as response:
            answer: str = response.read().decode()
        return answer

    def round(self, step: int) -> None:
        hidden = np.zeros((1, self.plan.hidden_size), np.float32)
        self.end.send(step, one_token(block_tokens=self.plan.kv_block_tokens), hidden, 1)
        returned = self.end.receive(20.0)
        assert returned is not None
        returned.release()


@pytest.fixture
def member(tiny_llama: Path, tmp_path: Path) -> Iterator[Member]:
    with ExitStack() as stack:
        yield Member(tiny_llama, tmp_path, stack)


def test_a_stage_serves_on_until_the_end_model_closes_the_ring(member: Member) -> None:
    member.end.connect()
    member.round(1)
    member.process.send_signal(signal.SIGTERM)
    eventually(lambda: "leaves when the ring is closed" in member.ask("/status"))
    for step in range(2, 20):
        member.round(step)
    assert member.ask("/readyz") == "ok\n"
    member.end.close()
    assert member.process.wait(SOON_SECONDS) == 0


def test_a_stage_that_leaves_is_in_no_other_epoch_and_ends_with_its_own(member: Member) -> None:
    member.end.connect()
    member.process.send_signal(signal.SIGTERM)
    eventually(lambda: "leaves when the ring is closed" in member.ask("/status"))
    member.round(1)
    with pytest.raises(RingDown, match="cannot be reached: Connection refused"):
        member.end.connect()
    assert member.process.wait(SOON_SECONDS) == 0


def test_a_stage_without_a_ring_leaves_at_once(member: Member) -> None:
    member.process.send_signal(signal.SIGTERM)
    assert member.process.wait(SOON_SECONDS) == 0


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_a_stage_that_serves_on(member: Member, second: signal.Signals) -> None:
    member.end.connect()
    member.process.send_signal(signal.SIGTERM)
    eventually(lambda: "leaves when the ring is closed" in member.ask("/status"))
    member.process.send_signal(second)
    assert member.process.wait(SOON_SECONDS) == 0
    with pytest.raises(RingDown):
        member.end.receive(5.0)


def test_a_ring_that_nobody_closes_is_left_when_the_time_is_over_and_the_end_model_learns_why() -> None:
    class NoLayers:
        device = torch.device("cpu")

        def run(self, hidden: torch.Tensor, batch: Batch) -> torch.Tensor:
            return hidden

    network, plan = MemoryNetwork(), make_plan(stages=1)
    end = EndModelCommunicator(
        identity(0), plan, None, "end", "stage", timing=FAST, transport=network.transport(identity(0))
    )
    communicator = StageCommunicator(
        identity(1), plan, None, "stage", "end", timing=FAST, transport=network.transport(identity(1))
    )
    loop = StageLoop(NoLayers(), communicator, hidden_size=8, dtype=torch.float32, rows_only=True)  # type: ignore[arg-type]
    asked, took = threading.Event(), [0.0]

    def run() -> None:
        loop.run(asked)
        began = time.monotonic()
        loop.drain(began + 1.0)
        took[0] = time.monotonic() - began
        communicator.close()

    communicator.start()
    thread = threading.Thread(target=run)
    thread.start()
    end.connect()
    asked.set()

    def rounds() -> None:
        for step in range(1, 1_000_000):
            end.send(step, one_token(), np.zeros((1, 8), np.float32), 1)
            returned = end.receive(5.0)
            assert returned is not None
            returned.release()

    with pytest.raises(RingDown) as raised:
        rounds()
    thread.join(10)
    assert (raised.value.code, raised.value.reason) == ("shutdown", "stage 1 (s1): is shutting down")
    assert 1.0 <= took[0] < SOON_SECONDS
    end.close()
