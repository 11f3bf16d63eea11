"""The End Model's engine: one thread that turns requests into tokens by sending micro-batches round a ring.

    step = take commands → schedule → front layers → send … receive → tail layers → logits → sample

It knows token ids only: text, stop strings and HTTP are on the other side of two queues (`requests.py`).
Which
tokens a frame carries is decided in `scheduler.py`; here decisions are carried out. See docs/scheduling.md.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Literal

import numpy as np
import torch
from languagepipes_api.plan import Plan

from languagepipes_node import telemetry
from languagepipes_node.end_model.blocks import BlockAllocator, BlockLease
from languagepipes_node.end_model.costs import RingCost
from languagepipes_node.end_model.ports import EndLayersPort, ReturnedPort, RingPort
from languagepipes_node.end_model.requests import (
    EngineCommand,
    EngineOutput,
    EngineStatus,
    Failure,
    Submission,
    TokenOutput,
)
from languagepipes_node.end_model.sampling import SampledToken, Sampler, SamplingRow
from languagepipes_node.end_model.scheduler import (
    Decision,
    FrameView,
    Limits,
    Share,
    Snapshot,
    blocks_for,
    schedule,
)
from languagepipes_node.end_model.sequences import Sequence
from languagepipes_node.model.batch import Batch
from languagepipes_node.model.buffers import TORCH_DTYPES, bytes_of, tensor_from
from languagepipes_node.model.errors import ModelError
from languagepipes_node.wire.errors import FrameError, RingDown, SupersededError

log = logging.getLogger(__name__)

Deliver = Callable[[list[EngineOutput]], None]

# Before a chunk of this size is computed, tokens that wait to be handed over go first.
_LARGE_CHUNK = 32


@dataclass(frozen=True)
class EngineSettings:
    """What is not in the plan.

    max_running: sequences that hold KV blocks at once. max_queued: admitted beyond those; more are refused
    with "queue_full". shared_cores: members share cores, so one decode micro-batch is in flight.
    prefill_frames: frames with prompt chunks in flight; None: 2 with shared cores, else all that the plan
    allows. deadline_*: a frame that is not home in factor × the expected time of the frames ahead + slack
    ends the epoch; unmeasured: the limit while frames of that size were never measured (a first prefill may
    page in all weights). idle_seconds: how soon an idle engine notices a lost ring. poll_seconds: how soon
    one that waits for a frame, and could send more, notices a submission. reconnect_*: the back-off between
    attempts to join the ring."""

    max_running: int = 64
    max_queued: int = 256
    shared_cores: bool = False
    prefill_frames: int | None = None
    deadline_factor: float = 3.0
    deadline_slack_seconds: float = 0.5
    deadline_unmeasured_seconds: float = 120.0
    idle_seconds: float = 0.2
    poll_seconds: float = 0.005
    reconnect_first_seconds: float = 0.05
    reconnect_most_seconds: float = 1.0

    def limits(self, plan: Plan) -> Limits:
        """The scheduler's limits under `plan`."""
        frames = max(1, plan.frames_in_flight)
        prefill = (2 if self.shared_cores else frames) if self.prefill_frames is None else self.prefill_frames
        return Limits(
            frame_tokens=plan.frame_tokens,
            frames_in_flight=frames,
            block_tokens=plan.kv_block_tokens,
            max_running=self.max_running,
            decode_frames=1 if self.shared_cores else frames,
            prefill_frames=max(1, min(frames, prefill)),
        )


@dataclass(eq=False)
class _Flight:
    """A frame in flight: what it carries, which leases it holds, and by when it must be home."""

    step: int
    shares: tuple[Share[Sequence], ...]
    leases: list[BlockLease]
    batch: Batch
    view: FrameView
    front_seconds: float
    sent_at: float
    deadline: float
    alone: bool


class RowsError(Exception):
    """What came home is not what was sent for: another step, or another number of bytes."""


@dataclass
class _Latencies:
    """Measured on the way, observed once the next frame is out."""

    first: list[float] = field(default_factory=list)
    between: list[float] = field(default_factory=list)
    tokens: int = 0


