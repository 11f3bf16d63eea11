"""The End Model's engine: one thread that turns requests into tokens by sending micro-batches round a ring.

    step = take commands → schedule → front layers → send … receive → tail layers → logits → sample

It knows token ids only: text, stop strings and HTTP are on the other side of two queues (`requests.py`).
Which tokens a frame carries is decided in `scheduler.py`; here decisions are carried out. See docs/scheduling.md.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from queue import Empty, SimpleQueue
from typing import Literal

import numpy as np
import torch
from languagepipes_api.member_settings import SpeculativeDecoding
from languagepipes_api.plan import Plan

from languagepipes_node import metrics
from languagepipes_node.end_model.costs import RingCost
from languagepipes_node.end_model.in_flight import InFlightBatch, RowsError, pack, packed_tokens
from languagepipes_node.end_model.interfaces import EndLayersPort, ReturnedPort, RingPort
from languagepipes_node.end_model.prompt_scores import score_prompts, scoring_rows
from languagepipes_node.end_model.recovery import Outage
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
from languagepipes_node.end_model.structured import GrammarExhausted, MaskWorkers
from languagepipes_node.end_model.verification import Draws, verify
from languagepipes_node.health import COMPUTING_SECONDS, WAITING_SECONDS, Watchdog
from languagepipes_node.model.buffers import TORCH_DTYPES, bytes_of, tensor_from
from languagepipes_node.wire.close import CLOSE_CODES
from languagepipes_node.wire.errors import FrameError, RingDown, SupersededError

log = logging.getLogger(__name__)

Deliver = Callable[[list[EngineOutput]], None]

# Before a chunk of more tokens is computed, sampled tokens that wait are handed over.
_LARGE_CHUNK = 32
# How soon an engine that waits for a frame notices that it is to stop.
_STOP_SECONDS = 0.1
_NOT_FINITE = "the model computed values that are not finite; the request was ended"
_NOT_SAMPLED = "no token could be sampled for this request with its parameters; the request was ended"
_NO_LOGPROBS = "the log probabilities of a token could not be computed; the request was ended"
_NOT_COMPUTED = "this request's step could not be computed"


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
    reconnect_*: the back-off between attempts to join the ring. max_wait_seconds: how long requests wait while there is
    no ring. max_replays: how often a request is computed again without a token in between before it fails.
    speculation: whether streams' next tokens are drafted, and verified several in one frame.
    """

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
    max_wait_seconds: float = 300.0
    scales_to_zero: bool = False
    max_replays: int = 5
    prefix_cache: bool = True
    speculation: SpeculativeDecoding = "none"

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
            speculation=self.speculation,
        )


