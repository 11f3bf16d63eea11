"""Random lives of a ring over real sockets: requests come and go, stages lose their KV, links are cut, all at random
moments. Every request gets the tokens of the undisturbed model, each once, and nothing is kept.

tests/unit/node/end_model/test_engine_invariants.py does it in memory, step by step, and looks inside.
"""

from __future__ import annotations

import functools
import random
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule
from languagepipes_api.plan import Plan
from languagepipes_node.end_model.engine import Engine, EngineSettings
from languagepipes_node.end_model.requests import Cancellation, Submission
from languagepipes_node.model.batch import Batch
from languagepipes_node.net.tls import TlsFiles
from languagepipes_node.stage.loop import StageLoop
from languagepipes_node.wire.end_model_communicator import EndModelCommunicator
from languagepipes_node.wire.stage_communicator import StageCommunicator
from support.ports import free_address
from support.relayed_link import RelayedLink
from support.toy_engine import GREEDY, HIDDEN, VOCABULARY, Client, ToyEnd, ToyLayer, alone, make_plan
from support.waiting import eventually
from support.wire_ring import FAST, Pki, identity

STAGES = 2


@functools.cache
def expected(prompt: tuple[int, ...], max_tokens: int, tail: int) -> list[int]:
    return alone(list(prompt), max_tokens, stages=STAGES, tail=tail)


class SlowLayer(ToyLayer):
    """So slow that something is in flight at most moments."""

    def run(self, hidden: torch.Tensor, batch: Batch) -> torch.Tensor:
        time.sleep(0.004)
        return super().run(hidden, batch)


class Stage:
    """One process of a stage, so to speak: it begins with an empty KV cache."""

    def __init__(self, number: int, plan: Plan, files: TlsFiles, listen: str, successor: str) -> None:
        self.communicator = StageCommunicator(identity(number), plan, files, listen, successor, timing=FAST)
        loop = StageLoop(
            SlowLayer(plan.stages[number - 1].layers.start, plan),  # type: ignore[arg-type]
            self.communicator,
            hidden_size=HIDDEN,
            dtype=torch.float32,
            rows_only=number == STAGES and not len(plan.end_model.tail_layers),
        )
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=loop.run, args=(self._stopping,), name=f"stage {number}")
        self.communicator.start()
        self._thread.start()

    def end(self) -> None:
        self._stopping.set()
        self.communicator.close()
        self._thread.join(10)
        assert not self._thread.is_alive()


