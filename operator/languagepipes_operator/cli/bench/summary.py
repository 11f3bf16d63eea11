"""Figures of a level, from its records. Pure: the names and definitions are those of `vllm bench serve`."""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from languagepipes_operator.cli.bench.options import Level
from languagepipes_operator.cli.bench.records import LevelRecording, RequestRecord

PERCENTILES = (50, 90, 99)


def percentile(ordered: Sequence[float], percent: float) -> float:
    """Of numbers in ascending order, interpolated between the two nearest ranks as numpy does; NaN of none."""
    if not ordered:
        return math.nan
    rank = (len(ordered) - 1) * percent / 100
    below = math.floor(rank)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (rank - below)


@dataclass(frozen=True)
class Distribution:
    """Of times in milliseconds. All but count are None if there were none."""

    count: int
    mean: float | None
    p50: float | None
    p90: float | None
    p99: float | None
    least: float | None
    greatest: float | None

    @classmethod
    def of(cls, seconds: Iterable[float | None]) -> Distribution:
        ordered = sorted(value * 1000 for value in seconds if value is not None)
        if not ordered:
            return cls(0, None, None, None, None, None, None)
        p50, p90, p99 = (percentile(ordered, percent) for percent in PERCENTILES)
        return cls(len(ordered), sum(ordered) / len(ordered), p50, p90, p99, ordered[0], ordered[-1])


@dataclass(frozen=True)
class FailureKind:
    kind: str
    count: int
    first_message: str


@dataclass(frozen=True)
class Goodput:
    """share: of the requests that completed or failed, those that completed and met every bound; throughput:
    such requests a second of the window.
    """

    bounds_ms: Mapping[str, float]
    share: float
    request_throughput: float


@dataclass(frozen=True)
class LevelSummary:
    """Throughputs are per second of `duration_seconds`, the window. tokens_per_chunk: of requests with usage;
    a gap of ITL is one between chunks. without_usage: completed requests whose tokens are counted by chunks.
    ended_early: completed with fewer tokens than asked for. silent: completed, and nothing of the answer was
    seen. cpu_share: of one core. lateness_ms: of the measuring loop, which is late where it lacks CPU time.
    """

    level: Level
    duration_seconds: float
    completed: int
    failed: int
    interrupted: int
    failures: tuple[FailureKind, ...]
    prompt_tokens: int
    output_tokens: int
    mean_prompt_tokens: float | None
    mean_output_tokens: float | None
    request_throughput: float
    output_throughput: float
    total_token_throughput: float
    mean_concurrency: float
    ttft_ms: Distribution
    tpot_ms: Distribution
    itl_ms: Distribution
    e2el_ms: Distribution
    goodput: Goodput | None
    tokens_per_chunk: float | None
    without_usage: int
    without_prompt_usage: int
    ended_early: int
    silent: int
    cpu_share: float
    lateness_ms: Distribution

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        level = {"kind": self.level.kind, "value": self.level.value}
        return {**asdict(self), "level": level}


