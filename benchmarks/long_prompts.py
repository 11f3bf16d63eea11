"""A long prompt: how soon its first token comes, and what it costs a stream that runs beside it.

    python -m benchmarks.long_prompts [--samples 5] [--stages 2] [--model smollm2]

One sample is four measurements, one after the other, so that a machine that slows down slows all of them:

generate   the first token of a prompt of 3,600 tokens by transformers' `generate`, in the dtype that is faster for it
alone      the same prompt through the ring, with nothing else on it
beside     another prompt of that length while one stream runs: tokens of the prompt a second, beside ÷ alone
gap        a prompt of 4,000 tokens while one stream runs: the stream's longest gap between two tokens from the
           request until the prompt's first token, ÷ its median gap before the request

Prompts are new each time. The stream is another request through the same client.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from benchmarks import machine, models
from benchmarks.figures import Comparison, Spread, Target, comparison_table, significant
from benchmarks.models import BenchmarkModel
from benchmarks.prompts import Messages, chat_prompt
from benchmarks.ring import Ring
from benchmarks.streams import Round, StreamFailed, run_streams
from benchmarks.transformers_generate import DTYPES, Generate

_PROMPT_TOKENS = 3600
_GAP_PROMPT_TOKENS = 4000
_CONTEXT_TOKENS = 8192
_STREAM_PROMPT_TOKENS = 32
_MOST_STREAM_TOKENS = 4000
# Of a long prompt: a first token may have no text of its own.
_ANSWER_TOKENS = 4
# The stream runs alone for so long before the long prompt is sent: that is where its usual gap is from.
_HEAD_START_SECONDS = 1.0
# A dtype of `generate` this much slower in the first try is not measured again.
_HOPELESS = 1.25
_EXTRA = {"ignore_eos": True, "stream_options": {"include_usage": True}}


@dataclass(frozen=True)
class Beside:
    """One long prompt beside one stream, in seconds. stream_tokens_per_second: while the prompt was computed."""

    first_token_seconds: float
    usual_gap_seconds: float
    longest_gap_seconds: float
    stream_tokens_per_second: float


@dataclass
class Samples:
    """Sample i of each list was taken right after the other lists' i."""

    generate: dict[str, list[float]] = field(default_factory=dict)
    alone: list[float] = field(default_factory=list)
    beside: list[Beside] = field(default_factory=list)
    gap: list[Beside] = field(default_factory=list)


def gaps_beside(streams: Round) -> Beside:
    """What a round of two streams says, the long prompt's being the second. Raises StreamFailed unless the first one
    had at least two gaps before the prompt was sent, and ran until after the prompt's first token."""
    stream, prompt = streams.streams
    begin, end = prompt.sent, prompt.token_times[0]
    before = [moment for moment in stream.token_times if moment <= begin]
    after = [moment for moment in stream.token_times if moment >= end]
    if len(before) < 3 or not after:
        raise StreamFailed(
            f"the stream had {len(before)} tokens before the long prompt and {len(after)} after its first token; both"
            " are needed, so the stream has to start sooner or be longer"
        )
    during = [moment for moment in stream.token_times if begin < moment < end]
    meeting = [before[-1], *during, after[0]]  # the gaps that lie in it, or reach into it
    return Beside(
        first_token_seconds=end - begin,
        usual_gap_seconds=statistics.median(_gaps(before)),
        longest_gap_seconds=max(_gaps(meeting)),
        stream_tokens_per_second=len(during) / (end - begin),
    )


def _gaps(moments: Sequence[float]) -> list[float]:
    return [later - earlier for earlier, later in itertools.pairwise(moments)]


def measure(model: BenchmarkModel, *, samples: int, stages: int) -> Samples:
    """All samples. Raises benchmarks.processes.ServerFailed or StreamFailed."""
    taken = Samples()
    with (
        Generate(model.directory, threads=machine.cores()) as generate,
        Ring(model, stages=stages, context=_CONTEXT_TOKENS) as ring,
    ):
        prompts = _Prompts(generate.count)
        tries = {dtype: _by_generate(generate, dtype, prompts.next(_PROMPT_TOKENS)) for dtype in DTYPES}
        dtypes = [dtype for dtype in DTYPES if tries[dtype] <= _HOPELESS * min(tries.values())]
        taken.generate = {dtype: [] for dtype in dtypes}
        for tokens in (_STREAM_PROMPT_TOKENS, _PROMPT_TOKENS, _PROMPT_TOKENS):  # frames grow by doubling
            alone = _alone(ring, prompts.next(tokens))
        beside = _BesideStream(ring, prompts, stream_tokens=int(60 * (_HEAD_START_SECONDS + alone)))
        beside.measure(_PROMPT_TOKENS)
        for sample in range(samples):
            print(f"sample {sample + 1} of {samples}", file=sys.stderr, flush=True)
            prompt = prompts.next(_PROMPT_TOKENS)
            for dtype, seconds in taken.generate.items():
                seconds.append(_by_generate(generate, dtype, prompt))
            taken.alone.append(_alone(ring, prompt))
            taken.beside.append(beside.measure(_PROMPT_TOKENS))
            taken.gap.append(beside.measure(_GAP_PROMPT_TOKENS))
    return taken


