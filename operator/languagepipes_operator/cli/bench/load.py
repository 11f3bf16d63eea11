"""Keeps a server under one level of load and records every request. Computes no figures."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from languagepipes_operator.cli.bench.arrivals import poisson
from languagepipes_operator.cli.bench.client import Client, RequestForm
from languagepipes_operator.cli.bench.options import BenchOptions, Level
from languagepipes_operator.cli.bench.prompts import Workload
from languagepipes_operator.cli.bench.records import LevelRecording, RequestRecord

_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.1, 2.0
_HEARTBEAT_SECONDS = 0.05


@dataclass
class Progress:
    """Of the level that runs, for whoever shows it. planned: None while only the time ends it."""

    level: Level
    planned: int | None
    seconds: float | None
    started: float = 0.0
    warming_up: bool = False
    records: list[RequestRecord] = field(default_factory=list)


class LoadGenerator:
    """Runs level after level; no prompt is sent twice."""

    def __init__(self, client: Client, form: RequestForm, workload: Workload, options: BenchOptions, seed: int) -> None:
        self._client, self._form, self._workload, self._options, self._seed = client, form, workload, options, seed
        self._next_number = 0
        self.progress: Progress | None = None
        self.warmup_records: list[RequestRecord] = []

    async def run(self, level: Level) -> LevelRecording:
        """Warm up, then measure. Ends with what there is when it is cancelled, and sets `interrupted`."""
        options = self._options
        progress = self.progress = Progress(
            level, options.requests, None if options.requests else options.duration_seconds, warming_up=True
        )
        started = time.perf_counter()
        try:
            await self._warm_up(level)
        except asyncio.CancelledError:
            return LevelRecording((), started, time.perf_counter(), 0.0, 1.0, interrupted=True)
        progress.warming_up = False
        return await self._measure(level, progress)

    async def _warm_up(self, level: Level) -> None:
        """At the level's concurrency. A failure is not looked at: the measurement will have it too."""
        streams = level.streams if level.kind == "streams" else 1
        count = streams if self._options.warmup is None else self._options.warmup
        numbers = iter([self._number() for _ in range(count)])
        await asyncio.gather(*(self._stream(numbers, self.warmup_records) for _ in range(min(streams, count))))

    async def _measure(self, level: Level, progress: Progress) -> LevelRecording:
        options, records = self._options, progress.records
        interrupted = False
        progress.started = started = time.perf_counter()
        cpu_started = time.process_time()
        deadline = None if options.requests else started + options.duration_seconds
        numbers = self._numbers(options.requests, deadline)
        if level.kind == "streams":
            load = [asyncio.create_task(self._stream(numbers, records)) for _ in range(level.streams)]
        else:
            load = [asyncio.create_task(self._open_loop(level.value, started, numbers, records))]
        lateness: list[float] = []
        heartbeat = asyncio.create_task(_heartbeat(lateness))
        try:
            await asyncio.wait(load, timeout=options.duration_seconds if deadline else None)
        except asyncio.CancelledError:
            interrupted = True
        heartbeat.cancel()
        measured = time.perf_counter()
        cpu_seconds = time.process_time() - cpu_started
        try:
            if not interrupted:
                await asyncio.wait(load)  # what started in the window is measured to its end
        except asyncio.CancelledError:
            interrupted = True
        for task in load:
            task.cancel()
        for ended in await asyncio.gather(*load, return_exceptions=True):
            if isinstance(ended, Exception):
                raise ended
        stopped = measured if interrupted else max((record.ended for record in records), default=measured)
        if deadline is not None:
            stopped = min(measured, deadline)
        return LevelRecording(
            tuple(sorted(records, key=lambda record: record.started)),
            started,
            stopped,
            cpu_seconds,
            measured - started,
            tuple(lateness),
            interrupted,
        )

    async def _stream(self, numbers: Iterator[int], records: list[RequestRecord]) -> None:
        """One request after another, until there is no more number. After a failure a pause, which doubles: a
        server that refuses at once would be asked thousands of times a second.
        """
        pause = _PAUSE_SECONDS
        for number in numbers:
            record = await self._client.ask(self._workload.job(number), self._form)
            records.append(record)
            if record.interrupted:
                return
            if record.failure is None:
                pause = _PAUSE_SECONDS
                continue
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)

    async def _open_loop(
        self, rate: float, started: float, numbers: Iterator[int], records: list[RequestRecord]
    ) -> None:
        """A request is sent when it is due, whatever became of others."""
        running: set[asyncio.Task[None]] = set()
        source = random.Random(f"{self._seed}/arrivals/{rate}")  # noqa: S311 (no secret)
        arrivals = poisson(rate, source)
        options = self._options

        async def ask(number: int, due: float) -> None:
            records.append(await self._client.ask(self._workload.job(number), self._form, due=due))

        try:
            for offset in arrivals:
                if not options.requests and offset >= options.duration_seconds:
                    break
                await asyncio.sleep(max(0.0, started + offset - time.perf_counter()))
                number = next(numbers, None)
                if number is None:
                    break
                task = asyncio.create_task(ask(number, started + offset))
                running.add(task)
                task.add_done_callback(running.discard)
            await asyncio.gather(*running)
        except asyncio.CancelledError:
            for task in (left := list(running)):
                task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.gather(*left)

    def _numbers(self, requests: int | None, deadline: float | None) -> Iterator[int]:
        """Shared by all streams: requests that may still be started."""
        sent = 0
        while (requests is None or sent < requests) and (deadline is None or time.perf_counter() < deadline):
            sent += 1
            yield self._number()

    def _number(self) -> int:
        self._next_number += 1
        return self._next_number


async def _heartbeat(lateness: list[float]) -> None:
    """Seconds by which this loop wakes later than it asked for: what it adds to the times that it measures."""
    while True:
        due = time.perf_counter() + _HEARTBEAT_SECONDS
        await asyncio.sleep(_HEARTBEAT_SECONDS)
        lateness.append(max(0.0, time.perf_counter() - due))