class Engine:
    """`submit` and `status` are for any thread; everything else belongs to the thread of `run_forever`.

    deliver: takes one list of outputs a step; must not block. Called on the engine's thread, and on the
    caller's of `submit` for what is refused at once."""

    def __init__(
        self,
        end_layers: EndLayersPort,
        ring: RingPort,
        *,
        plan: Plan,
        settings: EngineSettings,
        deliver: Deliver,
    ) -> None:
        self._layers = end_layers
        self._ring = ring
        self._settings = settings
        self._deliver = deliver
        self._limits = settings.limits(plan)
        self._hidden_size = plan.hidden_size
        self._dtype = TORCH_DTYPES[plan.dtype]
        self._tail_layers = len(plan.end_model.tail_layers) > 0
        self._hops = len(plan.stages) + 1
        self._context_limit = min(plan.max_context_length, plan.kv_blocks * plan.kv_block_tokens)

        # (command, when it was submitted); None only wakes the engine.
        self._inbox: SimpleQueue[tuple[EngineCommand, float] | None] = SimpleQueue()
        self._stopping = threading.Event()
        # Guards the pair (ring is up, inbox): what is accepted is seen by the step that runs while the ring
        # is up.
        self._gate = threading.Lock()
        self._ring_error: str | None = "the ring has not been joined yet"
        self._loss_code = "start"

        self._blocks = BlockAllocator(plan.kv_blocks)
        self._costs = RingCost.of(len(plan.stages))
        self._sampler = Sampler()
        self._sequences: dict[int, Sequence] = {}
        self._running: list[Sequence] = []
        self._waiting: list[Sequence] = []
        self._flights: deque[_Flight] = deque()
        # Blocks held by frames in flight alone.
        self._returning = 0
        self._step = 0
        self._arrivals = 0
        self._epoch = 0
        self._outputs: list[EngineOutput] = []
        self._latencies = _Latencies()

        self.status = EngineStatus(kv_blocks_total=plan.kv_blocks)
        telemetry.KV_BLOCKS_TOTAL.set(plan.kv_blocks)

    # What other threads may call.

    def submit(self, command: EngineCommand) -> None:
        """Hand a command over. While the ring is down a Submission is answered at once with
        Failure("ring_down")."""
        with self._gate:
            error = self._ring_error
            if error is None:
                self._inbox.put((command, time.perf_counter()))
        if error is not None and isinstance(command, Submission):
            self._deliver([Failure(command.request_id, "ring_down", error)])

    def stop(self) -> None:
        """`run_forever` fails what is left with "ring_down" and returns, within a step."""
        self._stopping.set()
        self._inbox.put(None)

    # The engine's thread.

    def run_forever(self) -> None:
        """Until `stop`. Joins the ring again whenever it is lost. Raises SupersededError if another End Model
        holds the chain: then this process must exit."""
        pause = self._settings.reconnect_first_seconds
        farewell = "the engine failed", "internal"
        try:
            with torch.inference_mode():
                while not self._stopping.is_set():
                    try:
                        self.join_ring()
                        pause = self._settings.reconnect_first_seconds
                        while not self._stopping.is_set():
                            self.step()
                    except RingDown as down:
                        self.lose_ring(down.reason, down.code)
                        self._stopping.wait(pause)
                        pause = min(2 * pause, self._settings.reconnect_most_seconds)
            farewell = "the server is shutting down", "stopped"
        except SupersededError as error:
            farewell = str(error), "superseded"
            raise
        finally:
            # Whatever ends this thread, no request is left without an answer.
            self.lose_ring(*farewell)

    def join_ring(self) -> None:
        """One attempt at a new epoch. Raises RingDown."""
        info = self._ring.connect()
        self._epoch = info.epoch.counter
        telemetry.RING_EPOCHS.labels(reason=self._loss_code).inc()
        telemetry.EPOCH.set(self._epoch)
        telemetry.RING_READY.set(1)
        with self._gate:
            self._ring_error = None
        self._publish()
        log.info("ring joined: epoch=%d", self._epoch)

    def step(self) -> None:
        """One round of the engine. Raises RingDown once the ring is lost."""
        self._take_commands()
        while (decision := schedule(self._snapshot())).shares or decision.preempt:
            self._carry_out(decision)
        self._hand_over()
        returned = self._wait()
        if returned is not None:
            self._finish(returned)

    # Commands.

    def _take_commands(self) -> None:
        while True:
            try:
                item = self._inbox.get_nowait()
            except Empty:
                return
            self._take(item)

    def _take(self, item: tuple[EngineCommand, float] | None) -> None:
        if item is None:
            return
        command, submitted_at = item
        sequence = self._sequences.get(command.request_id)
        if isinstance(command, Submission):
            if sequence is not None:
                raise ValueError(f"request_id={command.request_id} is in use: each request needs its own")
            self._admit(command, submitted_at)
        elif sequence is not None:
            self._end(sequence)

    def _admit(self, submission: Submission, submitted_at: float) -> None:
        settings = self._settings
        if len(self._sequences) >= settings.max_running + settings.max_queued:
            message = (
                f"{len(self._sequences)} requests are running or queued, which is the limit; try again later"
            )
            self._outputs.append(Failure(submission.request_id, "queue_full", message))
            return
        try:
            sequence = Sequence.of(
                submission, arrival=self._arrivals, context_limit=self._context_limit, now=submitted_at
            )
        except ValueError as error:
            self._outputs.append(Failure(submission.request_id, "internal", str(error)))
            return
        self._arrivals += 1
        self._sequences[submission.request_id] = sequence
        self._waiting.append(sequence)
        telemetry.PROMPT_TOKENS.inc(sequence.prompt_length)

    # Sending.

    def _snapshot(self) -> Snapshot[Sequence]:
        return Snapshot(
            running=self._running,
            waiting=self._waiting,
            frames=[flight.view for flight in self._flights],
            free_blocks=self._blocks.free,
            returning_blocks=self._returning,
            limits=self._limits,
            costs=self._costs,
        )

    def _carry_out(self, decision: Decision[Sequence]) -> None:
        for sequence in decision.preempt:
            self._preempt(sequence)
        for sequence in decision.admit:
            self._start(sequence)
        if not decision.shares:
            return
        if decision.tokens > _LARGE_CHUNK:
            self._hand_over()
        self._send(decision)

    def _preempt(self, sequence: Sequence) -> None:
        """Give its blocks back; it is computed again once there is room, before all who came later."""
        self._running.remove(sequence)
        self._release(sequence)
        sequence.forget()
        place = next(
            (index for index, other in enumerate(self._waiting) if other.arrival > sequence.arrival),
            len(self._waiting),
        )
        self._waiting.insert(place, sequence)
        telemetry.PREEMPTIONS.inc()

    def _start(self, sequence: Sequence) -> None:
        """Blocks for all tokens known, next to each other if possible, with room for those to come."""
        self._waiting.remove(sequence)
        block_tokens = self._limits.block_tokens
        sequence.lease = self._blocks.lease(
            blocks_for(sequence.length, block_tokens), expected=blocks_for(sequence.token_limit, block_tokens)
        )
        self._running.append(sequence)
        self._running.sort(key=lambda other: other.arrival)

    def _send(self, decision: Decision[Sequence]) -> None:
        """Front layers over the packed tokens, then onto the ring."""
        started = time.perf_counter()
        self._step += 1
        leases = [self._lease_for(share) for share in decision.shares]
        batch = pack(decision.shares, leases, self._limits.block_tokens)
        tokens = np.fromiter(
            (
                token
                for share in decision.shares
                for token in share.sequence.tokens[share.start : share.start + share.count]
            ),
            np.int64,
            decision.tokens,
        )
        try:
            hidden = bytes_of(self._layers.front(torch.from_numpy(tokens), batch))  # [tokens, hidden]
        except ModelError as error:
            self._fail_all(decision.shares, error)
            return
        sent_at = time.perf_counter()
        flight = _Flight(
            step=self._step,
            shares=decision.shares,
            leases=leases,
            batch=batch,
            view=FrameView(decision.decode_rows, decision.tokens - decision.decode_rows),
            front_seconds=sent_at - started,
            sent_at=sent_at,
            deadline=sent_at + self._allowed_seconds(decision.tokens),
            alone=not self._flights,
        )
        try:
            self._ring.send(self._step, batch, hidden, decision.tokens)
        except FrameError as error:
            self._fail_all(decision.shares, error)
            return
        for share, lease in zip(decision.shares, leases, strict=True):
            self._blocks.hold(lease)
            sequence = share.sequence
            sequence.sent = share.start + share.count
            sequence.in_flight += 1
            sequence.last_step = self._step
        self._flights.append(flight)

    def _lease_for(self, share: Share[Sequence]) -> BlockLease:
        """The sequence's blocks, grown to hold this share."""
        lease = share.sequence.lease
        if lease is None:
            raise RuntimeError(f"request {share.sequence.request_id} runs without KV blocks")
        missing = blocks_for(share.start + share.count, self._limits.block_tokens) - lease.blocks
        if missing > 0:
            self._blocks.grow(lease, missing)
        return lease

    def _allowed_seconds(self, tokens: int) -> float:
        """How long a frame sent now may take: it queues behind those in flight."""
        settings = self._settings
        ahead = [flight.batch.tokens for flight in self._flights] + [tokens]
        if not all(self._costs.trusted(count) for count in ahead):
            return settings.deadline_unmeasured_seconds
        expected = sum(self._costs.round(count) for count in ahead)
        return settings.deadline_factor * expected + settings.deadline_slack_seconds

    # Waiting.

    def _wait(self) -> ReturnedPort | None:
        """The next frame home; None if a command came first. Blocks: an idle engine costs nothing."""
        if not self._flights:
            with contextlib.suppress(Empty):
                self._take(self._inbox.get(timeout=self._settings.idle_seconds))
            if self._inbox.empty() and not self._sequences:
                # Nothing is due, but a ring that was lost meanwhile says so.
                self._ring.receive(0)
            return None
        while not self._stopping.is_set():
            now = time.perf_counter()
            deadline = self._flights[0].deadline
            pause = min(self._settings.poll_seconds if self._could_send_more() else 0.1, deadline - now)
            returned = self._ring.receive(max(pause, 0.0))
            if returned is not None:
                return returned
            if time.perf_counter() >= deadline:
                flight = self._flights[0]
                reason = (
                    f"step {flight.step} with {flight.batch.tokens} tokens was not home within "
                    f"{flight.deadline - flight.sent_at:.1f} s"
                )
                self._ring.drop(reason)
                raise RingDown(reason, "deadline")
            if not self._inbox.empty():
                return None
        return None

    def _could_send_more(self) -> bool:
        """Whether a request that arrives now might be sent before the next frame is home."""
        alone = self._limits.decode_frames == 1 and any(sequence.streaming for sequence in self._running)
        return len(self._flights) < (1 if alone else self._limits.prefill_frames)

    # Receiving.

    def _finish(self, returned: ReturnedPort) -> None:
        """A frame is home: tail layers, logits, sampled tokens."""
        home_at = time.perf_counter()
        try:
            flight = self._match(returned)
            sampled = self._sample(flight, returned)
        except ModelError as error:
            self._fail_all(flight.shares, error)
            sampled = [None] * len(flight.batch.rows)
        except RowsError as error:
            self._ring.drop(str(error))
            raise RingDown(str(error), "protocol") from error
        finally:
            returned.release()
        self._flights.popleft()
        self._let_go(flight)
        now = time.perf_counter()
        row = 0
        for share in flight.shares:
            if share.wants_row:
                self._accept(share.sequence, sampled[row], now)
                row += 1
        self._measure(flight, returned.busy_microseconds, home_at=home_at, done_at=now)

    def _match(self, returned: ReturnedPort) -> _Flight:
        """The frame that this answers. Stations are first in, first out, so it is the oldest or an error."""
        if not self._flights or returned.step != self._flights[0].step:
            due = self._flights[0].step if self._flights else "none"
            raise RowsError(f"step {returned.step} came home, step {due} was due")
        flight = self._flights[0]
        rows = flight.batch.tokens if self._tail_layers else len(flight.batch.rows)
        expected = rows * self._hidden_size * self._dtype.itemsize
        if len(returned.hidden) != expected:
            raise RowsError(
                f"step {flight.step} came home with {len(returned.hidden)} bytes, {rows} rows have {expected}"
            )
        return flight

    def _sample(self, flight: _Flight, returned: ReturnedPort) -> list[SampledToken | None]:
        """One token for each row that the frame asked for; None where what came home is not finite."""
        batch = flight.batch
        if not len(batch.rows) and not self._tail_layers:
            return []
        home = tensor_from(
            returned.hidden, dtype=self._dtype, width=self._hidden_size, device=self._layers.device
        )  # [rows, hidden], or [tokens, hidden] with tail layers
        if self._tail_layers and not bool(torch.isfinite(home).all()):
            self._fail_not_finite(flight, torch.isfinite(home).all(dim=1).cpu().numpy())
        rows = self._layers.back(home, batch)  # [R, hidden]
        if not len(batch.rows):
            return []
        logits = self._layers.logits(rows)  # [R, vocabulary]
        asking = [share.sequence for share in flight.shares if share.wants_row]
        return self._sampler.sample(
            logits,
            [
                SamplingRow(
                    parameters=sequence.sampling,
                    seed=sequence.seed,
                    position=sequence.length,
                    counts=sequence.counts,
                    logprobs=sequence.logprobs,
                )
                for sequence in asking
            ],
        )

    def _fail_not_finite(self, flight: _Flight, finite: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> None:
        """With tail layers, prompt tokens come home too: their sequences fail here, before others read their
        rows."""
        first = 0
        for share in flight.shares:
            if not finite[first : first + share.count].all():
                self._fail(share.sequence, "internal", _NOT_FINITE)
            first += share.count

    def _let_go(self, flight: _Flight) -> None:
        for share, lease in zip(flight.shares, flight.leases, strict=True):
            sequence = share.sequence
            sequence.in_flight -= 1
            if sequence.lease is lease:
                sequence.home = share.start + share.count
            elif lease.holders == 1:
                self._returning -= lease.blocks
            self._blocks.release(lease)

    def _accept(self, sequence: Sequence, sampled: SampledToken | None, now: float) -> None:
        if sequence.ended:
            return
        if sampled is None:
            self._fail(sequence, "internal", _NOT_FINITE)
            return
        finish = sequence.accept(sampled.token)
        self._outputs.append(TokenOutput(sequence.request_id, sampled.token, finish, sampled.logprobs))
        if sequence.last_token_at is None:
            self._latencies.first.append(now - sequence.submitted_at)
        else:
            self._latencies.between.append(now - sequence.last_token_at)
        sequence.last_token_at = now
        self._latencies.tokens += 1
        if finish is not None:
            self._end(sequence)

    def _measure(
        self, flight: _Flight, busy_microseconds: list[int], *, home_at: float, done_at: float
    ) -> None:
        """Feed the running estimate of what frames cost, and the step metrics."""
        own_seconds = flight.front_seconds + done_at - home_at
        stages = [microseconds * 1e-6 for microseconds in busy_microseconds]
        if len(stages) + 1 == len(self._costs.stations):
            self._costs.add(flight.batch.tokens, [own_seconds, *stages])
        ring_seconds = home_at - flight.sent_at
        telemetry.STEP.observe(own_seconds)
        telemetry.RING_STEP.observe(ring_seconds)
        if flight.alone and not self._flights:
            hop_seconds = max(0.0, ring_seconds - sum(stages)) / self._hops
            self._costs.add_hop(hop_seconds)
            telemetry.HOP.observe(hop_seconds)

    # Ends.

    def _fail(self, sequence: Sequence, code: Literal["ring_down", "internal"], message: str) -> None:
        if not sequence.ended:
            self._outputs.append(Failure(sequence.request_id, code, message))
            self._end(sequence)

    def _fail_all(self, shares: tuple[Share[Sequence], ...], error: Exception) -> None:
        """These layers, or this ring's limits, cannot take that frame; other requests go on."""
        log.error("step %d failed: %s: %s", self._step, type(error).__name__, error)
        for share in shares:
            self._fail(share.sequence, "internal", "this request's step could not be computed")

    def _end(self, sequence: Sequence) -> None:
        """It is in no further frame; its blocks are free once the frames that name them are home."""
        if sequence.ended:
            return
        sequence.ended = True
        del self._sequences[sequence.request_id]
        if sequence.lease is None:
            self._waiting.remove(sequence)
        else:
            self._running.remove(sequence)
            self._release(sequence)

    def _release(self, sequence: Sequence) -> None:
        lease, sequence.lease = sequence.lease, None
        if lease is None:
            return
        if lease.holders > 1:
            self._returning += lease.blocks
        self._blocks.release(lease)

    def lose_ring(self, reason: str, code: str) -> None:
        """The epoch is over: frames in flight are gone, and so is what they carried. Everyone is told."""
        with self._gate:
            self._ring_error = reason
        self._loss_code = code
        telemetry.RING_READY.set(0)
        self._take_commands()
        while self._flights:
            self._let_go(self._flights.popleft())
        for sequence in list(self._sequences.values()):
            self._fail(sequence, "ring_down", reason)
        self._hand_over()
        log.warning("ring down: epoch=%d code=%s %s", self._epoch, code, reason)

    # Handing over.

    def _hand_over(self) -> None:
        """One list of outputs, the status, and the metrics."""
        if self._outputs:
            outputs, self._outputs = self._outputs, []
            self._deliver(outputs)
        latencies, self._latencies = self._latencies, _Latencies()
        for seconds in latencies.first:
            telemetry.TIME_TO_FIRST_TOKEN.observe(seconds)
        for seconds in latencies.between:
            telemetry.TIME_BETWEEN_TOKENS.observe(seconds)
        if latencies.tokens:
            telemetry.GENERATED_TOKENS.inc(latencies.tokens)
        self._publish()

    def _publish(self) -> None:
        error = self._ring_error
        self.status = EngineStatus(
            ring_ready=error is None,
            ring_error=error or "",
            epoch=self._epoch,
            running=len(self._running),
            waiting=len(self._waiting),
            kv_blocks_used=self._blocks.used,
            kv_blocks_total=self._blocks.total,
        )
        telemetry.RUNNING_SEQUENCES.set(len(self._running))
        telemetry.WAITING_SEQUENCES.set(len(self._waiting))
        telemetry.KV_BLOCKS_USED.set(self._blocks.used)
        telemetry.FRAMES_IN_FLIGHT.set(len(self._flights))


_NOT_FINITE = "the model computed values that are not finite; the request was ended"


def pack(shares: tuple[Share[Sequence], ...], leases: list[BlockLease], block_tokens: int) -> Batch:
    """The arrays of a frame: sequences in the order of `shares`, each with exactly the blocks that it needs
    so far."""
    runs = [
        lease.prefix(blocks_for(share.start + share.count, block_tokens))
        for share, lease in zip(shares, leases, strict=True)
    ]
    rows: list[int] = []
    end = 0
    for share in shares:
        end += share.count
        if share.wants_row:
            rows.append(end - 1)
    return Batch(
        counts=np.array([share.count for share in shares], np.int32),
        starts=np.array([share.start for share in shares], np.int32),
        run_counts=np.array([len(covering) for covering in runs], np.int32),
        runs=np.array([run for covering in runs for run in covering], np.int32).reshape(-1, 2),
        rows=np.array(rows, np.int32),
    )
