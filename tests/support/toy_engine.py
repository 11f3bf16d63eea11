"""A toy model with a true paged KV cache, so that a wrong block, a wrong position or a lost chunk changes tokens."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from languagepipes_api.plan import EndModelAssignment, LayerRange, Plan, StageAssignment
from languagepipes_node.end_model.engine import Engine, EngineSettings
from languagepipes_node.end_model.requests import (
    EngineOutput,
    Failure,
    SamplingParameters,
    Submission,
    TokenOutput,
)
from languagepipes_node.model.batch import Batch
from prometheus_client import REGISTRY

from support.loopback_ring import LoopbackFrame, LoopbackRing

HIDDEN = 16
VOCABULARY = 61
BLOCK_TOKENS = 4
GREEDY = SamplingParameters(temperature=0.0)


def make_plan(
    *,
    stages: int = 2,
    blocks: int = 64,
    block_tokens: int = BLOCK_TOKENS,
    context: int = 96,
    frame_tokens: int = 16,
    frames_in_flight: int = 4,
    tail: int = 0,
    hidden_size: int = HIDDEN,
    dtype: str = "float32",
) -> Plan:
    """One local layer, one layer a stage, `tail` tail layers."""
    layers = 1 + stages + tail
    return Plan(
        model_revision="test",
        family="toy",
        layer_count=layers,
        hidden_size=hidden_size,
        dtype=dtype,  # type: ignore[arg-type]
        end_model=EndModelAssignment(LayerRange(0, 1), LayerRange(layers - tail, layers), "CPU", 0, 0, 0, 0, ""),
        stages=tuple(
            StageAssignment(f"s{i}", LayerRange(1 + i, 2 + i), "CPU", 0, 0, 0, 0, None, "") for i in range(stages)
        ),
        max_context_length=context,
        kv_block_tokens=block_tokens,
        kv_blocks=blocks,
        kv_limited_by="s0",
        max_sequences=1,
        frame_tokens=frame_tokens,
        frames_in_flight=frames_in_flight,
        slowest_station="s0",
    )


class ToyLayer:
    """Causal attention over the sequence's own cached states, read through the block runs of the batch.

    The cache starts as NaN: whoever reads a slot that this sequence's tokens did not write gets NaN.
    """

    device = torch.device("cpu")

    def __init__(self, index: int, plan: Plan) -> None:
        generator = torch.Generator().manual_seed(1000 + index)
        self.key, self.value, self.query = (
            torch.randn(HIDDEN, HIDDEN, generator=generator, dtype=torch.float64) / 2 for _ in range(3)
        )
        self.block_tokens = plan.kv_block_tokens
        self.cache = torch.full((plan.kv_blocks, plan.kv_block_tokens, 2, HIDDEN), torch.nan, dtype=torch.float64)
        self.batches: list[Batch] = []

    def run(self, hidden: torch.Tensor, batch: Batch) -> torch.Tensor:
        self.batches.append(batch)
        wide = hidden.to(torch.float64)
        result = torch.empty_like(wide)
        token, run = 0, 0
        for count, start, runs in zip(batch.counts, batch.starts, batch.run_counts, strict=True):
            ids = np.concatenate([np.arange(a, a + n) for a, n in batch.runs[run : run + runs]])
            end = int(start + count)
            assert len(ids) == -(-end // self.block_tokens)
            slots = torch.from_numpy(ids)
            states = wide[token : token + count]
            positions = torch.arange(int(start), end)
            where = (slots[positions // self.block_tokens], positions % self.block_tokens)
            self.cache[where] = torch.stack([states @ self.key, states @ self.value], dim=1)
            if end % self.block_tokens and end - end % self.block_tokens >= start:
                self.cache[int(ids[-1]), end % self.block_tokens :] = torch.nan  # as members do it
            cached = self.cache[slots].reshape(-1, 2, HIDDEN)[:end]
            scores = (states @ self.query) @ cached[:, 0].T
            scores = scores - 0.05 * (positions[:, None] - torch.arange(end)[None, :]).abs()
            scores = scores.masked_fill(torch.arange(end)[None, :] > positions[:, None], -torch.inf)
            result[token : token + count] = torch.tanh(states + scores.softmax(1) @ cached[:, 1])
            token, run = token + int(count), run + int(runs)
        return result.to(hidden.dtype)


class ToyEnd:
    """Embedding, one layer in front, optional tail layers, head."""

    device = torch.device("cpu")

    def __init__(self, plan: Plan) -> None:
        generator = torch.Generator().manual_seed(7)
        self.embedding = torch.randn(VOCABULARY, HIDDEN, generator=generator)
        self.head = torch.randn(VOCABULARY, HIDDEN, generator=generator) * 2
        self.first = ToyLayer(0, plan)
        tail = plan.end_model.tail_layers
        self.tail = [ToyLayer(index, plan) for index in range(tail.start, tail.stop)]

    def front(self, tokens: torch.Tensor, batch: Batch) -> torch.Tensor:
        return self.first.run(self.embedding[tokens], batch)

    def back(self, hidden: torch.Tensor, batch: Batch) -> torch.Tensor:
        if not self.tail:
            return hidden
        for layer in self.tail:
            hidden = layer.run(hidden, batch)
        return hidden[torch.from_numpy(batch.rows).long()]

    def logits(self, rows: torch.Tensor) -> torch.Tensor:
        return rows @ self.head.T


@dataclass
class Client:
    """Everything that the engine handed over, by request."""

    outputs: dict[int, list[EngineOutput]] = field(default_factory=dict)
    lists: int = 0

    def deliver(self, outputs: list[EngineOutput]) -> None:
        self.lists += 1
        for output in outputs:
            self.outputs.setdefault(output.request_id, []).append(output)

    def tokens(self, request_id: int) -> list[int]:
        return [o.token for o in self.outputs.get(request_id, []) if isinstance(o, TokenOutput)]

    def finish(self, request_id: int) -> str | None:
        last = self.outputs.get(request_id, [None])[-1]
        if isinstance(last, Failure):
            return last.code
        return last.finish if isinstance(last, TokenOutput) else None


@dataclass
class Rig:
    """An engine over a ring of toy layers, driven step by step."""

    plan: Plan
    engine: Engine
    ring: LoopbackRing
    end: ToyEnd
    layers: list[ToyLayer]
    client: Client

    def submit(self, request_id: int, prompt: list[int], **fields: object) -> None:
        values: dict[str, object] = {"max_tokens": 8, "sampling": GREEDY, **fields}
        self.engine.submit(Submission(request_id, tuple(prompt), **values))  # type: ignore[arg-type]

    def run(self, *, steps: int = 5000) -> None:
        """Until nothing is left to do."""
        for _ in range(steps):
            with torch.inference_mode():
                self.engine.step()
            if self.idle:
                return
        raise AssertionError(f"not done after {steps} steps: {self.engine.status}")

    @property
    def idle(self) -> bool:
        engine = self.engine
        return not engine._sequences and not engine._in_flight and engine._inbox.empty() and not engine._outputs

    def answer(self, request_id: int) -> list[int]:
        return self.client.tokens(request_id)


def make_rig_of(
    rings: list[LoopbackRing],
    *,
    settings: EngineSettings | None = None,
    threads: bool = False,
    join: bool = True,
    alter: Callable[[LoopbackFrame], LoopbackFrame | None] | None = None,
    **shape: int,
) -> Rig:
    """A rig of the given shape; its ring is appended to `rings`, to be closed."""
    plan = make_plan(**shape)  # type: ignore[arg-type]
    layers = [ToyLayer(stage.layers.start, plan) for stage in plan.stages]
    end = ToyEnd(plan)
    ring = LoopbackRing(
        layers,
        hidden_size=HIDDEN,
        dtype=torch.float32,
        tail_layers=bool(end.tail),
        threads=threads,
        alter=alter,
    )
    rings.append(ring)
    client = Client()
    settings = replace(settings or EngineSettings(), idle_seconds=0.01)
    if settings.deadline_slack_seconds == EngineSettings().deadline_slack_seconds:
        # A frame of toy layers that is late by more than the default says that the machine is busy.
        settings = replace(settings, deadline_slack_seconds=30.0)
    engine = Engine(end, ring, plan=plan, settings=settings, deliver=client.deliver)
    if join:
        engine.join_ring()
    return Rig(plan, engine, ring, end, layers, client)


class Gate:
    """For `alter`: frames from a step on do not return before it is opened. An answer that is under way then is so
    however late a busy machine goes on with the test."""

    def __init__(self, first_step: int) -> None:
        self._first_step = first_step
        self._opened = threading.Event()

    def __call__(self, frame: LoopbackFrame) -> LoopbackFrame:
        if frame.step >= self._first_step:
            assert self._opened.wait(timeout=60)
        return frame

    def open(self) -> None:
        self._opened.set()


MakeRig = Callable[..., Rig]
RunThread = Callable[[Rig], threading.Thread]


def preemptions() -> float:
    """How many there were so far, as /metrics tells."""
    return REGISTRY.get_sample_value("languagepipes_preemptions_total") or 0.0


def alone(
    prompt: list[int], max_tokens: int, *, stages: int = 2, tail: int = 0, stop: frozenset[int] = frozenset()
) -> list[int]:
    """The greedy answer of the whole toy model to one prompt, all of it recomputed for every token: no cache, no
    chunks, no batch."""
    plan = make_plan(stages=stages, tail=tail, blocks=64, context=256)
    layers = [ToyLayer(index, plan) for index in range(1, plan.layer_count)]
    end = ToyEnd(plan)
    tokens = list(prompt)
    while len(tokens) < len(prompt) + max_tokens:
        length = len(tokens)
        batch = Batch(
            counts=np.array([length], np.int32),
            starts=np.array([0], np.int32),
            run_counts=np.array([1], np.int32),
            runs=np.array([[0, -(-length // plan.kv_block_tokens)]], np.int32),
            rows=np.array([length - 1], np.int32),
        )
        hidden = end.front(torch.tensor(tokens), batch)
        for layer in layers:
            hidden = layer.run(hidden, batch)
        tokens.append(int(end.logits(hidden[-1:]).argmax()))
        if tokens[-1] in stop:
            break
    return tokens[len(prompt) :]
