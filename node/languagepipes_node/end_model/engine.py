"""The End Model's engine: one thread that turns requests into tokens by sending micro-batches round a ring.

    step = take commands → schedule → front layers → send … receive → tail layers → logits → sample

It knows token ids only: text, stop strings and HTTP are on the other side of two queues (`requests.py`).
Which tokens a frame carries is decided in `scheduler.py`; here decisions are carried out. See docs/scheduling.md.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Literal

import numpy as np
import torch
from languagepipes_api.plan import Plan

from languagepipes_node import metrics
from languagepipes_node.end_model.costs import RingCost
from languagepipes_node.end_model.in_flight import InFlightBatch, RowsError, pack, packed_tokens
from languagepipes_node.end_model.interfaces import EndLayersPort, ReturnedPort, RingPort
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
    schedule,
)
from languagepipes_node.end_model.sequence_table import SequenceTable
from languagepipes_node.end_model.sequences import Sequence
from languagepipes_node.health import COMPUTING_SECONDS, WAITING_SECONDS, Watch
from languagepipes_node.model.buffers import TORCH_DTYPES, bytes_of, tensor_from
from languagepipes_node.model.errors import ModelError
from languagepipes_node.wire.errors import FrameError, RingDown, SupersededError

log = logging.getLogger(__name__)

Deliver = Callable[[list[EngineOutput]], None]

# Before a chunk of this size is computed, tokens that wait to be handed over go first.
_LARGE_CHUNK = 32
# How soon an engine that waits for a frame notices that it is to stop.
_STOP_SECONDS = 0.1
_NOT_FINITE = "the model computed values that are not finite; the request was ended"


@dataclass(frozen=True)
class EngineSettings:
    """What is not in the plan.

    max_running: sequences that hold KV blocks at once. max_queued: admitted beyond those; more are refused with
    "queue_full". shared_cores: members share cores, so one decode micro-batch is in flight.
    prefill_frames: frames with prompt chunks in flight; None: 1 with shared cores, else what the plan allows.
    deadline_*: a frame that has not returned in factor × the expected time of the frames ahead + slack ends the epoch;
    unmeasured: the limit while no frame of that size was measured (the first may page in all weights).
    idle_seconds: how soon an idle engine notices a lost ring.
    poll_seconds: how soon one that waits for a frame, and could send more, notices a submission.
    reconnect_*: the back-off between attempts to join the ring.
    """

    max_running: int = 64
    max_queued: int = 256
    shared_cores: bool = False
    prefill_frames: int | None = None
    deadline_factor: float = 3.0
    deadline_slack_seconds: float = 2.0  # 0.5 once a broken ring is replayed: until then a false alarm costs requests
    deadline_unmeasured_seconds: float = 120.0
    idle_seconds: float = 0.2
    poll_seconds: float = 0.005
    reconnect_first_seconds: float = 0.05
    reconnect_most_seconds: float = 1.0

    def limits(self, plan: Plan) -> Limits:
        """The scheduler's limits under `plan`."""
        frames = max(1, plan.frames_in_flight)
        prefill = (1 if self.shared_cores else frames) if self.prefill_frames is None else self.prefill_frames
        return Limits(
            frame_tokens=plan.frame_tokens,
            frames_in_flight=frames,
            block_tokens=plan.kv_block_tokens,
            max_running=self.max_running,
            decode_frames=1 if self.shared_cores else frames,
            prefill_frames=max(1, min(frames, prefill)),
        )


