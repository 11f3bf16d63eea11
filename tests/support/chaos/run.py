"""One run: every request twice without faults, then streams without end while faults come, then the reckoning."""

from __future__ import annotations

import itertools
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from support.chaos.comparison import Comparison, compare
from support.chaos.faults import Fault, inject, schedule
from support.chaos.leaks import Usage, leaks, usage, wait_idle
from support.chaos.members import END_MODEL, Members, Shape
from support.chaos.processes import Processes
from support.chaos.requests import Answer, AnswerFailed, Request, ask, make_requests

_REQUESTS_A_STREAM = 1.25
# A stream whose next text takes longer than this has failed, whatever comes then. Wider than any recovery on a loaded
# machine, and within spec.recovery.maxWaitSeconds.
_SILENCE_SECONDS = 240.0
# Pieces of text between two groups of faults: as many for each stream, so that most streams went forward.
_PIECES_BETWEEN = 3
_PROBLEMS_SHOWN = 20
_COUNTED = (
    "replays",
    "recomputed_tokens",
    "requests_waited",
    "ring_down_seconds",
    "ring_epochs",
    "preemptions",
    "prefix_cache_hit_tokens",
    "speculation_draft_tokens",
    "speculation_accepted_tokens",
)


@dataclass(frozen=True)
class Options:
    """seed: of faults and requests. seconds: at most so long, of which a run with faults left fails; None: no limit."""

    shape: Shape
    faults: int
    seed: int
    streams: int = 16
    seconds: float | None = None


@dataclass
class Answers:
    """What comparing answers has come to. rounded: of other texts, within the bound. moved: see Comparison."""

    equal: int = 0
    rounded: int = 0
    tokens: int = 0
    moved: list[float] = field(default_factory=list)

    def add(self, comparison: Comparison) -> None:
        """One answer that is as it must be."""
        self.equal += comparison.equal
        self.rounded += not comparison.equal
        self.tokens += comparison.compared_tokens
        self.moved += comparison.moved

    def lines(self, when: str) -> list[str]:
        """Rows of the report's table."""
        lines = [
            f"| {when}: equal, other within rounding, tokens compared | {self.equal}, {self.rounded}, {self.tokens} |"
        ]
        if self.moved:
            off = _quantiles(self.moved, high=0.999, digits=".2g")
            lines.append(f"| {when}: log-probabilities off by, p50 / p99.9 / most | {off} |")
        return lines


@dataclass
class Report:
    """What a run found. problems: empty if it is good."""

    options: Options
    problems: list[str] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)
    joined: Counter[str] = field(default_factory=Counter)
    undisturbed: Answers = field(default_factory=Answers)
    disturbed: Answers = field(default_factory=Answers)
    pauses: list[float] = field(default_factory=list)
    resumed: list[float] = field(default_factory=list)
    counted: dict[str, float] = field(default_factory=dict)
    started: dict[str, int] = field(default_factory=dict)
    before: dict[str, Usage] = field(default_factory=dict)
    after: dict[str, Usage] = field(default_factory=dict)
    seconds: float = 0.0
    log_tails: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        options = self.options
        lines = [
            f"seed {options.seed}: {sum(self.faults.values())} faults under {options.streams} streams, "
            f"{options.shape}, in {self.seconds:.0f} s",
            "",
            "| | |",
            "| --- | --- |",
            *(f"| {kind} | {count} |" for kind, count in sorted(self.faults.items())),
            *(f"| of them {when} | {count} |" for when, count in sorted(self.joined.items())),
            *self.undisturbed.lines("asked again without faults"),
            *self.disturbed.lines("asked under faults"),
            *(f"| {name.replace('_', ' ')} | {value:.0f} |" for name, value in self.counted.items()),
            f"| longest pause within an answer, p50 / p99 / most | {_quantiles(self.pauses)} s |",
            f"| from a fault to the next token of any stream, p50 / p99 / most | {_quantiles(self.resumed)} s |",
        ]
        for name, was in self.before.items():
            now = self.after.get(name)
            if now is not None:
                lines.append(
                    f"| {name}: starts, threads, descriptors, MiB | {self.started.get(name, 0)}, "
                    f"{was.threads} → {now.threads}, {was.descriptors} → {now.descriptors}, "
                    f"{was.resident_bytes / 2**20:.0f} → {now.resident_bytes / 2**20:.0f} |"
                )
        if self.problems:
            shown = self.problems[:_PROBLEMS_SHOWN]
            lines += ["", f"{len(self.problems)} problems with seed {options.seed}; the first {len(shown)}:", *shown]
            lines += [f"\n--- {name}\n{tail}" for name, tail in self.log_tails.items()]
        return "\n".join(lines)


def _quantiles(values: Sequence[float], high: float = 0.99, digits: str = ".2f") -> str:
    if not values:
        return "-"
    ordered = sorted(values)
    shown = (statistics.median(ordered), ordered[min(len(ordered) - 1, int(high * len(ordered)))], ordered[-1])
    return " / ".join(format(value, digits) for value in shown)


def run(
    options: Options, processes: Processes, directory: Path, *, say: Callable[[str], None] = lambda line: None
) -> Report:
    """The report; its problems are the run's. Raises AssertionError if the replica does not come up at all."""
    report = Report(options)
    began = time.monotonic()
    started = dict(processes.started)
    with Members(options.shape, directory, processes) as members:
        say(f"the replica is ready after {time.monotonic() - began:.0f} s")
        _Run(options, members, report, say).go()
        report.started = {name: processes.started[name] - started.get(name, 0) for name in members.names}
        if report.started[END_MODEL] != 1:
            report.problems.append(f"the End Model was started {report.started[END_MODEL]} times")
        if report.problems:
            report.log_tails = {name: members.log_tail(name) for name in members.names}
    report.seconds = time.monotonic() - began
    return report


