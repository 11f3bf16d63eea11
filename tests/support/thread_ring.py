"""A whole ring in one process: real members over real mutually authenticated sockets, real layers, a thread a stage.

What `languagepipes up` starts as processes, minus the processes: starting torch once for dozens of rings.
"""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from languagepipes_api.names import Identity
from languagepipes_api.plan import EndModelAssignment, LayerRange, Plan, StageAssignment
from languagepipes_node.end_model.engine import Engine, EngineSettings
from languagepipes_node.end_model.requests import EngineOutput, Failure, SamplingParameters, Submission, TokenOutput
from languagepipes_node.model.architecture import Architecture
from languagepipes_node.model.buffers import TORCH_DTYPES
from languagepipes_node.model.end import EndLayers
from languagepipes_node.model.stack import LayerStack
from languagepipes_node.net.tls import TlsFiles
from languagepipes_node.stage.loop import StageLoop
from languagepipes_node.weights.directory import SafetensorsDirectory
from languagepipes_node.wire.end_model_communicator import EndModelCommunicator
from languagepipes_node.wire.stage_communicator import StageCommunicator
from languagepipes_node.wire.tls_transport import TlsTransport
from languagepipes_node.wire.transport import Transport
from languagepipes_operator.certificates import authority as certificates

from support.ports import free_port

GREEDY = SamplingParameters(temperature=0.0)
CPU = torch.device("cpu")


def plan_of(
    architecture: Architecture,
    ranges: list[tuple[int, int]],
    *,
    dtype: str,
    tail: int = 0,
    block_tokens: int = 64,
    blocks: int = 64,
    frame_tokens: int = 128,
    frames_in_flight: int = 4,
) -> Plan:
    """A plan with these stage ranges; the End Model runs what lies before the first and the last `tail` layers."""
    count = architecture.layer_count
    none = {"weight_bytes": 0, "step_bytes": 0, "kv_bytes": 0, "overhead_bytes": 0, "reason": "test"}
    return Plan(
        model_revision="test",
        family=architecture.family,
        layer_count=count,
        hidden_size=architecture.hidden_size,
        dtype=dtype,  # type: ignore[arg-type]
        end_model=EndModelAssignment(LayerRange(0, ranges[0][0]), LayerRange(count - tail, count), "CPU", **none),
        stages=tuple(
            StageAssignment(f"stage-{i}", LayerRange(*r), "CPU", memory_budget_bytes=None, **none)
            for i, r in enumerate(ranges, 1)
        ),
        max_context_length=min(block_tokens * blocks, architecture.max_position),
        kv_block_tokens=block_tokens,
        kv_blocks=blocks,
        kv_limited_by="test",
        max_sequences=1,
        frame_tokens=frame_tokens,
        frames_in_flight=frames_in_flight,
        slowest_station="end-model",
    )


@dataclass
class Answers:
    """Collects what the engine delivers, by request."""

    tokens: dict[int, list[int]] = field(default_factory=dict)
    logprobs: dict[int, list[float]] = field(default_factory=dict)
    cached_tokens: dict[int, int] = field(default_factory=dict)
    failures: dict[int, Failure] = field(default_factory=dict)
    done: queue.Queue[int] = field(default_factory=queue.Queue)

    def deliver(self, outputs: list[EngineOutput]) -> None:
        for output in outputs:
            if isinstance(output, TokenOutput):
                self.tokens.setdefault(output.request_id, []).append(output.token)
                self.cached_tokens[output.request_id] = output.cached_tokens
                if output.logprobs is not None:
                    self.logprobs.setdefault(output.request_id, []).append(output.logprobs.logprob)
                if output.finish is not None:
                    self.done.put(output.request_id)
            else:
                self.failures[output.request_id] = output
                self.done.put(output.request_id)


