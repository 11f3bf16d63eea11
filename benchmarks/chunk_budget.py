"""What a prompt and a stream cost each other, in virtual time: the real scheduler over members of a known cost.

    python -m benchmarks.chunk_budget

No clock is read: the figures are the same on every machine. One stream runs, a prompt comes, and each frame costs
each member

    calls + max(weights, tokens × product) + attended pairs × pair

seconds, and the ring is measured by it as an engine would. Printed for each bound on a frame's time (in decode steps):
the prompt's tokens a second ÷ alone, and the stream's longest gap ÷ its usual one.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

from languagepipes_node.end_model import scheduler
from languagepipes_node.end_model.costs import RingCost
from languagepipes_node.end_model.scheduler import Decision, FrameView, Limits, Snapshot, schedule

from benchmarks.figures import markdown_table, significant

_FRAME_TOKENS, _BLOCK_TOKENS, _BLOCKS = 512, 64, 1000
_STREAM_TOKENS = 60
_MEMBERS = 3


@dataclass(frozen=True)
class MemberModel:
    """Seconds at one member: to read its weights, for a token's products, for a query to see a token, for calls."""

    weights: float
    product: float
    pair: float
    calls: float = 0.0007

    def seconds(self, tokens: int, pairs: float) -> float:
        return self.calls + max(self.weights, tokens * self.product) + pairs * self.pair


# Estimates, not measurements: about a third of SmolLM2's layers on two cores; the same with products five times as
# fast; a model of which one token's products cost a twentieth of reading the weights.
MODELS = {
    "SmolLM2": MemberModel(weights=0.006, product=90e-6, pair=90e-9),
    "SmolLM2, products 5 times as fast": MemberModel(weights=0.006, product=18e-6, pair=90e-9),
    "large model": MemberModel(weights=0.006, product=300e-6, pair=90e-9),
}


@dataclass(frozen=True)
class View:
    """A sequence as the scheduler sees it."""

    arrival: int
    length: int
    sent: int
    streaming: bool
    client: str = ""
    passed: int = 0
    blocks: int = _BLOCKS
    in_flight: int = 0
    last_step: int = 0
    last_member: int = _MEMBERS
    replaying: bool = False
    suspect: bool = False
    priority: int = 0
    shared_blocks: int = 0
    computes: bytes | None = None
    follows: bool = False

    @property
    def sole_blocks(self) -> int:
        return self.blocks

    @property
    def remaining(self) -> int:
        return self.length - self.sent

    @property
    def next_stop(self) -> int:
        return self.length


@dataclass(frozen=True)
class Outcome:
    """prompt_seconds: until its first token. gaps: between the stream's tokens meanwhile, in seconds."""

    prompt_seconds: float
    gaps: tuple[float, ...]


@dataclass
class _Frame:
    returns: float
    tokens: int
    busy: float
    pairs: float
    shares: list[tuple[int, bool]]  # (arrival, wants a row)
    view: FrameView


def simulate(model: MemberModel, prompt_tokens: int, *, shared_cores: bool, stream: bool = True) -> Outcome:
    """A prompt, beside a stream or alone. shared_cores: members compute one after the other."""
    frames_in_flight = _MEMBERS + 1
    side_by_side = 1 if shared_cores else frames_in_flight
    limits = Limits(_FRAME_TOKENS, frames_in_flight, _BLOCK_TOKENS, 8, side_by_side, side_by_side)
    costs = _measured(model)
    views = {1: View(1, _STREAM_TOKENS, _STREAM_TOKENS - 1, True)} if stream else {}
    waiting = [View(2, prompt_tokens, 0, False)]
    frames: list[_Frame] = []
    free_at = [0.0] * _MEMBERS
    now, moments = 0.0, [0.0]
    while True:
        decision = schedule(
            Snapshot(list(views.values()), waiting, [frame.view for frame in frames], _BLOCKS, 0, limits, costs)
        )
        for started in decision.admit:
            views[started.arrival] = started
            waiting = []
        if decision.shares:
            frames.append(_send(model, decision, free_at, now, shared_cores=shared_cores))
            for share in decision.shares:
                view = views[share.sequence.arrival]
                views[view.arrival] = replace(view, sent=view.sent + share.count, in_flight=view.in_flight + 1)
            continue
        frame = frames.pop(0)
        now = frame.returns
        costs.add(frame.tokens, [frame.busy] * _MEMBERS, frame.pairs)
        for arrival, wants_row in frame.shares:
            view = views[arrival]
            views[arrival] = replace(view, length=view.length + wants_row, in_flight=view.in_flight - 1)
            if arrival == 1:
                moments.append(now)
            elif wants_row:
                return Outcome(now, tuple(later - earlier for earlier, later in itertools.pairwise(moments)))


def _measured(model: MemberModel) -> RingCost:
    """A ring that has seen a stream, and a prompt of 3,600 tokens."""
    costs = RingCost.of(_MEMBERS - 1)
    for tokens in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512):
        for context in (600, 3000, 1800) if tokens > 16 else (_STREAM_TOKENS,):
            costs.add(tokens, [model.seconds(tokens, tokens * context)] * _MEMBERS, tokens * context)
    return costs


def _send(
    model: MemberModel, decision: Decision[View], free_at: list[float], now: float, *, shared_cores: bool
) -> _Frame:
    pairs = sum(share.pairs for share in decision.shares)
    busy = model.seconds(decision.tokens, pairs)
    returns = now
    for member in range(_MEMBERS):
        returns = max(returns, max(free_at) if shared_cores else free_at[member]) + busy
        free_at[member] = returns
    view = FrameView(decision.decode_rows, decision.tokens - decision.decode_rows)
    shares = [(share.sequence.arrival, share.wants_row) for share in decision.shares]
    return _Frame(returns, decision.tokens, busy, pairs, shares, view)


def trade_off(model: MemberModel, *, shared_cores: bool) -> tuple[float, float]:
    """(tokens/s of a 3,600-token prompt beside a stream ÷ alone, longest gap beside 4,000 tokens ÷ the usual one)."""
    alone = simulate(model, 3600, shared_cores=shared_cores, stream=False).prompt_seconds
    beside = simulate(model, 3600, shared_cores=shared_cores).prompt_seconds
    usual = _MEMBERS * model.seconds(1, _STREAM_TOKENS)
    return alone / beside, max(simulate(model, 4000, shared_cores=shared_cores).gaps) / usual


def main() -> None:
    rows = []
    chosen = scheduler.CHUNK_DECODE_STEPS, scheduler.CHUNK_DECODE_STEPS_SHARED
    for steps in (2.0, 2.5, 3.0, 3.2, 3.4, 3.6, 3.8, 4.0):
        scheduler.CHUNK_DECODE_STEPS = scheduler.CHUNK_DECODE_STEPS_SHARED = steps
        row = [str(steps)]
        for model, shared_cores in itertools.product(MODELS.values(), (True, False)):
            speed, gap = trade_off(model, shared_cores=shared_cores)
            row.append(f"{significant(speed, 2)}; {significant(gap, 2)}")
        rows.append(row)
    scheduler.CHUNK_DECODE_STEPS, scheduler.CHUNK_DECODE_STEPS_SHARED = chosen
    print(f"In force: {chosen[0]}; where members share cores {chosen[1]}.\n")
    cases = [f"{name}, {cores}" for name in MODELS for cores in ("shared cores", "own cores")]
    print(markdown_table(["decode steps", *cases], rows))


if __name__ == "__main__":
    main()
