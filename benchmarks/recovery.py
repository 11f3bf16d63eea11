"""What the loss of a stage costs running streams: `python -m benchmarks.recovery`.

One ring of `languagepipes up`, 16 streams with prompts of 512 tokens. In turn, as often as `--repeats` says:

    A  SIGKILL to a middle stage while all streams decode. From the fault to each stream's next token, and what that
       time goes into; tokens a second before and after.
    B  SIGKILL to all stages and the End Model, and the same requests once more, as for a server that ends what it
       loses. From the fault until each stream has its next token, the one that A's fault kept it waiting for; and
       tokens a second over the same tokens as A's "after", without a fault.

B is spared what would come on top: nobody has to notice the loss, and clients ask again the moment that the ring
serves. Members share this machine's cores, so restarts and prompts both are slower than on machines of their own.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import signal
import statistics
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil  # type: ignore[import-untyped]
from languagepipes_node.end_model.text import TextCodec

from benchmarks import machine, models
from benchmarks.figures import Spread, Target, markdown_table, significant
from benchmarks.prompts import Messages, chat_prompt
from benchmarks.ring import Ring

_NEW_TOKENS = 1200  # more than any stream gets here
_RATIO = Target("lower", 0.4)
_RATE = Target("higher", 0.95)
_LIMIT_SECONDS = 600.0
# `up` starts a member at once only if the one before it lived for half a minute.
_STEADY_SECONDS = 31.0
_POLL_SECONDS = 0.05


@dataclass(frozen=True)
class Recovery:
    """One fault. Seconds since it; `waits` is by stream: its next token.

    phases: by name, in order, each from the end of the one before; the last ends with the median stream's next token.
    """

    phases: dict[str, float]
    waits: tuple[float, ...]


@dataclass
class Result:
    """Samples by repeat. before, after: tokens a second of A. undisturbed: of B, over the tokens of `after`."""

    killed: list[Recovery] = field(default_factory=list)
    restarted: list[Recovery] = field(default_factory=list)
    before: list[float] = field(default_factory=list)
    after: list[float] = field(default_factory=list)
    undisturbed: list[float] = field(default_factory=list)
    recomputed: list[float] = field(default_factory=list)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recovery", description="Measure the loss of a stage.")
    parser.add_argument("--model", choices=list(models.MODELS_BY_NAME), default=models.SMOLLM2.name)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--stages", type=int, default=3, help="besides the End Model (default: 3)")
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--prompt-tokens", type=int, default=512)
    parser.add_argument(
        "--window", type=int, default=24, help="tokens a stream that a rate is taken over (default: 24)"
    )
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args(argv)
    described = machine.describe("benchmarks.recovery")
    print(machine.markdown(described), file=sys.stderr)
    model = models.ensure(options.model)
    codec = TextCodec.load(lambda name: _file(model.directory / name))
    prompts = [
        [
            chat_prompt(
                options.prompt_tokens, seed=100 * repeat + place, count=lambda it: len(codec.encode_chat(it, {}))
            )
            for place in range(options.streams)
        ]
        for repeat in range(options.repeats)
    ]
    result = Result()
    with Ring(model, stages=options.stages, dtype=options.dtype, timeout_seconds=_LIMIT_SECONDS) as ring:
        plan = ring.plan()
        with _Streams(ring, prompts[0][:1]) as warm_up:
            warm_up.wait_for([4])
        for repeat, batch in enumerate(prompts):
            _say(f"repeat {repeat + 1} of {options.repeats}: SIGKILL to a stage under {options.streams} streams")
            had, resumed = _kill_a_stage(ring, batch, options.window, result)
            _say(f"repeat {repeat + 1} of {options.repeats}: SIGKILL to the whole ring, the same requests again")
            _restart_the_ring(ring, batch, options.window, had, resumed, result)
    print(f"{machine.markdown(described)}\n- {model.title}, {options.dtype}; {plan}\n\n{report(result)}")
    return 0


def report(result: Result) -> str:
    """The tables, in Markdown."""
    names = list(result.killed[0].phases)
    rows = [
        [name, str(_spread([each.phases[name] for each in result.killed])), _of_phase(result.restarted, name)]
        for name in names
    ]
    for title, pick in (("median stream's next token", statistics.median), ("last stream's next token", max)):
        rows.append(
            [title, str(_spread([pick(each.waits) for each in result.killed])),
             str(_spread([pick(each.waits) for each in result.restarted]))]
        )  # fmt: skip
    ratios = {
        title: _spread([pick(a.waits) / pick(b.waits) for a, b in zip(result.killed, result.restarted, strict=True)])
        for title, pick in (("median stream", statistics.median), ("last stream", max))
    }
    rates = [
        ["before the fault", str(_spread(result.before))],
        ["after it", str(_spread(result.after))],
        ["the same tokens without a fault", str(_spread(result.undisturbed))],
    ]
    before = _spread([after / before for after, before in zip(result.after, result.before, strict=True)])
    same = _spread([after / other for after, other in zip(result.after, result.undisturbed, strict=True)])
    lines = [
        "Seconds from the fault; each line but the last two is what that part took:",
        "",
        markdown_table(["", "one stage lost", "whole ring started again"], rows),
        "",
        *(
            f"- {title}: {ratio} of a restart of the whole ring; asked: {_RATIO}"
            f" ({'met' if _RATIO.met(ratio.median) else 'missed'})"
            for title, ratio in ratios.items()
        ),
        f"- computed again: {significant(statistics.median(result.recomputed))} tokens",
        "",
        markdown_table(["tokens/s of all streams", ""], rates),
        "",
        f"- after over before: {before}; asked: {_RATE} ({'met' if _RATE.met(before.median) else 'missed'})",
        f"- after over the same tokens without a fault: {same}",
    ]
    return "\n".join(lines)


def _kill_a_stage(ring: Ring, prompts: list[Messages], window: int, result: Result) -> tuple[list[int], list[int]]:
    """A. Returns how many pieces each stream had when the next one was kept from it, and how many it had when all
    streams went on."""
    _wait_steady(ring)
    ready = _ready_file(ring)
    victim = ready["stages"][len(ready["stages"]) // 2]
    recomputed = _metric(ring, "languagepipes_recomputed_tokens_total")
    with _Streams(ring, prompts) as streams:
        streams.wait_for([1] * len(prompts))
        began = time.perf_counter()
        streams.wait_for_more(window * len(prompts))
        watch = _Watch(ring, [victim["name"]])
        killed = time.perf_counter()
        os.kill(victim["pid"], signal.SIGKILL)
        marks = watch.marks(killed)
        had = [_count(times, marks["ring joined"]) for times in streams.times]
        streams.wait_for([count + 1 for count in had])
        resumed = streams.counts
        back = time.perf_counter()
        streams.wait_for_more(window * len(prompts))
        end = time.perf_counter()
    next_ = [times[count] for times, count in zip(streams.times, had, strict=True)]
    result.killed.append(_recovery(killed, marks, next_))
    result.before.append(_rate(streams.times, began, killed))
    result.after.append(_rate(streams.times, back, end))
    result.recomputed.append(_metric(ring, "languagepipes_recomputed_tokens_total") - recomputed)
    return had, resumed


def _restart_the_ring(
    ring: Ring, prompts: list[Messages], window: int, had: list[int], resumed: list[int], result: Result
) -> None:
    """B."""
    _wait_steady(ring)
    ready = _ready_file(ring)
    members = [*ready["stages"], ready["end_model"]]
    watch = _Watch(ring, [member["name"] for member in members])
    killed = time.perf_counter()
    for member in members:
        os.kill(member["pid"], signal.SIGKILL)
    _wait_serving(ring)
    with _Streams(ring, prompts) as streams:
        marks = watch.marks(killed)
        streams.wait_for([count + 1 for count in had])
        streams.wait_for(resumed)
        began = time.perf_counter()
        streams.wait_for_more(window * len(prompts))
        end = time.perf_counter()
    next_ = [times[count] for times, count in zip(streams.times, had, strict=True)]
    result.restarted.append(_recovery(killed, marks, next_))
    result.undisturbed.append(_rate(streams.times, began, end))


def _recovery(killed: float, marks: dict[str, float], next_: list[float]) -> Recovery:
    phases, before = {}, killed
    for name, moment in [*marks.items(), ("computing until the median stream's next token", statistics.median(next_))]:
        phases[name] = max(0.0, moment - before)
        before = max(before, moment)
    return Recovery(phases, tuple(moment - killed for moment in next_))


class StreamFailed(RuntimeError):
    """A stream ended before it was told to, or the ring did not come back."""


class _Streams:
    """Streams of greedy answers without an end, each read in a thread. A context manager: on exit all are given up.

    times: by stream, when each piece of text came, by time.perf_counter(). A piece is a token, but for the few that end
    within a character.
    """

    def __init__(self, ring: Ring, prompts: list[Messages]) -> None:
        self.times: list[list[float]] = [[] for _ in prompts]
        self._stopping = False
        self._error: Exception | None = None
        self._threads = [
            threading.Thread(target=self._read, args=(ring, prompt, times), daemon=True)
            for prompt, times in zip(prompts, self.times, strict=True)
        ]

    def __enter__(self) -> _Streams:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping = True
        for thread in self._threads:
            thread.join()

    @property
    def counts(self) -> list[int]:
        """How many pieces each stream has."""
        return [len(times) for times in self.times]

    def wait_for(self, least: Sequence[int]) -> None:
        """Until each stream has at least so many. Raises StreamFailed."""
        self._wait(lambda: all(count >= wanted for count, wanted in zip(self.counts, least, strict=True)))

    def wait_for_more(self, pieces: int) -> None:
        """Until there are so many more, of all streams together. Raises StreamFailed."""
        wanted = sum(self.counts) + pieces
        self._wait(lambda: sum(self.counts) >= wanted)

    def _wait(self, done: Callable[[], bool]) -> None:
        deadline = time.monotonic() + _LIMIT_SECONDS
        while not done():
            if self._error is not None:
                raise StreamFailed(f"a stream ended: {self._error}") from self._error
            if time.monotonic() > deadline:
                raise StreamFailed(f"the streams have {self.counts} pieces after {_LIMIT_SECONDS:.0f} s")
            time.sleep(_POLL_SECONDS)

    def _read(self, ring: Ring, prompt: Messages, times: list[float]) -> None:
        body = {
            "model": ring.model_id,
            "messages": prompt,
            "max_tokens": _NEW_TOKENS,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
        }
        try:
            with (
                httpx.Client(timeout=_LIMIT_SECONDS, trust_env=False) as client,
                client.stream("POST", f"{ring.url}/chat/completions", json=body) as response,
            ):
                for line in response.iter_lines():
                    if self._stopping:
                        return
                    if not line.startswith("data: {"):
                        continue
                    event = json.loads(line.removeprefix("data: "))
                    if any(choice["delta"].get("content") for choice in event.get("choices", ())):
                        times.append(time.perf_counter())
                    elif "error" in event:
                        break
            raise StreamFailed(f"HTTP {response.status_code} after {len(times)} pieces: {line[:300]}")
        except (httpx.HTTPError, StreamFailed) as error:
            self._error = self._error or error


class _Watch:
    """Looks at a recovery from outside, as it happens: processes, what they report, and the End Model's log."""

    def __init__(self, ring: Ring, members: list[str]) -> None:
        ready = _ready_file(ring)
        self._telemetry = {member["name"]: member["telemetry"] for member in [*ready["stages"], ready["end_model"]]}
        self._old = {member["pid"] for member in [*ready["stages"], ready["end_model"], ready["store"]]}
        self._ring, self._members = ring, members
        self._seen: dict[str, dict[str, float]] = {"started": {}, "imported": {}, "loaded": {}}
        self._stopping = threading.Event()
        self._log_offset = ring.member_log("end-model").stat().st_size
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def marks(self, killed: float) -> dict[str, float]:
        """By name, in order: when that was over, as time.perf_counter() has it; the slowest member's. Waits for it.

        Raises StreamFailed.
        """
        deadline = time.monotonic() + _LIMIT_SECONDS
        joined: list[float] = []
        # The ring may be joined before the last look at a stage that was loading.
        while not joined or len(self._seen["loaded"]) < len(self._members):
            if time.monotonic() > deadline:
                raise StreamFailed(f"no whole ring after {_LIMIT_SECONDS:.0f} s; seen: {self._seen}")
            time.sleep(_POLL_SECONDS)
            log = self._log_events()
            joined = [moment for moment, what in log if what == "ring joined" and moment >= killed]
        self._stopping.set()
        self._thread.join()
        down = [moment for moment, what in log if what == "ring down" and moment >= killed]
        marks = {"noticed": min(down)} if down else {}  # a new End Model has nothing to notice
        marks |= {
            "process started": max(self._seen["started"].values()),
            "imports": max(self._seen["imported"].values()),
            "weights loaded": max(self._seen["loaded"].values()),
            "ring joined": max(joined),
        }
        return marks

    def _log_events(self) -> list[tuple[float, str]]:
        offset = time.time() - time.perf_counter()
        events = []
        with self._ring.member_log("end-model").open() as log:
            log.seek(self._log_offset)
            for line in log:
                for what in ("ring down", "ring joined"):
                    if f"engine: {what}" in line:
                        moment = datetime.datetime.strptime(line[:23], "%Y-%m-%d %H:%M:%S,%f")
                        events.append((moment.timestamp() - offset, what))
        return events

    def _look(self) -> None:
        names: dict[int, str] = {}
        offset = time.time() - time.perf_counter()
        with httpx.Client(timeout=0.5, trust_env=False) as client:
            while not self._stopping.wait(_POLL_SECONDS):
                with contextlib.suppress(psutil.Error):
                    for child in psutil.Process(self._ring.process_id).children(recursive=True):
                        if child.pid not in self._old and child.pid not in names:
                            with contextlib.suppress(psutil.Error):
                                names[child.pid] = _member_name(child.environ())
                                if (name := names[child.pid]) in self._members:
                                    self._seen["started"].setdefault(name, child.create_time() - offset)
                for name in self._seen["started"]:
                    if name in self._seen["loaded"]:
                        continue
                    with contextlib.suppress(httpx.HTTPError, ValueError):
                        status = client.get(f"http://{self._telemetry[name]}/status").json()
                        if status["state"] in ("loading", "ready"):
                            self._seen["imported"].setdefault(name, time.perf_counter())
                        if status["state"] == "ready":
                            self._seen["loaded"].setdefault(name, time.perf_counter())