class ThreadRing:
    """Use as a context manager; `generate` runs prompts together and returns their tokens."""

    def __init__(
        self,
        model: Path,
        plan: Plan,
        tls_root: Path,
        *,
        settings: EngineSettings | None = None,
        stage_transport: Callable[[TlsFiles], Transport] = TlsTransport,
        through: Callable[[str], str] = lambda address: address,
    ) -> None:
        """through: of each member's address, the one that its predecessor dials."""
        source = SafetensorsDirectory(model)
        architecture = Architecture.from_config(json.loads(source.file("config.json")))
        dtype = TORCH_DTYPES[plan.dtype]
        options: dict[str, Any] = {
            "dtype": dtype,
            "device": CPU,
            "block_tokens": plan.kv_block_tokens,
            "blocks": plan.kv_blocks,
        }
        self.plan = plan
        self.stopping = threading.Event()
        ca = certificates.new_ca("test", "ring")
        count = len(plan.stages)

        def tls(identity: Identity) -> TlsFiles:
            directory = tls_root / f"{identity.role}-{identity.index}"
            certificates.write_tls_dir(directory, ca, certificates.issue(ca, identity))
            return TlsFiles(directory)

        ports = [free_port() for _ in range(count + 1)]  # the End Model's is 0
        self.communicators: list[StageCommunicator] = []
        self.threads: list[threading.Thread] = []
        for number, assignment in enumerate(plan.stages, 1):
            identity = Identity("test", "ring", 0, "stage", number)
            stack = LayerStack(architecture, assignment.layers, **options)
            stack.load(source, lambda total: None)
            successor = through(f"127.0.0.1:{ports[(number + 1) % (count + 1)]}")
            files = tls(identity)
            listen = f"127.0.0.1:{ports[number]}"
            communicator = StageCommunicator(identity, plan, files, listen, successor, transport=stage_transport(files))
            communicator.start()
            self.communicators.append(communicator)
            loop = StageLoop(
                stack,
                communicator,
                hidden_size=plan.hidden_size,
                dtype=dtype,
                rows_only=number == count and len(plan.end_model.tail_layers) == 0,
            )
            self.threads.append(threading.Thread(target=loop.run, args=(self.stopping,), name=f"stage-{number}"))
        layers = EndLayers(architecture, plan.end_model.local_layers, plan.end_model.tail_layers, **options)
        layers.load(source, lambda total: None)
        identity = Identity("test", "ring", 0, "end-model")
        successor = through(f"127.0.0.1:{ports[1]}")
        self.end = EndModelCommunicator(identity, plan, tls(identity), f"127.0.0.1:{ports[0]}", successor)
        self.answers = Answers()
        self.engine = Engine(
            layers,
            self.end,
            plan=plan,
            settings=settings or EngineSettings(shared_cores=True),
            deliver=self.answers.deliver,
        )
        self.threads.append(threading.Thread(target=self.engine.run_forever, name="engine"))
        self._ids = iter(range(1, 1_000_000))

    def __enter__(self) -> ThreadRing:
        for thread in self.threads:
            thread.start()
        self.wait_ready()
        return self

    def wait_ready(self, seconds: float = 20.0) -> None:
        waiting = threading.Event()
        for _ in range(int(seconds / 0.02)):
            if self.engine.status.ring_ready:
                return
            waiting.wait(0.02)
        raise AssertionError(f"the ring is not ready: {self.engine.status.ring_error}")

    def submit(
        self, prompt: list[int], tokens: int, *, logprobs: int | None = None, sampling: SamplingParameters = GREEDY
    ) -> int:
        request_id = next(self._ids)
        self.engine.submit(Submission(request_id, tuple(prompt), tokens, sampling, logprobs=logprobs))
        return request_id

    def generate(
        self,
        prompts: list[list[int]],
        tokens: int,
        *,
        logprobs: int | None = None,
        sampling: SamplingParameters = GREEDY,
    ) -> list[list[int]]:
        """Tokens of all prompts, run together. AssertionError if one fails."""
        ids = [self.submit(prompt, tokens, logprobs=logprobs, sampling=sampling) for prompt in prompts]
        for _ in ids:
            self.answers.done.get(timeout=120)
        assert not self.answers.failures, self.answers.failures
        return [self.answers.tokens[request_id] for request_id in ids]

    def __exit__(self, *exc: object) -> None:
        self.engine.stop()
        self.stopping.set()
        for thread in self.threads:
            thread.join(timeout=10)
        self.end.close()
        for communicator in self.communicators:
            communicator.close()
        assert not [thread.name for thread in self.threads if thread.is_alive()]
