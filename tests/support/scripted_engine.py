"""An engine that answers what a test tells it to, for a server on loopback."""

from __future__ import annotations

import itertools
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import openai
from languagepipes_node.end_model.openai.bridge import EngineBridge
from languagepipes_node.end_model.openai.server import ApiServer
from languagepipes_node.end_model.requests import (
    Cancellation,
    EngineCommand,
    EngineOutput,
    EngineStatus,
    Failure,
    PromptScores,
    Submission,
    TokenLogprobs,
    TokenOutput,
)
from languagepipes_node.end_model.text import TextCodec
from languagepipes_node.weights.gguf_convert import convert

from support.paths import SMOLLM2

CONVERTED = SMOLLM2.parent / "smollm2-float32"

Script = Callable[[Submission], Iterable[int | Failure]]


class ScriptedEngine:
    """The engine's side of the boundary: every step gives each running sequence the next token of its script."""

    def __init__(
        self,
        deliver: Callable[[list[EngineOutput]], None],
        script: Script,
        pace_seconds: float,
        logprob: Callable[[int], float] = lambda request_id: -0.25,
    ) -> None:
        """logprob: of each token of a request."""
        self.status = EngineStatus(ring_ready=True, ring_error="", accepting=True, epoch=1)
        self.submissions: list[Submission] = []
        self.cancellations: list[Cancellation] = []
        self.steps = 0
        self._deliver = deliver
        self._script = script
        self._pace_seconds = pace_seconds
        self._logprob = logprob
        self._inbox: queue.SimpleQueue[EngineCommand | None] = queue.SimpleQueue()
        self._running: dict[int, tuple[Submission, Iterator[int | Failure]]] = {}
        self._counts: dict[int, int] = {}
        self._thread = threading.Thread(target=self._run, name="scripted engine", daemon=True)
        self._thread.start()

    def submit(self, command: EngineCommand) -> None:
        self._inbox.put(command)

    def stop(self) -> None:
        self._inbox.put(None)
        self._thread.join(5)

    @property
    def running(self) -> int:
        return len(self._running)

    def _run(self) -> None:
        while True:
            while not self._running or not self._inbox.empty():
                command = self._inbox.get()
                if command is None:
                    return
                if isinstance(command, Submission):
                    self.submissions.append(command)
                    self._running[command.request_id] = (command, iter(self._script(command)))
                    self._counts[command.request_id] = 0
                    self._score_prompt(command)
                else:
                    self.cancellations.append(command)
                    self._running.pop(command.request_id, None)
            outputs = [self._next(*running) for running in list(self._running.values())]
            self.steps += 1
            self._deliver(outputs)
            if self._pace_seconds:
                time.sleep(self._pace_seconds)

    def _score_prompt(self, submission: Submission) -> None:
        """Token i of a prompt has the log probability -i, and the second-likeliest is the next id; in two parts."""
        count = submission.prompt_logprobs
        if count is None:
            return
        scored = [
            TokenLogprobs(-float(place), ((token, -float(place)), (token + 1, -float(place) - 1))[:count], rank=1)
            for place, token in enumerate(submission.prompt)
        ]
        for first, stop in ((1, len(scored) // 2), (max(1, len(scored) // 2), len(scored))):
            if stop > first:
                self._deliver([PromptScores(submission.request_id, first, tuple(scored[first:stop]))])

    def _next(self, submission: Submission, script: Iterator[int | Failure]) -> EngineOutput:
        number = submission.request_id
        token = next(script)
        if isinstance(token, Failure):
            del self._running[number]
            return Failure(number, token.code, token.message)
        self._counts[number] += 1
        finish = None
        if token in submission.stop_token_ids:
            finish = "stop"
        elif self._counts[number] == submission.max_tokens:
            finish = "length"
        if finish is not None:
            del self._running[number]
        logprobs = None
        if submission.logprobs is not None:
            own = self._logprob(number)
            top = ((token, own), (token + 1, own - 1.25), (token + 2, float("-inf")))
            logprobs = TokenLogprobs(own, top[: submission.logprobs])
        return TokenOutput(number, token, finish, logprobs)


@dataclass
class Served:
    """A running server. `script` decides what its engine answers."""

    codec: TextCodec
    engine: ScriptedEngine
    bridge: EngineBridge
    server: ApiServer
    key: str | None = None
    clients: list[openai.OpenAI] = field(default_factory=list)

    @property
    def address(self) -> str:
        return self.server.address

    @property
    def url(self) -> str:
        return f"http://{self.address}"

    @property
    def client(self) -> openai.OpenAI:
        if not self.clients:
            self.clients.append(
                openai.OpenAI(base_url=f"{self.url}/v1", api_key=self.key or "none", max_retries=0, timeout=20)
            )
        return self.clients[0]

    def wait_until_idle(self, seconds: float = 5) -> None:
        deadline = time.monotonic() + seconds
        while self.engine.running or self.bridge.open_sequences:
            assert time.monotonic() < deadline, "the engine still computes"
            time.sleep(0.01)


def smollm2_file(name: str) -> bytes:
    gguf = SMOLLM2
    assert gguf.is_file(), f"{gguf} is not there: run `make model`"
    convert(gguf, CONVERTED, dtype="float32")
    try:
        return (CONVERTED / name).read_bytes()
    except FileNotFoundError:
        raise KeyError(name) from None


def saying(codec: TextCodec, text: str) -> Script:
    """An engine that answers `text` and then ends of itself."""

    def script(submission: Submission) -> Iterator[int]:
        yield from codec.encode(text)
        yield 2
        raise AssertionError("the answer went on after its end")

    return script


def forever(codec: TextCodec, text: str = " hello") -> Script:
    """An engine that never comes to an end by itself."""
    return lambda submission: itertools.cycle(codec.encode(text))