class _Prompts:
    """A new prompt of so many tokens each time."""

    def __init__(self, count: Callable[[Messages], int]) -> None:
        self._count, self._made = count, 0

    def next(self, tokens: int) -> Messages:
        self._made += 1
        return chat_prompt(tokens, seed=7000 + self._made, count=self._count)


class _BesideStream:
    """Sends long prompts while a stream of `stream_tokens` runs; of twice as many if it ends too soon."""

    def __init__(self, ring: Ring, prompts: _Prompts, *, stream_tokens: int) -> None:
        self._ring, self._prompts, self._stream_tokens = ring, prompts, stream_tokens

    def measure(self, tokens: int) -> Beside:
        while True:
            try:
                return gaps_beside(
                    run_streams(
                        self._ring.url,
                        [self._prompts.next(_STREAM_PROMPT_TOKENS), self._prompts.next(tokens)],
                        model=self._ring.model_id,
                        new_tokens=[self._stream_tokens, _ANSWER_TOKENS],
                        extra=_EXTRA,
                        stagger_seconds=_HEAD_START_SECONDS,
                    )
                )
            except StreamFailed:
                if self._stream_tokens >= _MOST_STREAM_TOKENS:
                    raise
                self._stream_tokens = min(_MOST_STREAM_TOKENS, 2 * self._stream_tokens)


def _by_generate(generate: Generate, dtype: str, prompt: Messages) -> float:
    return generate.generate(dtype, [prompt], new_tokens=1).first_token_seconds


def _alone(ring: Ring, prompt: Messages) -> float:
    streams = run_streams(ring.url, [prompt], model=ring.model_id, new_tokens=_ANSWER_TOKENS, extra=_EXTRA)
    return streams.first_token_seconds[0]


def compare(taken: Samples) -> list[Comparison]:
    """The three figures."""
    theirs = min(taken.generate.values(), key=statistics.median)
    speeds = [_PROMPT_TOKENS / seconds for seconds in taken.alone]
    speeds_beside = [_PROMPT_TOKENS / each.first_token_seconds for each in taken.beside]
    return [
        Comparison(
            f"first token, {_PROMPT_TOKENS}-token prompt",
            "s",
            Spread.of(taken.alone),
            Spread.of(theirs),
            Target("lower", 0.8),
        ),
        Comparison(
            "that prefill beside one stream",
            "tokens/s",
            Spread.of(speeds_beside),
            Spread.of(speeds),
            Target("higher", 0.7),
        ),
        Comparison(
            f"longest gap of a stream while {_GAP_PROMPT_TOKENS} tokens prefill",
            "ms",
            Spread.of([1000 * each.longest_gap_seconds for each in taken.gap]),
            Spread.of([1000 * each.usual_gap_seconds for each in taken.gap]),
            Target("lower", 4.0),
        ),
    ]


def report(taken: Samples) -> str:
    """The figures as a Markdown table."""
    dtype = min(taken.generate, key=lambda name: statistics.median(taken.generate[name]))
    notes = [f"generate, {dtype}", "alone", "its median gap"]
    table = comparison_table(compare(taken), ours="ring", theirs="compared with", notes=notes)
    during = Spread.of([each.stream_tokens_per_second for each in taken.gap])
    before = Spread.of([1 / each.usual_gap_seconds for each in taken.gap])
    return f"{table}\n\nThe stream: {during} tokens/s while the prompt was computed, {before} before."


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.long_prompts", description="A long prompt, alone and beside a stream."
    )
    parser.add_argument("--samples", type=int, default=5)
    parser.add_argument("--stages", type=int, default=2, help="besides the End Model (default: 2)")
    parser.add_argument("--model", choices=list(models.MODELS_BY_NAME), default="smollm2")
    options = parser.parse_args(argv)
    began = time.monotonic()
    print(machine.markdown(machine.describe("benchmarks.long_prompts")), flush=True)
    taken = measure(models.ensure(options.model), samples=options.samples, stages=options.stages)
    print(f"- Took {significant((time.monotonic() - began) / 60)} minutes. Medians (least–greatest).\n")
    print(report(taken))
    return 0


if __name__ == "__main__":
    sys.exit(main())
