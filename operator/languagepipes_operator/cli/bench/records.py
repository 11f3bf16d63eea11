"""What is kept of each request: times of `time.perf_counter`, in seconds, and numbers of tokens. Knows no HTTP."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class RequestFailure:
    """kind: a few words that requests of one failure share. message: the server's own, or the system's."""

    kind: str
    message: str


@dataclass(slots=True)
class RequestRecord:
    """started: when it was sent, or in open loop when it was due. chunk_times: when a chunk with something of
    the answer came: text, thinking, a call of a tool. prompt_tokens, output_tokens: the server's usage; None
    if it sent none. interrupted: by Ctrl-C, neither completed nor failed.
    """

    number: int
    started: float
    asked_output_tokens: int
    sent: float = 0.0
    ended: float = 0.0
    chunk_times: list[float] = field(default_factory=list)
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    finish_reason: str | None = None
    failure: RequestFailure | None = None
    interrupted: bool = False

    @property
    def completed(self) -> bool:
        return self.failure is None and not self.interrupted

    @property
    def ttft_seconds(self) -> float | None:
        """Time to first token. None: nothing of the answer came."""
        return self.chunk_times[0] - self.started if self.chunk_times else None

    @property
    def e2el_seconds(self) -> float:
        """End-to-end latency: to the end of the stream."""
        return self.ended - self.started

    @property
    def tokens(self) -> int:
        """Of the answer, by the server's usage; without that a chunk counts as one."""
        return len(self.chunk_times) if self.output_tokens is None else self.output_tokens

    @property
    def tpot_seconds(self) -> float | None:
        """Time per output token after the first: the mean of one request. None: its answer has no second token."""
        if len(self.chunk_times) < 2 or self.tokens < 2:
            return None
        return (self.chunk_times[-1] - self.chunk_times[0]) / (self.tokens - 1)

    @property
    def itl_seconds(self) -> list[float]:
        """Inter-token latencies: the gaps between chunks, each with one token on most servers."""
        return [later - earlier for earlier, later in zip(self.chunk_times, self.chunk_times[1:], strict=False)]


@dataclass(frozen=True)
class LevelRecording:
    """Everything that was seen at one level. started, stopped: the window in which throughput is counted;
    requests that started in it and ended after it count with what came in it. cpu_seconds: what this process
    spent in `wall_seconds`. lateness_seconds: samples of how late the measuring loop was.
    """

    records: tuple[RequestRecord, ...]
    started: float
    stopped: float
    cpu_seconds: float
    wall_seconds: float
    lateness_seconds: tuple[float, ...] = ()
    interrupted: bool = False