def _member_name(environment: dict[str, str]) -> str:
    role = environment.get("LANGUAGEPIPES_ROLE", "")
    return f"stage-{environment['LANGUAGEPIPES_STAGE']}" if role == "stage" else role


def _count(times: Sequence[float], before: float) -> int:
    return sum(moment < before for moment in times)


def _rate(times: Sequence[Sequence[float]], start: float, stop: float) -> float:
    """Tokens a second of all streams between two moments."""
    return sum(start < moment <= stop for of_stream in times for moment in of_stream) / (stop - start)


def _wait_serving(ring: Ring) -> None:
    deadline = time.monotonic() + _LIMIT_SECONDS
    while time.monotonic() < deadline:
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(f"{ring.url.removesuffix('/v1')}/readyz", timeout=1.0, trust_env=False).status_code == 200:
                return
        time.sleep(_POLL_SECONDS)
    raise StreamFailed(f"the ring does not serve after {_LIMIT_SECONDS:.0f} s")


def _wait_steady(ring: Ring) -> None:
    """Until every member has lived long enough for a restart without a back-off, and `up` reports the ring as ready."""
    _wait_serving(ring)
    deadline = time.monotonic() + _LIMIT_SECONDS
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError, ValueError, psutil.Error):
            ready = _ready_file(ring)
            born = [psutil.Process(m["pid"]).create_time() for m in [*ready["stages"], ready["end_model"]]]
            if time.time() - max(born) > _STEADY_SECONDS:
                return
        time.sleep(0.5)
    raise StreamFailed(f"not every member is there after {_LIMIT_SECONDS:.0f} s")


def _ready_file(ring: Ring) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(ring.ready_file.read_text())
    return found


def _metric(ring: Ring, name: str) -> float:
    return sum(value for _, value in ring.metrics().get(name, []))


def _of_phase(recoveries: list[Recovery], name: str) -> str:
    values = [each.phases[name] for each in recoveries if name in each.phases]
    return str(_spread(values)) if values else "-"


def _spread(samples: Sequence[float]) -> Spread:
    return Spread.of(samples)


def _file(path: Path) -> bytes:
    if not path.exists():
        raise KeyError(path.name)
    return path.read_bytes()


def _say(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