class _Run:
    def __init__(self, options: Options, members: Members, report: Report, say: Callable[[str], None]) -> None:
        self._options, self._members, self._report, self._say = options, members, report, say
        self._requests = make_requests(options.seed, int(_REQUESTS_A_STREAM * options.streams), options.shape.dtype)
        self._expected: dict[str, Answer] = {}
        self._lock = threading.Lock()
        self._texts = 0
        self._last_text = 0.0
        self._deadline = None if options.seconds is None else time.monotonic() + options.seconds

    def go(self) -> None:
        if not self._undisturbed():
            return
        wait_idle(self._members)
        self._report.before = usage(self._members)
        self._disturbed()
        self._report.problems += leaks(self._members, self._report.before)
        self._report.after = usage(self._members)
        after = self._members.metrics()
        for name in _COUNTED:
            self._report.counted[name] = after.get(f"languagepipes_{name}_total", 0.0)

    def _undisturbed(self) -> bool:
        """Twice, so that an answer which depends on who shares its frames shows before anything is broken.

        The second time in reverse order: in other company.
        """
        self._expected = self._ask_all(self._requests)
        for name, answer in self._ask_all(self._requests[::-1]).items():
            if name in self._expected:
                self._compare(name, answer, self._report.undisturbed, "undisturbed: ")
        self._say(f"{len(self._expected)} requests were answered twice without faults")
        return not self._report.problems

    def _compare(self, name: str, answer: Answer, answers: Answers, when: str = "") -> None:
        comparison = compare(self._expected[name], answer, self._options.shape.dtype)
        if comparison.problem is not None:
            self._problem(f"{when}{name}: {comparison.problem}")
            return
        with self._lock:
            answers.add(comparison)

    def _ask_all(self, requests: Sequence[Request]) -> dict[str, Answer]:
        answers: dict[str, Answer] = {}
        left = iter(requests)

        def work() -> None:
            with _client() as client:
                while (request := self._next(left)) is not None:
                    try:
                        answers[request.name] = ask(client, self._members.url, request)
                    except AnswerFailed as error:
                        self._problem(f"undisturbed: {request.name}: {error}")

        self._in_threads(work)
        return answers

    def _next(self, requests: Iterator[Request]) -> Request | None:
        with self._lock:
            return next(requests, None)

    def _in_threads(self, work: Callable[[], None]) -> None:
        threads = [threading.Thread(target=work, daemon=True) for _ in range(self._options.streams)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _disturbed(self) -> None:
        over = threading.Event()
        requests = itertools.cycle(self._requests)
        streams = threading.Thread(target=self._in_threads, args=(lambda: self._stream(requests, over),), daemon=True)
        streams.start()
        number = 0
        groups = schedule(self._options.seed, self._options.faults, stages=self._options.shape.stages)
        for group in groups:
            if not self._wait_for_answers() or self._report.problems:
                break
            number += len(group)
            self._say(f"{number}: {' + '.join(map(str, group))}")
            self._break(group, seed=self._options.seed + number)
        if number < self._options.faults:
            self._problem(f"{number} of {self._options.faults} faults were injected")
        over.set()
        streams.join()

    def _break(self, group: list[Fault], *, seed: int) -> None:
        began = time.monotonic()
        inject(self._members, group, seed=seed)
        self._report.faults.update(fault.kind for fault in group)
        self._report.joined.update(fault.when for fault in group if fault.when != "alone")
        # Until the first text after all is mended; what comes before that is of frames that were on their way home.
        mended = time.monotonic()
        while self._last_text < mended and time.monotonic() - mended < _SILENCE_SECONDS and not self._report.problems:
            time.sleep(0.01)
        self._report.resumed.append(self._last_text - began)

    def _wait_for_answers(self) -> bool:
        """Whether streams went forward within the time."""
        wanted = self._texts + _PIECES_BETWEEN * self._options.streams
        end = time.monotonic() + _SILENCE_SECONDS
        while self._texts < wanted and not self._report.problems:
            if self._deadline is not None and time.monotonic() > self._deadline:
                self._problem(f"the run took more than {self._options.seconds:.0f} s")
                return False
            if time.monotonic() > end:
                self._problem(f"no text for {_SILENCE_SECONDS:.0f} s; status: {self._members.status()}")
                return False
            time.sleep(0.01)
        return True

    def _stream(self, requests: Iterator[Request], over: threading.Event) -> None:
        """One request after the other until all faults are over; each answer is compared."""
        with _client() as client:
            while not over.is_set():
                request = self._next(requests)
                assert request is not None
                try:
                    answer = ask(client, self._members.url, request, on_text=self._text)
                except AnswerFailed as error:
                    self._problem(f"{request.name}: {error}")
                    return  # one failed request fails the run
                with self._lock:
                    self._report.pauses.append(answer.longest_pause_seconds)
                self._compare(request.name, answer, self._report.disturbed)

    def _text(self) -> None:
        with self._lock:
            self._texts += 1
            self._last_text = time.monotonic()

    def _problem(self, sentence: str) -> None:
        with self._lock:
            self._report.problems.append(f"{time.strftime('%H:%M:%S')} {sentence}")
        self._say(f"PROBLEM: {sentence}")


def _client() -> httpx.Client:
    return httpx.Client(timeout=_SILENCE_SECONDS, trust_env=False)
