"""Shows how far a level is, on stderr: a bar on a terminal, else one line when it has ended."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

from rich import progress as rich_progress
from rich.console import Console

from languagepipes_operator.cli.bench.load import LoadGenerator, Progress

_SECONDS = 0.5  # between two looks: drawing takes a millisecond of the measuring thread


class ProgressDisplay:
    def __init__(self, console: Console) -> None:
        self._console = console

    @contextlib.asynccontextmanager
    async def showing(self, load: LoadGenerator) -> AsyncIterator[None]:
        """While a level of `load` runs."""
        if not self._console.is_terminal:
            yield
            if load.progress is not None:
                self._console.print(_line(load.progress), soft_wrap=True)
            return
        bar = rich_progress.Progress(
            rich_progress.TextColumn("{task.description}"),
            rich_progress.BarColumn(),
            rich_progress.TaskProgressColumn(),
            rich_progress.TimeElapsedColumn(),
            rich_progress.TextColumn("{task.fields[state]}"),
            console=self._console,
            auto_refresh=False,
            transient=True,
        )
        with bar:
            task = bar.add_task("", total=1.0, state="")
            drawing = asyncio.create_task(_draw(bar, task, load))
            try:
                yield
            finally:
                drawing.cancel()
        if load.progress is not None:
            self._console.print(_line(load.progress), soft_wrap=True)


async def _draw(bar: rich_progress.Progress, task: rich_progress.TaskID, load: LoadGenerator) -> None:
    while True:
        if (progress := load.progress) is not None:
            bar.update(task, description=str(progress.level), completed=_share(progress), state=_state(progress))
            bar.refresh()
        await asyncio.sleep(_SECONDS)


def _share(progress: Progress) -> float:
    if progress.warming_up:
        return 0.0
    if progress.planned:
        return len(progress.records) / progress.planned
    return min(1.0, (time.perf_counter() - progress.started) / progress.seconds) if progress.seconds else 0.0


def _state(progress: Progress) -> str:
    if progress.warming_up:
        return "warming up"
    tokens = sum(record.tokens for record in progress.records if record.completed)
    seconds = max(time.perf_counter() - progress.started, 1e-9)
    ending = ", waiting for the last answers" if progress.seconds and seconds > progress.seconds else ""
    return f"{_line(progress, name=False)}, {tokens / seconds:.1f} tok/s{ending}"


def _line(progress: Progress, *, name: bool = True) -> str:
    failed = sum(1 for record in progress.records if record.failure is not None)
    done = sum(1 for record in progress.records if record.completed)
    failures = f", {failed} failed" if failed else ""
    return f"{f'{progress.level}: ' if name else ''}{done} request{'s' if done != 1 else ''}{failures}"
