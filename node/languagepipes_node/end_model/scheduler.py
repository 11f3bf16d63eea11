"""Decides what the next frame carries. Pure: a snapshot in, a decision out; nothing is changed here.

One micro-batch packs decode rows (one token of each of some streams) and prompt chunks. See
docs/scheduling.md."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain, groupby
from typing import Generic, Protocol, TypeVar

from languagepipes_api.member_settings import SpeculativeDecoding

from languagepipes_node.end_model.costs import RingCost
from languagepipes_node.end_model.speculation import PROBE_EVERY, Offer, drafts_that_pay

# While streams run, a step with a chunk takes at most this many decode steps' time, and this long a member. Where
# members share cores it is the whole way round that does, hops included: their times add up. Else each member does.
CHUNK_DECODE_STEPS = 3.0
CHUNK_DECODE_STEPS_SHARED = 3.2
CHUNK_MEMBER_SECONDS = 0.25
# The share of a prompt that goes forward however slow prefill is, so that no prompt waits for ever behind
# streams.
LEAST_CHUNK = 4
# Chunk beside streams while no frame has been measured.
UNMEASURED_CHUNK = 32
# So many sequences are admitted before one whose turn was earlier and that did not fit; then all behind it wait.
MOST_PASSES = 8


class SequenceView(Protocol):
    """What the scheduler reads of a `sequences.Sequence`; the fields are described there."""

    @property
    def arrival(self) -> int: ...
    @property
    def client(self) -> str: ...
    @property
    def priority(self) -> int: ...
    @property
    def passed(self) -> int: ...
    @property
    def length(self) -> int: ...
    @property
    def sent(self) -> int: ...
    @property
    def remaining(self) -> int: ...
    @property
    def blocks(self) -> int: ...
    @property
    def sole_blocks(self) -> int: ...
    @property
    def shared_blocks(self) -> int: ...
    @property
    def computes(self) -> bytes | None: ...
    @property
    def follows(self) -> bool: ...
    @property
    def in_flight(self) -> int: ...
    @property
    def last_step(self) -> int: ...
    @property
    def streaming(self) -> bool: ...
    @property
    def next_stop(self) -> int: ...
    @property
    def last_member(self) -> int: ...
    @property
    def replaying(self) -> bool: ...
    @property
    def suspect(self) -> bool: ...
    @property
    def draft(self) -> tuple[int, ...]: ...
    @property
    def acceptance(self) -> float: ...


S = TypeVar("S", bound=SequenceView)


@dataclass(frozen=True)
class Limits:
    """What the plan and the settings allow. prefill_frames: frames with prompt chunks in flight at once;
    decode_frames: frames with decode rows in flight at once; 1 where members share cores. speculation: whether decode
    rows are followed by drafts: where they pay, wherever there are any, or never."""

    frame_tokens: int
    frames_in_flight: int
    block_tokens: int
    max_running: int
    decode_frames: int
    prefill_frames: int
    speculation: SpeculativeDecoding = "none"


@dataclass(frozen=True)
class FrameView:
    """A frame in flight: how many decode rows and how many tokens of chunks it carries. apart: its sequence is tried
    apart, so nothing else is on the ring."""

    decode_rows: int
    chunk_tokens: int
    apart: bool = False


@dataclass(frozen=True)
class Snapshot(Generic[S]):
    """Everything a decision rests on. running and waiting are in order of arrival.

    free_blocks: can be handed out now, known ones that nobody holds among them. returning_blocks: held by frames in
    flight alone; free when those have returned. step: of the last frame that was sent."""

    running: Sequence[S]
    waiting: Sequence[S]
    frames: Sequence[FrameView]
    free_blocks: int
    returning_blocks: int
    limits: Limits
    costs: RingCost
    step: int = 0

    @property
    def chunk_frames(self) -> int:
        """Frames in flight with prompt chunks."""
        return sum(1 for frame in self.frames if frame.chunk_tokens)

    @cached_property
    def turns(self) -> dict[int, int]:
        """The place of each open sequence, by its arrival: lower priorities first; of one priority each client's oldest
        comes before any client's second, and so on; among equals, the one that arrived first.

        The oldest of the lowest priority is first, and stays first until it ends or a lower one comes. Worked out only
        when asked for."""
        everyone = sorted((*self.running, *self.waiting), key=lambda sequence: (sequence.priority, sequence.arrival))
        alike = (take_turns(same) for _, same in groupby(everyone, key=lambda sequence: sequence.priority))
        return {sequence.arrival: place for place, sequence in enumerate(chain.from_iterable(alike))}

    @cached_property
    def turns_of_all_priorities(self) -> dict[int, int]:
        """The same without priorities, for what has its seat: whoever runs goes forward."""
        if len({sequence.priority for sequence in (*self.running, *self.waiting)}) < 2:
            return self.turns
        everyone = sorted((*self.running, *self.waiting), key=lambda sequence: sequence.arrival)
        return {sequence.arrival: place for place, sequence in enumerate(take_turns(everyone))}

    def in_turn(self, sequences: Sequence[S]) -> list[S]:
        """These, first the one whose turn it is first."""
        if len(sequences) < 2:
            return list(sequences)
        turns = self.turns
        return sorted(sequences, key=lambda sequence: turns[sequence.arrival])


@dataclass(frozen=True)
class Share(Generic[S]):
    """One sequence's part of a micro-batch: its tokens `[start, start + count)`; `wants_row` if they end with
    the last token known, so that the next one is sampled from it. drafts: the last of them are not known but drafted,
    and if they prove right, more tokens are sampled from their rows."""

    sequence: S
    start: int
    count: int
    wants_row: bool
    drafts: tuple[int, ...] = ()

    @property
    def known_stop(self) -> int:
        """The end of those of its tokens that are known."""
        return self.start + self.count - len(self.drafts)

    @property
    def pairs(self) -> float:
        """Over its tokens, how many tokens each attends to."""
        return self.count * (self.start + self.count / 2)

    @property
    def rows(self) -> int:
        """How many rows of it are sampled from, if all goes well."""
        return 1 + len(self.drafts) if self.wants_row else 0


@dataclass(frozen=True)
class Decision(Generic[S]):
    """Carried out in this order: put back `preempt` (they are recomputed later), start `admit` (blocks for
    all of their tokens), send one frame of `shares` (none: send nothing).

    passed: those whose turn was before that of an admitted one, and that did not fit; each once for every such one."""

    preempt: tuple[S, ...] = ()
    admit: tuple[S, ...] = ()
    passed: tuple[S, ...] = ()
    shares: tuple[Share[S], ...] = ()
    decode_rows: int = 0

    @property
    def apart(self) -> bool:
        """Whether it carries a sequence that is tried apart."""
        return any(share.sequence.suspect for share in self.shares)

    @property
    def tokens(self) -> int:
        return sum(share.count for share in self.shares)

    @property
    def drafted(self) -> int:
        """How many of them are drafts."""
        return sum(len(share.drafts) for share in self.shares)

    @property
    def chunk_tokens(self) -> int:
        """How many of them are of prompts."""
        return self.tokens - self.decode_rows - self.drafted


def blocks_for(tokens: int, block_tokens: int) -> int:
    """Blocks that hold `tokens` tokens."""
    return -(-tokens // block_tokens)


def take_turns(sequences: Iterable[S]) -> list[S]:
    """In the order given, but each client's first before any client's second, and so on."""
    rounds: list[list[S]] = []
    next_round: dict[str, int] = {}
    for sequence in sequences:
        place = next_round.get(sequence.client, 0)
        next_round[sequence.client] = place + 1
        if place == len(rounds):
            rounds.append([])
        rounds[place].append(sequence)
    return list(chain.from_iterable(rounds))


def schedule(now: Snapshot[S]) -> Decision[S]:
    """The next micro-batch, or nothing worth sending before a frame has returned or a request arrives."""
    limits = now.limits
    if len(now.frames) >= limits.frames_in_flight:
        return Decision()
    if any(frame.apart for frame in now.frames):
        return Decision()
    suspects = [sequence for sequence in now.running if sequence.suspect and sequence.remaining]
    if suspects and now.frames:
        return Decision()  # what is in flight returns first, so that a suspect is alone on the ring
    if suspects:
        return _apart(now, suspects[0])
    if (replay := _replay(now)).shares:
        return replay
    streams = sum(1 for sequence in now.running if sequence.streaming)
    micro_batches = now.costs.micro_batches(streams, most=min(limits.decode_frames, limits.frames_in_flight))

    rows = _ready_rows(now, streams, micro_batches)
    rows, preempt, free = _make_room(now, rows)
    shares = [Share(row, row.sent, 1, True) for row in rows]

    prompts = [
        sequence
        for sequence in now.running
        if sequence.remaining and not sequence.streaming and not sequence.replaying and sequence not in preempt
    ]
    # The usual step has no prompt, and nobody who could start; then there is nothing to work out.
    may_start = not preempt and _room_to_start(now, free)
    if not (prompts or may_start or preempt or now.chunk_frames):
        shares = _with_drafts(now, shares, micro_batches)
    after = max((prompt.sent for prompt in (prompts or now.waiting)), default=0)
    budget = _chunk_budget(now, streams, micro_batches, rows=len(rows), after=after) if prompts or may_start else 0
    if budget < 1:
        return Decision(preempt=tuple(preempt), shares=tuple(shares), decode_rows=len(rows))
    fitting, unfit = _who_may_start(now, free) if may_start else ([], [])
    turns = now.turns_of_all_priorities
    chunks = _share_out(budget, sorted([*prompts, *fitting], key=lambda sequence: turns[sequence.arrival]), limits)
    served = {chunk.sequence.arrival for chunk in chunks}
    admit = [sequence for sequence in fitting if sequence.arrival in served]
    passed = [one for one in unfit for other in admit if now.turns[one.arrival] < now.turns[other.arrival]]
    return Decision(tuple(preempt), tuple(admit), tuple(passed), (*shares, *chunks), decode_rows=len(rows))


def _apart(now: Snapshot[S], suspect: S) -> Decision[S]:
    """A frame of one sequence, which may be the one that breaks the ring."""
    if not suspect.streaming:
        return Decision(shares=(_chunk(suspect, _most_tokens(now), now.limits),))
    rows, preempt, _ = _make_room(now, [suspect])
    shares = tuple(Share(row, row.sent, 1, True) for row in rows)
    return Decision(preempt=tuple(preempt), shares=shares, decode_rows=len(rows))


def _replay(now: Snapshot[S]) -> Decision[S]:
    """The next frame that writes lost KV again, before everything else: until then its sequences stand still.

    A frame goes to one last member, so it holds the sequences that go as far as the oldest does."""
    behind = [sequence for sequence in now.running if sequence.replaying]
    if not behind or now.chunk_frames >= now.limits.prefill_frames:
        return Decision()
    alike = [sequence for sequence in behind if sequence.last_member == behind[0].last_member]
    pending = sum(sequence.next_stop - sequence.sent for sequence in alike)
    most = _most_tokens(now, replay=True)
    budget = min(most, now.costs.best_chunk(pending, most=most, in_flight=now.limits.prefill_frames))
    return Decision(shares=tuple(_fill(alike, budget, now.limits)))


def _most_tokens(now: Snapshot[S], *, replay: bool = False) -> int:
    """Of a frame: what the plan allows, and not far above what was measured."""
    return min(now.limits.frame_tokens, now.costs.largest_frame(replay=replay))


def _ready_rows(now: Snapshot[S], streams: int, micro_batches: int) -> list[S]:
    """Streams whose last token is known, longest unserved first: this frame's share of all streams."""
    decode_frames = sum(1 for frame in now.frames if frame.decode_rows)
    if not streams or decode_frames >= micro_batches:
        return []
    ready = [sequence for sequence in now.running if sequence.streaming and sequence.remaining]
    ready.sort(key=lambda sequence: (sequence.last_step, sequence.arrival))
    return ready[: min(-(-streams // micro_batches), _most_tokens(now))]


def _make_room(now: Snapshot[S], rows: list[S]) -> tuple[list[S], list[S], int]:
    """(rows that have a block for their token, sequences to put back, blocks free afterwards).

    Where blocks are short, rows get them in turn, and the running sequence whose turn is last gives way: so the first
    always goes forward."""
    block_tokens = now.limits.block_tokens
    free, returning = now.free_blocks, now.returning_blocks
    missing = sum(max(0, blocks_for(row.sent + 1, block_tokens) - row.blocks) for row in rows)
    if missing <= free:
        return rows, [], free - missing
    candidates = now.in_turn(now.running)
    preempt: list[S] = []
    served: list[S] = []
    for row in now.in_turn(rows):
        if row in preempt:
            continue
        needed = max(0, blocks_for(row.sent + 1, block_tokens) - row.blocks)
        while free < needed and returning < needed:
            victim = candidates.pop()
            preempt.append(victim)
            if victim.in_flight:
                returning += victim.sole_blocks
            else:
                free += victim.sole_blocks
            if victim is row:
                break
        if row in preempt:
            continue
        if free >= needed:
            free -= needed
            served.append(row)
        else:
            returning -= needed  # Spoken for: this row waits for frames that are on their way back.
    return served, preempt, free


def _with_drafts(now: Snapshot[S], rows: list[Share[S]], micro_batches: int) -> list[Share[S]]:
    """Decode rows with drafts behind them, where no prompt waits for the time that these take. They lie in blocks that
    the rows need anyhow, so nobody else has fewer."""
    limits = now.limits
    if limits.speculation == "none" or not rows:
        return rows
    drafts = [row.sequence.draft[: _own_space(row, limits)] for row in rows]
    most = _most_tokens(now) - len(rows)
    if limits.speculation == "auto":
        if not now.costs.measured or not any(drafts):
            return rows
        offers = [Offer(row.sequence.acceptance, len(draft)) for row, draft in zip(rows, drafts, strict=True)]
        counts = drafts_that_pay(
            offers,
            most=most,
            seconds=lambda tokens: now.costs.period(tokens, micro_batches),
            probe=now.step % PROBE_EVERY == PROBE_EVERY - 1,
        )
        drafts = [draft[:count] for draft, count in zip(drafts, counts, strict=True)]
    else:
        each = max(0, most) // len(rows)
        drafts = [draft[:each] for draft in drafts]
    return [
        replace(row, count=row.count + len(draft), drafts=draft) if draft else row
        for row, draft in zip(rows, drafts, strict=True)
    ]


def _own_space(row: Share[S], limits: Limits) -> int:
    """Tokens that fit behind this row into blocks that its sequence holds or is about to get for it."""
    stop = row.start + row.count
    return max(row.sequence.blocks, blocks_for(stop, limits.block_tokens)) * limits.block_tokens - stop


def _chunk_budget(now: Snapshot[S], streams: int, micro_batches: int, *, rows: int, after: int) -> int:
    """How many tokens of prompts this frame may carry beside its decode rows. after: a chunk follows so many tokens of
    its prompt at most, to which it attends too."""
    limits, costs = now.limits, now.costs
    most = _most_tokens(now)
    room = most - rows
    if room < 1 or now.chunk_frames >= limits.prefill_frames:
        return 0
    if not streams:
        pending = sum(sequence.remaining for sequence in (*now.running, *now.waiting))
        pending += sum(frame.chunk_tokens for frame in now.frames)
        return min(room, costs.best_chunk(pending, most=most, in_flight=limits.prefill_frames))

    typical_rows = rows or -(-streams // micro_batches)
    if not costs.measured:
        budget = UNMEASURED_CHUNK
    else:
        # A decode step as it will be once these prompts stream too: one stream ahead of a burst does not hold it back.
        coming = min(len(now.running) + len(now.waiting), limits.max_running)
        coming_rows = max(typical_rows, -(-coming // micro_batches))
        context = sum(sequence.sent for sequence in now.running if sequence.streaming) / streams
        fits = _fits_beside_streams(now, coming_rows, typical_rows, context=context, after=after)
        budget = costs.most_tokens(fits, most=most) - typical_rows
    budget = min(room, max(budget, LEAST_CHUNK))
    # More frames than this would queue up before the slowest member, and streams behind them.
    size = typical_rows + budget
    overlapping = costs.measured and limits.decode_frames > 1
    fitting = int(costs.round(size) / costs.slowest(size)) if overlapping else 1
    if len(now.frames) >= max(micro_batches, min(fitting, limits.prefill_frames)):
        return 0
    return budget


def _fits_beside_streams(
    now: Snapshot[S], coming_rows: int, rows: int, *, context: float, after: int
) -> Callable[[int], bool]:
    """Whether a frame of so many tokens, `rows` of them of streams, takes no longer than streams bear."""
    costs = now.costs

    def pairs(tokens: int) -> float:
        chunk = max(0, tokens - rows)
        return (tokens - chunk) * context + chunk * (after + chunk / 2)

    if now.limits.decode_frames == 1:
        whole = CHUNK_DECODE_STEPS_SHARED * costs.round(coming_rows)
        return lambda tokens: (
            costs.round(tokens, pairs(tokens)) <= whole and costs.slowest(tokens, pairs(tokens)) <= CHUNK_MEMBER_SECONDS
        )
    allowed = [min(CHUNK_DECODE_STEPS * member.seconds(coming_rows), CHUNK_MEMBER_SECONDS) for member in costs.members]
    return lambda tokens: all(
        member.seconds(tokens, pairs(tokens)) <= limit for member, limit in zip(costs.members, allowed, strict=True)
    )


def _room_to_start(now: Snapshot[S], free: int) -> bool:
    """Whether there is a seat, and blocks for at least the shortest one that waits."""
    running = len(now.running)
    if not now.waiting or running >= now.limits.max_running or free <= running:
        return False
    return free >= min(_blocks_to_start(sequence, now.limits) for sequence in now.waiting) + running


def _who_may_start(now: Snapshot[S], free: int) -> tuple[list[S], list[S]]:
    """(waiting sequences that fit, those that do not and are passed if a later one starts), both in turn.

    A seat and blocks are counted for each that fits, whether this frame has a chunk for it or not. So a short prompt
    that starts before a long one leaves it room, and only those that do not fit are passed: MOST_PASSES times.

    Of those that begin alike one computes the beginning, and the others start once it is there."""
    limits = now.limits
    computed: set[bytes] = set()
    running, passes_left = len(now.running), len(now.waiting)
    fitting: list[S] = []
    unfit: list[S] = []
    for sequence in now.in_turn(now.waiting):
        if passes_left < 1 or running >= limits.max_running or free <= running:
            break
        if sequence.follows or sequence.computes in computed:
            continue
        if fitting and sequence.priority != fitting[0].priority:
            break  # its short prompt would start before theirs
        # A block in hand for each running sequence: who is let in must not drive out who runs.
        if sequence.in_flight or free < _blocks_to_start(sequence, limits) + running:
            unfit.append(sequence)
            passes_left = min(passes_left, MOST_PASSES - sequence.passed)
            continue
        free -= blocks_for(sequence.length, limits.block_tokens) - sequence.shared_blocks
        if sequence.computes is not None:
            computed.add(sequence.computes)
        running += 1
        passes_left -= 1
        fitting.append(sequence)
    return fitting, unfit


def _share_out(budget: int, prompts: list[S], limits: Limits) -> list[Share[S]]:
    """Chunks of prompts that are in turn. The first is sure of half the budget, and of all if none is shorter than what
    it would have left. The rest goes to the shortest prompts: one of each client, then a second of each, and so on; the
    first counts as its client's one. What they do not want goes back to the first.

    So a short prompt passes a long one, which goes forward all the same, and one client's short prompts do not keep
    another's prompt waiting."""
    if not prompts:
        return []
    first, others = prompts[0], sorted(prompts[1:], key=lambda sequence: sequence.remaining)
    sure = min(first.remaining, -(-budget // 2))
    if others and others[0].remaining < first.remaining - sure:
        chunk = _chunk(first, max(sure, budget - sum(other.remaining for other in others)), limits)
    else:
        chunk = _chunk(first, budget, limits)
    return [chunk, *_fill(take_turns([first, *others])[1:], budget - chunk.count, limits)]


def _blocks_to_start(sequence: SequenceView, limits: Limits) -> int:
    """Blocks for its tokens and for the next one, so that a new stream does not give way at its first step. Those that
    it shares with who runs are there; taking one that is known and idle makes one less free, as any other."""
    return blocks_for(sequence.length + 1, limits.block_tokens) - sequence.shared_blocks


def _fill(sequences: Sequence[S], budget: int, limits: Limits) -> list[Share[S]]:
    """Chunks of these, in this order, as long as the budget lasts."""
    shares: list[Share[S]] = []
    for sequence in sequences:
        if budget < 1:
            break
        shares.append(_chunk(sequence, budget, limits))
        budget -= shares[-1].count
    return shares


def _chunk(sequence: S, budget: int, limits: Limits) -> Share[S]:
    """A stream that is computed again may lack the block of its last token: that one is a decode row, for which room
    is made."""
    stop = sequence.next_stop
    if sequence.blocks:
        stop = min(stop, sequence.blocks * limits.block_tokens)
    count = min(stop - sequence.sent, budget)
    return Share(sequence, sequence.sent, count, wants_row=count == sequence.remaining)
