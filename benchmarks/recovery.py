"""What the loss of a stage costs running streams: `python -m benchmarks.recovery`.

One ring of `languagepipes up`: an End Model and three stages as processes with mutual TLS. Each repeat has three parts,
with the same requests in each:

undisturbed  all streams to their end
stage lost   SIGKILL to the middle stage when half of all tokens have arrived; the streams go on to their end
ring lost    SIGKILL to the End Model and all stages, as where nothing is replayed: the requests are sent once more,
             each for the tokens that it had when the stage was lost, and one more

"ring lost" is spared what would come on top: nobody has to notice the loss, and the clients ask again at the moment
that the ring serves. A step takes longer the more context there is, so tokens a second are compared with those of the
undisturbed part between the same tokens; so is the CPU time that members take for a token, which other programs on the
machine change less. Members, `up` and the client share this machine's cores.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import statistics
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
from languagepipes_node.end_model.text import TextCodec
from languagepipes_operator.cli.up.restarts import STEADY_SECONDS

from benchmarks import machine, models
from benchmarks.figures import Comparison, Spread, Target, markdown_table, significant
from benchmarks.prompts import Messages, chat_prompt, decode_lengths
from benchmarks.ring import Ring
from benchmarks.stage_restart import children, state_of
from benchmarks.streams import Round, StreamFailed, run_streams

_EXTRA = {"ignore_eos": True, "stream_options": {"include_usage": True}}
_WAIT = Target("lower", 0.4)
_RATE = Target("higher", 0.95)
_LIMIT_SECONDS = 600.0
_ASK_SECONDS = 0.01

# How often the members' CPU time is read while streams run: after each of so many parts of all tokens.
_CPU_READINGS = 64
_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")

Reading = tuple[int, float]  # tokens that had arrived, and the CPU seconds of all members by then
Times = Sequence[Sequence[float]]  # for each stream, when each of its tokens arrived, by time.perf_counter()


@dataclass(frozen=True)
class Fault:
    """When what happened, by time.perf_counter(); of several members the last one counts.

    noticed: by the End Model; None where it was lost itself. started: `up` has started the processes. imported: they
    begin to load weights. loaded: they have, and listen. joined: the ring is whole.
    """

    killed: float
    noticed: float | None
    started: float
    imported: float
    loaded: float
    joined: float

    def parts(self) -> dict[str, float]:
        """Seconds of each part until the ring is whole, each from the end of the one before."""
        marks = {
            "`up` starts the process": self.started,
            "interpreter and imports": self.imported,
            "weights": self.loaded,
            "ring joined": self.joined,
        }
        parts, before = {}, self.killed
        for name, moment in marks.items():
            parts[name] = max(0.0, moment - before)
            before = max(before, moment)
        return parts


@dataclass(frozen=True)
class Recovery:
    """A fault and, for each stream, the seconds from it to the token that it delayed."""

    fault: Fault
    waits: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.waits)

    @property
    def last(self) -> float:
        return max(self.waits)

    def parts(self) -> dict[str, float]:
        """As the fault's, with what follows until the median stream's token, and from there to the last one's."""
        joined = self.fault.joined - self.fault.killed
        return {
            **self.fault.parts(),
            "computed again, median stream": self.median - joined,
            "computed again, last stream": self.last - self.median,
        }


@dataclass(frozen=True)
class Windows:
    """From which to which token, all streams' counted as one: what rates are taken over.

    before: from the moment when every stream has its first token to the fault. after: from the moment when every stream
    has its next token to the end of the first stream.
    """

    before: tuple[int, int]
    after: tuple[int, int]


@dataclass(frozen=True)
class Rates:
    """Tokens a second of all streams in the part "stage lost", and in "undisturbed" between the same tokens.

    cpu: milliseconds of CPU time that all members took for a token of the window `after`.
    """

    before: float
    after: float
    cpu: float
    undisturbed_before: float
    undisturbed_after: float
    undisturbed_cpu: float