class Engine:
    """`submit` and `status` are for any thread; everything else belongs to the thread of `run_forever`.

    deliver: takes one list of outputs a step; must not block. Called on the engine's thread, and on the
    caller's of `submit` for what is refused at once. watch: told of each step, so that one that hangs for good is
    noticed."""

    def __init__(
        self,
        end_layers: EndLayersPort,
        ring: RingPort,
        *,
        plan: Plan,
        settings: EngineSettings,
        deliver: Deliver,
        watch: Watch | None = None,
    ) -> None:
        self._layers = end_layers
        self._ring = ring
        self._settings = settings
        self._deliver = deliver
        self._watch = watch or Watch()
        self._limits = settings.limits(plan)
        self._hidden_size = plan.hidden_size
        self._dtype = TORCH_DTYPES[plan.dtype]
        self._tail_layers = len(plan.end_model.tail_layers) > 0
        self._hops = len(plan.stages) + 1
        self._context_limit = min(plan.max_context_length, plan.kv_blocks * plan.kv_block_tokens)

        # None only wakes the engine.
        self._inbox: SimpleQueue[EngineCommand | None] = SimpleQueue()
        self._stopping = threading.Event()
        # Guards the pair (ring is up, inbox): what is accepted is seen by the step that runs while the ring
        # is up.
        self._gate = threading.Lock()
        self._ring_error: str | None = "the ring has not been joined yet"
        self._loss_code = "start"

        self._sequence_table = SequenceTable(blocks=plan.kv_blocks, block_tokens=plan.kv_block_tokens)
        self._costs = RingCost.of(len(plan.stages))
        self._sampler = Sampler()
        self._in_flight: deque[InFlightBatch] = deque()
        self._step = 0
        self._arrivals = 0
        self._epoch = 0
        self._outputs: list[EngineOutput] = []
        self._tokens = 0  # sampled, and not counted yet: that is done once the next frame is out

        self.status = EngineStatus(kv_blocks_total=plan.kv_blocks)
        metrics.KV_BLOCKS_TOTAL.set(plan.kv_blocks)

    # What other threads may call.

    def submit(self, command: EngineCommand) -> None:
        """Hand a command over. While the ring is down a Submission is answered at once with
        Failure("ring_down")."""
        with self._gate:
            error = self._ring_error
            if error is None:
                self._inbox.put(command)
        if error is not None and isinstance(command, Submission):
            self._deliver([Failure(command.request_id, "ring_down", error)])

    def stop(self) -> None:
        """`run_forever` fails what is left with "ring_down" and returns, within a step."""
        self._stopping.set()
        self._inbox.put(None)

    # The engine's thread.

    def run_forever(self) -> None:
        """Until `stop`. Joins the ring again whenever it is lost. Raises SupersededError if another End Model
        holds the replica: then this process must exit."""
        pause = self._settings.reconnect_first_seconds
        farewell = "the engine failed", "internal"
        try:
            with torch.inference_mode():
                while not self._stopping.is_set():
                    self._watch.expect("joining the ring", WAITING_SECONDS)
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
        # Other machines may compute in this epoch: by the old ones' times every frame could be overdue, for ever.
        self._costs = RingCost.of(len(self._costs.members) - 1)
        metrics.RING_EPOCHS.labels(reason=self._loss_code).inc()
        metrics.EPOCH.set(self._epoch)
        metrics.RING_READY.set(1)
        with self._gate:
            self._ring_error = None
        self._publish()
        log.info("ring joined: epoch=%d", self._epoch)

    def step(self) -> None:
        """One round of the engine. Raises RingDown once the ring is lost."""
        self._watch.expect("computing a frame", COMPUTING_SECONDS)
        self.dispatch()
        returned = self._wait()
        if returned is not None:
            self.collect(returned)

    def dispatch(self) -> None:
        """The first half of a step: take commands, and send whatever is worth sending now."""
        self._take_commands()
        while (decision := schedule(self._snapshot())).shares or decision.preempt:
            self._carry_out(decision)
        # Handing over what the last frame brought is done while the ring computes the next.
        self._hand_over()

    # Commands.

    def _take_commands(self) -> None:
        while True:
            try:
                item = self._inbox.get_nowait()
            except Empty:
                return
            self._take(item)

    def _take(self, command: EngineCommand | None) -> None:
        if command is None:
            return
        sequence = self._sequence_table.find(command.request_id)
        if isinstance(command, Submission):
            if sequence is not None:
                self._fail(sequence, "internal", f"request_id={command.request_id} was submitted twice")
            else:
                self._admit(command)
        elif sequence is not None:
            self._sequence_table.end(sequence)

    def _admit(self, submission: Submission) -> None:
        settings = self._settings
        if len(self._sequence_table) >= settings.max_running + settings.max_queued:
            message = f"{len(self._sequence_table)} requests are running or queued, which is the limit; try again later"
            self._outputs.append(Failure(submission.request_id, "queue_full", message))
            return
        try:
            sequence = Sequence.of(submission, arrival=self._arrivals, context_limit=self._context_limit)
        except ValueError as error:
            self._outputs.append(Failure(submission.request_id, "internal", str(error)))
            return
        self._arrivals += 1
        self._sequence_table.add(sequence)
        metrics.PROMPT_TOKENS.inc(sequence.prompt_length)

    # Sending.

    def _snapshot(self) -> Snapshot[Sequence]:
        return Snapshot(
            running=self._sequence_table.running,
            waiting=self._sequence_table.waiting,
            frames=[in_flight_batch.view for in_flight_batch in self._in_flight],
            free_blocks=self._sequence_table.blocks.free,
            returning_blocks=self._sequence_table.returning_blocks,
            limits=self._limits,
            costs=self._costs,
        )

    def _carry_out(self, decision: Decision[Sequence]) -> None:
        for sequence in decision.preempt:
            self._sequence_table.preempt(sequence)
            metrics.PREEMPTIONS.inc()
        for sequence in decision.admit:
            self._sequence_table.start(sequence)
        if not decision.shares:
            return
        if decision.tokens > _LARGE_CHUNK:
            self._hand_over()
        self._send(decision)

    def _send(self, decision: Decision[Sequence]) -> None:
        """Front layers over the packed tokens, then onto the ring."""
        started = time.perf_counter()
        self._step += 1
        leases = [self._sequence_table.lease_for(share) for share in decision.shares]
        batch = pack(decision.shares, leases, self._limits.block_tokens)
        tokens = torch.from_numpy(packed_tokens(decision.shares))  # int64 [tokens]
        try:
            hidden = bytes_of(self._layers.front(tokens, batch))  # [tokens, hidden]
        except ModelError as error:
            self._fail_all(decision.shares, error)
            return
        sent_at = time.perf_counter()
        in_flight_batch = InFlightBatch(
            step=self._step,
            shares=decision.shares,
            leases=leases,
            batch=batch,
            view=FrameView(decision.decode_rows, decision.tokens - decision.decode_rows),
            front_seconds=sent_at - started,
            sent_at=sent_at,
            deadline=sent_at + self._allowed_seconds(decision.tokens),
            alone=not self._in_flight,
        )
        try:
            self._ring.send(self._step, batch, hidden, decision.tokens)
        except FrameError as error:
            self._fail_all(decision.shares, error)
            return
        self._sequence_table.sent(decision.shares, leases, step=self._step)
        self._in_flight.append(in_flight_batch)

    def _allowed_seconds(self, tokens: int) -> float:
        """How long a frame sent now may take: it queues behind those in flight."""
        settings = self._settings
        ahead = [in_flight_batch.batch.tokens for in_flight_batch in self._in_flight] + [tokens]
        if not all(self._costs.trusted(count) for count in ahead):
            return settings.deadline_unmeasured_seconds
        expected = sum(self._costs.round(count) for count in ahead)
        return settings.deadline_factor * expected + settings.deadline_slack_seconds

    # Waiting.

    def _wait(self) -> ReturnedPort | None:
        """The next frame that returns; None if a command came first. Blocks: an idle engine costs nothing."""
        if not self._in_flight:
            with contextlib.suppress(Empty):
                self._take(self._inbox.get(timeout=self._settings.idle_seconds))
            if self._inbox.empty() and not self._sequence_table:
                # Nothing is due, but a ring that was lost meanwhile says so.
                self._ring.receive(0)
            return None
        deadline = self._in_flight[0].deadline
        late = time.perf_counter() >= deadline
        while not self._stopping.is_set():
            self._watch.expect("waiting for a frame", WAITING_SECONDS)
            pause = self._settings.poll_seconds if self._could_send_more() else _STOP_SECONDS
            # An engine that was busy until now, or stopped, looks once more before it blames a member.
            pause = self._settings.deadline_slack_seconds if late else min(pause, deadline - time.perf_counter())
            returned = self._ring.receive(max(pause, 0.0))
            if returned is not None:
                self._watch.expect("computing a frame", COMPUTING_SECONDS)
                return returned
            if time.perf_counter() >= deadline:
                reason = self._in_flight[0].overdue
                self._ring.drop(reason)
                raise RingDown(reason, "deadline")
            if not self._inbox.empty():
                return None
        return None

    def _could_send_more(self) -> bool:
        """Whether a request that arrives now might be sent before the next frame has returned."""
        alone = self._limits.decode_frames == 1 and any(sequence.streaming for sequence in self._sequence_table.running)
        return len(self._in_flight) < (1 if alone else self._limits.prefill_frames)

    # Receiving.

    def collect(self, returned: ReturnedPort) -> None:
        """The second half of a step: a frame has returned; tail layers, logits, sampled tokens."""
        home_at = time.perf_counter()
        try:
            if not self._in_flight:
                raise RowsError(f"step {returned.step} returned, none was due")
            in_flight_batch = self._in_flight[0]
            rows = in_flight_batch.batch.tokens if self._tail_layers else len(in_flight_batch.batch.rows)
            in_flight_batch.check(returned, rows=rows, row_bytes=self._hidden_size * self._dtype.itemsize)
            sampled = self._sample(in_flight_batch, returned)
        except ModelError as error:
            self._fail_all(in_flight_batch.shares, error)
            sampled = [None] * len(in_flight_batch.batch.rows)
        except RowsError as error:
            self._ring.drop(str(error))
            raise RingDown(str(error), "protocol") from error
        finally:
            returned.release()
        self._in_flight.popleft()
        self._sequence_table.home(in_flight_batch.shares, in_flight_batch.leases)
        now = time.perf_counter()
        for sequence, token in zip(in_flight_batch.asking, sampled, strict=True):
            self._accept(sequence, token)
        self._measure(in_flight_batch, returned.busy_microseconds, home_at=home_at, done_at=now)

    def _sample(self, in_flight_batch: InFlightBatch, returned: ReturnedPort) -> list[SampledToken | None]:
        """One token for each row that the frame asked for; None where what returned is not finite."""
        batch = in_flight_batch.batch
        if not len(batch.rows) and not self._tail_layers:
            return []
        home = tensor_from(
            returned.hidden, dtype=self._dtype, width=self._hidden_size, device=self._layers.device
        )  # [rows, hidden], or [tokens, hidden] with tail layers
        if self._tail_layers and not bool(torch.isfinite(home).all()):
            self._fail_not_finite(in_flight_batch, torch.isfinite(home).all(dim=1).cpu().numpy())
        rows = self._layers.back(home, batch)  # [R, hidden]
        if not len(batch.rows):
            return []
        logits = self._layers.logits(rows)  # [R, vocabulary]
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
                for sequence in in_flight_batch.asking
            ],
        )

    def _fail_not_finite(
        self, in_flight_batch: InFlightBatch, finite: np.ndarray[tuple[int], np.dtype[np.bool_]]
    ) -> None:
        """With tail layers, prompt tokens return too: their sequences fail although they ask for no row."""
        first = 0
        for share in in_flight_batch.shares:
            if not finite[first : first + share.count].all():
                self._fail(share.sequence, "internal", _NOT_FINITE)
            first += share.count

    def _accept(self, sequence: Sequence, sampled: SampledToken | None) -> None:
        if sequence.ended:
            return
        if sampled is None:
            self._fail(sequence, "internal", _NOT_FINITE)
            return
        finish = sequence.accept(sampled.token)
        self._outputs.append(TokenOutput(sequence.request_id, sampled.token, finish, sampled.logprobs))
        self._tokens += 1
        if finish is not None:
            self._sequence_table.end(sequence)

    def _measure(
        self, in_flight_batch: InFlightBatch, busy_microseconds: list[int], *, home_at: float, done_at: float
    ) -> None:
        """Feed the running estimate of what frames cost, and the step metrics."""
        own_seconds = in_flight_batch.front_seconds + done_at - home_at
        stages = [microseconds * 1e-6 for microseconds in busy_microseconds]
        if len(stages) + 1 == len(self._costs.members):
            self._costs.add(in_flight_batch.batch.tokens, [own_seconds, *stages])
        ring_seconds = home_at - in_flight_batch.sent_at
        metrics.STEP.observe(own_seconds)
        metrics.RING_STEP.observe(ring_seconds)
        if in_flight_batch.alone and not self._in_flight:
            hop_seconds = max(0.0, ring_seconds - sum(stages)) / self._hops
            self._costs.add_hop(hop_seconds)
            metrics.HOP.observe(hop_seconds)

    # Ends.

    def _fail(self, sequence: Sequence, code: Literal["ring_down", "internal"], message: str) -> None:
        if not sequence.ended:
            self._outputs.append(Failure(sequence.request_id, code, message))
            self._sequence_table.end(sequence)

    def _fail_all(self, shares: tuple[Share[Sequence], ...], error: Exception) -> None:
        """These layers, or this ring's limits, cannot take that frame; other requests go on."""
        log.error("step %d failed: %s: %s", self._step, type(error).__name__, error)
        for share in shares:
            self._fail(share.sequence, "internal", "this request's step could not be computed")

    def lose_ring(self, reason: str, code: str) -> None:
        """The epoch is over: frames in flight are gone, and so is what they carried. Everyone is told."""
        with self._gate:
            was, self._ring_error = self._ring_error, reason
        if was is None:
            self._loss_code = code
        metrics.RING_READY.set(0)
        self._take_commands()
        while self._in_flight:
            in_flight_batch = self._in_flight.popleft()
            self._sequence_table.home(in_flight_batch.shares, in_flight_batch.leases)
        for sequence in self._sequence_table.everyone():
            self._fail(sequence, "ring_down", reason)
        self._hand_over()
        if was != reason:  # not once for each attempt to join it again
            log.warning("ring down: epoch=%d code=%s %s", self._epoch, code, reason)

    # Handing over.

    def _hand_over(self) -> None:
        """One list of outputs, the status, and the metrics."""
        if self._outputs:
            outputs, self._outputs = self._outputs, []
            self._deliver(outputs)
        tokens, self._tokens = self._tokens, 0
        if tokens:
            metrics.GENERATED_TOKENS.inc(tokens)
        self._publish()

    def _publish(self) -> None:
        error = self._ring_error
        self.status = EngineStatus(
            ring_ready=error is None,
            ring_error=error or "",
            epoch=self._epoch,
            running=len(self._sequence_table.running),
            waiting=len(self._sequence_table.waiting),
            kv_blocks_used=self._sequence_table.blocks.used,
            kv_blocks_total=self._sequence_table.blocks.total,
        )
        metrics.RUNNING_SEQUENCES.set(len(self._sequence_table.running))
        metrics.WAITING_SEQUENCES.set(len(self._sequence_table.waiting))
        metrics.KV_BLOCKS_USED.set(self._sequence_table.blocks.used)
        metrics.FRAMES_IN_FLIGHT.set(len(self._in_flight))