def summarise(level: Level, recording: LevelRecording, goodput_bounds: Mapping[str, float]) -> LevelSummary:
    """goodput_bounds: seconds by ttft, tpot or e2el; empty: no goodput."""
    records = recording.records
    done = [record for record in records if record.completed]
    failed = [record for record in records if record.failure is not None]
    ended = [record for record in done if record.ended <= recording.stopped]
    counted = [record for record in done if record.output_tokens is not None and record.chunk_times]
    chunks = sum(len(record.chunk_times) for record in counted)
    tokens_per_chunk = sum(record.tokens for record in counted) / chunks if chunks else None
    window = max(recording.stopped - recording.started, 1e-9)
    # What Ctrl-C cut off was computed too, but a stream that was cut off has no usage.
    answering = [record for record in records if record.failure is None]
    output_tokens = sum(_tokens_until(recording.stopped, record, tokens_per_chunk or 1.0) for record in answering)
    prompt_tokens = sum(_prompt_tokens_until(recording.stopped, record) for record in answering)
    busy = sum(max(0.0, min(record.ended, recording.stopped) - record.started) for record in records)
    return LevelSummary(
        level=level,
        duration_seconds=window,
        completed=len(done),
        failed=len(failed),
        interrupted=len(records) - len(done) - len(failed),
        failures=_failures(failed),
        prompt_tokens=prompt_tokens,
        output_tokens=round(output_tokens),
        mean_prompt_tokens=_mean([record.prompt_tokens for record in done if record.prompt_tokens is not None]),
        mean_output_tokens=_mean([record.tokens for record in done]),
        request_throughput=len(ended) / window,
        output_throughput=output_tokens / window,
        total_token_throughput=(output_tokens + prompt_tokens) / window,
        mean_concurrency=busy / window,
        ttft_ms=Distribution.of(record.ttft_seconds for record in done),
        tpot_ms=Distribution.of(record.tpot_seconds for record in done),
        itl_ms=Distribution.of(gap for record in done for gap in record.itl_seconds),
        e2el_ms=Distribution.of(record.e2el_seconds for record in done),
        goodput=_goodput(done, failed, recording, goodput_bounds) if goodput_bounds else None,
        tokens_per_chunk=tokens_per_chunk,
        without_usage=sum(1 for record in done if record.output_tokens is None),
        without_prompt_usage=sum(1 for record in done if record.prompt_tokens is None),
        ended_early=sum(1 for record in done if record.tokens < record.asked_output_tokens),
        silent=sum(1 for record in done if not record.chunk_times),
        cpu_share=recording.cpu_seconds / max(recording.wall_seconds, 1e-9),
        lateness_ms=Distribution.of(recording.lateness_seconds),
    )


def meets(record: RequestRecord, bounds: Mapping[str, float]) -> bool:
    """A request without a second token has no TPOT to bound. One of which nothing was seen has no first token."""
    measured = {
        "ttft": math.inf if record.ttft_seconds is None else record.ttft_seconds,
        "tpot": record.tpot_seconds or 0.0,
        "e2el": record.e2el_seconds,
    }
    return record.completed and all(measured[metric] <= bound for metric, bound in bounds.items())


def _goodput(
    done: Sequence[RequestRecord],
    failed: Sequence[RequestRecord],
    recording: LevelRecording,
    bounds: Mapping[str, float],
) -> Goodput:
    good = [record for record in done if meets(record, bounds)]
    in_window = [record for record in good if record.ended <= recording.stopped]
    window = max(recording.stopped - recording.started, 1e-9)
    return Goodput(
        {metric: bound * 1000 for metric, bound in bounds.items()},
        len(good) / (len(done) + len(failed)) if done or failed else 0.0,
        len(in_window) / window,
    )


def _tokens_until(stopped: float, record: RequestRecord, tokens_per_chunk: float) -> float:
    chunks = bisect.bisect_right(record.chunk_times, stopped)
    if not record.completed:
        return chunks * tokens_per_chunk if record.output_tokens is None else record.output_tokens
    if not record.chunk_times:
        return record.tokens if record.ended <= stopped else 0
    return record.tokens * chunks / len(record.chunk_times)


def _prompt_tokens_until(stopped: float, record: RequestRecord) -> int:
    """A prompt has been computed when the first token comes."""
    computed = record.chunk_times[0] if record.chunk_times else record.ended
    return (record.prompt_tokens or 0) if computed <= stopped else 0


def _failures(failed: Sequence[RequestRecord]) -> tuple[FailureKind, ...]:
    """The most frequent first."""
    kinds: dict[str, list[str]] = {}
    for record in sorted(failed, key=lambda record: record.ended):
        if record.failure is not None:
            kinds.setdefault(record.failure.kind, []).append(record.failure.message)
    found = [FailureKind(kind, len(messages), messages[0]) for kind, messages in kinds.items()]
    return tuple(sorted(found, key=lambda failure: -failure.count))


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