@dataclass
class Result:
    """Samples by repeat.

    equal: answers of "stage lost" that are those of "undisturbed", to the letter. arithmetic: what the lost process and
    the new one chose, each by its own measurement at its start.
    """

    stage_lost: list[Recovery] = field(default_factory=list)
    ring_lost: list[Recovery] = field(default_factory=list)
    rates: list[Rates] = field(default_factory=list)
    recomputed: list[float] = field(default_factory=list)
    equal: list[int] = field(default_factory=list)
    arithmetic: list[tuple[str, str]] = field(default_factory=list)

    def comparisons(self) -> list[Comparison]:
        """What was asked."""

        def waits(name: str, ours: list[float], theirs: list[float]) -> Comparison:
            return Comparison(name, "s", Spread.of(ours), Spread.of(theirs), _WAIT)

        rates = self.rates
        return [
            waits(
                "next token, median stream",
                [each.median for each in self.stage_lost],
                [each.median for each in self.ring_lost],
            ),
            waits(
                "next token, last stream",
                [each.last for each in self.stage_lost],
                [each.last for each in self.ring_lost],
            ),
            Comparison(
                "after the fault, beside the same tokens undisturbed",
                "tokens/s",
                Spread.of([each.after for each in rates]),
                Spread.of([each.undisturbed_after for each in rates]),
                _RATE,
            ),
        ]


def main(argv: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(argv)
    new_tokens = options.new_tokens or (128 if options.quick else 512)
    repeats = options.repeats or (1 if options.quick else 3)
    # So that who is asked to end leaves no ring behind, which would serve on and write the next run's ready file.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    described = machine.describe("benchmarks.recovery")
    print(machine.markdown(described), file=sys.stderr)
    model = models.ensure(options.model)
    codec = TextCodec.load(lambda name: _file(model.directory / name))
    result = Result()
    with Ring(model, stages=options.stages, dtype=options.dtype, timeout_seconds=_LIMIT_SECONDS) as ring:
        title = f"{model.title}, {options.dtype}; {ring.plan()}; {options.streams} streams of {new_tokens} tokens"
        for repeat in range(repeats):
            prompts = [
                chat_prompt(length, seed=100 * repeat + place, count=lambda it: len(codec.encode_chat(it, {})))
                for place, length in enumerate(decode_lengths(options.streams))
            ]
            _measure(ring, prompts, new_tokens, result, name=f"repeat {repeat + 1} of {repeats}")
    report = f"{machine.markdown(described)}\n- {title}\n\n{markdown_report(result, streams=options.streams)}"
    print(report)
    if options.output is not None:
        options.output.mkdir(parents=True, exist_ok=True)
        (options.output / "recovery.md").write_text(report + "\n")
        data = {"machine": described, "title": title, **json_report(result)}
        (options.output / "recovery.json").write_text(json.dumps(data, indent=1) + "\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recovery", description="Measure the loss of a stage.")
    parser.add_argument("--quick", action="store_true", help="one repeat with 128 tokens: a minute or two")
    parser.add_argument("--model", choices=list(models.MODELS_BY_NAME), default=models.SMOLLM2.name)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="default: as a pipe's")
    parser.add_argument("--stages", type=int, default=3, help="besides the End Model (default: 3)")
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--new-tokens", type=int, help="of each stream (default: 512)")
    parser.add_argument("--repeats", type=int, help="default: 3")
    parser.add_argument("--output", metavar="DIR", type=Path, help="write recovery.md and recovery.json there")
    return parser