class ReplayMachine(RuleBasedStateMachine):
    """An End Model's engine and two stages, with a link through a relay in front of each."""

    def __init__(self) -> None:
        super().__init__()
        self.exits = ExitStack()
        self.threads_before = set(threading.enumerate())
        self.asked: dict[int, tuple[tuple[int, ...], int]] = {}
        self.cancelled: set[int] = set()
        self.stages: dict[int, Stage] = {}

    @initialize(
        tail=st.integers(0, 1),
        blocks=st.sampled_from([16, 24, 64]),
        frame_tokens=st.sampled_from([3, 16]),
        shared_cores=st.booleans(),
    )
    def begin(self, tail: int, blocks: int, frame_tokens: int, shared_cores: bool) -> None:
        self.tail = tail
        self.plan = make_plan(stages=STAGES, tail=tail, blocks=blocks, context=60, frame_tokens=frame_tokens)
        pki = Pki(Path(self.exits.enter_context(tempfile.TemporaryDirectory())))
        self.files = [pki.files(identity(place)) for place in range(STAGES + 1)]
        self.listens = [free_address() for _ in range(STAGES + 1)]  # the End Model's is first
        self.links = [self.exits.enter_context(RelayedLink(address)) for address in self.listens]
        for number in range(1, STAGES + 1):
            self.start(number)
        self.exits.callback(lambda: [stage.end() for stage in self.stages.values()])
        communicator = EndModelCommunicator(
            identity(0), self.plan, self.files[0], self.listens[0], self.links[1].address, timing=FAST
        )
        self.exits.callback(communicator.close)
        self.client = Client()
        self.engine = Engine(
            ToyEnd(self.plan),
            communicator,
            plan=self.plan,
            settings=EngineSettings(
                max_running=4,
                shared_cores=shared_cores,
                idle_seconds=0.01,
                reconnect_most_seconds=0.1,
                # On a busy machine other requests' tokens come between losses, and one request may get none for long.
                max_replays=1000,
            ),
            deliver=self.client.deliver,
        )
        thread = threading.Thread(target=self.engine.run_forever, name="engine")
        thread.start()
        self.exits.callback(lambda: (self.engine.stop(), thread.join(20)))
        self.submit(9, 30, "a")

    def start(self, number: int) -> None:
        successor = self.links[(number + 1) % (STAGES + 1)].address
        self.stages[number] = Stage(number, self.plan, self.files[number], self.listens[number], successor)

    @rule(length=st.sampled_from([1, 4, 9, 20]), max_tokens=st.sampled_from([1, 7, 30]), by=st.sampled_from("ab"))
    def submit(self, length: int, max_tokens: int, by: str) -> None:
        request = len(self.asked)
        prompt = tuple(random.Random(length).choices(range(VOCABULARY), k=length))
        self.asked[request] = (prompt, max_tokens)
        self.engine.submit(Submission(request, prompt, max_tokens, GREEDY, client=by))

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(sorted(self.asked)))
        self.cancelled.add(request)
        self.engine.submit(Cancellation(request))

    @rule(seconds=st.sampled_from([0.0, 0.01, 0.05]))
    def go_on(self, seconds: float) -> None:
        time.sleep(seconds)

    @rule(
        faults=st.lists(
            st.tuples(st.sampled_from(["stage", "link"]), st.integers(0, STAGES), st.sampled_from([0.0, 0.01, 0.05])),
            min_size=1,
            max_size=2,
        )
    )
    def lose_any(self, faults: list[tuple[str, int, float]]) -> None:
        self.lose(faults)

    def lose(self, faults: list[tuple[str, int, float]]) -> None:
        """Two at a time at most, and then something must come of it: whoever is in flight at four losses in a row, with
        nothing returned in between, counts as the one that breaks the ring."""
        for kind, place, pause in faults:
            if kind == "stage" and place:
                self.stages[place].end()
                time.sleep(pause)
                self.start(place)
            else:
                self.links[place].cut()
                time.sleep(pause)
                self.links[place].mend()
        delivered = self.client.lists
        eventually(
            lambda: self.client.lists > delivered or self.is_idle(),
            what=lambda: f"anything after {faults}: {self.engine.status}",
            seconds=20,
            every_seconds=0.005,
        )

    @rule(place=st.integers(1, STAGES), pause=st.sampled_from([0.0, 0.01, 0.05]))
    def lose_kv(self, place: int, pause: float) -> None:
        self.submit(4, 30, "a")
        time.sleep(pause)
        self.lose([("stage", place, pause)])

    def is_idle(self) -> bool:
        status = self.engine.status
        return status.ring_ready and status.running + status.waiting == 0

    def missing(self) -> list[int]:
        return [
            request for request in self.asked if request not in self.cancelled and self.client.finish(request) is None
        ]

    def teardown(self) -> None:
        try:
            eventually(
                lambda: not self.missing(), what=lambda: f"ends of {self.missing()}: {self.engine.status}", seconds=30
            )
            for request, (prompt, max_tokens) in self.asked.items():
                answer, got = expected(prompt, max_tokens, self.tail), self.client.tokens(request)
                if request in self.cancelled:
                    assert got == answer[: len(got)]
                else:
                    assert (got, self.client.finish(request)) == (answer, "length")
            eventually(lambda: self.engine.status.kv_blocks_used == 0, what="no KV block in use")
        finally:
            self.exits.close()
        eventually(lambda: not self.threads(), what=lambda: f"the end of {self.threads()}")

    def threads(self) -> list[str]:
        return [thread.name for thread in set(threading.enumerate()) - self.threads_before]


TestReplayMachine = ReplayMachine.TestCase
TestReplayMachine.settings = settings(
    max_examples=15, stateful_step_count=12, deadline=None, suppress_health_check=list(HealthCheck)
)