class Engine:
    """`submit` and `status` are for any thread; everything else belongs to the thread of `run_forever`.

    deliver: takes one list of outputs a step; must not block. Called on the engine's thread, and on the
    caller's of `submit` for what is refused at once. watchdog: notices a step that hangs."""

    def __init__(
        self,
        end_layers: EndLayersPort,
        ring: RingPort,
        *,
        plan: Plan,
        settings: EngineSettings,
        deliver: Deliver,
        watchdog: Watchdog | None = None,
    ) -> None:
        self._layers = end_layers
        self._ring = ring
        self._settings = settings
        self._deliver = deliver
        self._watchdog = watchdog or Watchdog()
        self._limits = settings.limits(plan)
        self._hidden_size = plan.hidden_size
        self._dtype = TORCH_DTYPES[plan.dtype]
        self._tail_layers = len(plan.end_model.tail_layers) > 0
        self._hops = len(plan.stages) + 1
        self._context_limit = min(plan.max_context_length, plan.kv_blocks * plan.kv_block_tokens)

        # None just wakes the engine.
        self._inbox: SimpleQueue[EngineCommand | None] = SimpleQueue()
        self._stopping = threading.Event()
        # Guards (whether commands are taken, inbox) together: a command that is accepted is answered.
        self._gate = threading.Lock()
        self._refusal: str | None = None  # why no command is taken any more
        self._outage = Outage(
            max_wait_seconds=settings.max_wait_seconds,
            now=time.monotonic(),
            from_first_request=settings.scales_to_zero,
        )
        self._kv_ids: tuple[bytes, ...] = ()
        self._replays = 0

        self._sequences = SequenceTable(
            blocks=plan.kv_blocks, block_tokens=plan.kv_block_tokens, prefix_cache=settings.prefix_cache
        )
        self._costs = RingCost.of(len(plan.stages))
        self._sampler = Sampler()
        self._masks = MaskWorkers()
        self._in_flight: deque[InFlightBatch] = deque()
        self._returned_at = 0.0  # when the last frame did, on the clock of time.perf_counter
        self._step = 0
        self._arrivals = 0
        self._epoch = 0
        # Not handed over yet; those that are functions have work to do that no token waits for.
        self._outputs: list[EngineOutput | Callable[[], EngineOutput]] = []
        self._tokens = 0  # sampled, and not counted yet: that is done once the next frame is out

        self.status = EngineStatus(kv_blocks_total=plan.kv_blocks)
        metrics.KV_BLOCKS_TOTAL.set(plan.kv_blocks)
        # Prometheus sees no increase in a series that comes with its first count: so each is there from the start.
        for code in (*CLOSE_CODES, "protocol"):
            metrics.RING_EPOCHS.labels(reason=code)

    # What other threads may call.

    def submit(self, command: EngineCommand) -> None:
        """Hand a command over. While the ring is down it waits for it, as others do; once that has lasted too long, or
        after the end, a Submission is answered at once with Failure("ring_down")."""
        with self._gate:
            error = self._refusal
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
        ending = "the engine failed"
        try:
            with torch.inference_mode():
                while not self._stopping.is_set():
                    self._watchdog.expect("joining the ring", WAITING_SECONDS)
                    try:
                        self.join_ring()
                        pause = self._settings.reconnect_first_seconds
                        while not self._stopping.is_set():
                            self.step()
                    except RingDown as down:
                        self.lose_ring(down)
                        self._wait_without_ring(pause)
                        pause = min(2 * pause, self._settings.reconnect_most_seconds)
            ending = "the server is shutting down"
        except SupersededError as error:
            ending = str(error)
            raise
        finally:
            # Whatever ends this thread, every open request gets an answer.
            self.end(ending)

    def join_ring(self) -> None:
        """One attempt at a new epoch. Sequences go on from the KV that the stages still hold. Raises RingDown."""
        info = self._ring.connect()
        self._epoch = info.epoch.counter
        self._find_lost_kv(info.kv_ids)
        if self._outage.code == "deadline":
            # Machines became slower than they were measured: by the old times every frame would be overdue.
            self._costs.forget(range(self._hops))
        metrics.RING_EPOCHS.labels(reason=self._outage.code).inc()
        metrics.EPOCH.set(self._epoch)
        metrics.RING_READY.set(1)
        with self._gate:
            self._refusal = None
        waited = len(self._sequences)
        seconds = self._outage.end(now=time.monotonic())
        if self._outage.code != "start":
            metrics.REQUESTS_WAITED.inc(waited)
            metrics.RING_DOWN_SECONDS.inc(seconds)
        self._publish()
        log.info("ring joined: epoch=%d after %.1f s, %d requests waited", self._epoch, seconds, waited)

    def _find_lost_kv(self, kv_ids: tuple[bytes, ...]) -> None:
        """Rewind what stages have lost that are not the ones of the last epoch."""
        known, self._kv_ids = self._kv_ids, kv_ids
        changed = [stage for stage, (was, now) in enumerate(zip(known, kv_ids, strict=False), start=1) if was != now]
        if not changed:
            return
        # Other machines may compute now; measured against the old ones' times, each frame could be overdue.
        self._costs.forget(changed)
        for computed in self._sequences.lose_kv(changed[-1]):
            self._replays += 1
            metrics.REPLAYS.inc()
            metrics.RECOMPUTED_TOKENS.inc(computed)

    def step(self) -> None:
        """One round of the engine. Raises RingDown once the ring is lost."""
        self._watchdog.expect("computing a frame", COMPUTING_SECONDS)
        self.dispatch()
        returned = self._wait()
        if returned is not None:
            self.collect(returned)

    def dispatch(self) -> None:
        """The first half of a step: take commands, and send whatever is worth sending now."""
        self._take_commands()
        while (decision := schedule(self._snapshot())).shares or decision.preempt:
            self._carry_out(decision)
        # The last frame's tokens are handed over while the ring computes the next frame.
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
        sequence = self._sequences.find(command.request_id)
        if isinstance(command, Submission):
            if sequence is not None:
                self._fail(sequence, "internal", f"request_id={command.request_id} was submitted twice")
            else:
                self._admit(command)
        elif sequence is not None:
            self._sequences.end(sequence)

    def _admit(self, submission: Submission) -> None:
        settings = self._settings
        if len(self._sequences) >= settings.max_running + settings.max_queued:
            message = f"{len(self._sequences)} requests are running or queued, which is the limit; try again later"
            self._outputs.append(Failure(submission.request_id, "queue_full", message))
            return
        try:
            sequence = Sequence.of(
                submission,
                arrival=self._arrivals,
                context_limit=self._context_limit,
                stages=self._hops - 1,
                speculates=settings.speculation != "none",
            )
        except ValueError as error:
            self._outputs.append(Failure(submission.request_id, "internal", str(error)))
            return
        self._arrivals += 1
        self._sequences.add(sequence)
        metrics.PROMPT_TOKENS.inc(sequence.prompt_length)

    # Sending.

    def _snapshot(self) -> Snapshot[Sequence]:
        if len(self._sequences.running) < self._limits.max_running:
            self._sequences.look_up()
        return Snapshot(
            running=self._sequences.running,
            waiting=self._sequences.waiting,
            frames=[frame.view for frame in self._in_flight],
            free_blocks=self._sequences.blocks.free,
            returning_blocks=self._sequences.returning_blocks,
            limits=self._limits,
            costs=self._costs,
            step=self._step,
        )

    def _carry_out(self, decision: Decision[Sequence]) -> None:
        for sequence in decision.preempt:
            self._preempt(sequence)
        for sequence in decision.passed:
            sequence.passed += 1
        self._start(decision.admit)
        if not decision.shares:
            return
        if any(share.start != share.sequence.sent for share in decision.shares):
            return  # one that has started found other blocks than were looked up: its share is decided anew
        if decision.tokens > _LARGE_CHUNK:
            self._hand_over()
            if any(share.sequence.ended for share in decision.shares):
                return  # its log probabilities failed: the rest is decided anew
        self._send(decision)

    def _preempt(self, sequence: Sequence) -> None:
        self._sequences.preempt(sequence)
        metrics.PREEMPTIONS.inc()

    def _start(self, sequences: tuple[Sequence, ...]) -> None:
        new = [sequence for sequence in sequences if sequence.cached_tokens is None]
        self._sequences.start(sequences)
        for sequence in new:
            metrics.PREFIX_CACHE_QUERIED_TOKENS.inc(sequence.length)
            metrics.PREFIX_CACHE_HIT_TOKENS.inc(sequence.cached_tokens or 0)

    def _send(self, decision: Decision[Sequence]) -> None:
        """Front layers over the packed tokens, then onto the ring."""
        started = time.perf_counter()
        self._step += 1
        leases = [self._sequences.lease_for(share) for share in decision.shares]
        batch = pack(decision.shares, leases, self._limits.block_tokens)
        last_member = decision.shares[0].sequence.last_member  # all shares of a frame go as far
        tokens = torch.from_numpy(packed_tokens(decision.shares))  # int64 [tokens]
        try:
            hidden = bytes_of(self._layers.front(tokens, batch))  # [tokens, hidden]
        except Exception as error:  # of one frame; which of its sequences it is, is found by trying them apart
            self._blame(decision.shares, error)
            return
        sent_at = time.perf_counter()
        frame = InFlightBatch(
            step=self._step,
            shares=decision.shares,
            leases=leases,
            batch=batch,
            last_member=last_member,
            view=FrameView(decision.decode_rows, decision.chunk_tokens, apart=decision.apart),
            front_seconds=sent_at - started,
            sent_at=sent_at,
            deadline=sent_at + self._allowed_seconds(decision.tokens, replay=self._is_replay(last_member)),
            alone=not self._in_flight,
            scoring=scoring_rows(decision.shares),
        )
        try:
            self._ring.send(self._step, batch, hidden, decision.tokens, last_member=last_member)
        except FrameError as error:
            self._fail_all(decision.shares, error)
            return
        self._sequences.sent(decision.shares, leases, step=self._step)
        self._in_flight.append(frame)
        self._masks.prepare([sequence.grammar for sequence in frame.asking if sequence.grammar is not None])

    def _allowed_seconds(self, tokens: int, *, replay: bool) -> float:
        """How long a frame sent now may take: it queues behind those in flight."""
        settings = self._settings
        expected = self._costs.expected(tokens, replay=replay, alone=not self._in_flight)
        for ahead in self._in_flight:
            seconds = self._costs.expected(
                ahead.batch.tokens, replay=self._is_replay(ahead.last_member), alone=ahead.alone
            )
            expected = None if expected is None or seconds is None else expected + seconds
        if expected is None:
            return settings.deadline_unmeasured_seconds
        return settings.deadline_factor * expected + settings.deadline_slack_seconds

    def _is_replay(self, last_member: int) -> bool:
        return last_member < self._hops - 1

    # Waiting.

    def _wait(self) -> ReturnedPort | None:
        """The next frame that returns; None if a command came first. Blocks: an idle engine costs nothing."""
        if not self._in_flight:
            with contextlib.suppress(Empty):
                self._take(self._inbox.get(timeout=self._settings.idle_seconds))
            if self._inbox.empty():
                # No frame is due, but this raises if the ring was lost meanwhile.
                self._ring.receive(0)
            return None
        deadline = self._in_flight[0].deadline
        late = time.perf_counter() >= deadline
        while not self._stopping.is_set():
            self._watchdog.expect("waiting for a frame", WAITING_SECONDS)
            pause = self._settings.poll_seconds if self._could_send_more() else _STOP_SECONDS
            # An engine that was busy or frozen until now looks once more before it reports a frame as overdue.
            pause = self._settings.deadline_slack_seconds if late else min(pause, deadline - time.perf_counter())
            returned = self._ring.receive(max(pause, 0.0))
            if returned is not None:
                self._watchdog.expect("computing a frame", COMPUTING_SECONDS)
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
        alone = self._limits.decode_frames == 1 and any(sequence.streaming for sequence in self._sequences.running)
        return len(self._in_flight) < (1 if alone else self._limits.prefill_frames)

    # Receiving.

    def collect(self, returned: ReturnedPort) -> None:
        """The second half of a step: a frame has returned; tail layers, logits, sampled tokens."""
        returned_at = time.perf_counter()
        try:
            if not self._in_flight:
                raise RowsError(f"step {returned.step} returned, none was due")
            frame = self._in_flight[0]
            replay = self._is_replay(frame.last_member)
            rows = frame.batch.tokens if self._tail_layers and not replay else len(frame.batch.rows)
            frame.check(returned, rows=rows, row_bytes=self._hidden_size * self._dtype.itemsize)
            logits = None if replay else self._logits(frame, returned)
            draws = [] if logits is None else frame.draws
            damaged = [one for one in draws if logits is not None and one.is_damaged(logits)]
            draws = [one for one in draws if one not in damaged]
            sampled = self._sample(logits, draws) if logits is not None and draws else []
        except RowsError as error:
            self._ring.drop(str(error))
            raise RingDown(str(error), "protocol") from error
        except Exception as error:
            # As if a stage had failed at this frame: the epoch ends, and its sequences are tried apart.
            log_failure(f"step {frame.step} failed at the End Model", error)
            reason = f"end-model: step {frame.step} could not be computed: {type(error).__name__}"
            self._ring.drop(reason)
            raise RingDown(reason, "step_failed", step=frame.step) from error
        finally:
            returned.release()
        self._in_flight.popleft()
        self._sequences.returned(frame.shares, frame.leases, last_member=frame.last_member)
        for one, token in zip(draws, sampled, strict=True):
            self._accept(one.sequence, token)
        if logits is not None:
            self._verify([one for one in draws if one.drafts], logits)
        for one in damaged:
            self._compute_without_drafts(one)
        self._measure(frame, returned.busy_microseconds, returned_at=returned_at, done_at=time.perf_counter())

    def _logits(self, frame: InFlightBatch, returned: ReturnedPort) -> torch.Tensor | None:
        """Of the rows to sample from, float32 [R, vocabulary]; None if there are none. Prompts are scored."""
        batch = frame.batch
        if not len(batch.rows) and not self._tail_layers:
            return None
        hidden = tensor_from(
            returned.hidden, dtype=self._dtype, width=self._hidden_size, device=self._layers.device
        )  # [rows, hidden], or [tokens, hidden] with tail layers
        if self._tail_layers and not bool(torch.isfinite(hidden).all()):
            self._fail_not_finite(frame, torch.isfinite(hidden).all(dim=1).cpu().numpy())
        rows = self._layers.back(hidden, batch)  # [R, hidden]
        if not len(batch.rows):
            return None
        if frame.scoring:
            scored, rows = score_prompts(frame.scoring, rows, self._layers.logits)
            for sequence, scores in scored:
                if scores is None:
                    self._fail(sequence, "internal", _NOT_FINITE)
                else:
                    self._outputs.append(scores)
            if not len(rows):
                return None
        return self._layers.logits(rows)

    def _sample(self, logits: torch.Tensor, draws: list[Draws], *, behind: int = 0) -> list[SampledToken | None]:
        """The next token of each, from the row `behind` its first one; None where what returned is not finite."""
        rows = [draw.row + behind for draw in draws]
        return self._sampler.sample(
            logits if len(rows) == len(logits) else logits[rows],  # the rest is sampled from later, unchanged
            [
                SamplingRow(
                    parameters=sequence.sampling,
                    seed=sequence.seed,
                    position=sequence.length,
                    counts=sequence.counts,
                    logprobs=sequence.logprobs,
                    forbidden=self._forbidden(sequence),
                    prompt_ids=sequence.prompt_ids if sequence.sampling.repetition_penalty != 1.0 else None,
                    masked=sequence.masked_ids,
                )
                for sequence in (draw.sequence for draw in draws)
            ],
            failed=lambda index, error: self._fail_sampling(draws[index].sequence, error),
        )

    def _verify(self, drafted: list[Draws], logits: torch.Tensor) -> None:
        if drafted:
            verify(
                drafted,
                sample=lambda draws, behind: self._sample(logits, draws, behind=behind),
                accept=self._accept_behind_draft,
            )

    def _compute_without_drafts(self, draws: Draws) -> None:
        """In other blocks, and if what returns is not finite again, it is no draft's fault."""
        sequence = draws.sequence
        sequence.speculator = None
        if sequence.lease is draws.lease:
            self._preempt(sequence)

    def _accept_behind_draft(self, draws: Draws, sampled: SampledToken | None) -> None:
        self._sequences.verified(draws.sequence, draws.lease)
        self._accept(draws.sequence, sampled)

    def _fail_sampling(self, sequence: Sequence, error: Exception) -> None:
        log_failure("a request's token could not be sampled", error)
        self._fail(sequence, "internal", _NOT_SAMPLED)

    def _forbidden(self, sequence: Sequence) -> np.ndarray[tuple[int], np.dtype[np.bool_]] | None:
        """The tokens that the sequence's grammar excludes now; it fails if that cannot be said."""
        if sequence.grammar is None or sequence.ended:
            return None
        try:
            return sequence.grammar.mask()
        except GrammarExhausted as error:
            self._fail(sequence, "internal", str(error))
            return None

    def _fail_not_finite(self, frame: InFlightBatch, finite: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> None:
        """With tail layers, prompt tokens return too: their sequences fail although they ask for no row."""
        first = 0
        for share in frame.shares:
            # Whether a draft is to blame is judged by its logits.
            if not share.drafts and not finite[first : first + share.count].all():
                self._fail(share.sequence, "internal", _NOT_FINITE)
            first += share.count

    def _accept(self, sequence: Sequence, sampled: SampledToken | None) -> None:
        if sequence.ended:
            return
        if sampled is None:
            self._fail(sequence, "internal", _NOT_FINITE)
            return
        try:
            finish = sequence.accept(sampled.token)
        except GrammarExhausted as error:
            self._fail(sequence, "internal", str(error))
            return
        ended_by_grammar = finish == "stop" and sampled.token not in sequence.stop_token_ids
        output = TokenOutput(
            sequence.request_id,
            sampled.token,
            finish,
            ended_by_grammar=ended_by_grammar,
            cached_tokens=sequence.cached_tokens or 0,
        )
        self._outputs.append(
            output if sampled.scores is None else functools.partial(self._with_logprobs, sequence, sampled, output)
        )
        self._tokens += 1
        if finish is not None:
            self._sequences.end(sequence)

    def _with_logprobs(self, sequence: Sequence, sampled: SampledToken, output: TokenOutput) -> EngineOutput:
        try:
            return replace(output, logprobs=sampled.logprobs)
        except Exception as error:  # of this request alone
            log_failure("a token's log probabilities could not be computed", error)
            if not sequence.ended:
                self._sequences.end(sequence)
            return Failure(sequence.request_id, "internal", _NO_LOGPROBS)

    def _measure(
        self, frame: InFlightBatch, busy_microseconds: list[int], *, returned_at: float, done_at: float
    ) -> None:
        """Feed the running estimate of what frames cost, and the step metrics."""
        own_seconds = frame.front_seconds + done_at - returned_at
        stages = [microseconds * 1e-6 for microseconds in busy_microseconds]
        if len(stages) + 1 == len(self._costs.members):
            pairs = sum(share.pairs for share in frame.shares)
            self._costs.add(frame.batch.tokens, [own_seconds, *stages[: frame.last_member]], pairs)
        replay = self._is_replay(frame.last_member)
        turn_seconds = returned_at - max(frame.sent_at, self._returned_at)
        self._costs.add_turn(frame.batch.tokens, turn_seconds, replay=replay, alone=frame.alone)
        self._returned_at = returned_at
        ring_seconds = returned_at - frame.sent_at
        metrics.STEP.observe(own_seconds)
        metrics.RING_STEP.observe(ring_seconds)
        if frame.alone and not self._in_flight:
            hop_seconds = max(0.0, ring_seconds - sum(stages)) / self._hops
            if not replay:
                self._costs.add_hop(frame.batch.tokens, hop_seconds)
            metrics.HOP.observe(hop_seconds)

    # Ends.

    def _fail(self, sequence: Sequence, code: Literal["ring_down", "internal"], message: str) -> None:
        if not sequence.ended:
            self._outputs.append(Failure(sequence.request_id, code, message))
            if code == "internal":
                self._sequences.distrust(sequence)
            self._sequences.end(sequence)

    def _fail_all(self, shares: tuple[Share[Sequence], ...], error: Exception) -> None:
        """The ring's limits do not accept that frame; other requests continue."""
        log_failure(f"step {self._step} failed", error)
        for share in shares:
            self._fail(share.sequence, "internal", _NOT_COMPUTED)

    def _blame(self, shares: tuple[Share[Sequence], ...], error: Exception) -> None:
        """The End Model's own layers raised at a frame that was not sent: its sequence fails, or, of several, each is
        tried apart."""
        if len(shares) == 1:
            self._fail_all(shares, error)
            return
        log_failure(f"step {self._step} failed with {len(shares)} requests, which are tried apart", error)
        for share in shares:
            share.sequence.setbacks.suspect = True

    def lose_ring(self, down: RingDown) -> None:
        """The epoch is over, or could not be opened: frames in flight are lost. Sequences stay, and wait for the ring
        within the bounds of `recovery.py`; what nobody will wait for fails with the reason."""
        lost = self._outage.down is False
        if self._outage.begin(down.reason, down.code, now=time.monotonic()):
            log.warning("ring down: epoch=%d code=%s %s", self._epoch, down.code, down.reason)
        metrics.RING_READY.set(0)
        self._take_commands()
        if lost:
            self._judge(down)
        self._forget_frames()
        for sequence in self._sequences.everyone():
            sequence.rewind()
        self._give_up()
        self._hand_over()

    def _judge(self, down: RingDown) -> None:
        """Which of the sequences in flight may have broken the ring, and which must have."""
        named = [frame for frame in self._in_flight if down.code == "step_failed" and frame.step == down.step]
        frames = named or list(self._in_flight)
        sequences = {
            share.sequence.arrival: share.sequence for frame in frames for share in frame.shares if share.sequence.lease
        }
        for sequence in sequences.values():
            setbacks = sequence.setbacks
            setbacks.lost(alone=len(sequences) == 1, blamed=bool(named))
            if setbacks.guilty:
                self._fail(
                    sequence, "internal", f"{_NOT_COMPUTED}: the ring fell whenever it was tried ({down.reason})"
                )
            elif setbacks.replays > self._settings.max_replays:
                self._fail(
                    sequence,
                    "ring_down",
                    f"the ring was lost {setbacks.replays} times without a token in between ({down.reason})",
                )

    def _give_up(self) -> None:
        """Once there has been no ring for too long, nobody waits: who did fails, and who comes is refused; but not
        where stages come back because somebody comes."""
        if not self._outage.expired(waiting=len(self._sequences), now=time.monotonic()):
            return
        if self._settings.scales_to_zero:
            self._fail_everyone(self._outage.reason)
        else:
            self._refuse(self._outage.reason)

    def _refuse(self, reason: str) -> None:
        """No request is taken from now on; each that is open fails with the reason."""
        with self._gate:
            self._refusal = reason
        self._take_commands()
        self._fail_everyone(reason)

    def _fail_everyone(self, reason: str) -> None:
        for sequence in self._sequences.everyone():
            self._fail(sequence, "ring_down", reason)

    def _wait_without_ring(self, seconds: float) -> None:
        """Between two attempts to join: requests that come are queued, cancelled ones leave."""
        until = time.monotonic() + seconds
        while not self._stopping.is_set() and (left := until - time.monotonic()) > 0:
            with contextlib.suppress(Empty):
                self._take(self._inbox.get(timeout=left))
            self._take_commands()
            self._give_up()
            self._hand_over()

    def _forget_frames(self) -> None:
        while self._in_flight:
            frame = self._in_flight.popleft()
            self._sequences.lost(frame.shares, frame.leases)

    def end(self, reason: str) -> None:
        """This engine serves nothing any more: `run_forever` ends."""
        self._outage.begin(reason, "stopped", now=time.monotonic())
        metrics.RING_READY.set(0)
        self._forget_frames()
        self._refuse(reason)
        self._hand_over()

    # Handing over.

    def _hand_over(self) -> None:
        """One list of outputs, with what was left to compute for them, the status, and the metrics."""
        if self._outputs:
            outputs, self._outputs = self._outputs, []
            self._deliver([output() if callable(output) else output for output in outputs])
        tokens, self._tokens = self._tokens, 0
        if tokens:
            metrics.GENERATED_TOKENS.inc(tokens)
        self._publish()

    def _publish(self) -> None:
        outage = self._outage
        self.status = EngineStatus(
            ring_ready=not outage.down,
            accepting=self._refusal is None,
            recovering=outage.down and (self._epoch > 0 or self._settings.scales_to_zero) and self._refusal is None,
            replays=self._replays,
            ring_error=outage.reason,
            epoch=self._epoch,
            running=len(self._sequences.running),
            waiting=len(self._sequences.waiting),
            kv_blocks_used=self._sequences.blocks.used,
            kv_blocks_total=self._sequences.blocks.total,
        )
        metrics.RUNNING_SEQUENCES.set(len(self._sequences.running))
        metrics.WAITING_SEQUENCES.set(len(self._sequences.waiting))
        metrics.KV_BLOCKS_USED.set(self._sequences.blocks.used)
        metrics.PREFIX_CACHE_BLOCKS.set(len(self._sequences.blocks.cached))
        metrics.FRAMES_IN_FLIGHT.set(len(self._in_flight))


def log_failure(what: str, error: Exception) -> None:
    """Type and place: the message may quote text of a request."""
    log.error("%s: %s in\n%s", what, type(error).__name__, "".join(traceback.format_tb(error.__traceback__)))