def _measure(ring: Ring, prompts: list[Messages], new_tokens: int, result: Result, *, name: str) -> None:
    """One repeat. Raises StreamFailed if an answer is not complete."""
    streams = len(prompts)
    _say(f"{name}: {streams} streams undisturbed")
    undisturbed, undisturbed_cpu = _run(ring, prompts, [new_tokens] * streams)

    _say(f"{name}: SIGKILL to a stage under {streams} streams")
    _wait_steady(ring)
    stages = ring.ready["stages"]
    stage = stages[len(stages) // 2]
    watch = _Watch(ring, [stage])
    chosen = _arithmetic(ring, stage["name"])
    replayed = _recomputed(ring)
    disturbed, cpu = _run(ring, prompts, [new_tokens] * streams, watch=watch, strike_at=streams * new_tokens // 2)
    fault = watch.fault()
    times = token_times(disturbed)
    had, waits = delays(times, fault)
    result.stage_lost.append(Recovery(fault, waits))
    result.rates.append(rates(times, token_times(undisturbed), windows(times, fault), cpu, undisturbed_cpu))
    result.recomputed.append(_recomputed(ring) - replayed)
    result.arithmetic.append((chosen, _arithmetic(ring, stage["name"])))
    pairs = zip(disturbed.streams, undisturbed.streams, strict=True)
    result.equal.append(sum(ours.text == theirs.text for ours, theirs in pairs))

    _say(f"{name}: SIGKILL to the whole ring, and the same requests again")
    _wait_steady(ring)
    watch = _Watch(ring, [*ring.ready["stages"], ring.ready["end_model"]])
    watch.strike()
    _wait_serving(ring)
    again, _ = _run(ring, prompts, [count + 1 for count in had])
    fault = watch.fault()
    result.ring_lost.append(Recovery(fault, tuple(of_stream[-1] - fault.killed for of_stream in token_times(again))))


# Pure: from moments to figures.


def token_times(round_: Round) -> list[list[float]]:
    """For each stream, when each of its tokens arrived. A token without text of its own is not seen."""
    return [[round_.began + moment for moment in stream.token_times] for stream in round_.streams]


def delays(times: Times, fault: Fault) -> tuple[list[int], tuple[float, ...]]:
    """For each stream: how many tokens it had when the ring was whole again (those that were on their way at the fault
    included), and the seconds from the fault to the next one. Raises StreamFailed if a stream had ended by then."""
    had = [sum(moment < fault.joined for moment in of_stream) for of_stream in times]
    if any(count == len(of_stream) for count, of_stream in zip(had, times, strict=True)):
        raise StreamFailed("a stream ended before the ring was whole again: ask for more tokens")
    return had, tuple(of_stream[count] - fault.killed for count, of_stream in zip(had, times, strict=True))


def windows(times: Times, fault: Fault) -> Windows:
    """Raises StreamFailed if there are no tokens on one side of the fault."""
    had, waits = delays(times, fault)

    def count(until: float) -> int:
        return sum(moment <= until for of_stream in times for moment in of_stream)

    before = count(max(of_stream[0] for of_stream in times)), sum(had)
    after = count(fault.killed + max(waits)), count(min(of_stream[-1] for of_stream in times))
    if not before[0] < before[1] or not after[0] < after[1]:
        raise StreamFailed("nothing to compare before or after the fault: ask for more tokens")
    return Windows(before, after)


def rates(
    disturbed: Times, undisturbed: Times, over: Windows, cpu: Sequence[Reading], undisturbed_cpu: Sequence[Reading]
) -> Rates:
    """Tokens a second and CPU time a token, in both parts over the same tokens."""
    ours, theirs = (sorted(moment for of_stream in times for moment in of_stream) for times in (disturbed, undisturbed))
    return Rates(
        before=rate(ours, *over.before),
        after=rate(ours, *over.after),
        cpu=cpu_of_a_token(cpu, *over.after),
        undisturbed_before=rate(theirs, *over.before),
        undisturbed_after=rate(theirs, *over.after),
        undisturbed_cpu=cpu_of_a_token(undisturbed_cpu, *over.after),
    )


def cpu_of_a_token(readings: Sequence[Reading], first: int, last: int) -> float:
    """Milliseconds of CPU time between the readings that lie in a window of tokens, for each token between them.
    Raises StreamFailed if there are not two."""
    inside = [reading for reading in readings if first <= reading[0] <= last]
    if len(inside) < 2:
        raise StreamFailed("too few tokens after the fault to tell what a token costs: ask for more")
    (tokens, seconds), (more_tokens, more_seconds) = inside[0], inside[-1]
    return 1000 * (more_seconds - seconds) / (more_tokens - tokens)


def rate(moments: Sequence[float], first: int, last: int) -> float:
    """Tokens a second from the arrival of one token to that of another, or of the last there is. Counted from 1."""
    last = min(last, len(moments))
    return (last - first) / (moments[last - 1] - moments[first - 1])


def logged(log: str, what: str, *, after: float) -> float | None:
    """The first moment by time.time() after `after` at which a line that contains `what` was logged; None: never."""
    for line in log.splitlines():
        if what in line:
            moment = datetime.strptime(line[:23], "%Y-%m-%d %H:%M:%S,%f").timestamp()
            if moment >= after:
                return moment
    return None


def markdown_report(result: Result, *, streams: int) -> str:
    """The tables."""
    parts = [
        [
            name,
            str(Spread.of([each.parts()[name] for each in result.stage_lost])),
            str(Spread.of([each.parts()[name] for each in result.ring_lost])),
        ]
        for name in result.stage_lost[0].parts()
    ]
    noticed = [each.fault.noticed - each.fault.killed for each in result.stage_lost if each.fault.noticed is not None]
    compared = [
        [
            figure.name, figure.unit, str(figure.ours), str(figure.theirs), str(figure.ratio), str(figure.target),
            "yes" if figure.met else "no",
        ]
        for figure in result.comparisons()
    ]  # fmt: skip
    before = Spread.of([each.before for each in result.rates])
    beside = Spread.of([each.undisturbed_before for each in result.rates])
    noise = Spread.of([each.before / each.undisturbed_before for each in result.rates])
    compared.append(["before the fault, likewise", "tokens/s", str(before), str(beside), str(noise), "", ""])
    cpu = Spread.of([each.cpu for each in result.rates])
    undisturbed_cpu = Spread.of([each.undisturbed_cpu for each in result.rates])
    more = Spread.of([each.cpu / each.undisturbed_cpu for each in result.rates])
    compared.append(
        ["members' CPU time after the fault, likewise", "ms a token", str(cpu), str(undisturbed_cpu), str(more), "", ""]
    )
    return "\n".join(
        [
            "Seconds that each part took:",
            "",
            markdown_table(["", "stage lost", "ring lost, requests sent again"], parts),
            "",
            f"- The End Model noticed the loss after {Spread.of(noticed)} s, while the process was being started."
            if noticed
            else "- The End Model's log does not say when it noticed the loss.",
            f"- Computed again after the stage's loss: {significant(statistics.median(result.recomputed))} tokens.",
            *(f"- The lost stage computed in {lost}; the new one in {new}." for lost, new in result.arithmetic),
            f"- Every answer was complete; equal to the undisturbed one: {min(result.equal)} of {streams} at least.",
            "",
            markdown_table(
                ["figure", "unit", "stage lost", "ring lost, or undisturbed", "ratio", "asked", "met"], compared
            ),
        ]
    )


def json_report(result: Result) -> dict[str, Any]:
    """Every sample."""

    def recovery(each: Recovery) -> dict[str, Any]:
        noticed = None if each.fault.noticed is None else each.fault.noticed - each.fault.killed
        return {"parts": each.parts(), "noticed": noticed, "waits": list(each.waits)}

    return {
        "comparisons": [figure.to_json() for figure in result.comparisons()],
        "stage_lost": [recovery(each) for each in result.stage_lost],
        "ring_lost": [recovery(each) for each in result.ring_lost],
        "rates": [vars(each) for each in result.rates],
        "recomputed_tokens": result.recomputed,
        "equal_answers": result.equal,
        "arithmetic": result.arithmetic,
    }


# What looks at processes.


class _Watch:
    """Kills members and looks from outside at how they come back: processes, their /status, the End Model's log."""

    def __init__(self, ring: Ring, members: list[dict[str, Any]]) -> None:
        self._ring, self._members = ring, members
        self._end_model = ring.ready["end_model"]["telemetry"]
        self._before = children(ring.process_id)
        self._log_offset = ring.log_of("end-model").stat().st_size
        self._killed = 0.0
        self._seen: dict[str, float] = {}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def strike(self) -> None:
        for member in self._members:
            os.kill(member["pid"], signal.SIGKILL)
        self._killed = time.perf_counter()
        self._thread.start()

    def fault(self) -> Fault:
        """Once the ring is whole again. Raises StreamFailed if that was not seen."""
        self._stopping.set()
        self._thread.join()
        offset = time.time() - time.perf_counter()
        with self._ring.log_of("end-model").open() as file:
            file.seek(self._log_offset)
            log = file.read()
        killed = self._killed + offset - 0.001  # the log has milliseconds
        joined = logged(log, "engine: ring joined", after=killed)
        if joined is None or not {"started", "imported", "loaded"} <= self._seen.keys():
            raise StreamFailed(f"the recovery was not seen: {self._seen}, joined={joined}")
        lost_end_model = any(member["telemetry"] == self._end_model for member in self._members)
        noticed = None if lost_end_model else logged(log, "engine: ring down", after=killed)
        return Fault(
            killed=self._killed,
            noticed=None if noticed is None else noticed - offset,
            joined=joined - offset,
            **self._seen,
        )

    def _look(self) -> None:
        """Until all members are ready, then no more: streams run, and asking takes their time."""
        waiting = [member["telemetry"] for member in self._members]
        imported: set[str] = set()
        while waiting and not self._stopping.wait(_ASK_SECONDS):
            if "started" not in self._seen:
                if len(children(self._ring.process_id) - self._before) < len(self._members):
                    continue
                self._seen["started"] = time.perf_counter()
            for telemetry in list(waiting):
                state = state_of(telemetry).get("state")
                if state in ("loading", "ready"):
                    imported.add(telemetry)
                if state == "ready":
                    waiting.remove(telemetry)
            now = time.perf_counter()
            if len(imported) == len(self._members):
                self._seen.setdefault("imported", now)
            if not waiting:
                self._seen["loaded"] = now


def _run(
    ring: Ring, prompts: list[Messages], new_tokens: list[int], *, watch: _Watch | None = None, strike_at: int = 0
) -> tuple[Round, list[Reading]]:
    """All streams to their end; `watch` strikes once that many tokens have arrived. Raises StreamFailed."""
    events, struck = 0, watch is None
    readings: list[Reading] = []
    every = max(1, sum(new_tokens) // _CPU_READINGS)

    def count(piece: bytes) -> None:
        nonlocal events, struck
        events += piece.count(b"data:")
        if events >= every * (len(readings) + 1):
            readings.append((events, _cpu_seconds(ring)))
        if watch is not None and not struck and events >= strike_at:
            struck = True
            watch.strike()

    round_ = run_streams(
        ring.url,
        prompts,
        model=ring.model_id,
        new_tokens=new_tokens,
        extra=_EXTRA,
        timeout_seconds=_LIMIT_SECONDS,
        on_piece=count,
    )
    got = [stream.tokens for stream in round_.streams]
    if got != new_tokens:
        raise StreamFailed(f"answers of {got} tokens, asked were {new_tokens}")
    return round_, readings


def _cpu_seconds(ring: Ring) -> float:
    """Of the members that run now."""
    ticks = 0
    for pid in children(ring.process_id):
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])  # utime and stime, proc_pid_stat(5)
    return ticks / _TICKS_PER_SECOND


def _arithmetic(ring: Ring, member: str) -> str:
    lines = [line for line in ring.log_of(member).read_text().splitlines() if "arithmetic in " in line]
    return lines[-1].partition("arithmetic in ")[2] if lines else "unknown"


def _wait_serving(ring: Ring) -> None:
    deadline = time.monotonic() + _LIMIT_SECONDS
    while time.monotonic() < deadline:
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(f"{ring.url.removesuffix('/v1')}/readyz", timeout=1.0, trust_env=False).status_code == 200:
                return
        time.sleep(_ASK_SECONDS)
    raise StreamFailed(f"the ring does not serve after {_LIMIT_SECONDS:.0f} s")


def _wait_steady(ring: Ring) -> None:
    """Until `up` starts every member again at once, without a back-off."""
    ring.wait_ready(for_seconds=STEADY_SECONDS + 2.0, timeout_seconds=_LIMIT_SECONDS)


def _recomputed(ring: Ring) -> float:
    return sum(value for _, value in ring.metrics().get("languagepipes_recomputed_tokens_total", []))


def _file(path: Path) -> bytes:
    if not path.exists():
        raise KeyError(path.name)
    return path.read_bytes()


def _say(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
